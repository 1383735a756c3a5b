"""No picture of a person and no weights trained on people get into the repository."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from adjointdeis.harness.provenance import morph_text

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "frll" / "guard.py"
SPEC = importlib.util.spec_from_file_location("frll_guard", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
guard = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(guard)
FACE = "src/adjointdeis/assets/mini/faces/001_03.png"


def picture(path: Path, sources: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    marks = PngInfo()
    for key, value in morph_text("dim_a", "0", sources).items() if sources else ():
        marks.add_itxt(key, value)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, "png", pnginfo=marks)


def weights(path: Path, **training: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"training": json.dumps(training)} if training else None
    save_file({"w": np.zeros(2, np.float32)}, path, metadata)


def test_nothing_tracked_shows_people() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout")
    found = {name: guard.reason(Path(name)) for name in listed.stdout.splitlines()}
    assert FACE in found
    assert {name: why for name, why in found.items() if why} == {}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("experiments/frll/morphs.png", "below experiments/frll"),
        ("outputs/frll/table1/morphs/dim_a/001_004.png", "below outputs"),
        ("data/real/MobileFaceNet.tflite", "below data"),
        ("docs/001_03.png", "named as a photograph"),
        ("experiments/mini/model.ckpt", "do not say what they were trained on"),
        ("docs/faces.onnx", "do not say"),
    ],
)
def test_places_and_names_are_refused(name: str, why: str, tmp_path: Path) -> None:
    picture(tmp_path / name)
    assert why in (guard.reason(Path(name), tmp_path) or "")


def test_morphs_of_people_are_refused_and_those_of_nobody_are_not(tmp_path: Path) -> None:
    embedded = tmp_path / FACE
    picture(embedded)
    digest = next(iter(guard.embedded_faces(tmp_path)))
    picture(tmp_path / "docs" / "ours.png", {"001_03.png": digest})
    picture(tmp_path / "docs" / "theirs.png", {"001_03.png": digest, "002_03.png": "0" * 64})
    picture(tmp_path / "docs" / "plot.png")
    assert guard.reason(Path(FACE), tmp_path) is None
    assert guard.reason(Path("docs/ours.png"), tmp_path) is None
    assert guard.reason(Path("docs/plot.png"), tmp_path) is None
    assert "not the embedded ones" in (guard.reason(Path("docs/theirs.png"), tmp_path) or "")


def test_weights_trained_on_a_folder_of_faces_are_refused(tmp_path: Path) -> None:
    weights(tmp_path / "a.safetensors", recipe={"faces": "data/frll", "steps": 3})
    weights(tmp_path / "b.safetensors", recipe={"faces": None, "steps": 3})
    weights(tmp_path / "c.safetensors")
    assert "folder of faces" in (guard.reason(Path("a.safetensors"), tmp_path) or "")
    assert guard.reason(Path("b.safetensors"), tmp_path) is None
    assert guard.reason(Path("c.safetensors"), tmp_path) is None


def test_the_program_names_what_it_refuses() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "README.md", "outputs/face.png"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("outputs/face.png: an image below outputs")
    assert "guard.py" in (ROOT / ".pre-commit-config.yaml").read_text()
