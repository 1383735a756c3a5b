"""A profile's files: found, checked against the manifest, loaded strictly, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest

from adjointdeis.faces.weights import WeightsError
from adjointdeis.harness import assets
from adjointdeis.harness.assets import AssetError


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    return Path(shutil.copytree(tiny / "profile", tmp_path / "profile"))


def at(folder: Path) -> assets.Profile:
    return assets.profile("mini", str(folder))


def test_loads_what_the_manifest_lists(folder) -> None:
    profile = at(folder)
    autoencoder = assets.autoencoder("diffae.safetensors", profile)
    assert autoencoder.prediction == "v"
    assert not any(p.requires_grad for p in autoencoder.network.parameters())
    assert not autoencoder.network.training
    judge = assets.recogniser("arcface.safetensors", profile)
    assert judge.name == "arcface"
    records = assets.thresholds("thresholds.json", profile)
    record = next(r for r in records if r.model == "arcface")
    assert record.model_fingerprint == judge.fingerprint
    assert record.alignment == judge.alignment


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def tampered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [(missing, "is missing"), (truncated, "cut short"), (tampered, "altered")],
)
@pytest.mark.parametrize("name", ["diffae.safetensors", "arcface.safetensors", "thresholds.json"])
def test_a_bad_file_is_named_with_its_remedy(folder, damage, words: str, name: str) -> None:
    damage(folder / name)
    load = {
        "diffae.safetensors": assets.autoencoder,
        "arcface.safetensors": assets.recogniser,
        "thresholds.json": assets.thresholds,
    }[name]
    with pytest.raises(AssetError, match=words) as caught:
        load(name, at(folder))
    assert str(folder / name) in str(caught.value)
    assert "git checkout" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_network_of_another_kind(folder) -> None:
    with pytest.raises(WeightsError, match=r"holds a IResNet, not a DiffAE"):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["arcface.safetensors"]["prediction"] = "v"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        assets.autoencoder("arcface.safetensors", at(folder))


def test_a_file_that_the_manifest_does_not_list(folder) -> None:
    with pytest.raises(AssetError, match=r"has no entry for other\.safetensors; it lists adaface"):
        assets.recogniser("other.safetensors", at(folder))


@pytest.mark.parametrize("text", ["{", "[]", '{"profile": "mini"}'])
def test_a_damaged_manifest(folder, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(AssetError, match=r"manifest\.json is not a manifest"):
        assets.recogniser("arcface.safetensors", at(folder))


def test_no_profile_at_all(tmp_path) -> None:
    with pytest.raises(AssetError, match=r"manifest\.json is missing; restore it"):
        assets.autoencoder("diffae.safetensors", at(tmp_path))
    paper = assets.profile("paper", str(tmp_path))
    with pytest.raises(AssetError, match="task=assets"):
        assets.autoencoder("diffae.safetensors", paper)
