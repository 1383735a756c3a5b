"""Conversion of official checkpoints: layouts made here as the official programs make them."""

import argparse
import os
import sys
import types

import pytest
import torch
from safetensors import safe_open

from adjointdeis.faces.checkpoints import KINDS, convert_checkpoint, main
from adjointdeis.faces.networks import (
    VGG16,
    AdaFace,
    AdaFaceConfig,
    DiffAE,
    DiffAEConfig,
    IResNet,
    IResNetConfig,
    StyleGAN2,
    StyleGAN2Config,
)
from adjointdeis.faces.torch_file import CheckpointError
from adjointdeis.faces.weights import fingerprint, load_network, read_header

SMALL = {"image_size": 16, "layers": (1, 1, 1, 1), "widths": (4, 4, 6, 8), "embedding_dim": 5}


def small_network(kind: str, seed: int = 0):
    torch.manual_seed(seed)
    if kind == "diffae":
        network = DiffAE(
            DiffAEConfig(
                image_size=8,
                model_channels=8,
                channel_mult=(1, 2),
                encoder_channel_mult=(1, 2),
                residual_blocks=1,
                attention_resolutions=(4,),
                embed_channels=6,
                code_channels=5,
            )
        )
    elif kind == "adaface":
        network = AdaFace(AdaFaceConfig(**SMALL))
    elif kind == "stylegan2":
        network = StyleGAN2(StyleGAN2Config(8, 4, 4, 2, 64, 8))
    elif kind == "vgg16":
        network = VGG16()
    else:
        network = IResNet(IResNetConfig(**SMALL))
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_()
    return network.eval()


def prefixed(prefix: str, network) -> dict[str, torch.Tensor]:
    return {f"{prefix}{key}": value for key, value in network.state_dict().items()}


def official_content(kind: str, network) -> dict:
    """What the official training program of a kind saves."""
    if kind == "diffae":
        weights = prefixed("model.", small_network(kind, seed=1)) | prefixed("ema_model.", network)
        weights["x_T"] = torch.randn(2, 3, 8, 8)
    elif kind == "adaface":
        weights = prefixed("model.", network) | {"head.kernel": torch.randn(5, 70)}
    elif kind == "vgg16":
        # The official file has no classifier to speak of: its values are not numbers.
        rest = {f"features.{k}.weight": torch.randn(2, 2, 3, 3) for k in (17, 19, 28)}
        rest["classifier.0.weight"] = torch.full((2, 2), float("nan"))
        return dict(network.state_dict()) | rest
    else:
        return dict(network.state_dict())
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "1.4.5",
        "state_dict": weights,
        "hyper_parameters": argparse.Namespace(seed=0, lr=1e-4),
        "optimizer_states": [{"state": {0: {"exp_avg": torch.randn(4)}}, "param_groups": []}],
    }


def save_official(content, path, monkeypatch, zipped=True):
    """Saves with a Lightning callback *class* as a key, as Lightning 1.4 does."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for parent in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        patch.setitem(sys.modules, name, module)
        if "state_dict" in content:
            content = content | {"callbacks": {module.ModelCheckpoint: {"monitor": None}}}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_official_file_converts_and_loads(tmp_path, monkeypatch, kind, zipped):
    network = small_network(kind)
    content = official_content(kind, network)
    source = save_official(content, tmp_path / "official.ckpt", monkeypatch, zipped)
    destination = tmp_path / "deep" / "converted.safetensors"
    sha256 = convert_checkpoint(source, destination, kind, network=small_network(kind, seed=2))
    assert sha256 == fingerprint(destination)
    loaded = load_network(destination, sha256)
    assert type(loaded) is type(network)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)
    header = read_header(destination)
    assert header["kind"] == kind
    assert header["source"] == "official.ckpt"
    assert header["source_sha256"] == fingerprint(source)
    assert header["licence"] == KINDS[kind].licence
    assert header["colours"] == ("bgr" if kind == "adaface" else "rgb")
    entries = len(network.state_dict())
    assert header["dropped"] == {"diffae": entries + 1, "adaface": 1, "vgg16": 4}.get(kind, 0)


def test_an_official_stylegan2_pickle_is_refused_unexecuted_and_says_what_to_do(tmp_path):
    """It names a function that is given the network's source, and would run it."""
    source = tmp_path / "ffhq.pkl"
    reached = tmp_path / "reached"
    code = f"open({str(reached)!r}, 'w').close()"
    # Protocol 2 by hand: the module need not exist where the file is made.
    source.write_bytes(
        b"\x80\x02}U\x05G_emactorch_utils.persistence\n_reconstruct_persistent_obj\n"
        + b"}U\x0amodule_srcX"
        + len(code).to_bytes(4, "little")
        + code.encode()
        + b"s\x85Rs."
    )
    destination = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError) as raised:
        convert_checkpoint(source, destination, "stylegan2")
    message = str(raised.value)
    assert "torch_utils.persistence._reconstruct_persistent_obj" in message
    assert "nothing of the file was executed" in message
    assert "save the state dict of its G_ema in the official environment" in message
    assert not reached.exists() and not destination.exists()


def test_half_precision_weights_are_stored_as_float32(tmp_path):
    network = small_network("arcface")
    torch.save({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "half.pth")
    path = tmp_path / "out.safetensors"
    convert_checkpoint(tmp_path / "half.pth", path, "arcface", network=small_network("arcface", 1))
    with safe_open(path, framework="pt") as file:
        stored = file.get_tensor("fc.weight")
    assert stored.dtype == torch.float32
    torch.testing.assert_close(stored, network.fc.weight.half().float(), rtol=0, atol=0)


def test_tensors_that_share_memory_convert(tmp_path):
    """Some programs keep all weights in one flat buffer."""
    network = small_network("arcface")
    state = network.state_dict()
    flat = torch.cat([v.flatten().float() for v in state.values()])
    pieces = flat.split([v.numel() for v in state.values()])
    shared = {k: p.view(v.shape) for (k, v), p in zip(state.items(), pieces, strict=True)}
    torch.save(shared, tmp_path / "flat.pth")
    path = tmp_path / "out.safetensors"
    convert_checkpoint(tmp_path / "flat.pth", path, "arcface", network=small_network("arcface", 1))
    torch.testing.assert_close(load_network(path).fc.weight, network.fc.weight, rtol=0, atol=0)


def remove_weight(content):
    del content["state_dict"]["ema_model.encoder.out.3.weight"]


def add_latent_net(content):
    content["state_dict"]["ema_model.latent_net.weight"] = torch.ones(1)


def add_stranger(content):
    content["state_dict"]["conds_mean"] = torch.ones(1)


def reshape_weight(content):
    content["state_dict"]["ema_model.out.2.bias"] = torch.ones(4)


def spoil_weight(content):
    content["state_dict"]["ema_model.out.2.bias"] = torch.tensor([1.0, float("nan"), 1.0])


def drop_average(content):
    weights = content["state_dict"]
    for key in [key for key in weights if key.startswith("ema_model.")]:
        del weights[key]


def drop_state_dict(content):
    del content["state_dict"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weight, r"missing: encoder\.out\.3\.weight"),
        (add_latent_net, r"unexpected: latent_net\.weight"),
        (add_stranger, "unexpected entries conds_mean"),
        (reshape_weight, r"of another shape: out\.2\.bias \(4,\) for \(3,\)"),
        (spoil_weight, r"not finite: out\.2\.bias"),
        (drop_average, r"no key begins with 'ema_model\.'"),
        (drop_state_dict, "no entry 'state_dict'"),
    ],
)
def test_a_wrong_checkpoint_says_what_is_wrong(tmp_path, monkeypatch, damage, message):
    content = official_content("diffae", small_network("diffae"))
    damage(content)
    source = save_official(content, tmp_path / "last.ckpt", monkeypatch)
    destination = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match=message) as raised:
        convert_checkpoint(source, destination, "diffae", network=small_network("diffae"))
    assert "last.ckpt" in str(raised.value)
    assert "ffhq256_autoenc" in str(raised.value)
    assert not destination.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.to_sparse(), r"fc\.weight \(sparse_coo, not dense\)"),
        (lambda w: w.to_sparse_csr(), r"fc\.weight \(sparse_csr, not dense\)"),
        (lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8), r"fc\.weight \(quantised\)"),
        (lambda w: w.to(torch.float8_e4m3fn), r"fc\.weight \(float8_e4m3fn for floating"),
        (lambda w: w.to(torch.complex64), r"fc\.weight \(complex64 for floating"),
        (lambda w: w.to("meta"), r"fc\.weight \(without its numbers"),
        (lambda w: w.to(torch.int32), r"fc\.weight \(int32 for floating"),
        (lambda w: w > 0, r"fc\.weight \(bool for floating"),
        (lambda w: w[:0], r"of another shape: fc\.weight \(0, "),
        (lambda w: w.tolist(), r"unexpected entries fc\.weight"),
        (lambda w: w * torch.inf, r"not finite: fc\.weight"),
    ],
)
@pytest.mark.parametrize("own_reader", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_named(tmp_path, capsys, change, message, own_reader):
    network = small_network("arcface")
    state = dict(network.state_dict())
    state["fc.weight"] = change(state["fc.weight"])
    if own_reader:
        # torch.load refuses it, and the project's reader takes over.
        state["fc.extra"] = torch.nn.Identity()
        message += "|of a kind that no network here has|unexpected entries fc.extra"
    source, destination = tmp_path / "strange.pth", tmp_path / "out.safetensors"
    torch.save(state, source)
    with pytest.raises(CheckpointError, match=message) as raised:
        convert_checkpoint(source, destination, "arcface", network=small_network("arcface"))
    assert "strange.pth" in str(raised.value)
    assert not destination.exists()


def test_many_missing_keys_are_counted(tmp_path, capsys):
    """The command line, with the full-size network that it expects."""
    torch.save(dict(small_network("arcface").state_dict()), tmp_path / "backbone.pth")
    destination = tmp_path / "out.safetensors"
    arguments = ["--kind", "arcface", str(tmp_path / "backbone.pth"), str(destination)]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "missing: layer1.1.bn1.weight" in error
    assert "more" in error
    assert "conv1.weight (4, 3, 3, 3) for (64, 3, 3, 3)" in error
    assert not destination.exists()


def test_the_command_line_refuses_a_malicious_file_unexecuted(tmp_path, capsys):
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    content = official_content("adaface", small_network("adaface")) | {"callbacks": Attack()}
    torch.save(content, tmp_path / "evil.ckpt")
    destination = tmp_path / "out.safetensors"
    arguments = ["--kind", "adaface", str(tmp_path / "evil.ckpt"), str(destination)]
    assert main(arguments) == 1
    assert ".system" in capsys.readouterr().err
    assert not marker.exists()
    assert not destination.exists()


def test_the_command_line_converts(tmp_path, monkeypatch, capsys):
    small = small_network("adaface")
    layout = KINDS["adaface"]
    kind = type(layout)(**{**vars(layout), "network": lambda: small_network("adaface", 1)})
    monkeypatch.setitem(KINDS, "adaface", kind)
    content = official_content("adaface", small)
    source = save_official(content, tmp_path / "adaface.ckpt", monkeypatch)
    destination = tmp_path / "out.safetensors"
    assert main(["--kind", "adaface", str(source), str(destination)]) == 0
    assert fingerprint(destination) in capsys.readouterr().out
    expected = small.output_layer[3].weight
    got = load_network(destination).output_layer[3].weight
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"kind='curricular' is unknown; known are diffae"):
        convert_checkpoint(tmp_path / "a", tmp_path / "b.safetensors", "curricular")
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        convert_checkpoint(tmp_path / "a", tmp_path / "b.pt", "arcface")
    with pytest.raises(CheckpointError, match=r"a\.ckpt is missing"):
        convert_checkpoint(tmp_path / "a.ckpt", tmp_path / "b.safetensors", "arcface")


@pytest.mark.slow
def test_a_full_size_adaface_file_converts(tmp_path, monkeypatch):
    torch.manual_seed(0)
    network = AdaFace(AdaFaceConfig.ir101()).eval()
    content = official_content("adaface", network)
    source = save_official(content, tmp_path / "adaface_ir101_ms1mv2.ckpt", monkeypatch)
    destination = tmp_path / "adaface.safetensors"
    convert_checkpoint(source, destination, "adaface")
    loaded = load_network(destination)
    x = torch.rand(1, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), network(x), rtol=0, atol=0)
