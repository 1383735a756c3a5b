"""Bona fide comparisons, and which thresholds may judge the faces of a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adjointdeis.evaluation import (
    PolicyError,
    ThresholdMismatch,
    ThresholdRecord,
    threshold_at_fmr,
)
from adjointdeis.evaluation.provenance import png_texts
from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.image_io import sha256_of, write_image
from adjointdeis.harness.assets import Profile, profile, thresholds
from adjointdeis.harness.benchmark import Benchmark
from adjointdeis.harness.scoring import _bona_fide, applicable_thresholds, score_morphs


def test_neutral_is_compared_with_smiling_and_failures_stay() -> None:
    probes = {
        "source": np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]]),
        "other": np.array([[0.8, 0.6], [0.0, 2.0], [1.0, 0.0]]),
    }
    system = SimpleNamespace(
        name="dot", score_type="similarity", compare=lambda a, b: (a * b).sum(-1)
    )
    rows = _bona_fide(system, probes["source"], probes["other"], ("a", "b", "c"))
    found = {(r["ref_id"], r["probe_id"]): r for r in rows}
    assert len(rows) == len(found) == 9
    expected = {
        ("a_03", "a_08"): 0.8, ("a_03", "b_08"): 0.0, ("a_03", "c_08"): 1.0,
        ("b_03", "a_08"): 0.6, ("b_03", "b_08"): 2.0, ("b_03", "c_08"): 0.0,
    }  # fmt: skip
    assert {key: found[key]["score"] for key in expected} == expected
    for (reference, probe), row in found.items():
        assert row["kind"] == ("mated" if reference[0] == probe[0] else "nonmated")
        assert (row["ref_subject_id"], row["subject_id"]) == (reference[0], probe[0])
        failed = reference == "c_03"
        assert (row["status"], row["score"] is None) == ("fta" if failed else "ok", failed)


FACES = SimpleNamespace(
    dataset=SimpleNamespace(fingerprint="photographs"), alignment=lambda judge: judge.alignment
)
JUDGE = SimpleNamespace(
    name="dot", fingerprint="weights", alignment="ffhq", score_type="similarity"
)


def _record(**stated: str) -> ThresholdRecord:
    impostors = np.linspace(0.0, 0.9, 1001)
    labels = {"model": "dot", "model_fingerprint": "weights", "alignment": "ffhq"}
    labels |= {"impostor_policy": "all", "data_set": "photographs", **stated}
    return threshold_at_fmr(impostors, 0.001, **labels)


def _profile(tmp_path: Path, *records: ThresholdRecord) -> Profile:
    content = json.dumps({"records": [r.to_dict() for r in records]})
    (tmp_path / "thresholds.json").write_text(content)
    sha256 = sha256_of(content.encode())
    manifest = {"files": {"thresholds.json": {"sha256": sha256, "kind": "thresholds"}}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return Profile("own", tmp_path, "")


def _applicable(choice: str | None, profile: Profile, fmr: float = 0.001):
    return applicable_thresholds(choice, profile, [JUDGE], FACES, [fmr], ["all"])


def test_frozen_thresholds_judge_only_the_faces_they_were_made_for(tmp_path: Path) -> None:
    own = _record()
    assert _applicable(None, _profile(tmp_path, own)) == {"dot": [own]}
    # Left to the run's own impostors: heads are no photographs, and no FMR is made up.
    assert _applicable(None, _profile(tmp_path, _record(data_set="synthetic heads"))) == {}
    assert _applicable(None, _profile(tmp_path, _record(data_set=""))) == {}
    assert _applicable(None, _profile(tmp_path, own), fmr=0.0005) == {}


@pytest.mark.parametrize("wrong", ["data_set", "alignment", "model_fingerprint"])
def test_a_file_of_thresholds_made_for_something_else_is_refused(
    wrong: str, tmp_path: Path
) -> None:
    profile = _profile(tmp_path)
    path = tmp_path / "mine.json"
    for value in ("another", ""):
        _record(**{wrong: value}).write(path)
        with pytest.raises(ThresholdMismatch, match=f"{wrong}.*state"):
            _applicable(str(path), profile)
    _record().write(path)
    assert _applicable(str(path), profile) == {"dot": [_record()]}
    with pytest.raises(PolicyError, match=r"mine.json: no threshold of dot.*0.0005"):
        _applicable(str(path), profile, fmr=0.0005)


def test_the_embedded_thresholds_are_those_of_the_embedded_faces() -> None:
    mini = profile("mini")
    faces = load_folder(mini.root / "faces").fingerprint
    records = thresholds("thresholds.json", mini)
    assert {record.data_set for record in records} == {faces}


def test_who_finds_the_face_sees_the_photographs(tmp_path: Path) -> None:
    for folder, grey in (("aligned", 10), ("originals", 200)):
        for subject in ("001", "002"):
            for capture in ("03", "08"):
                pixels = np.full((8, 8, 3), grey, np.uint8)
                write_image(tmp_path / folder / f"{subject}_{capture}.png", pixels)
    faces, photographs = (load_folder(tmp_path / name) for name in ("aligned", "originals"))
    pair = MorphPair("001", "002", name="001_002.png")
    benchmark = Benchmark(faces, (pair,), photographs)
    write_image(tmp_path / "morph.png", np.full((8, 8, 3), 10, np.uint8))

    def judge(name: str, finds: bool) -> SimpleNamespace:
        def embed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return images.mean((1, 2)).astype(np.float32), np.ones(len(images), bool)

        return SimpleNamespace(
            name=name,
            finds_faces=finds,
            alignment="chip",
            fingerprint="0" * 64,
            score_type="similarity",
            metric="euclidean",
            embedding_dim=3,
            embed=embed,
            compare=lambda a, b: -np.abs(a - b).max(-1),
        )

    judges = [judge("crops", False), judge("finds", True)]
    morphs = {"dim_a": {"001_002": tmp_path / "morph.png"}}
    table = score_morphs(benchmark, morphs, judges, [pair], progress=False)
    # The morph is an aligned face; the one that looks for faces compares it with photographs.
    assert set(table.select(kind="morph", system="crops")["score"]) == {0.0}
    assert set(table.select(kind="morph", system="finds")["score"]) == {-190.0}
    stated = {name: entry["alignment"] for name, entry in table.metadata["systems"].items()}
    assert stated == {"crops": "chip", "finds": "chip of the original photographs"}
    assert Benchmark(faces, (pair,)).alignment(judges[1]) == "chip"


def test_documents_are_degraded_and_live_captures_are_not(tmp_path: Path) -> None:
    for subject, grey in (("001", 40), ("002", 80)):
        for capture, more in (("03", 0), ("08", 5)):
            pixels = np.full((8, 8, 3), grey + more, np.uint8)
            write_image(tmp_path / "faces" / f"{subject}_{capture}.png", pixels)
    faces = load_folder(tmp_path / "faces")
    pair = MorphPair("001", "002", name="001_002.png")
    text = {"adjointdeis": "provenance"}
    write_image(tmp_path / "morph.png", np.full((8, 8, 3), 60, np.uint8), text)
    changed: list[str] = []

    class Brighter:
        name = "brighter"

        def __repr__(self) -> str:
            return "Brighter()"

        def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
            changed.extend(names)
            return images + 100

    def embed(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.mean((1, 2))[:, :1].astype(np.float32), np.ones(len(images), bool)

    # The score is (document, live) in one number: 1000 document + live.
    judge: Any = SimpleNamespace(
        name="mean", alignment="chip", fingerprint="0" * 64, score_type="similarity",
        metric="cosine", embedding_dim=1, embed=embed, compare=lambda a, b: (1000 * a + b)[..., 0],
    )  # fmt: skip
    benchmark = Benchmark(faces, (pair,), degradation=Brighter())
    assert benchmark.alignment(judge) == "chip, after brighter"
    files = {"mean": {"001_002": tmp_path / "morph.png"}}

    def score() -> Any:
        return score_morphs(
            benchmark, files, [judge], [pair], progress=False, copies=tmp_path / "degraded"
        )

    table = score()
    morphs = table.select(kind="morph")
    morphs = morphs.where(morphs["attack"] == "mean")
    found = dict(zip(morphs["probe_id"].tolist(), morphs["score"].tolist(), strict=True))
    assert found == {"001_03": 160_040, "001_08": 160_045, "002_03": 160_080, "002_08": 160_085}
    bona = table.select(kind="mated")
    assert sorted(bona["score"].tolist()) == [140_045, 180_085]
    assert table.select(kind="nonmated")["score"].tolist() == [140_085, 180_045]
    assert sorted(changed) == ["faces/001_03.png", "faces/002_03.png", "morphs/mean/001_002.png"]
    copy = tmp_path / "degraded" / "morphs" / "mean" / "001_002.png"
    assert png_texts(copy)["adjointdeis"] == "provenance"
    # What is there is not made again, unless it is a copy of something else.
    before = score()
    assert len(changed) == 3 and (before["score"] == table["score"]).sum() > 0
    write_image(tmp_path / "morph.png", np.full((8, 8, 3), 61, np.uint8))
    score()
    assert changed[3:] == ["morphs/mean/001_002.png"]
