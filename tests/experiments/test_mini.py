"""experiments/mini: the frozen faces, and the quality of what was trained."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from adjointdeis.harness import assets
from experiments.mini import faces, publish
from synthetic_faces.landmarks import TEMPLATE_POINTS


def test_the_file_of_the_benchmark_is_what_the_seeds_say(tmp_path) -> None:
    faces.write_landmarks(tmp_path / faces.LANDMARKS, faces.choose_subjects(faces.PER_SEX)[:2])
    with (
        np.load(tmp_path / faces.LANDMARKS) as made,
        np.load(assets.MINI / "faces" / faces.LANDMARKS) as stored,
    ):
        assert made["stems"].tolist() == stored["stems"].tolist()[:4] == [
            "001_03", "001_08", "002_03", "002_08",
        ]  # fmt: skip
        np.testing.assert_allclose(made["points"], stored["points"][:4], atol=0.02)
        assert stored["points"].shape == (204, TEMPLATE_POINTS, 2)
        assert int(stored["size"]) == 64


def test_benchmark_files(tmp_path):
    subjects = faces.write_benchmark(tmp_path, per_sex=1, size=16, progress=False)
    assert {s.identity.shape.sex for s in subjects} == {"female", "male"}
    names = sorted(p.name for p in tmp_path.glob("*.png"))
    assert names == ["001_03.png", "001_08.png", "002_03.png", "002_08.png"]
    with Image.open(tmp_path / "001_08.png") as picture:
        assert picture.size == (16, 16)
        assert picture.text["Description"] == faces.NOTICE
        assert "smile" in picture.text["Title"]
    with (tmp_path / "subjects.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["subject_id"] for row in rows] == ["001", "002"]
    assert [int(row["seed"]) for row in rows] == [s.seed for s in subjects]
    before = (tmp_path / "001_03.png").read_bytes()
    faces.write_benchmark(tmp_path, per_sex=1, size=16, progress=False)
    assert (tmp_path / "001_03.png").read_bytes() == before


def test_benchmark_is_balanced_and_from_the_test_role():
    subjects = faces.choose_subjects(6)
    assert sum(s.identity.shape.female for s in subjects) == 6
    assert len({s.seed for s in subjects}) == 12
    assert all(1_000_000 <= s.seed < 2_000_000 for s in subjects)


def test_the_shipped_cards_say_what_the_shipped_files_say() -> None:
    files = json.loads((assets.MINI / "manifest.json").read_text())["files"]
    quality = json.loads((assets.MINI / "quality.json").read_text())
    cards = publish.cards(assets.MINI, files, quality)
    assert cards == (assets.MINI / "MODEL_CARDS.md").read_text()
    assert "diffae" in cards and "FNMR at FMR 0.1%" in cards


def test_the_shipped_faces_say_how_they_are_made() -> None:
    text = faces.README.format(title=faces.TITLE, subjects=102, size=64, made_by=faces.MADE_BY)
    assert text == (assets.MINI / "faces" / "README.md").read_text()


def test_a_network_that_was_never_published_is_named(tmp_path) -> None:
    folders = publish.Folders(tmp_path / "outputs", tmp_path / "pools", tmp_path / "profile")
    with pytest.raises(ValueError, match="--networks"):
        publish.publish(folders, {"stylegan2"}, [])
