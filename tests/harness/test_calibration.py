"""Calibration finds the protocol that made the numbers, and says that it is a fit."""

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_profile import SIZE, composed, draw_face

from adjointdeis.evaluation import Subjects
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.harness.launch import launch
from adjointdeis.harness.scoring import score_morphs
from adjointdeis.harness.tasks.calibrate import ScoringProtocol, outcomes

IDS = [f"{k:03d}" for k in range(30)]
PEOPLE = Subjects.from_rows(
    {"subject_id": i, "sex": "female" if k % 2 else "male"} for k, i in enumerate(IDS)
)


class Plain:
    """A recogniser whose images are their embeddings."""

    name, score_type, metric, embedding_dim = "plain", "similarity", "cosine", 6
    fingerprint = "0" * 64

    def embed(self, images):
        return images, np.ones(len(images), bool)

    def compare(self, e1, e2):
        return (np.asarray(e1) * np.asarray(e2)).sum(-1)


@pytest.fixture(scope="module")
def images() -> dict[str, dict[str, np.ndarray]]:
    """By preparation: the embedding of every neutral and smiling image and of every morph."""
    rng = np.random.default_rng(3)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    neutral = unit(rng.normal(size=(len(IDS), 6)))
    made = {}
    for name, spread in (("resize", 0.25), ("resize-aliased", 0.7)):
        smiling = unit(neutral + spread * rng.normal(size=neutral.shape) / 2)
        middle = unit(neutral[:-1] + neutral[1:] + 0.2 * rng.normal(size=neutral[1:].shape))
        made[name] = {
            **{f"{i}_03": x for i, x in zip(IDS, neutral, strict=True)},
            **{f"{i}_08": x for i, x in zip(IDS, smiling, strict=True)},
            **{f"morph {k}": x for k, x in enumerate(middle)},
        }
        made[name] = {key: x.astype(np.float32) for key, x in made[name].items()}
    return made


@pytest.fixture(scope="module")
def tables(images) -> dict:
    benchmark = SimpleNamespace(
        degradation=None,
        dataset=SimpleNamespace(ids=IDS, fingerprint="faces", name="faces"),
        probe=lambda system, subject, capture: f"{subject}_{capture}",
        alignment=lambda system: "none",
    )
    pairs = [MorphPair(a, b) for a, b in itertools.pairwise(IDS)]
    morphs = {"DiM-A": {pair.morph_id: f"morph {k}" for k, pair in enumerate(pairs)}}
    given = (benchmark, morphs, [Plain()], pairs)
    return {
        name: score_morphs(
            *given, progress=False, everyone=("plain",), every_capture=True, read=found.get
        )
        for name, found in images.items()
    }


def percent(outcome) -> dict:
    return {r: {s: c["percent"] for s, c in row.items()} for r, row in outcome.cells.items()}


def every(tables, published):
    return outcomes(tables, published, 0.05, PEOPLE, policies=("all", "same-sex"))


def test_the_protocol_that_made_the_numbers_comes_first(tables) -> None:
    reference = every(tables, {"DiM-A": {"plain": 50.0}})
    assert len(reference) == 2 * 2 * 2 * 2
    numbers = {o.protocol: percent(o) for o in reference}
    for protocol, published in numbers.items():
        best = every(tables, published)[0]
        assert best.deviation == 0
        # Several protocols may agree by chance; the true one is among those that do.
        assert numbers[best.protocol] == numbers[protocol] == percent(best)


def test_counts_by_hand(images, tables) -> None:
    found = every(tables, {"DiM-A": {"plain": 50.0}})
    at = {o.protocol: o for o in found}
    made = images["resize"]
    neutral, smiling = (np.array([made[f"{i}_{c}"] for i in IDS]) for c in ("03", "08"))
    morphs = np.array([made[f"morph {k}"] for k in range(29)])
    off = Plain().compare(neutral[:, None], smiling[None])[~np.eye(30, dtype=bool)]
    outcome = at[ScoringProtocol("resize", "neutral-smiling", "all", "other")]
    (record,) = outcome.thresholds
    assert record.n == 30 * 29 and (off > record.value).sum() == record.k <= 0.05 * off.size
    both = np.minimum(*(Plain().compare(morphs, side) for side in (smiling[:-1], smiling[1:])))
    assert outcome.cells["DiM-A"]["plain"]["k"] == (both > record.value).sum()
    (record,) = at[ScoringProtocol("resize", "all-captures", "all", "source")].thresholds
    once = [
        Plain().compare(side[:, None], side[None])[np.triu_indices(30, 1)]
        for side in (neutral, smiling)
    ]
    scores = np.concatenate([off, *once])
    assert record.n == 30 * 29 + 2 * (30 * 29 // 2) == len(scores)
    assert (scores > record.value).sum() == record.k <= 0.05 * record.n
    same = at[ScoringProtocol("resize", "neutral-smiling", "same-sex", "source")].thresholds[0]
    assert same.n == 2 * 15 * 14 and same.impostor_policy == "same-sex"


def test_what_cannot_be_compared_is_said(tables) -> None:
    with pytest.raises(ValueError, match="no row has a published number: morphs of DiM-A"):
        every(tables, {"DiM-X": {"plain": 1.0}})
    with pytest.raises(ValueError, match="needs the people's sexes"):
        outcomes(tables, {}, policies=("same-sex",))
    with pytest.raises(ValueError, match="probes: 'smile' is unknown; known are source, other"):
        outcomes(tables, {}, probes=("smile",))


# The task


@pytest.fixture
def morphs(tiny, tmp_path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    for a, b in (("001", "002"), ("003", "004"), ("001", "003")):
        pair = [draw_face(int(x), False).astype(float) for x in (a, b)]
        mean = ((pair[0] + pair[1]) / 2).astype(np.uint8)
        assert mean.shape == (SIZE, SIZE, 3)
        Image.fromarray(mean).save(folder / f"{a}_{b}.png")
    return folder


def arguments(tiny: Path, tmp_path: Path, morphs: Path, profile: Path, *more: str) -> list[str]:
    return [
        "task=calibrate",
        "judges=none",
        f"paths.root={tmp_path}",
        f"paths.run={tmp_path}/run",
        f"assets.root={profile}",
        "assets.name=paper",
        "assets.recognisers=[arcface.safetensors,adaface.safetensors]",
        f"data.faces={tiny}/faces",
        f"data.pairs={tiny}/pairs.csv",
        f"+task.morphs.DiM-A={morphs}",
        "task.preparations=[resize,resize-aliased]",
        "task.fmr=0.2",
        *more,
    ]


def test_the_task_writes_a_table_and_thresholds_that_say_what_they_are(
    tiny, tmp_path, morphs, capsys
) -> None:
    profile = Path(shutil.copytree(tiny / "profile", tmp_path / "profile"))
    manifest = json.loads((profile / "manifest.json").read_text())
    for name in ("arcface", "adaface"):
        manifest["files"][f"{name}.safetensors"]["kind"] = "recogniser"
    (profile / "manifest.json").write_text(json.dumps(manifest))
    launch(composed(arguments(tiny, tmp_path, morphs, profile, "task.write=true")))
    text = (tmp_path / "run" / "calibration.md").read_text()
    assert text.count("| resize") == 2 * 2 * 2 and "A fit, not a fact" in text
    assert text in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "calibration.json").read_text())["outcomes"]
    assert [o["deviation"] for o in found] == sorted(o["deviation"] for o in found)
    records = json.loads((profile / "thresholds.json").read_text())["records"]
    assert {r["model"] for r in records} == {"arcface", "adaface"}
    assert all("calibrated: nearest of 8 protocols" in r["note"] for r in records)
    # A run with this profile now uses the resize and the thresholds that were found.
    from adjointdeis.harness import assets

    written = assets.profile("paper", str(profile))
    stated = {r.model: r.alignment for r in assets.thresholds("thresholds.json", written)}
    for name in ("arcface", "adaface"):
        assert assets.recogniser(f"{name}.safetensors", written).alignment == stated[name]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["~task.morphs.DiM-A"], "task.morphs is empty"),
        (["task.preparations=[crop]"], "'crop' is unknown; known are resize"),
        (["~task.morphs.DiM-A", "+task.morphs.DiM-X={folder}"], "no published row is called DiM-X"),
        (["task.policies=[same-sex]"], "needs the people's sexes; give task.info"),
    ],
)
def test_mistakes_are_named(tiny, tmp_path, morphs, more, words: str) -> None:
    lines = [line.format(folder=morphs) for line in more]
    given = arguments(tiny, tmp_path, morphs, tiny / "profile")
    if lines[0].startswith("~task.morphs"):
        given = [line for line in given if "task.morphs" not in line]
        lines = lines[1:]
    with pytest.raises(SystemExit, match=words):
        launch(composed([*given, *lines]))
