"""Bad inputs, on the command line and in files: one or two lines that name the key or the file.

Every input is refused before anything is written, without a trace, by an error that its reader
promises. A new kind of bad input is one line here.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf, open_dict
from PIL import Image
from tiny_profile import ROOT, command_line, composed

from adjointdeis.detection.detector import DetectorError
from adjointdeis.detection.linear import loaded
from adjointdeis.detection.plugged import PrecomputedScores
from adjointdeis.evaluation import EvaluationError, read_scores, read_subjects, read_thresholds
from adjointdeis.evaluation.cli import main as evaluation
from adjointdeis.evaluation.formats import lists
from adjointdeis.faces.checkpoints import main as convert
from adjointdeis.faces.datasets.folder import DatasetError, load_folder
from adjointdeis.faces.datasets.frll import read_info
from adjointdeis.faces.datasets.pairs import PairListError, read_pairs, validate_pairs
from adjointdeis.faces.image_io import ImageError, read_image
from adjointdeis.faces.weights import WeightsError, load_network, read_header
from adjointdeis.harness.assets import AssetError, Profile
from adjointdeis.harness.command_line import check_overrides
from adjointdeis.harness.launch import launch
from adjointdeis.harness.option_values import kind_of
from adjointdeis.harness.validation import ConfigError, check_node, validate

CONF = ROOT / "conf"
QUICK = ["+experiment=quickstart"]
_OF_HYDRA = ("_target_", "_partial_", "_convert_")
NAN, INF = float("nan"), float("inf")


def told(text: str, *names: str) -> None:
    """A message is one or two lines, no trace, and names what is wrong."""
    lines = text.strip().splitlines()
    assert 1 <= len(lines) <= 2, text
    assert "Traceback" not in text and all(line.isprintable() for line in lines)
    for name in names:
        assert name in text


# --- Options: the value that a key cannot have. ---------------------------------------------------

MORPH = {
    "optimisation.stop_similarity": (5, -1, 1, NAN, "high", True),
    "optimisation.steps": (-1, 1.5, 10**9, NAN, "", None, [1]),
    "optimisation.batch_size": (0, -3, 2.5, "many", 10**12),
    "optimisation.z_learning_rate": (-1, NAN, INF, "x"),
    "optimisation.keep": ("first", 1, None),
    "optimizer.lr": (NAN, 0, -1, INF, -INF, 1e300, "big", None, True, []),
    "gradient.steps": (0, -5, 2.5, 10**9, NAN),
    "gradient.order": (0, 7, "5M", 2.0),
    "solver.clip_x0": ("maybe", 1, None),
    "seed": (-1, 2**32, 10**40, 1.5, NAN, "x", True, [], {"a": 1}),
    "threads": (0, -1, 10**6, "all", 1.0),
    "dry_run": ({}, "yes", 1, None),
    "name": ("../../evil", "/etc", "..", "", ".hidden", "a\x1b[2J", "a\nb", "x" * 300, 5, None),
    "rows.dim_a.name": ("../../evil", "a/b", "/evil", "..", "", "x" * 300, "-rf", "a\0b", 7),
    "rows.dim_a.sampling_steps": (0, -1, 10**9, NAN, "all", None),
    "rows.dim_a.weight": (-0.1, 1.5, NAN, INF, "half"),
    "rows.dim_a.noise_blend": ("cubic", 3),
    "rows.dim_a": (5, "dim_a", [1], {"sampling_steps": 3}),
    "rows.exact_fast.optimizer.lr": ({}, {"a": 1}, NAN),
    "trainer.devices": (0, -2, 1.5, "two", [], [-1], {}),
    "rows.exact_fast.optimizer.betas": ({}, [0.9, 1.5], [0.9], [NAN, 0.5], 0.9, "x"),
    "rows.opencv.points": ("dlib5", 68),
    "data.faces": ("", " ", None, 5, [1], {"a": 1}, "a\0b", "y" * 5000),
    "data.pairs": ("", None, [], 3.5),
    "data.limit": (0, -2, 1.5, "few", NAN),
    "paths.run": ("/", "", "//", "/..", "..", "../..", "a/../..", 5, "a\0b", "x" * 300),
    "paths.outputs": ("", None, 5),
    "assets.name": ("../../evil", "", "a/b"),
    "assets.recognisers": ("arcface.safetensors", [""], [3], None),
    "protocol.fmr": (0.001, [], [0.0], [1.0], [NAN], ["x"], [-0.1], None),
    "protocol.impostor_policies": ("all", [], ["nobody"], [1]),
    "protocol.replicates": (-1, 10**9, 2.5, NAN, None),
    "protocol.bootstrap_seed": (-1, 2**32, None),
    "trainer.num_nodes": (0, -1, "all"),
    "trainer.precision": ("8", 8, "half", None),
    "trainer.accelerator": ("quantum", 3, None),
    "trainer.strategy": ("nonsense", 3, None, "DDP"),
    "execution.precision": ("int8", 16),
    "judges.dlib.landmarker.detection_side": (0, -5, 2.5),
    "optimisation": (5, None, []),
    "rows": (5, "dim_a"),
}  # fmt: skip
PAIRS_OF_KEYS = [(key, value) for key, values in MORPH.items() for value in values]
TRAINING = {
    "task.learning_rate": (NAN, 0, -1, INF),
    "task.steps": (0, -1, 1.5, NAN),
    "task.ema_decay": (1.5, -0.1, NAN),
    "task.folds": (1, 0, -3),
    "task.network.patch_size": (0, 7, -1, 2.5),
    "task.network.dropout": (1.0, -0.5, NAN),
    "task.precision": ("int4", 7),
    "task.name": ("../up", "", ".x"),
    "task.prediction": ("eps", "", 3),
    "task.pool.role": ("evil", "../x"),
    "task.render_workers": (-1, 10**6),
}
MEASURED = {
    "task.problems": ([], "gaussian", ["gausian"], [1]),
    "task.losses": ([], ["rewards"]),
    "task.calculi": (["pde"], [], "ode"),
    "task.steps": (5, [5, 5], [0], [2.5], [10**9], ["many"], [NAN]),
    "task.drawn_steps": ([0], 20, None),
    "task.each": (0, 2.5, None),
    "task.drawn_each": (0, 2.5, None),
    "task.network_losses": ([], ["rewards"]),
    "task.network_steps": ([-1], []),
    "task.paths": (1, 0, 2.5, 10**9, None),
    "task.draws": (-1, 10**6, 1.5),
    "task.truth.ode": (0, 1, -5, 10**9, "fine", None),
    "task.budgets": ([], [0], [NAN], 60),
    "task.methods": ([], "Backprop", [5]),
    "task.cells": ("", None, 5),
    "seed": (-1, 2**32),
}
DETECTED = {
    "task.pairs": (5, "pairs.csv", None),
    "task.pairs.per_sex": (0, 1.5),
    "task.people.per_sex": (0, -1),
    "task.people.role": ("evil", "", 5),
    "task.seen": ("dim_a", ["../x"], [5], None),
    "task.guided": ([""], {}),
    "task.only": ("all", [5]),
    "task.most_pairs.dim_a": (0, -3, NAN, "all"),
    "task.shuffle_seed": (-1, 1.5, None),
    "task.detectors.convolutional.steps": (0, -1, NAN, 1.5),
    "task.detectors.convolutional.learning_rate": (NAN, 0, INF),
    "task.detectors.convolutional.smoothing": (1, -0.1, NAN),
    "task.detectors.convolutional.shift": (-1, NAN, 10**9),
    "task.detectors.convolutional.network.widths": ([], [0], 24),
    "task.detectors.lbp.cells": (0, -4, 10**9),
    "task.detectors.lbp.regularisation": (0, -1, NAN, INF),
    "task.detectors.lbp.feature": ("sift", 5),
    "task.detectors.demorphing.steps": (0, 1.5),
    "task.detectors.demorphing.amount": (NAN, -1, INF),
    "task.degradations.jpeg2000.jpeg2000.side": (0, -1, 10**9),
    "task.degradations.print_scan.print_scan.noise": (-1, NAN, 2),
    "task.degradations.print_scan.print_scan.oversampling": (0, 10**6, 1.5),
    "task.degradations.print_scan.print_scan.black": (1, NAN, 0.97),
    "task.degradations.print_scan.print_scan.seed": (-1, None),
    "task.weights.lbp": ("", 5),
    "task.reconstructed.encoding_steps": (0, NAN, 10**9),
}
TRAINED, BOARD, DETECTION = (
    [(key, value) for key, values in table.items() for value in values]
    for table in (TRAINING, MEASURED, DETECTED)
)


@pytest.fixture(scope="module")
def morphing():
    return composed([*QUICK, "gradient=adjoint_deis"])


@pytest.fixture(scope="module")
def training():
    return composed(["task=train/autoencoder"])


@pytest.fixture(scope="module")
def board():
    return composed(["task=leaderboard"])


@pytest.fixture(scope="module")
def detection():
    return composed(["+experiment=detection"])


def refused(cfg, key: str, value: object) -> None:
    cfg = cfg.copy()
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(ConfigError) as caught:
        validate(cfg)
    # A node that its class refuses is named itself.
    told(str(caught.value), key if key.count(".") < 2 else key.rpartition(".")[0])


def label(value: object) -> str:
    return repr(value)[:24]


@pytest.mark.parametrize(("key", "value"), PAIRS_OF_KEYS, ids=label)
def test_an_option_has_the_value_that_it_can_have(morphing, key: str, value: object) -> None:
    refused(morphing, key, value)


@pytest.mark.parametrize(("key", "value"), TRAINED, ids=label)
def test_so_it_has_in_a_training(training, key: str, value: object) -> None:
    refused(training, key, value)


@pytest.mark.parametrize(("key", "value"), BOARD, ids=label)
def test_so_it_has_on_the_leaderboard(board, key: str, value: object) -> None:
    refused(board, key, value)


@pytest.mark.parametrize(("key", "value"), DETECTION, ids=label)
def test_so_it_has_for_detectors(detection, key: str, value: object) -> None:
    refused(detection, key, value)


DETECTORS = "callable", "onnx", "torch", "precomputed"
COMPOSED = {
    "morphing": [*QUICK, "gradient=surrogate"],
    "degraded": [*QUICK, "degradation=[jpeg,jpeg2000,print_scan,resize]", "logger=wandb"],
    "judged": [*QUICK, "judges=[onnx,insightface]", "trainer=slurm"],
    "detection": ["+experiment=detection", *(f"+detector@task.detectors.{d}={d}" for d in DETECTORS)],
    "photographs": ["+experiment=frll/table1"],
    **{
        name: [f"task={name}"]
        for name in (
            path.relative_to(CONF / "task").with_suffix("").as_posix()
            for path in sorted((CONF / "task").rglob("*.yaml"))
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_every_number_and_text_of_the_configuration_has_its_values_stated(name: str) -> None:
    cfg, left_out = composed(COMPOSED[name]), []
    task = cfg.task._target_.split(".")[-2]

    def walk(node, prefix: str) -> None:
        for key, value in node.items():
            name = f"{prefix}.{key}" if prefix else str(key)
            if isinstance(value, dict):
                walk(value, name)
            elif key not in _OF_HYDRA and not str(value).startswith("${"):
                if kind_of(name, task) is None and not stated_by_its_class(node, key):
                    left_out.append(name)

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    assert left_out == []


def stated_by_its_class(node, key: str) -> bool:
    """Whether the signature of a node's class refuses a word: a flag, or one of a few words."""
    try:
        check_node("x", {**node, key: "no such value"})
    except (ConfigError, KeyError) as error:
        return "expected" in str(error)
    return False


# --- The command line as it is read. --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["=3"], "=3"),
        (["~seed"], "seed"),
        (["~optimisation.steps"], "optimisation.steps"),
        (["~data.faces"], "data.faces"),
        (["trainer=5"], "trainer=5"),
        (["optimizer.lr=${nowhere}"], "optimizer.lr"),
        (["seed=${seed}"], "seed"),
        (["optimizer._target_=nowhere.x"], "optimizer._target_=nowhere.x"),
        (["seed=range(0,1000000000)"], "seed=range"),
        (["seed=range(3,-3,-1)"], "seed=-2"),
        (["optimizer.lr=choice(0.1,nan)"], "optimizer.lr=nan"),
        (["+attack@rows.x=precomputed"], "rows.x.folder"),
        (["+attack@rows.x=dim_a"], "rows.x.name"),
        (["rows.opencv.name=DIM_A"], "rows.opencv.name"),
        (["-m", "paths.run=a,/"], "paths.run='/'"),
        (["-m", "rows.opencv.name=z,Dim_A"], "rows.opencv.name='Dim_A'"),
        (["-m", "trainer.strategy=auto,nonsense"], "trainer.strategy='nonsense'"),
        (
            ["trainer=ddp", "trainer.strategy.timeout.minutes=-1"],
            "trainer.strategy.timeout.minutes",
        ),
        (["degradation=[jpeg,jpeg]"], "degradation=[jpeg,jpeg]"),
        (["degradation=[jpeg,resize]", "degradation.resize.name=jpeg"], "degradation: "),
        (["degradation=jpeg", "degradation.jpeg=5"], "degradation.jpeg=5"),
        (["degradation=jpeg", "degradation.jpeg.name=''"], "degradation name ''"),
        (["degradation=jpeg", "degradation.jpeg.quality=1e999"], "degradation.jpeg.quality=inf"),
        (["judges.dlib=5"], "judges.dlib=5"),
        (["logger.csv=text"], "logger.csv='text'"),
        (["task._target_=nowhere.x"], "task._target_='nowhere.x'"),
        (["task._target_=adjointdeis.harness.tasks.nothing.run"], "task._target_="),
        (["task._target_=os.sep"], "task._target_='os.sep'"),
        (["task._target_=5"], "task._target_=5"),
        (["hydra.searchpath=[5]"], "hydra.searchpath"),
        (["x" * 3000 + "=1"], "xxx...: no key or group"),
        (["solver=" + "x" * 3000], "solver=xxx"),
        (["optimizer.lr=" + "9" * 10_000], "optimizer.lr=999"),
        (["optimizer.lr=" + "[" * 3000 + "]" * 3000], "optimizer.lr=[["),
        (["seed=range(0,inf)"], "seed=range(0,inf)"),
        (["opti\x1b[2Jmizer.lr=1"], "opti\\x1b[2Jmizer.lr"),
        (["name=${oc.env:THERE_IS_NONE}"], "THERE_IS_NONE"),
        (["+experiments=quickstart"], "did you mean +experiment=quickstart?"),
        (["+attack=dim_a"], "nothing reads it there; write +attack@rows.mine=dim_a"),
        (["+detector=onnx"], "+detector@task.detectors.mine=onnx"),
        (["data.faces=~/faces"], f"quote data.faces={Path.home()}"),
        (['data.faces="~/faces"'], "data.faces='~/faces': expected a path, ~ written out"),
        (["paths.outputs='~'"], "paths.outputs='~'"),
        (["-m", "seed=1,2", "paths.run=out"], "paths.run=out: every job of the sweep"),
        (["data.limit=1e3"], "data.limit=1000.0: expected a whole number"),
        (["data.limit=05"], "data.limit='05': expected a whole number"),
        (["data.limit='5'"], "data.limit='5': expected a whole number"),
        (["protocol.fmr=[0.1%]"], "such as 0.001"),
        (["optimizer.lr=1/10"], "optimizer.lr='1/10': expected a number"),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_the_command_line_is_refused_before_hydra_sees_it(arguments, name, caplog) -> None:
    given = [a for a in arguments if a.startswith("-")], [a for a in arguments if a[0] != "-"]
    with pytest.raises(ConfigError) as caught:
        check_overrides(CONF, [*given[0], *QUICK, *given[1]])
    told(str(caught.value), name)
    assert not caplog.records


@pytest.mark.parametrize("run", ["out/${seed}", "a,b"])
def test_the_jobs_of_a_sweep_may_each_have_their_directory(run) -> None:
    check_overrides(CONF, ["-m", *QUICK, "seed=1,2", f"paths.run={run}"])


def test_what_a_sweeper_chooses_is_refused_at_the_start_of_its_run(tmp_path, capsys) -> None:
    cfg = composed([*QUICK, f"paths.run={tmp_path / 'run'}", "optimizer.lr=nan"])
    with pytest.raises(SystemExit) as ended:
        launch(cfg)
    told(str(ended.value), "error: optimizer.lr=nan")
    cfg = composed([*QUICK, f"paths.run={tmp_path / 'run'}", "seed=-1", "dry_run=true"])
    with pytest.raises(SystemExit) as ended:
        launch(cfg)
    told(str(ended.value), "error: seed=-1")
    assert not list(tmp_path.iterdir())


# --- Files. ---------------------------------------------------------------------------------------

Reader = Callable[[Path], object]


def checked_pairs(path: Path) -> None:
    faces = path.parent / "faces"
    faces.mkdir()
    for subject in ("001", "002", "003"):
        Image.new("RGB", (4, 4)).save(faces / f"{subject}_03.png")
    validate_pairs(read_pairs(path), load_folder(faces), str(path))


def converted(path: Path) -> None:
    error, stderr = io.StringIO(), sys.stderr
    sys.stderr = error
    try:
        code = convert(["--kind", "arcface", str(path), str(path.with_suffix(".safetensors"))])
    finally:
        sys.stderr = stderr
    assert not path.with_suffix(".safetensors").exists()
    if code:
        raise ValueError(error.getvalue())


def configured(path: Path) -> None:
    (path.parent / "experiment").mkdir()
    path.rename(path.parent / "experiment" / path.name)
    check_overrides(CONF, ["--config-dir", str(path.parent), f"+experiment={path.stem}"])


def zipped(path: Path) -> None:
    for subject in load_folder(path).subjects:
        for image in subject.images.values():
            read_image(image)


def torch_bytes(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def png(size: tuple[int, int] = (8, 8), mode: str = "RGB", form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def archive(change: Callable[[bytearray], None]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        made.writestr("001_03.png", png())
    data = bytearray(file.getvalue())
    change(data)
    return bytes(data)


def spoil(data: bytearray) -> None:
    data[data.index(b"IDAT") + 6] ^= 0xFF


def encrypt(data: bytearray) -> None:
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + at] |= 1


def method(data: bytearray) -> None:
    for mark, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        data[data.index(mark) + at] = 77


def swollen(data: bytearray) -> None:
    at = data.index(b"PK\1\2") + 24
    data[at : at + 4] = (3 << 30).to_bytes(4, "little")


def linear(**changes: np.ndarray) -> bytes:
    rows = {key: np.ones(3) for key in ("mean", "deviation", "weight")}
    said = {"training": np.array("x"), "made_of": np.array([], str)}
    file = io.BytesIO()
    np.savez(file, **{**rows, "bias": np.float64(0), **said, **changes})
    return file.getvalue()


HEAD = "kind,morph_id,attack,subject_id,probe_id,ref_id,system,score,score_type,probe_policy\n"
ROW = "morph,m1,dim,a,a8,m1,arc,0.5,similarity,other\n"
RECORD = {"value": 0.5, "score_type": "similarity"}
INFO = "face_id,face_gender\n"

# ruff: noqa: E501 - one input a line
FILES: list[tuple[str, Reader, type[Exception], list[bytes | str]]] = [
    (
        "pairs.csv",
        checked_pairs,
        PairListError,
        [
            "", "\n# nothing\n", "a,b,c,d\n", "001_03.png\n", "x.png,y.png\n", b"\xff\xfe\0", b"\0\0\0\0",
            b"001_03.png,002_03.png,caf\xe9.png\n", '"001_03.png,002_03.png\n', "001_001\n",
            "001_03.png,009_03.png,x.png\n", "001_03.png,001_03.png,x.png\n",
            "001_03.png,002_03.png,x.png\n001_03.png,003_03.png,x.jpg\n",
            "001_03.png,002_03.png,x.png\n001_03.png,003_03.png,X.png\n",
            "001_03.png,002_03.png,caf\u00e9.png\n001_03.png,003_03.png,cafe\u0301.png\n",
            "001_03.png,002_03.png,.hidden.png\n", "001_03.png,002_03.png,...png\n",
            "001_03.png,002_03.png,a\x1b[2J.png\n", f"001_03.png,002_03.png,{'x' * 300}.png\n",
            "001_03.png,002_03.png,x.png\n002_03.png,001_03.png,y.png\n",
        ],
    ),
    (
        "scores.csv",
        read_scores,
        EvaluationError,
        [
            "", "a,b,c\n1,2,3\n", HEAD + ROW.replace("0.5", "x"), HEAD + ROW.replace("0.5", "nan"),
            HEAD + ROW.replace("0.5", ""), HEAD + ROW.replace("similarity", "likeness"),
            HEAD + "morph,m1\n", HEAD + ROW.replace("morph,", "morphed,"), b"\x80\x81\x82",
            HEAD, HEAD + ROW + ROW.replace("0.5", "0.6"), HEAD + '"' + ROW, b"PK\3\4" + b"\0" * 40,
        ],
    ),
    (
        "thresholds.json",
        read_thresholds,
        EvaluationError,
        [
            "", "[]", "{}", "{", '{"records": 5}', '{"records": [{}]}', '{"records": [5]}', "[" * 50_000,
            json.dumps({"records": [RECORD]}), json.dumps({"records": [{**RECORD, "value": "x"}]}),
            b"\xff\xff\xff", "9" * 6000,
        ],
    ),
    (
        "subjects.csv",
        read_subjects,
        EvaluationError,
        ["", "sex,age\nf,3\n", "subject_id,sex\n", "subject_id,sex\na\n", "subject_id,sex\na,f\na,m\n", b"\xff"],
    ),
    (
        "detector.csv",
        lambda path: PrecomputedScores(str(path), "morph"),
        DetectorError,
        [
            "", "image,score\n", "image,score,degradation\na.png\n", "image,score\na.png,.5,jpeg\n",
            "image,score,score\na.png,1,2\n", "image,score\n,0.5\n", "image,score\na.png,1e999\n",
            "image,score\na.png,1_0\n", "image,score\na.png,1\na.png,2\n", b"\xff\xfe\0",
        ],
    ),
    (
        "detector.npz",
        lambda path: loaded(str(path), len, "x", "s_mad"),
        DetectorError,
        [
            b"", b"PK", linear(weight=np.full(3, NAN)), linear(deviation=np.zeros(3)), linear(weight=np.ones(4)),
            linear(mean=np.zeros((3, 3))), linear(bias=np.ones(3)), linear(weight=np.array(["a"] * 3)),
            linear(weight=np.ones(3) * 1j), linear(bias=np.float64(INF)),
        ],
    ),
    ("labels.csv", lists.read_labels, EvaluationError, ["", "image_path,label\n", "a.png,maybe\n"]),
    ("triples.txt", lists.read_triples, EvaluationError, ["", "a\tb\n", "a\tb\tc\na\tb\tc\n"]),
    (
        "manifest.json",
        lambda path: Profile("own", path.parent, "restore it").path("x"),
        AssetError,
        [
            "", "[]", "{}", '{"files": []}', '{"files": {"x": []}}', '{"files": {"x": {"sha256": 5}}}', "[" * 50_000,
        ],
    ),
    (
        "london_faces_info.csv",
        read_info,
        DatasetError,
        [
            "", INFO, "face_id\n1\n", INFO + "1,robot\n", INFO + "1\n", INFO + "1,male\n001,male\n",
            INFO + "X001,male\n2,female\n1,female\n", b"\xfe\xfd", INFO + '"1,male\n',
        ],
    ),
    (
        "001_03.png",
        read_image,
        ImageError,
        [
            b"", b"not a picture", png((8200, 8200), "1"), png()[:40], b"%!PS-Adobe-3.0 EPSF-3.0\n", png(mode="F", form="TIFF"),
            png(form="GIF"), b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"<svg/>", png(mode="I", form="TIFF"),
        ],
    ),
    (
        "faces.zip",
        zipped,
        ValueError,
        [archive(spoil), archive(encrypt), archive(method), archive(swollen), b"PK", b"", archive(lambda d: d.clear())],
    ),
    (
        "backbone.pth",
        converted,
        ValueError,
        [
            b"", b"PK\3\4", b"\x80\x02.", torch_bytes(5), torch_bytes([]), torch_bytes({}), torch_bytes(None),
            torch_bytes({"a": 1}), torch_bytes({1: torch.ones(2)}), torch_bytes({"fc.bias": torch.ones(2)}),
            torch_bytes({"fc.bias": torch.ones(512).to_sparse()}), torch_bytes({"fc.bias": "x"}),
            torch_bytes({"fc.bias": torch.ones(512, dtype=torch.complex64)}),
            torch_bytes({"fc.bias": torch.ones(512).to(torch.float8_e4m3fn)}),
            torch_bytes({"fc.bias": torch.ones(512, device="meta")}),
            torch_bytes({"fc.bias": torch.ones(0)}), torch_bytes({"fc.bias": torch.full((512,), NAN)}),
        ],
    ),
    (
        "mine.yaml",
        configured,
        ConfigError,
        [
            "defaults: [", "defaults: 5\n", "a: b: c\n", "\tx: 1\n", b"\xff\xfe\xfa",
            "# @package _global_\nseed: -1\n", "# @package _global_\nsed: 1\n", "defaults:\n  - /attack: nothing\n",
            "# @package _global_\nrows:\n  x: 5\n", "# @package _global_\noptimisation:\n  steps: .nan\n",
            "&a [*a]\n", "- 1\n- 2\n", "bare text\n", "5\n", "false\n", "# @package _global_\nseed: !!python/object/apply:os.getpid []\n",
        ],
    ),
]  # fmt: skip
CASES = [
    pytest.param(name, reader, error, content, id=f"{name}-{k}")
    for name, reader, error, contents in FILES
    for k, content in enumerate(contents)
]


@pytest.mark.parametrize(("name", "reader", "error", "content"), CASES)
def test_a_file_is_refused_by_its_name(tmp_path, capsys, name, reader, error, content) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        reader(path)
    # An option of a configuration may be named by its key instead.
    told(str(caught.value), *([] if error is ConfigError else [Path(name).stem]))
    told_on_screen = capsys.readouterr().err
    assert "Traceback" not in told_on_screen


@pytest.mark.timeout(60)  # who opens a pipe waits for ever
@pytest.mark.parametrize(("name", "reader", "error"), [each[:3] for each in FILES] + [
    ("w.safetensors", load_network, WeightsError), ("w.safetensors", read_header, WeightsError),
])  # fmt: skip
def test_a_pipe_and_a_folder_are_no_file(tmp_path, capsys, name, reader, error) -> None:
    for make in (os.mkfifo, os.mkdir):
        path = tmp_path / make.__name__ / name
        path.parent.mkdir()
        make(path)
        if name == "faces.zip" and make is os.mkdir:
            continue  # a folder of faces, without any
        with pytest.raises((error, FileNotFoundError)) as caught:
            reader(path)
        told(str(caught.value), Path(name).stem)


@pytest.mark.parametrize(
    "content", [HEAD + ROW.replace("0.5", "x"), "", b"\xff\xfe\xff\xfe"], ids=["score", "empty", "binary"]
)  # fmt: skip
def test_the_evaluation_says_so_in_one_line(tmp_path, capsys, content) -> None:
    path = tmp_path / "scores.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert evaluation([str(path)]) == 2
    told(capsys.readouterr().err, "scores.csv")


def test_there_are_enough_of_them() -> None:
    assert len(PAIRS_OF_KEYS) + len(TRAINED) + len(CASES) >= 150


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["paths.run=/"], "paths.run='/'"),
        # A start of the program takes three seconds; that these are found is checked above.
        pytest.param(["-m", "seed=-1,0"], "seed=-1", marks=pytest.mark.slow),
        pytest.param(["optimizer._target_=nowhere.x"], "nowhere.x", marks=pytest.mark.slow),
    ],
    ids=["run", "sweep", "target"],
)
def test_the_program_says_so_in_one_line(tmp_path, environ, arguments, name) -> None:
    done = subprocess.run(
        command_line([*(a for a in arguments if a == "-m"), *QUICK, *arguments[-1:]]), cwd=tmp_path, env=environ, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 1 and not done.stdout
    told(done.stderr, "error: ", name)
    assert not os.listdir(tmp_path)


def test_numbers_that_options_may_have_pass(morphing) -> None:
    """The table refuses nothing that runs: the ends of the ranges."""
    for key, value in (
        ("seed", 2**32 - 1), ("seed", None), ("threads", 1), ("optimisation.steps", 0),
        ("optimisation.stop_similarity", 0.99), ("optimizer.lr", 1), ("optimizer.lr", 1e-12),
        ("protocol.replicates", 0), ("protocol.fmr", [1e-6, 0.5]), ("rows.dim_a.weight", 0),
        ("name", "frll/table 1, é"), ("paths.run", "."), ("data.limit", None), ("trainer.devices", "auto"),
        ("optimisation.z_learning_rate", 0), ("data.faces", "/data/epoch=3/faces"),
    ):  # fmt: skip
        cfg = morphing.copy()
        OmegaConf.update(cfg, key, value)
        validate(cfg)
    assert np.isfinite(morphing.optimizer.lr)
