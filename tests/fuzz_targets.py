"""Every reader of files or words of others, with sound files to damage; used by the fuzz suite."""

import contextlib
import io
import json
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_changes import (
    Random,
    changed_bytes,
    changed_json,
    changed_png,
    changed_safetensors,
    changed_text,
    changed_zip,
)
from fuzz_graphs import (
    changed_onnx,
    dlib_files,
    onnx_files,
    run_onnx,
    run_tfjs,
    run_tflite,
    tfjs_files,
    tflite_files,
)
from fuzz_scores import score_files, simulated


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
        name: Its name.
        suffix: Of its files.
        seeds: Sound files.
        change: Makes a case of a sound file.
        read: Reads a file.
        allowed: Errors that it may raise.
        share: Of the number of cases that the others get.
    """

    name: str
    suffix: str
    seeds: Callable[[], list[bytes]]
    change: Callable[[Random, bytes, Sequence[bytes]], bytes]
    read: Callable[[Path], object]
    allowed: tuple[type[Exception], ...]
    share: float = 1.0


def _file(write: Callable[[Path], object], suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"x{suffix}"
        write(path)
        return path.read_bytes()


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    from PIL import Image

    rng = np.random.default_rng(0)
    shape = (9, 7) if mode in ("L", "I;16", "1", "P") else (9, 7, len(mode))
    top, dtype = (65535, np.uint16) if mode == "I;16" else (255, np.uint8)
    image = Image.fromarray(rng.integers(0, top, shape).astype(dtype))
    made = io.BytesIO()
    if image.mode != mode:
        image = image.convert(mode)
    image.save(made, kind, **options)
    return made.getvalue()


def _pictures() -> list[bytes]:
    return [
        _picture("PNG"), _picture("PNG", "RGBA"), _picture("PNG", "I;16"), _picture("JPEG"),
        _picture("JPEG", "CMYK"), _picture("TIFF", compression="tiff_lzw"),
        _picture("TIFF", "I;16"), _picture("WEBP"), _picture("BMP"), _picture("GIF"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ]  # fmt: skip


def _torch_files() -> list[bytes]:
    import torch

    value = {"state_dict": {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3).half()}}
    value["epoch"], value["names"] = 3, ["x", ("y", None)]  # type: ignore[assignment]
    return [
        _file(lambda p, z=z, k=k: torch.save(
            value, p, _use_new_zipfile_serialization=z, pickle_protocol=k), ".pt")
        for z in (True, False) for k in (2, 4)
    ] + [pickle.dumps({"a": [1, 2, (3, 4)], "b": {"c": b"x"}})]  # fmt: skip


def _weight_files() -> list[bytes]:
    from tiny_profile import excite, small_autoencoder

    from adjointdeis.faces.networks import DiffAE, IResNet, IResNetConfig
    from adjointdeis.faces.weights import save_network

    small = IResNet(IResNetConfig(16, (1, 1, 1, 1), (8, 8, 8, 8), embedding_dim=8))
    networks = (excite(small, 1), excite(DiffAE(small_autoencoder()), 2))
    more = {"training": {"held_out": ["001"]}}
    return [
        _file(lambda p, n=n: save_network(n, p, more), ".safetensors")  # type: ignore[arg-type]
        for n in networks
    ]


def _npz() -> list[bytes]:
    stems = np.array(["001_03", "002_03"])
    points = np.zeros((2, 68, 2), np.float32)
    return [
        _file(lambda p, f=f: f(p, stems=stems, points=points, size=np.int64(16)), ".npz")
        for f in (np.savez, np.savez_compressed)
    ]


def _faces_zip() -> list[bytes]:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name in ("a/001_03.png", "a/001_08.png", "002_03.png", "002_08.png"):
            archive.writestr(name, _picture("PNG"))
        archive.writestr(
            "london_faces_info.csv", "face_id,face_sex,face_age\n1,female,20\n2,m,30\n"
        )
    return [made.getvalue()]


def _threshold() -> list[bytes]:
    from adjointdeis.evaluation import ThresholdRecord

    record = ThresholdRecord.literal(0.5, target_fmr=0.001).to_dict()
    return [json.dumps(record).encode(), json.dumps({"records": [record]}).encode()]


DIRECTORY: list[Path] = []
"""The small run directory whose parts are changed, made once."""


def run_directory() -> Path:
    if not DIRECTORY:
        from tiny_profile import PAIRS, composed, draw_face, overrides, write_profile

        from adjointdeis.faces.image_io import write_image
        from adjointdeis.harness.launch import launch

        root = Path(tempfile.mkdtemp(prefix="fuzzing-"))
        for subject in range(1, 5):
            for capture in ("03", "08"):
                face = draw_face(subject, capture == "08")
                write_image(root / f"faces/{subject:03d}_{capture}.png", face)
        lines = [f"{p[:3]}_03.png,{p[4:]}_03.png,{p}.png" for p in PAIRS]
        (root / "pairs.csv").write_text("\n".join(lines) + "\n")
        (root / "profile").mkdir()
        write_profile(root / "profile")
        given = overrides(root, root / "run", "logger=none", rows=("dim_a",), replicates=0)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            launch(composed(given))
        DIRECTORY.append(root / "run")
    return DIRECTORY[0]


def _part(name: str) -> Callable[[], list[bytes]]:
    return lambda: [(run_directory() / name).read_bytes()]


def _checked(name: str) -> Callable[[Path], object]:
    """Checks and collects the run with one of its parts replaced by the case."""

    def read(case: Path) -> object:
        from adjointdeis.harness.tasks.verify import check_run
        from adjointdeis.reporting import ReportError, collect

        run = run_directory()
        path = run / name
        before = path.read_bytes() if path.is_file() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(case, path)
        try:
            faults = check_run(run)
            # What done.json says of itself, such as its seconds, has no second witness.
            assert faults or name == "done.json" or case.read_bytes() == before, "not found"
            assert all(str(fault).isprintable() for fault in faults)
            with contextlib.suppress(ReportError):
                collect(run.parent)
            return faults
        finally:
            path.unlink()
            if before is not None:
                path.write_bytes(before)

    return read


_RECORD = "morphs/dim_a/001_002.json"
_MORPH = "morphs/dim_a/001_002.png"


def _records(case: Path) -> object:
    """Reads the records of an attack, one of which is the case."""
    from types import SimpleNamespace

    from adjointdeis.harness.records import read_records

    stated = json.loads((run_directory() / _RECORD).read_text())
    folder = case.parent / "records"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(case, folder / "001_002.json")
    shutil.copyfile(run_directory() / _MORPH, folder / "001_002.png")
    benchmark: Any = SimpleNamespace(
        pairs=[SimpleNamespace(morph_id="001_002")], source_hashes=lambda pair: stated["sources"]
    )
    return read_records(folder, benchmark, stated["config_hash"])


def _landmarks(case: Path) -> object:
    from types import SimpleNamespace

    from adjointdeis.faces.recogniser import NoFaceError
    from adjointdeis.harness.landmarks import STORED, BenchmarkLandmarks

    shutil.copyfile(case, case.with_name(STORED))

    def none(*args: object, **options: object) -> None:
        raise NoFaceError("no dlib here")

    dataset: Any = SimpleNamespace(root=case.parent)
    found = BenchmarkLandmarks(dataset, landmarker=SimpleNamespace(landmarks=none))  # type: ignore
    return found(Path("001_03.png"), np.zeros((16, 16, 3), np.uint8), "dlib68")


def _frll(case: Path) -> object:
    from adjointdeis.faces.datasets.frll import load_frll
    from adjointdeis.images import open_rgb

    dataset = load_frll(case, need_templates=False)
    return [open_rgb(path) for s in dataset.subjects for path in s.images.values()]


def _cache(case: Path) -> object:
    from adjointdeis.faces.array_cache import read_entry

    assert read_entry(case) is None, "a changed entry was believed"
    return None


def _overrides(case: Path) -> object:
    from tiny_profile import ROOT

    from adjointdeis.harness.command_line import check_overrides

    words = case.read_bytes().decode("utf-8", "replace").replace("\0", "").split("\n")
    return check_overrides(ROOT / "conf", [word for word in words if word][:6])


_LINES = (
    b"+experiment=quickstart\ndata.limit=4\noptimisation.steps=3",
    b"gradient=adjoint_deis\ngradient.steps=5\noptimizer.lr=0.5",
    b"rows.dim_a.label=x\n~rows\nseed=1\nprotocol.fmr=[0.01,0.001]",
)


def targets() -> Iterator[Target]:
    """Every reader of files or words of others."""
    from adjointdeis.detection.detector import DetectorError
    from adjointdeis.detection.plugged import PrecomputedScores
    from adjointdeis.evaluation import EvaluationError, read_scores
    from adjointdeis.evaluation.detection_matrix import read_detection
    from adjointdeis.evaluation.formats import lists
    from adjointdeis.evaluation.provenance import read_provenance
    from adjointdeis.evaluation.subjects import read_subjects
    from adjointdeis.evaluation.thresholds import read_thresholds
    from adjointdeis.faces.datasets.folder import DatasetError
    from adjointdeis.faces.datasets.pairs import PairListError, read_pairs
    from adjointdeis.faces.datasets.tem import TemplateError, read_tem
    from adjointdeis.faces.dlib_dat import DatError, read_dat
    from adjointdeis.faces.graphs import GraphError
    from adjointdeis.faces.recogniser import NoFaceError
    from adjointdeis.faces.torch_file import CheckpointError, read_torch_file
    from adjointdeis.faces.weights import WeightsError, load_network, read_header
    from adjointdeis.files import read_json
    from adjointdeis.harness.validation import ConfigError
    from adjointdeis.images import ImageError, open_rgb

    def csv(*rows: str) -> Callable[[], list[bytes]]:
        return lambda: ["\n".join(rows).encode() + b"\n"]

    yield Target("torch", ".pt", _torch_files, changed_zip, read_torch_file, (CheckpointError,))
    yield Target(
        "weights", ".safetensors", _weight_files, changed_safetensors, load_network, (WeightsError,)
    )
    yield Target(
        "header", ".safetensors", _weight_files, changed_safetensors, read_header, (WeightsError,)
    )
    yield Target("image", ".png", _pictures, changed_png, open_rgb, (ImageError,), 2)
    yield Target(
        "provenance", ".png", _part(_MORPH), changed_png, read_provenance, (EvaluationError,)
    )
    yield Target("zip", ".zip", _faces_zip, changed_zip, _frll, (DatasetError, ImageError))
    yield Target("npz", ".npz", _npz, changed_zip, _landmarks, (DatasetError, NoFaceError))
    tem = csv("3", "1 2", "3 4.5", "5 6", "1", "0", "2", "0 1")
    yield Target("tem", ".tem", tem, changed_text, read_tem, (TemplateError,))
    pairs = csv("001_03.png,002_03.png,001_002.png", "003_03.png,004_03.png,x.png")
    yield Target("pairs", ".csv", pairs, changed_text, read_pairs, (PairListError,))
    yield Target("scores", ".csv", simulated, changed_text, read_scores, (EvaluationError,))
    people = csv("subject_id,sex,group,age", "001,female,a,20", "002,male,b,31")
    yield Target("people", ".csv", people, changed_text, read_subjects, (EvaluationError,))
    yield Target(
        "thresholds", ".json", _threshold, changed_json, read_thresholds, (EvaluationError,)
    )
    triples = csv("a.png\tb.png\tc.png", "d.png\tb.png\tc.png")
    yield Target("triples", ".txt", triples, changed_text, lists.read_triples, (EvaluationError,))
    labels = csv("image_path,label", "a.png,bonafide", "b.png,attack")
    yield Target("labels", ".csv", labels, changed_text, lists.read_labels, (EvaluationError,))
    boxes = csv("a.png 1 2 3 4 1 2 3 4 5 6 7 8 9 10")
    yield Target("boxes", ".txt", boxes, changed_text, lists.read_landmarks, (EvaluationError,))
    studies = csv(
        "image,label,attack,detector,score",
        "001_03.png,bona_fide,,d,0.1",
        "001_002.png,morph,a,d,.9",
    )
    yield Target("detection", ".csv", studies, changed_text, read_detection, (EvaluationError,))
    for name, seeds, reader in score_files():
        yield Target(f"{name} scores", ".txt", seeds, changed_text, reader, (EvaluationError,), 0.5)
    detector = csv("image,score,degradation", "a.png,0.5,none", "a.png,.7,jpeg", "b.png,-1,none")
    yield Target(
        "detector", ".csv", detector, changed_text, lambda p: PrecomputedScores(str(p), "morph"),
        (DetectorError,), 0.5,
    )  # fmt: skip
    yield Target("onnx", ".onnx", onnx_files, changed_onnx, run_onnx, (GraphError,))
    yield Target("tflite", ".tflite", tflite_files, changed_bytes, run_tflite, (GraphError,))
    yield Target("tfjs", ".json", tfjs_files, changed_json, run_tfjs, (GraphError,), 0.5)
    yield Target("dlib", ".dat", dlib_files, changed_bytes, read_dat, (DatError,))
    yield Target("json", ".json", _part("result.json"), changed_json, read_json, (ValueError,), 0.3)
    yield Target("record", ".json", _part(_RECORD), changed_json, _records, ())
    yield Target("cache", ".arrays", lambda: [bytes(400)], changed_bytes, _cache, ())
    # A run directory in which one file is another: checked, and collected for a report.
    for name, change in (
        ("result.json", changed_json), ("done.json", changed_json), ("run.json", changed_json),
        ("config.yaml", changed_text), ("scores.csv", changed_text), (_RECORD, changed_json),
        (_MORPH, changed_png), ("wandb/offline-run-1-x/run-x.wandb", changed_bytes),
    ):  # fmt: skip
        seeds = (lambda: [b":W&B\0\1\0" + bytes(64)]) if "wandb" in name else _part(name)
        suffix, label = Path(name).suffix, f"run {Path(name).name}"
        if "wandb" in name:
            yield Target(label, suffix, seeds, change, _wandb, (), 0.5)
        else:
            yield Target(label, suffix, seeds, change, _checked(name), (), 0.5)
    yield Target(
        "overrides", ".txt", lambda: [*_LINES], changed_text, _overrides, (ConfigError,), 0.1
    )


def _wandb(case: Path) -> object:
    from adjointdeis.harness.tasks.verify import check_run

    path = run_directory() / "wandb/offline-run-1-x/run-x.wandb"
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(case, path)
    try:
        return check_run(run_directory())
    finally:
        shutil.rmtree(path.parents[1])
