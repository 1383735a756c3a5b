"""A profile's files: found, checked against the manifest, loaded strictly, or refused by name."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_profile import composed, write_profile

from adjointdeis.diffusion import EpsFromX0
from adjointdeis.faces.weights import WeightsError, save_network
from adjointdeis.harness import assets
from adjointdeis.harness.assets import AssetError
from adjointdeis.harness.launch import launch
from adjointdeis.harness.tasks import train
from adjointdeis.harness.tasks.morph import judges_of


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


def test_recognisers_of_one_name_are_refused_by_every_task(folder) -> None:
    """The choice of pairs of photographs kept the last of them, without a word."""
    cfg, name = composed(["paths.root=."]), "arcface.safetensors"
    assert judges_of(cfg, [name], at(folder))[0].name == "arcface"
    with pytest.raises(ValueError, match="two recognisers are called 'arcface'"):
        judges_of(cfg, [name, name], at(folder))


def test_what_a_network_predicts_is_the_manifests(folder) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    entry = manifest["files"]["diffae.safetensors"]
    entry |= {"prediction": "x0", "spread": 0.06}
    path.write_text(json.dumps(manifest))
    denoiser = assets.autoencoder("diffae.safetensors", at(folder)).denoiser
    assert isinstance(denoiser, EpsFromX0) and denoiser.spread == 0.06
    for wrong, message in (
        ({"prediction": "v"}, "spread=0.06 belongs to"),
        ({"prediction": "score"}, "must be one of eps, v, x0"),
    ):
        entry |= wrong
        path.write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=message):
            assets.autoencoder("diffae.safetensors", at(folder))


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


@pytest.mark.parametrize("training", ["no recipe", {"recipe": [1]}, {"recipe": {"spread": "s"}}])
def test_weights_whose_header_says_nothing_of_their_training(folder, tmp_path, training) -> None:
    network = assets.autoencoder("diffae.safetensors", at(folder)).network
    path = tmp_path / "mine.safetensors"
    save_network(network, path, {"training": training})
    with pytest.raises(WeightsError, match=r"mine\.safetensors: its header says training="):
        assets.autoencoder(str(path), at(folder))
    save_network(network, path, {"training": {"recipe": {}}})
    assert assets.autoencoder(str(path), at(folder)).prediction == "v"


def test_a_network_is_named_by_its_description(folder, tmp_path) -> None:
    path = tmp_path / "mine.onnx"
    path.write_bytes(b"")
    with pytest.raises(AssetError, match=r"mine\.onnx: .* JSON file .*judges\.onnx\.file=\.\.\."):
        assets.recogniser(str(path), at(folder))


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


def test_mipgan_without_a_generator_says_what_to_bring(tmp_path) -> None:
    for row in ("mipgan_i", "mipgan_ii"):
        cfg = composed([f"+experiment=table1/{row}", f"paths.root={tmp_path}", "logger=none"])
        with pytest.raises(SystemExit, match=r"profile mini has none: .*assets\.generator="):
            launch(cfg)
    cfg.assets.generator = str(tmp_path / "mine.safetensors")
    with pytest.raises(SystemExit, match=r"mine\.safetensors is missing; .*assets\.generator"):
        launch(cfg)


def test_a_generator_of_the_users_is_read_from_its_path(tmp_path) -> None:
    write_profile(tmp_path)
    mine = tmp_path / "mine.safetensors"
    shutil.copy(tmp_path / "stylegan2.safetensors", mine)
    profile = assets.profile("mini", str(tmp_path))
    gan = assets.style_generator(str(mine), "guide.safetensors", profile)
    assert gan.fingerprint == profile.entry("stylegan2.safetensors")["sha256"]
    assert gan.licence == "the user's"


def test_the_real_profile_takes_from_mini_what_it_does_not_list(tmp_path, monkeypatch) -> None:
    """Wherever it is asked whether a file is listed: the generator, the start of a training."""
    profile = assets.profile("real", str(tmp_path))
    assert profile.lists("faceplugin") and profile.lists("diffae.safetensors")
    assert not profile.lists("absent.safetensors")
    mini = assets.profile("mini").entry("diffae.safetensors")["sha256"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diffae.safetensors").write_bytes(b"a namesake in the working directory")
    assert assets.autoencoder("diffae.safetensors", profile).fingerprint == mini
    cfg = composed(
        ["task=train/photographs", "assets=real", "task.faces=faces", f"paths.root={tmp_path}"]
    )
    _, start = train._initial(cfg)
    assert start is not None and (start["sha256"], start["prediction"]) == (mini, "x0")
