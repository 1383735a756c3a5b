"""Detectors trained, applied and written, end to end on the tiny profile and real small faces."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from tiny_profile import SIZE, composed

from adjointdeis.detection import CallableDetector, DetectorError, Examples, PrintScan, Suspects
from adjointdeis.evaluation.detection_matrix import read_detection
from adjointdeis.faces.tensors import to_uint8
from adjointdeis.harness import detection_data, detectors
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks import detection
from synthetic_faces.roles import RANGE, ROLES, identity_seed

pytest.importorskip("sklearn")


def configured(tiny: Path, run: Path, *changes: str):
    """The experiment at the size of a test: people of 16 pixels, few of each."""
    lines = [
        "+experiment=detection",
        "logger=none",
        f"paths.root={tiny}",
        f"paths.run={run}",
        f"assets.root={tiny}/profile",
        "assets.recognisers=[arcface.safetensors,adaface.safetensors]",
        f"data.faces={tiny}/faces",
        f"data.pairs={tiny}/pairs.csv",
        "data.limit=null",
        "protocol.replicates=0",
        "task.people.per_sex=4",
        "task.people.pairs_per_sex=3",
        f"task.people.size={SIZE}",
        "task.validation.per_sex=3",
        "task.validation.pairs_per_sex=2",
        f"task.validation.size={SIZE}",
        "task.detectors.lbp.candidates=[{regularisation: 0.01}, {regularisation: 1.0}, {cells: 2}]",
        "task.detectors.difference.candidates=null",
        "task.detectors.convolutional.candidates=null",
        "task.pairs.selector=guide.safetensors",
        "task.pairs.most_per_person=2",
        "task.seen=[pixel_average,opencv]",
        "task.guided=[dim_a]",
        "task.most_pairs.dim_a=4",
        "~rows.facemorpher",
        "~rows.webmorph",
        "~rows.exact_fast",
        "~rows.adjoint_deis_ode",
        "rows.dim_a.sampling_steps=2",
        "rows.dim_a.encoding_steps=10",
        "~task.detectors.residual",
        "~task.detectors.difference_texture",
        "~task.degradations.jpeg2000",
        "task.detectors.convolutional.steps=2",
        "task.detectors.demorphing.steps=2",
        "task.reconstructed.encoding_steps=10",
        "task.reconstructed.sampling_steps=2",
        *changes,
    ]
    return composed(lines)


@pytest.fixture(scope="module")
def finished(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("detection") / "run"
    launch(configured(tiny, run))
    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_image_has_a_score_of_every_detector_training_and_degradation(finished: Path) -> None:
    rows = rows_of(finished / "detection.csv")
    study = read_detection(finished / "detection.csv")
    assert study.degradations == ["none", "print_scan"]
    assert all(np.isfinite(float(row["score"])) for row in rows)
    trainings = {"all", "pixel_average", "opencv", "dim_a", "without:pixel_average",
                 "without:opencv", "hardened", "shuffled"}  # fmt: skip
    found = Counter((r["detector"], r["trained_on"], r["degradation"]) for r in rows)
    wanted = {("demorphing", "given")} | {
        (name, training)
        for name in ("lbp", "convolutional", "difference")
        for training in trainings
    }
    assert found.keys() == {(*pair, change) for pair in wanted for change in ("none", "print_scan")}
    # 4 bona fide images, and 3 pairs morphed by 3 attacks.
    assert set(found.values()) == {4 + 3 * 3}
    for row in rows:
        assert (row["label"] == "morph") == bool(row["attack"]) == bool(row["subject_2"])
        assert row["subject_1"] != row["subject_2"]
    kinds = {row["detector"]: row["kind"] for row in rows}
    assert kinds["difference"] == "d_mad" and kinds["lbp"] == kinds["convolutional"] == "s_mad"
    assert kinds["demorphing"] == "demorphing"


def test_the_control_is_of_encoded_bona_fide_images_alone(finished: Path) -> None:
    rows = rows_of(finished / "detection_control.csv")
    assert {row["label"] for row in rows} == {"bona_fide"}
    assert {row["image"] for row in rows} == {f"reconstructed/{k:03d}_03.png" for k in range(1, 5)}
    said = json.loads((finished / "result.json").read_text())["run"]["detection"]
    assert all(0 <= entry["k"] <= entry["n"] == 4 for entry in said["control"])
    assert said["training"] == {"": 8, "pixel_average": 6, "opencv": 6, "dim_a": 4}
    trained = said["detectors"]["lbp"]["trained"]
    assert trained["all"]["training"].startswith("8 bona fide images and 6 pixel_average, 6 opencv")
    # Of two attacks, all but one is the other one; every other set is another detector.
    assert trained["without:opencv"]["fingerprint"] == trained["pixel_average"]["fingerprint"]
    assert len({entry["fingerprint"] for entry in trained.values()}) == len(trained) - 2


def test_degraded_copies_say_what_they_are_and_judges_saw_them(finished: Path) -> None:
    from adjointdeis.evaluation.provenance import png_texts, read_provenance

    copy = finished / "degraded" / "print_scan" / "morphs" / "opencv" / "001_002.png"
    assert read_provenance(copy)["attack"] == "opencv"
    assert png_texts(copy)["Degradation"].startswith("PrintScan(")
    found = json.loads((finished / "vulnerability.json").read_text())
    assert {row["attack"] for row in found["print_scan"]} >= {"opencv", "dim_a"}


def test_loaded_detectors_score_the_same(finished, tiny: Path, tmp_path, quiet_report) -> None:
    files = {
        "lbp": finished / "detectors/lbp/all.npz",
        "difference": finished / "detectors/difference/hardened.npz",
        "convolutional": finished / "detectors/convolutional/without_opencv.safetensors",
    }
    trained = {"lbp": "all", "difference": "hardened", "convolutional": "without:opencv"}
    given = tmp_path / "given.csv"
    once = {row["image"]: row["score"] for row in rows_of(finished / "detection.csv")}
    lines = [f"{Path(name).name if 'faces' in name else name},{s}" for name, s in once.items()]
    given.write_text("\n".join(["image,score", *lines]))
    launch(
        configured(
            tiny,
            tmp_path / "run",
            *(f"+task.weights.{name}={path}" for name, path in files.items()),
            "+detector@task.detectors.mine=precomputed",
            f"task.detectors.mine.file={given}",
            "task.detectors.mine.higher_is=morph",
            "task.reconstructed=null",
            "~task.detectors.demorphing",
            "task.validation=null",
        )
    )
    key = ("detector", "degradation", "image")
    before = {
        tuple(row[k] for k in key): float(row["score"])
        for row in rows_of(finished / "detection.csv")
        if trained.get(row["detector"]) == row["trained_on"]
    }
    after = rows_of(tmp_path / "run" / "detection.csv")
    assert {row["trained_on"] for row in after} == {"given"}
    again = {tuple(row[k] for k in key): float(row["score"]) for row in after}
    mine = {image: score for (name, _, image), score in again.items() if name == "given"}
    assert mine == {image: float(score) for image, score in once.items()}
    assert before.keys() == {k for k in again if k[0] != "given"}
    for k, score in before.items():
        assert again[k] == pytest.approx(score, rel=1e-5, abs=1e-5)


def test_settings_are_chosen_on_people_who_are_neither_learnt_nor_tested(
    finished: Path, tiny: Path
) -> None:
    said = json.loads((finished / "result.json").read_text())["run"]["detection"]["detectors"]
    tried = said["lbp"]["candidates"]
    assert [row["settings"] for row in tried] == [
        {"regularisation": 0.01}, {"regularisation": 1.0}, {"cells": 2},
    ]  # fmt: skip
    # The first of the lowest, of 6 bona fide images and 4 morphs of the worst seen attack.
    lowest = [row["d_eer"] for row in tried]
    assert [row["taken"] for row in tried] == [k == lowest.index(min(lowest)) for k in range(3)]
    assert {(row["n_bonafide"], row["n_morph"]) for row in tried} == {(6, 4)}
    assert {row["attack"] for row in tried} <= {"pixel_average", "opencv"}
    assert [row["settings"] for row in said["demorphing"]["candidates"]] == [{}]
    # What was trained is what was taken: 448 numbers of 4 x 4 cells, 112 of 2 x 2.
    taken = next(row["settings"] for row in tried if row["taken"])
    with np.load(finished / "detectors/lbp/all.npz") as stored:
        assert len(stored["weight"]) == 28 * taken.get("cells", 4) ** 2
    for role in ("detection", "validation"):
        (folder,) = (tiny / "data/people").glob(f"{role}-*")
        seeds = {int(row["seed"]) for row in rows_of(folder / "subjects.csv")}
        assert seeds and {seed // RANGE for seed in seeds} == {ROLES[role] // RANGE}
        assert not seeds & {identity_seed("test", k) for k in range(102)}
    with pytest.raises(ValueError, match="people of the test"):
        detection_data.synthetic_people(tiny / "data", "test", 3, SIZE)


def test_the_validation_people_decide_between_candidates(monkeypatch) -> None:
    """Of three fixed scores the one that separates them, whatever it is called."""
    pictures = [suspect(f"{attack}{k}", attack, "abcdef"[k]) for attack in ("", "one", "two")
                for k in range(6)]  # fmt: skip
    blank = Suspects(np.zeros((18, 4, 4, 3), np.uint8), tuple(p.name for p in pictures))
    monkeypatch.setattr(detectors, "loaded", lambda images: blank.at(slice(len(images))))

    class Fixed:
        name, kind, training, fingerprint = "fixed", "s_mad", "none", "none"

        def __init__(self, wrong: int) -> None:
            self.wrong = wrong

        def score(self, suspects: Suspects) -> np.ndarray:
            """`wrong` morphs of the second attack, and as many bona fide images, are confused."""
            scores = np.repeat([0.0, 1.0, 1.0], 6)
            scores[12 : 12 + self.wrong], scores[: self.wrong] = 0.0, 1.0
            return scores

    options = {"fixed": [detectors.Candidate({"wrong": w}, Fixed(w)) for w in (3, 1, 2)]}
    task = {"seen": ["one", "two"], "guided": [], "only": None, "shuffle_seed": 0, "weights": {}}
    cfg = OmegaConf.create({"task": task, "seed": 0})
    recipes, tried = detectors.choose(cfg, options, pictures, pictures)
    assert recipes["fixed"].wrong == 1
    assert [row["d_eer"] for row in tried["fixed"]] == pytest.approx([1 / 2, 1 / 6, 1 / 3])
    assert [row["taken"] for row in tried["fixed"]] == [False, True, False]
    assert {row["attack"] for row in tried["fixed"]} == {"two"}


def suspect(name: str, attack: str, *people: str) -> detection_data.SuspectImage:
    return detection_data.SuspectImage(name, Path("x"), people, Path("x"), attack)


def test_in_folds_nobody_is_scored_by_who_learnt_from_them() -> None:
    ids = ("001", "002", "003", "004")
    images = [suspect(f"faces/{i}_03.png", "", i) for i in ids]
    images += [suspect("morphs/a/001_003.png", "a", "001", "003"),
               suspect("morphs/a/002_004.png", "a", "002", "004")]  # fmt: skip
    fold = detection_data.folds_of(images, ids, 2)
    assert [fold[image.name] for image in images] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(DetectorError, match=r"001_002.png is of people of two folds \(001, 002\)"):
        detection_data.folds_of([suspect("morphs/a/001_002.png", "a", "001", "002")], ids, 2)

    def constant(value: float) -> CallableDetector:
        return CallableDetector(
            name="x",
            function=lambda images: np.full(len(images), value),
            higher_is="morph",
            training=str(value),
        )

    both = detectors.OfFolds([constant(0.0), constant(1.0)], fold)
    pixels = Suspects(np.zeros((6, 4, 4, 3), np.uint8), tuple(image.name for image in images))
    assert both.score(pixels).tolist() == [0, 1, 0, 1, 0, 1]
    assert both.training == "fold 0: 0.0; fold 1: 1.0" and both.kind == "s_mad"


def test_shuffled_labels_say_nothing_of_attack_or_bona_fide() -> None:
    pictures = [
        detection_data.SuspectImage(f"{attack}{k}", Path("x"), ("a",), Path("x"), attack)
        for attack, count in (("", 10), ("one", 20), ("two", 8), ("guided", 4))
        for k in range(count)
    ]
    task = OmegaConf.create(
        {"seen": ["one", "two"], "guided": ["guided"], "only": None, "shuffle_seed": 0}
    )
    sets = detection_data.training_sets(task, pictures)
    assert list(sets) == ["all", "one", "two", "guided", "without:one", "without:two", "hardened",
                          "shuffled"]  # fmt: skip
    rows, labels, _ = sets["shuffled"]
    attack = np.array([pictures[row].attack for row in rows])
    assert {name: labels[attack == name].mean() for name in set(attack)} == {
        "": 0.5, "one": 0.5, "two": 0.5,
    }  # fmt: skip
    rows, labels, words = sets["hardened"]
    assert len(rows) == 42 and labels.sum() == 32
    assert "10 bona fide images and 20 one, 8 two, 4 guided" in words


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a.png,1,print_scam", "none, print_scam.*run's degradations are none, print_scan"),
        ("a.png,1,print_scan", "under print_scan.*as they are at least"),
    ],
)
def test_a_file_of_scores_that_would_be_passed_over_is_refused(
    tiny: Path, tmp_path: Path, lines: str, words: str
) -> None:
    more = "a.png,1,none\n" if "print_scam" in lines else ""
    (tmp_path / "mine.csv").write_text(f"image,score,degradation\n{more}{lines}\n")
    mine = ["+detector@task.detectors.mine=precomputed", "task.detectors.mine.higher_is=morph",
            f"task.detectors.mine.file={tmp_path}/mine.csv"]  # fmt: skip
    with pytest.raises(DetectorError, match=words):
        detection.planned(configured(tiny, tmp_path / "run", *mine))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("task.seen=[nonsense]", DetectorError, "nonsense.*rows of the run are"),
        ("task.guided=[opencv]", DetectorError, "in task.seen and in task.guided"),
        ("+task.weights.nobody=x.npz", DetectorError, "names nobody"),
        ("degradation=jpeg", ValueError, "leave degradation=none"),
        ("task.detectors.lbp.candidates=[{cell: 2}]", DetectorError, "cell is no setting of it"),
        (
            "+task.detectors.demorphing.candidates=[{steps: 2}]",
            DetectorError,
            "is not trained here",
        ),
        ("task.folds=2", DetectorError, "test's own people.*task.validation=null takes them"),
        ("task.validation.role=detection", DetectorError, "those people are learnt"),
    ],
)
def test_settings_that_contradict_are_refused_before_any_morph(
    tiny: Path, tmp_path: Path, change: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        detection.run(configured(tiny, tmp_path / "run", change))


def test_they_leave_no_folder(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"in task\.seen and in task\.guided"):
        launch(configured(tiny, tmp_path / "run", "task.guided=[opencv]"))
    assert not (tmp_path / "run").exists()


def test_the_price_is_of_the_morphs_and_says_so(tiny: Path, tmp_path: Path, capsys) -> None:
    launch(configured(tiny, tmp_path / "run", "dry_run=true"))
    text = capsys.readouterr().out
    assert "nothing was run" in text and "Not in these hours: the detectors" in text
    assert not (tmp_path / "run").exists()


def test_a_network_is_trained_on_degraded_copies_too(tiny: Path, tmp_path: Path) -> None:
    change = "{_target_:adjointdeis.detection.PrintScan,name:another_print,seed:1}"
    line = f"task.detectors.convolutional.degradations=[{change}]"
    ((recipe,),) = [
        [candidate.recipe for candidate in found]
        for name, found in detectors.candidates_of(configured(tiny, tmp_path, line).task).items()
        if name == "convolutional"
    ]
    assert recipe.degradations == [PrintScan(name="another_print", seed=1)]
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    examples = Examples(Suspects(images, tuple("abcd")), np.arange(4) >= 2, "four")
    shown, labels = recipe.shown(examples)
    assert labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    printed = PrintScan(name="another_print", seed=1)(images, tuple("abcd"))
    assert (to_uint8(shown) == np.concatenate([images, printed])).all()
