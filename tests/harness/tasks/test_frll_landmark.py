"""The FRLL landmark experiment: end to end on drawn faces with a stand-in recogniser, settings and
input checked before work, continued after a stop; on photographs where they are."""

import csv
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adjointdeis.evaluation import read_scores
from adjointdeis.faces.datasets.pairs import PairListError
from adjointdeis.faces.recogniser import NoFaceError, cosine_similarity
from adjointdeis.harness.tasks import frll_landmark
from adjointdeis.harness.tasks.frll_landmark import Config, run
from adjointdeis.morphing.landmark import LandmarkMorph

SIDE = 120
LABELS = ("attack", "probe_policy", "impostor_policy", "variant", "tau", "fmr_target")


def drawn_points(shift: float) -> np.ndarray:
    turn = np.linspace(0, 2 * np.pi, 68, endpoint=False)
    points = 60 + np.column_stack([24 * np.cos(turn), 30 * np.sin(turn)])
    points[36:42], points[42:48] = (48 - shift, 50), (72 + shift, 50)
    points[36:48] += np.tile([[-3, 0], [-1, -2], [1, -2], [3, 0], [1, 2], [-1, 2]], (2, 1))
    points[48], points[54] = (50, 75), (70, 75)
    return points


@dataclass(frozen=True)
class DrawnLandmarks:
    """Landmarks of the drawn faces; a blank image has none."""

    detection_side: int | None = None

    def landmarks(self, image, points=68, name="image"):
        if image.std() < 1:
            raise NoFaceError(f"{name}: no face")
        return drawn_points(0.0)


@dataclass(frozen=True)
class ColourRecogniser:
    """Tells the drawn people apart by the mean colours of a 4 x 4 grid."""

    name: str = "colour"
    alignment: str = "none"
    score_type: str = "similarity"
    fingerprint: str = "0" * 64
    licence: str = "none"

    def embed(self, images):
        grid = images.reshape(len(images), 4, images.shape[1] // 4, 4, -1, 3).mean((2, 4))
        return (grid - 128).reshape(len(images), -1).astype(np.float32), np.ones(len(images), bool)

    def compare(self, e1, e2):
        return cosine_similarity(e1, e2)


def draw(root: Path, people: int = 8) -> Path:
    rng = np.random.default_rng(0)
    rows = ["face_id,face_age,face_gender,face_eth"]
    for n in range(people):
        key = f"{n + 1:03d}"
        base = np.kron(rng.integers(30, 225, (12, 12, 3)), np.ones((10, 10, 1)))
        for folder, capture in (("neutral_front", "03"), ("smiling_front", "08")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            pixels = np.clip(base + rng.normal(0, 4, base.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{key}_{capture}.png")
        lines = "".join(f"{x} {y}\n" for x, y in drawn_points(n % 3))
        (root / "neutral_front" / f"{key}_03.tem").write_text(f"68\n{lines}0\n")
        rows.append(f"{key},30,{('female', 'male')[n % 2]},{('north', 'south')[n // 4]}")
    (root / "london_faces_info.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(frll_landmark, "DlibLandmarker", DrawnLandmarks)
    monkeypatch.setattr(frll_landmark, "DlibRecogniser", ColourRecogniser)
    return draw(tmp_path / "data")


def settings(root, out, **section):
    protocol = {
        "fmr": [0.05],
        "impostor_policies": ["all", "same-sex", "same-sex-and-group"],
        "replicates": 20,
    }
    protocol |= {key: section.pop(key) for key in list(section) if key in protocol}
    task = {"_target_": "x", "pairs_per_group": 2, "size": 64, "transform_size": 64} | section
    return {
        "data": {"root": str(root)},
        "paths": {"run": str(out)},
        "protocol": protocol,
        "task": task,
    }


def test_every_row_carries_its_labels_and_the_files_agree(drawn, tmp_path):
    out = tmp_path / "run"
    result = run(settings(drawn, out))
    rows = result["rows"]
    assert len(rows) == 3 * 2 * 3
    assert all(row[label] not in (None, "") for row in rows for label in LABELS)
    assert len({tuple(row[label] for label in LABELS[:3]) for row in rows}) == 18
    assert all(row["n"] == 4 and row["impostors_k"] <= 0.05 * row["impostors_n"] for row in rows)
    assert json.loads((out / "result.json").read_text())["rows"] == rows

    table = read_scores(out / "scores.csv")
    assert len(table.select(kind="mated")) == 8 and len(table.select(kind="nonmated")) == 8 * 7
    assert len(table.select(kind="morph")) == 3 * 2 * 2 * 4
    assert len(json.loads((out / "thresholds.json").read_text())) == 3
    with (out / "table.csv").open() as stream:
        lines = list(csv.reader(stream))
    assert len(lines) == 19 and "probe policy" in lines[0] and "threshold at FMR" in lines[0]
    report = (out / "report.md").read_text()
    assert report.count("| landmark-webmorph |") == 6 and "same-sex-and-group" in report
    assert Image.open(out / "morphs.png").size == (5 * 64, 4 * 64)
    with Image.open(next((out / "morphs" / "opencv").glob("*.png"))) as morph:
        assert json.loads(morph.text["adjointdeis"])["attack"] == "landmark-opencv"


def test_the_counts_are_those_of_the_scores(drawn, tmp_path):
    out = tmp_path / "run"
    row = next(
        row
        for row in run(settings(drawn, out, variants=["opencv"]))["rows"]
        if row["probe_policy"] == "other" and row["impostor_policy"] == "same-sex"
    )
    table = read_scores(out / "scores.csv").select(kind="morph", probe_policy="other")
    lowest = {}
    for morph, score in zip(table["morph_id"], table["score"], strict=True):
        lowest[morph] = min(score, lowest.get(morph, np.inf))
    assert row["k"] == sum(score > row["tau"] for score in lowest.values())


def test_a_stopped_run_takes_what_it_finds_and_a_damaged_cache_is_remade(
    drawn, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    first = run(settings(drawn, out))["rows"]
    files = sorted((out / "cache").iterdir())
    files[0].write_bytes(files[0].read_bytes()[:50])
    calls, morphed = [], []
    embed = ColourRecogniser.embed

    def counted(self, images):
        calls.append(len(images))
        return embed(self, images)

    morph = LandmarkMorph.__call__

    def watched(self, *arguments):
        morphed.append(self.variant)
        return morph(self, *arguments)

    monkeypatch.setattr(ColourRecogniser, "embed", counted)
    monkeypatch.setattr(LandmarkMorph, "__call__", watched)
    cut = next((out / "morphs" / "opencv").iterdir())
    cut.write_bytes(cut.read_bytes()[:300])
    assert run(settings(drawn, out))["rows"] == first
    assert sum(calls) <= 1 and morphed == ["opencv"]
    run(settings(drawn, out, weight=0.4, variants=["webmorph"]))
    assert morphed[1:] == ["webmorph"] * 4
    assert set(files) <= set((out / "cache").iterdir())


def test_a_given_pair_list_is_used_and_a_bad_one_stops_everything(drawn, tmp_path):
    listed = tmp_path / "pairs.csv"
    listed.write_text("001_003.png\n002_006.png\n")
    result = run(settings(drawn, tmp_path / "run", pairs_file=str(listed)))
    assert result["pairs"]["count"] == 2 and result["pairs"]["selector"] == "given list"
    listed.write_text("001_001.png\n002_777.png\n")
    with pytest.raises(PairListError, match=r"(?s)2 problems.*777"):
        run(settings(drawn, tmp_path / "other", pairs_file=str(listed)))
    assert not (tmp_path / "other" / "morphs").exists()


def test_without_templates_every_style_can_use_68_points(drawn, tmp_path):
    for path in drawn.rglob("*.tem"):
        path.unlink()
    with pytest.raises(ValueError, match=r"\.tem"):
        run(settings(drawn, tmp_path / "run"))
    assert run(settings(drawn, tmp_path / "run", template="dlib68"))["rows"]


def test_photographs_without_a_face_are_all_named(drawn, tmp_path):
    for name in ("neutral_front/002_03.png", "smiling_front/005_08.png"):
        Image.new("RGB", (SIDE, SIDE)).save(drawn / name)
    with pytest.raises(NoFaceError, match=r"(?s)002_03.*005_08"):
        run(settings(drawn, tmp_path / "run"))


def test_settings_are_checked_by_name():
    good = settings("r", "o")
    assert Config.from_mapping(good).pairs_per_group == 2
    for change, message in (
        ({"pairs_per_grup": 3}, "did you mean pairs_per_group"),
        ({"template": "stasm"}, "auto, tem, dlib68"),
        ({"variants": ["poisson"]}, "webmorph, opencv, facemorpher"),
        ({"variants": []}, "none"),
    ):
        with pytest.raises(ValueError, match=message):
            Config.from_mapping(settings("r", "o", **change))
    for root in (None, "", "???"):
        with pytest.raises(ValueError, match=r"data\.root"):
            Config.from_mapping(good | {"data": {"root": root}})


def test_on_photographs(tmp_path):
    pytest.importorskip("dlib")
    named = os.environ.get("ADJOINTDEIS_FRLL")
    root = Path(named) if named else Path(__file__).parents[4] / "shared" / "data" / "frll"
    if not root.is_dir():
        pytest.skip("no FRLL photographs (set ADJOINTDEIS_FRLL)")
    ids = ("001", "002", "004", "005")
    for key in ids:
        for name in (f"neutral_front/{key}_03.jpg", f"neutral_front/{key}_03.tem"):
            (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, tmp_path / "data" / name)
        shutil.copy(root / f"smiling_front/{key}_08.jpg", tmp_path / "data")
    shutil.copy(root / "london_faces_info.csv", tmp_path / "data")
    result = run(
        settings(
            tmp_path / "data",
            tmp_path / "run",
            pairs_per_group=1,
            size=256,
            transform_size=512,
            detection_side=320,
            variants=["webmorph"],
            impostor_policies=["all"],
            fmr=[0.0],
            replicates=0,
        )
    )
    table = read_scores(tmp_path / "run" / "scores.csv")
    mated, nonmated = table.select(kind="mated")["score"], table.select(kind="nonmated")["score"]
    morph = table.select(kind="morph", probe_policy="source")["score"]
    assert mated.min() > nonmated.max() and morph.mean() > nonmated.max()
    assert {row["probe_policy"]: row["n"] for row in result["rows"]} == {"source": 2, "other": 2}
