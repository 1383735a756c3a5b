"""The three official networks: their keys, sizes, and outputs under deterministic weights."""

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import nn

from adjointdeis.faces.networks import (
    AdaFace,
    AdaFaceConfig,
    DiffAE,
    DiffAEConfig,
    IResNet,
    IResNetConfig,
)

BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "diffae_ffhq256": lambda: DiffAE(DiffAEConfig.ffhq256()),
    "iresnet100": lambda: IResNet(IResNetConfig.r100()),
    "adaface_ir101": lambda: AdaFace(AdaFaceConfig.ir101()),
}

# Facts of the official files: parameters, state entries, and SHA-256 of the "key shape" lines,
# sorted and in the order of the state dict.
FACTS = {
    "diffae_ffhq256": (
        168_492_291,
        706,
        "b2f1197bca1e1eb6a000b21fcd4ce0ce97dc705fc2579eb21b545339b8c03b04",
        "c18ab4cce41fa29262e82fca6080861ea713b8b7972d0f89b414f683d3b58729",
    ),
    "iresnet100": (
        65_156_160,
        925,
        "dc48aa67c7449a7caf250153f36da2fc4a3288e632c3667206a7cda2a14b3842",
        "cb1161eeccd66b1d16aa7df5fbf70e3be51cb2d6c24a85c7f1758f03e0b69dee",
    ),
    "adaface_ir101": (
        65_150_912,
        917,
        "158339b02fa6756c994e7c44f3719b3b01000c8f2fdf8cf412691c304ed25b96",
        "4ef775a197e922496e0f86753a2a0b4db0ac0c344947b55ba7e197fc9d404f29",
    ),
}


def build(name: str) -> nn.Module:
    with torch.device("meta"):
        return BUILDERS[name]()


def key_lines(network: nn.Module) -> list[str]:
    return [f"{key} {tuple(value.shape)}" for key, value in network.state_dict().items()]


def sha256(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("name", BUILDERS)
def test_keys_and_sizes_are_the_official_ones(name):
    network = build(name)
    lines = key_lines(network)
    parameters = sum(value.numel() for value in network.parameters())
    assert (parameters, len(lines), sha256(sorted(lines)), sha256(lines)) == FACTS[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_key_list_equals_the_reference_line_by_line(name, reference):
    expected = (reference / f"{name}.keys.txt").read_text().strip().split("\n")
    assert key_lines(build(name)) == expected


def test_the_autoencoder_is_split_as_published():
    network = build("diffae_ffhq256")
    encoder = sum(value.numel() for value in network.encoder.parameters())
    assert encoder == 30_150_400
    assert len(network.encoder.state_dict()) == 116
    assert not list(network.buffers())


def test_iresnet100_embeds_as_the_official_network(golden):
    network = golden.fill(build("iresnet100"))
    with torch.no_grad():
        embedding = network(golden.image(2, 3, 112, 112))
    golden.check(
        embedding,
        {
            "shape": [2, 512],
            "mean": 0.00017707707177905263,
            "std": 0.09965529344204806,
            "value": [0.165477857, -0.113893382, 0.161666304, 0.140476808],
        },
    )


def test_adaface_ir101_embeds_as_the_official_network(golden):
    # In float64, whose rounding no processor changes: single precision is off by 3e-6 of the norm
    # on one and by as much to the other side on another.
    network = golden.fill(build("adaface_ir101")).double()
    with torch.no_grad():
        feature, norm = network(golden.image(2, 3, 112, 112).double())
    golden.check(
        feature,
        {
            "shape": [2, 512],
            "mean": 0.0021331664532393546,
            "std": 0.04416423096185263,
            "value": [-0.044855017, 0.076174095, -0.002491073, -0.029300530],
        },
    )
    assert norm.flatten().tolist() == pytest.approx([2.908605425, 2.910535871], rel=1e-9)
    # The official network, run in single precision, gives this: 5e-6 away.
    assert norm.flatten().tolist() == pytest.approx([2.908597231, 2.910549164], rel=1e-5)
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(2, dtype=torch.float64))


@pytest.mark.slow
def test_every_probe_of_the_recognisers(golden, probes):
    with torch.no_grad():
        x = golden.image(2, 3, 112, 112)
        embedding = golden.fill(build("iresnet100"))(x)
        feature, norm = golden.fill(build("adaface_ir101")).double()(x.double())
    golden.check(embedding, probes["iresnet100"]["embedding"])
    golden.check(feature, probes["adaface_ir101"]["embedding"])
    # The deviation of two nearly equal norms is no scale for their error; single precision is.
    wanted = probes["adaface_ir101"]["norm"]["value"]
    assert norm.flatten().flip(0).tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
def test_every_probe_of_the_autoencoder(golden, probes):
    """Code, noise at two timesteps, and both vector-Jacobian products at a third."""
    wanted = probes["diffae_ffhq256"]
    network = golden.fill(build("diffae_ffhq256")).requires_grad_(False)
    x, z = golden.image(1, 3, 256, 256), golden.code(1, 512)
    with torch.no_grad():
        golden.check(network.encode(x), wanted["encode"])
        for t in (37, 950):
            golden.check(network(x, torch.tensor(t), z), wanted[f"eps_t{t}"])
    x.requires_grad_()
    z.requires_grad_()
    cotangent = golden.image(1, 3, 256, 256, phase=1.0)
    a_x, a_z = torch.autograd.grad(network(x, torch.tensor(500), z), (x, z), cotangent)
    golden.check(a_x, wanted["vjp_x_t500"])
    golden.check(a_z, wanted["vjp_z_t500"])
