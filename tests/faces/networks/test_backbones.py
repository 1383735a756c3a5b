"""The recognition backbones at a small size: block equations and refused input."""

import pytest
import torch

from adjointdeis.faces.networks import AdaFace, AdaFaceConfig, IResNet, IResNetConfig
from adjointdeis.faces.networks.adaface import BasicBlockIR
from adjointdeis.faces.networks.iresnet import IBasicBlock

SMALL = {"image_size": 20, "layers": (1, 2, 1, 1), "widths": (4, 4, 6, 8), "embedding_dim": 5}


def faces(batch: int = 3, size: int = 20, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, channels, size, size, generator=generator) * 2 - 1


def settled(network: torch.nn.Module) -> torch.nn.Module:
    """Running statistics that are not the trivial ones of a fresh batch norm."""
    torch.manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return network.eval()


def test_iresnet_block_follows_the_equation():
    block = settled(IBasicBlock(4, 6, 2))
    x = faces(channels=4)
    h = block.bn3(block.conv2(block.prelu(block.bn2(block.conv1(block.bn1(x))))))
    expected = h + block.downsample[1](block.downsample[0](x))
    torch.testing.assert_close(block(x), expected)
    assert block(x).shape == (3, 6, 10, 10)


def test_every_iresnet_stage_begins_with_a_strided_shortcut():
    network = IResNet(IResNetConfig(**SMALL))
    shortcuts = {key.split(".downsample")[0] for key in network.state_dict() if "downsample" in key}
    assert shortcuts == {f"layer{stage}.0" for stage in (1, 2, 3, 4)}
    assert not network.features.weight.requires_grad


def test_adaface_shortcuts_have_weights_only_where_the_width_changes():
    network = AdaFace(AdaFaceConfig(**SMALL))
    shortcuts = {key.split(".shortcut")[0] for key in network.state_dict() if "shortcut" in key}
    # Blocks 0 to 2 keep four channels, although 0 and 1 halve the resolution.
    assert shortcuts == {"body.3", "body.4"}


def test_adaface_pooling_shortcut_picks_every_second_pixel():
    block = settled(BasicBlockIR(4, 4, 2))
    x = faces(channels=4)
    expected = block.res_layer(x) + x[..., ::2, ::2]
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


def test_adaface_returns_the_direction_and_the_length_of_one_feature():
    network = settled(AdaFace(AdaFaceConfig(**SMALL)))
    x = faces()
    feature, norm = network(x)
    raw = network.output_layer(network.body(network.input_layer(x)))
    assert feature.shape == (3, 5)
    assert norm.shape == (3, 1)
    torch.testing.assert_close(feature * norm, raw)
    torch.testing.assert_close(feature.norm(dim=1), torch.ones(3))
    assert network.output_layer[4].weight is None


@pytest.mark.parametrize(
    ("size", "stride"), [(16, 1), (20, 1), (33, 1), (112, 1), (32, 2), (33, 2), (112, 2)]
)
def test_the_embedding_layer_fits_every_input_size(size, stride):
    numbers = SMALL | {"image_size": size}
    iresnet = IResNet(IResNetConfig(**numbers, stem_stride=stride)).eval()
    assert iresnet(faces(1, size)).shape == (1, 5)
    if stride == 1:
        assert AdaFace(AdaFaceConfig(**numbers)).eval()(faces(1, size))[0].shape == (1, 5)


@pytest.mark.parametrize(
    "network", [IResNet(IResNetConfig(**SMALL)), AdaFace(AdaFaceConfig(**SMALL))]
)
def test_another_input_size_is_named(network):
    with pytest.raises(ValueError, match=r"\(B, 3, 20, 20\), got \(3, 3, 24, 24\)"):
        network.eval()(faces(size=24))


@pytest.mark.parametrize("config", [IResNetConfig, AdaFaceConfig])
def test_impossible_numbers_are_refused(config):
    with pytest.raises(ValueError, match="image_size=8 is too small"):
        config(image_size=8)
    with pytest.raises(ValueError, match="four stages"):
        config(image_size=112, layers=(1, 2))
