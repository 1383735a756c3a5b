"""Weight files that describe themselves: round trips, and every way in which one can be wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

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
    VGG16Config,
)
from adjointdeis.faces.weights import (
    WeightsError,
    fingerprint,
    load_network,
    read_header,
    save_network,
)

SMALL = {"image_size": 16, "layers": (1, 1, 1, 1), "widths": (4, 4, 6, 8), "embedding_dim": 5}


def build(kind: str):
    torch.manual_seed(0)
    network = {
        "AdaFace": lambda: AdaFace(AdaFaceConfig(**SMALL)),
        "IResNet": lambda: IResNet(IResNetConfig(**SMALL, stem_stride=1)),
        "StyleGAN2": lambda: StyleGAN2(StyleGAN2Config(8, 4, 4, 2, 64, 8, clamp=256.0)),
        "VGG16": lambda: VGG16(VGG16Config(None)),
        "DiffAE": lambda: DiffAE(
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
        ),
    }[kind]()
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.normal_()
        else:
            value.fill_(12)
    return network.eval()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "network.safetensors"
    return path, save_network(build("IResNet"), path, {"seed": 3, "recipe": {"steps": [1, 2]}})


@pytest.mark.parametrize("kind", ["AdaFace", "DiffAE", "IResNet", "StyleGAN2", "VGG16"])
def test_a_network_survives_the_round_trip(tmp_path, kind):
    network, path = build(kind), tmp_path / "a" / "network.safetensors"
    sha256 = save_network(network, path, dtype=torch.float32)
    loaded = load_network(path, sha256)
    assert type(loaded) is type(network)
    assert loaded.config == network.config
    assert not loaded.training
    assert list(loaded.state_dict()) == list(network.state_dict())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_half_precision_is_the_rounded_network_in_float32(saved):
    path, _ = saved
    network, loaded = build("IResNet"), load_network(path)
    for key, value in network.state_dict().items():
        got = loaded.state_dict()[key]
        assert got.dtype == value.dtype
        rounded = value.half().float() if value.is_floating_point() else value
        torch.testing.assert_close(got, rounded, rtol=0, atol=0)


def test_the_header_describes_the_file(saved):
    header = read_header(saved[0])
    assert header["architecture"] == "IResNet"
    assert header["config"]["widths"] == [4, 4, 6, 8]
    assert (header["seed"], header["recipe"]) == (3, {"steps": [1, 2]})


def test_the_same_network_gives_the_same_fingerprint(saved, tmp_path):
    again, said = tmp_path / "again.safetensors", {"seed": 3, "recipe": {"steps": [1, 2]}}
    # safetensors itself orders metadata anew every time: five keys in 120 orders.
    found = {save_network(build("IResNet"), again, said) for _ in range(8)}
    assert found == {saved[1]} == {fingerprint(saved[0])}
    assert load_file(again).keys() == load_file(saved[0]).keys()
    assert len(saved[1]) == 64


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.safetensors is missing; run task=train"):
        load_network(tmp_path / "absent.safetensors", remedy="run task=train")


def test_an_altered_file_is_refused_before_it_is_read(saved):
    path, sha256 = saved
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"network\.safetensors has SHA-256 .* altered"):
        load_network(path, sha256)
    assert load_network(path) is not None  # one flipped bit is a valid file of another network


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_a_file_cut_short_is_refused(saved, keep):
    path, sha256 = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"network\.safetensors cannot be read"):
        load_network(path)
    with pytest.raises(WeightsError, match="cut short"):
        load_network(path, sha256)


def rewrite(path, change) -> None:
    header = {k: v if isinstance(v, str) else json.dumps(v) for k, v in read_header(path).items()}
    tensors = load_file(path)
    change(header, tensors)
    save_file(tensors, path, metadata=header)


def config(header: dict, **numbers) -> None:
    header["config"] = json.dumps({**json.loads(header["config"]), **numbers})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(architecture="VGG"), "names the architecture 'VGG'; known are Ada"),
        (lambda h, t: h.pop("architecture"), "names the architecture None"),
        (lambda h, t: h.update(architecture="AdaFace"), "does not describe its AdaFace"),
        (lambda h, t: h.pop("config"), "does not describe its IResNet"),
        (lambda h, t: h.update(config="{"), "does not describe its IResNet"),
        (lambda h, t: t.pop("fc.weight"), r"missing \['fc\.weight'\]"),
        (lambda h, t: t.update(extra=torch.ones(2)), r"unexpected \['extra'\]"),
        (lambda h, t: t.update({"fc.bias": torch.ones(7)}), r"fc\.bias \(7,\) for \(5,\)"),
        (lambda h, t: t["fc.bias"].fill_(torch.nan), r"not finite: \['fc\.bias'\]"),
        (lambda h, t: t["fc.bias"].fill_(-torch.inf), "not finite"),
        (lambda h, t: t.update({"fc.bias": t["fc.bias"].to(torch.float8_e5m2)}), "float8_e5m2 for"),
        (
            lambda h, t: t.update({"fc.bias": torch.ones(5, dtype=torch.int64)}),
            "int64 for floating",
        ),
        (lambda h, t: t.update({"fc.bias": torch.ones(5, dtype=torch.bool)}), "bool for floating"),
        # 400 GB, 8 PB, a layer count that would take hours, and numbers that are no numbers.
        (lambda h, t: config(h, embedding_dim=10**9), "wrong shape"),
        (lambda h, t: config(h, widths=[10**7] * 4, embedding_dim=10**7), "wrong shape|describe"),
        (lambda h, t: config(h, layers=[10**9] * 4), "far more layers than"),
        (lambda h, t: config(h, embedding_dim=-1), "does not describe"),
        (lambda h, t: config(h, embedding_dim=10**30), "does not describe"),
        (lambda h, t: config(h, embedding_dim="many"), "does not describe"),
        (lambda h, t: h.update(config="[" * 100_000), "does not describe"),
    ],
)
def test_a_file_of_another_network_is_refused(saved, change, message):
    path, _ = saved
    rewrite(path, change)
    with pytest.raises(WeightsError, match=message):
        load_network(path, remedy="restore the file")
