"""Preparing data: photographs aligned once, and SYN-MAD's rule with its overlap."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_profile import composed

from adjointdeis.faces.datasets.pairs import read_pairs
from adjointdeis.faces.datasets.tem import read_tem, write_tem
from adjointdeis.faces.image_io import read_image, write_image
from adjointdeis.harness.assets import MINI
from adjointdeis.harness.benchmark import load_benchmark
from adjointdeis.harness.landmarks import BenchmarkLandmarks
from adjointdeis.harness.launch import launch
from synthetic_faces.capture import sample_capture
from synthetic_faces.expression import REST, smile
from synthetic_faces.identity import sample_identity
from synthetic_faces.renderer import Renderer
from synthetic_faces.seeds import Streams


def test_a_template_comes_back(tmp_path) -> None:
    points = np.random.default_rng(1).uniform(0, 256, (189, 2))
    write_tem(tmp_path / "001_03.tem", points)
    np.testing.assert_allclose(read_tem(tmp_path / "001_03.tem").points, points, atol=1e-4)


def pairs(tmp_path: Path, *more: str) -> None:
    lines = ["task=pairs", "task.recogniser=selector.safetensors", f"paths.root={tmp_path}"]
    launch(composed([*lines, f"paths.run={tmp_path}/run", "judges=none", *more]))


def test_the_rule_finds_the_embedded_list_again(tmp_path, capsys) -> None:
    pairs(tmp_path, f"task.compare={MINI}/pairs.csv")
    found = read_pairs(tmp_path / "data" / "mini" / "pairs.csv")
    assert len(found) == 500
    listed = read_pairs(MINI / "pairs.csv")
    # The embedded list leaves out people whom some recogniser confuses, and nothing else: the 50
    # it takes of each sex are among the 250 most similar ones.
    assert f"{len(listed)} of the {len(listed)} pairs" in capsys.readouterr().out
    neutral = {pair.capture_a for pair in found} | {pair.capture_b for pair in found}
    assert neutral == {"03"}


def test_what_the_rule_needs_is_named(tmp_path) -> None:
    faces = tmp_path / "faces"
    faces.mkdir()
    shutil.copy(MINI / "faces" / "001_03.png", faces)
    with pytest.raises(SystemExit, match=r"no table of sexes; give task\.info"):
        pairs(tmp_path, f"data.faces={faces}")
    (faces / "subjects.csv").write_text("subject_id,sex\n002,female\n")
    with pytest.raises(SystemExit, match="no row for the subjects 001"):
        pairs(tmp_path, f"data.faces={faces}")


def test_photographs_of_ones_own_are_aligned(tmp_path) -> None:
    """The only command that aligns asked for the information file of FRLL, or died on a key."""
    pytest.importorskip("dlib")
    studio, renderer = sample_capture(Streams(0)("light and camera")), Renderer()
    for seed in (20, 21):
        person = sample_identity(seed)
        for capture, face in (("03", REST), ("08", smile(person.shape, 0.9))):
            picture = renderer.render(person, face, studio, 128).permute(1, 2, 0).numpy()
            write_image(tmp_path / "photographs" / f"p{seed}_{capture}.png",
                        np.uint8(255 * picture))  # fmt: skip
    lines = ["task=align", "judges=none", "task.size=64", "task.transform_size=256",
             f"task.destination={tmp_path}/faces", f"paths.root={tmp_path}"]  # fmt: skip
    with pytest.raises(SystemExit, match=r"data=real data\.root=/path/to/photographs"):
        launch(composed([*lines, f"paths.run={tmp_path}/none"]))
    own = [*lines, "data=real", f"data.root={tmp_path}/photographs"]
    launch(composed([*own, f"paths.run={tmp_path}/run"]))
    faces = sorted((tmp_path / "faces").glob("*.png"))
    assert [face.stem for face in faces] == ["p20_03", "p20_08", "p21_03", "p21_08"]
    assert {read_image(face).shape for face in faces} == {(64, 64, 3)}
    large = ["task.size=512", f"task.destination={tmp_path}/large", f"paths.run={tmp_path}/blown"]
    with pytest.warns(UserWarning, match=r"4 of 4 faces .* the 512 pixels .* p20_03\.png \(\d+ p"):
        launch(composed([*own, *large]))


@pytest.fixture(scope="module")
def two_people(tmp_path_factory) -> Path:
    """Two people of FRLL with their templates."""
    pytest.importorskip("dlib")
    named = os.environ.get("ADJOINTDEIS_FRLL")
    root = Path(named) if named else Path(__file__).parents[4] / "shared" / "data" / "frll"
    if not root.is_dir():
        pytest.skip("no FRLL photographs (set ADJOINTDEIS_FRLL)")
    folder = tmp_path_factory.mktemp("frll")
    for name in ("001_03", "001_08", "002_03", "002_08"):
        for path in root.rglob(f"{name}.*"):
            shutil.copy(path, folder)
    shutil.copy(root / "london_faces_info.csv", folder)
    return folder


def test_photographs_become_a_benchmark(two_people, tmp_path) -> None:
    lines = ["task=align", "data=frll", f"data.root={two_people}", f"paths.root={tmp_path}"]
    lines += ["task.transform_size=512", "task.detection_side=640", "judges=none"]
    launch(composed([*lines, f"paths.run={tmp_path}/run"]))
    faces = tmp_path / "data" / "paper" / "faces"
    (tmp_path / "pairs.csv").write_text("001_03.png,002_03.png,001_002.png\n")
    benchmark = load_benchmark(str(faces), str(tmp_path / "pairs.csv"))
    image = read_image(faces / "001_03.png")
    assert image.shape == (256, 256, 3)
    find = BenchmarkLandmarks(benchmark.dataset)
    points = find(faces / "001_03.png", image, "dlib68")
    template = find(faces / "001_03.png", image, "tem")
    assert points.shape == (68, 2) and template.shape == (189, 2)
    # FFHQ's crop puts the eyes level, near the middle; template points 0 and 1 are the pupils.
    # Other settings in the same folder would leave pictures of one kind with points of another.
    with pytest.raises(SystemExit, match=r"001_03\.png is another picture than .*destination"):
        launch(composed([*lines, "task.size=128", f"paths.run={tmp_path}/other"]))
    eyes = np.stack([points[36:42].mean(0), points[42:48].mean(0)])
    assert abs(eyes[0, 1] - eyes[1, 1]) < 4 and abs(eyes[:, 0].mean() - 127.5) < 6
    pupils = template[np.argsort(template[:2, 0])]
    assert np.abs(pupils - eyes).max() < 8
