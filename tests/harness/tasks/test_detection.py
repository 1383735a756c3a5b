"""Detectors trained, applied and written, end to end on the tiny profile and real small faces."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from tiny_profile import SIZE, composed

from adjointdeis.detection import DetectorError, Examples, PrintScan, Suspects
from adjointdeis.evaluation.detection_matrix import read_detection
from adjointdeis.faces.tensors import to_uint8
from adjointdeis.harness import detection_data
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks import detection

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
        f"task.people.size={SIZE}",
        "task.pairs.selector=guide.safetensors",
        "task.pairs.per_sex=3",
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


def test_loaded_detectors_score_the_same(finished: Path, tiny: Path, tmp_path) -> None:
    files = {
        "lbp": finished / "detectors/lbp/all.npz",
        "difference": finished / "detectors/difference/hardened.npz",
        "convolutional": finished / "detectors/convolutional/without_opencv.safetensors",
    }
    trained = {"lbp": "all", "difference": "hardened", "convolutional": "without:opencv"}
    given = tmp_path / "given.csv"
    once = {row["image"]: row["score"] for row in rows_of(finished / "detection.csv")}
    given.write_text("image,score\n" + "".join(f"{Path(n).name if 'faces' in n else n},{s}\n"
                                               for n, s in once.items()))  # fmt: skip
    launch(
        configured(
            tiny,
            tmp_path / "run",
            *(f"+task.weights.{name}={path}" for name, path in files.items()),
            "+detector@task.detectors.mine=precomputed",
            f"task.detectors.mine.file={given}",
            "task.reconstructed=null",
            "~task.detectors.demorphing",
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


def test_nobody_is_learnt_and_tested(tiny: Path) -> None:
    cfg = configured(tiny, tiny / "unused")
    people = detection_data.training_people(cfg)
    from synthetic_faces.roles import identity_seed

    seeds = {int(row["seed"]) for row in rows_of(Path(people.root) / "subjects.csv")}
    assert seeds and all(seed >= identity_seed("detection", 0) for seed in seeds)
    assert identity_seed("detection", 0) > identity_seed("test", 0) + 102
    with pytest.raises(ValueError, match="people of the test"):
        detection_data.training_people(configured(tiny, tiny / "unused", "task.people.role=test"))


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
    ("change", "error", "words"),
    [
        ("task.seen=[nonsense]", DetectorError, "nonsense.*rows of the run are"),
        ("task.guided=[opencv]", DetectorError, "in task.seen and in task.guided"),
        ("+task.weights.nobody=x.npz", DetectorError, "names nobody"),
        ("degradation=jpeg", ValueError, "leave degradation=none"),
    ],
)
def test_settings_that_contradict_are_refused_before_any_morph(
    tiny: Path, tmp_path: Path, change: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        detection.run(configured(tiny, tmp_path / "run", change))
    assert not (tmp_path / "run" / "morphs").exists()


def test_a_network_is_trained_on_degraded_copies_too(tiny: Path, tmp_path: Path) -> None:
    change = "{_target_:adjointdeis.detection.PrintScan,name:another_print,seed:1}"
    line = f"task.detectors.convolutional.degradations=[{change}]"
    recipe = instantiate(configured(tiny, tmp_path, line).task.detectors.convolutional)
    assert recipe.degradations == [PrintScan(name="another_print", seed=1)]
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    examples = Examples(Suspects(images, tuple("abcd")), np.arange(4) >= 2, "four")
    shown, labels = recipe.shown(examples)
    assert labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    printed = PrintScan(name="another_print", seed=1)(images, tuple("abcd"))
    assert (to_uint8(shown) == np.concatenate([images, printed])).all()
