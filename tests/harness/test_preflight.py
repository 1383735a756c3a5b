"""Everything that is wrong with faces and pairs is said at once, before the run starts."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_profile import SIZE, composed, overrides

from adjointdeis.harness.benchmark import BenchmarkError, ImageCheck, face_detector, load_benchmark
from adjointdeis.harness.launch import launch


@pytest.fixture
def faces(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny / "faces", tmp_path / "faces"))


def test_good_images_pass(tiny) -> None:
    check = ImageCheck(SIZE, lambda image: 1)
    assert check(load_benchmark(f"{tiny}/faces", f"{tiny}/pairs.csv")) == []


def test_all_problems_are_listed_together(tiny, tmp_path, faces) -> None:
    pairs = tmp_path / "pairs.csv"
    lines = ["001_03.png,077_03.png,a.png", "002_03.png,002_03.png,b.png"]
    pairs.write_text("\n".join([*lines, (tiny / "pairs.csv").read_text()]))
    (faces / "001_03.png").write_text("I am no picture")
    Image.new("RGB", (20, 24)).save(faces / "002_03.png")
    (faces / "003_08.png").unlink()
    crowd, empty = faces / "003_03.png", faces / "004_03.png"
    Image.fromarray(np.full((SIZE, SIZE, 3), 77, np.uint8)).save(crowd)
    Image.fromarray(np.full((SIZE, SIZE, 3), 11, np.uint8)).save(empty)
    counts = {77: 3, 11: 0}
    check = ImageCheck(SIZE, lambda image: counts.get(int(image[0, 0, 0]), 1))
    with pytest.raises(BenchmarkError) as caught:
        load_benchmark(str(faces), str(pairs), check=check)
    text = str(caught.value)
    for part in (
        "unknown subject 077",
        "both images show subject 002",
        "003_08 (image)",
        "4 images cannot be used",
        "001_03.png: not a readable image",
        f"002_03.png is 20x24, not {SIZE}x{SIZE}",
        "003_03.png: 3 faces were found",
        "004_03.png: no face was found",
    ):
        assert part in text, part


def test_a_probe_may_have_any_size(tiny, faces) -> None:
    Image.new("RGB", (20, 24)).save(faces / "002_08.png")
    check = ImageCheck(SIZE)
    assert check(load_benchmark(str(faces), f"{tiny}/pairs.csv")) == []


def test_nothing_has_been_made_when_a_problem_is_found(tiny, tmp_path, faces) -> None:
    (faces / "004_03.png").write_text("I am no picture")
    run = tmp_path / "run"
    with pytest.raises(SystemExit, match="not a readable image"):
        launch(composed(overrides(tiny, run, f"data.faces={faces}")))
    assert not list(run.rglob("*.png"))


def test_dlib_counts() -> None:
    pytest.importorskip("dlib")
    assert face_detector()(np.zeros((160, 160, 3), np.uint8)) == 0
