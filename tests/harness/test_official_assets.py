"""task=assets on a profile of official files: missing, converted, present, wrong, refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_profile import composed, excite, small_autoencoder

from adjointdeis.faces.checkpoints import KINDS
from adjointdeis.faces.networks import DiffAE, IResNet, IResNetConfig
from adjointdeis.faces.weights import fingerprint, read_header, save_network
from adjointdeis.harness import assets
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks import assets as task

NAMES = ("diffae_ffhq256.safetensors", "elasticface_arc_r100.safetensors")


def small_recogniser() -> IResNet:
    return IResNet(IResNetConfig(16, (1, 1, 1, 1), (4, 4, 6, 8), embedding_dim=5))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A profile of two files whose networks are small, and the official files of both."""
    wanted = tuple(entry for entry in task.PAPER if entry.name in NAMES)
    monkeypatch.setattr(task, "PAPER", wanted)
    small = {"diffae": lambda: DiffAE(small_autoencoder()), "elasticface": small_recogniser}
    for kind, network in small.items():
        monkeypatch.setitem(KINDS, kind, replace(KINDS[kind], network=network))
    source = tmp_path / "data" / "official"
    for entry in wanted:
        path = task.source_path(entry, source)
        path.parent.mkdir(parents=True)
        weights = excite(small[entry.kind](), 3).state_dict()
        if entry.kind == "diffae":
            held = {"model." + k: v + 1 for k, v in weights.items()}
            held |= {"ema_model." + k: v for k, v in weights.items()}
            weights = {"state_dict": held | {"x_T": torch.zeros(2, 3, 4, 4)}, "epoch": 1}
        torch.save(weights, path)
    return tmp_path


def run(folder: Path, *more: str) -> list[dict]:
    cfg = composed(["task=assets", "assets=paper", f"paths.root={folder}", "judges=none", *more])
    cfg.paths.run = str(folder / "run")
    launch(cfg)
    return task.run(cfg)["files"]


def of(rows: list[dict], name: str) -> dict:
    return next(row for row in rows if row["file"] == name)


def test_everything_is_missing_at_first_and_says_from_where(folder, capsys) -> None:
    rows = run(folder)
    assert {row["status"] for row in rows} == {"missing"}
    text = capsys.readouterr().out
    assert "https://github.com/konpatp/diffae" in text and "CC BY-NC-SA 4.0" in text
    assert "295672backbone.pth and run `python run.py task=assets assets=paper" in text
    assert "doi.org/10.6084/m9.figshare.5047666" in text
    assert f"0 of {len(rows)} files present" in text
    assert not (folder / "data" / "paper").exists()


def test_converting_makes_a_profile_that_loads(folder) -> None:
    rows = run(folder, "task.action=convert")
    assert {of(rows, name)["status"] for name in NAMES} == {"present"}
    profile = assets.profile("paper", str(folder / "data" / "paper"))
    autoencoder = assets.autoencoder(NAMES[0], profile)
    assert autoencoder.prediction == "eps"
    given = torch.load(next((folder / "data" / "official").rglob("last.ckpt")))["state_dict"]
    for key, value in autoencoder.network.state_dict().items():
        # The averaged weights, not the raw ones.
        torch.testing.assert_close(value, given["ema_model." + key])
    judge = assets.recogniser(NAMES[1], profile)
    assert (judge.name, judge.alignment) == ("elasticface", "ffhq-resize112")
    # Again: nothing to do, nothing done twice.
    before = (folder / "data" / "paper" / NAMES[0]).stat().st_mtime_ns
    run(folder, "task.action=convert")
    assert (folder / "data" / "paper" / NAMES[0]).stat().st_mtime_ns == before


def test_a_file_of_another_network_is_wrong(folder) -> None:
    run(folder, "task.action=convert")
    path = folder / "data" / "paper" / NAMES[1]
    save_network(DiffAE(small_autoencoder()), path, {"kind": "elasticface"}, torch.float32)
    row = of(run(folder), NAMES[1])
    assert row["status"] == "wrong"
    assert "missing, unexpected or of another shape" in row["problem"]
    assert "convert the official file again" in row["remedy"]
    manifest = json.loads((folder / "data" / "paper" / "manifest.json").read_text())
    assert NAMES[1] not in manifest["files"] and NAMES[0] in manifest["files"]
    path.write_bytes(b"no weights")
    assert "cannot be read" in of(run(folder), NAMES[1])["problem"]
    # What the remedy says is what mends it.
    assert of(run(folder, "task.action=convert"), NAMES[1])["status"] == "present"


def test_another_official_file_by_the_name_is_converted(folder, capsys) -> None:
    run(folder, "task.action=convert")
    converted = folder / "data" / "paper" / NAMES[1]
    official = next((folder / "data" / "official").rglob("295672backbone.pth"))
    weights = torch.load(official)
    weights["fc.weight"] = weights["fc.weight"] + 1
    torch.save(weights, official)
    before = read_header(converted)["source_sha256"]
    run(folder, "task.action=convert")
    assert read_header(converted)["source_sha256"] == fingerprint(official) != before
    assert "1 files converted" in capsys.readouterr().out


def test_an_official_file_that_lacks_a_key_is_named(folder) -> None:
    path = next((folder / "data" / "official").rglob("295672backbone.pth"))
    weights = torch.load(path)
    del weights["fc.weight"]
    torch.save(weights, path)
    with pytest.raises(SystemExit, match=r"fc\.weight"):
        run(folder, "task.action=convert")
    # The other one is converted all the same.
    assert (folder / "data" / "paper" / NAMES[0]).is_file()
    assert not (folder / "data" / "paper" / NAMES[1]).exists()


def test_mistakes_are_named(folder) -> None:
    with pytest.raises(SystemExit, match=r"task.action='download': expected list or convert"):
        run(folder, "task.action=download")
    with pytest.raises(SystemExit, match="nothing to convert in assets=mini"):
        run(folder, "assets=mini", "task.action=convert")


def test_the_embedded_profile_is_complete(folder, capsys) -> None:
    rows = run(folder, "assets=mini")
    assert {row["status"] for row in rows} == {"ok"}
    assert all(len(row["sha256"]) == 64 for row in rows)


def test_the_official_layouts_are_told_apart_on_disk() -> None:
    folder = Path("official")
    paths = [task.source_path(entry, folder) for entry in task.PAPER]
    assert len(set(paths)) == len(paths)
