"""StyleGAN2 against slow transcriptions of the paper's equations, and the official key names."""

import math

import pytest
import torch
import torch.nn.functional as F

from adjointdeis.faces.networks.fir import binomial_filter
from adjointdeis.faces.networks.stylegan2 import (
    MappingNetwork,
    ScaledLinear,
    StyleGAN2,
    StyleGAN2Config,
    leaky,
    modulated_convolution,
)

CONFIG = StyleGAN2Config(16, z_dim=5, w_dim=6, mapping_layers=2, channel_base=64, channel_max=8)
TAPS = (1, 3, 3, 1)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def network() -> StyleGAN2:
    """Random weights everywhere: noise strengths and biases begin at zero and hide errors."""
    network = StyleGAN2(CONFIG).double().eval()
    for seed, (name, value) in enumerate(network.state_dict().items()):
        if not name.endswith("resample_filter"):
            value.copy_(draw(*value.shape, seed=seed))
    return network


# The reference: one sample at a time, weights scaled as the paper writes it, loops for sums.


def slow_convolution(x, weight, style, demodulate, up):
    """(I, H, W) by explicit modulated weights; an upsampling filters before it convolves."""
    scaled = weight * style[None, :, None, None]
    if demodulate:
        scaled = torch.stack([w / math.sqrt((w**2).sum() + 1e-8) for w in scaled])
    if up:
        x, scaled = slow_upsampling(x, before=3, after=2), scaled.flip(2, 3)
    else:
        x = F.pad(x, [weight.shape[-1] // 2] * 4)
    size = weight.shape[-1]
    rows, columns = x.shape[1] - size + 1, x.shape[2] - size + 1
    out = x.new_zeros(len(weight), rows, columns)
    for u in range(size):
        for v in range(size):
            patch = x[:, u : u + rows, v : v + columns]
            out += torch.einsum("oi,ihw->ohw", scaled[:, :, u, v], patch)
    return out


def slow_upsampling(x, before=2, after=1):
    """Zeros between the pixels, zeros around, every output pixel a sum over the 4x4 taps."""
    channels, height, width = x.shape
    fine = x.new_zeros(channels, 2 * height + before + after, 2 * width + before + after)
    fine[:, before : before + 2 * height : 2, before : before + 2 * width : 2] = x
    out = x.new_zeros(channels, fine.shape[1] - 3, fine.shape[2] - 3)
    for u in range(4):
        for v in range(4):
            # Two per axis make up for the zeros.
            tap = 4 * TAPS[u] * TAPS[v] / 64
            out += tap * fine[:, u : u + out.shape[1], v : v + out.shape[2]]
    return out


def slow_linear(state, name, x, rate=1.0):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return x @ weight.T * rate / math.sqrt(weight.shape[1]) + rate * bias


def slow_leaky(x):
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def slow_image(state, styles, resolutions=(4, 8, 16)):
    """Image of one row of styles per layer, with the stored noise."""

    def layer(x, name, w, up):
        style = slow_linear(state, f"{name}.affine", w)
        x = slow_convolution(x, state[f"{name}.weight"], style, True, up)
        x = x + state[f"{name}.noise_const"] * state[f"{name}.noise_strength"]
        return slow_leaky(x + state[f"{name}.bias"][:, None, None])

    x, image, k = state["synthesis.b4.const"], None, 0
    for resolution in resolutions:
        block = f"synthesis.b{resolution}"
        if resolution > 4:
            x, k = layer(x, f"{block}.conv0", styles[k], True), k + 1
            image = slow_upsampling(image)
        x, k = layer(x, f"{block}.conv1", styles[k], False), k + 1
        weight = state[f"{block}.torgb.weight"]
        style = slow_linear(state, f"{block}.torgb.affine", styles[k]) / math.sqrt(weight.shape[1])
        rgb = slow_convolution(x, weight, style, False, False)
        rgb = rgb + state[f"{block}.torgb.bias"][:, None, None]
        image = rgb if image is None else image + rgb
    assert k == len(styles) - 1
    return image


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("up", [True, False])
def test_modulated_convolution_is_a_convolution_with_modulated_weights(up, demodulate) -> None:
    x, weight, style = draw(3, 2, 4, 5), draw(4, 2, 3, 3, seed=1), draw(3, 2, seed=2)
    kernel = binomial_filter().double() if up else None
    got = modulated_convolution(x, weight, style, demodulate, kernel)
    expected = torch.stack(
        [slow_convolution(x[b], weight, style[b], demodulate, up) for b in range(3)]
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_demodulated_outputs_have_unit_variance() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 16, 64, 64), torch.randn(8, 16, 3, 3)
    out = modulated_convolution(x, weight, 0.2 + 3 * torch.rand(4, 16), True)
    assert (out[..., 1:-1, 1:-1].std((2, 3)) - 1).abs().max() < 0.1


def test_the_whole_network_is_the_slow_one(network) -> None:
    styles = draw(2, CONFIG.styles, CONFIG.w_dim, seed=9)
    expected = torch.stack([slow_image(network.state_dict(), row) for row in styles])
    torch.testing.assert_close(network.synthesise(styles), expected, rtol=1e-11, atol=1e-11)


def test_mapping_normalises_and_applies_slowed_layers(network) -> None:
    z, state = draw(3, CONFIG.z_dim, seed=4), network.state_dict()
    w = z / (z**2).mean(1, keepdim=True).sqrt()
    for k in range(2):
        w = slow_leaky(slow_linear(state, f"mapping.fc{k}", w, rate=0.01))
    torch.testing.assert_close(network.mapping(z), w, rtol=1e-7, atol=1e-9)
    average = state["mapping.w_avg"]
    styles = network.map(z, truncation=0.7)
    assert styles.shape == (3, CONFIG.styles, CONFIG.w_dim)
    for k in range(CONFIG.styles):
        torch.testing.assert_close(styles[:, k], average + 0.7 * (w - average))


def test_equalised_weights_begin_with_unit_outputs() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 256)
    for rate in (1.0, 0.01):
        layer = ScaledLinear(256, 64, rate=rate)
        assert layer.weight.std().item() == pytest.approx(1 / rate, rel=0.02)
        assert layer(x).std().item() == pytest.approx(1, rel=0.03)
    assert leaky(x).square().mean().item() == pytest.approx(1.04, rel=0.02)
    w = MappingNetwork(StyleGAN2Config(8, 64, 64))(torch.randn(1000, 64))
    assert 0.3 < w.square().mean().item() < 3


def test_noise_is_stored_fresh_or_absent(network) -> None:
    styles = draw(2, CONFIG.styles, CONFIG.w_dim)
    images = {mode: network.synthesise(styles, mode) for mode in ("const", "none", "random")}
    assert torch.equal(images["const"], network.synthesise(styles))
    assert not torch.equal(images["random"], network.synthesise(styles, "random"))
    assert not torch.equal(images["const"], images["none"])
    state = {
        name: value * 0 if name.endswith("noise_strength") else value
        for name, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    torch.testing.assert_close(network.synthesise(styles, "const"), images["none"])


def test_the_clamp_bounds_activations_and_colours(network) -> None:
    styles = 1e4 * draw(1, CONFIG.styles, CONFIG.w_dim)
    clamped = StyleGAN2(StyleGAN2Config(**{**vars(CONFIG), "clamp": 2.0})).double()
    clamped.load_state_dict(network.state_dict())
    assert network.synthesise(styles).abs().max() > 6
    assert clamped.synthesise(styles).abs().max() <= 3 * 2.0


def test_gradients_reach_every_style(network) -> None:
    styles = draw(2, CONFIG.styles, CONFIG.w_dim).requires_grad_()
    network.synthesise(styles).square().sum().backward()
    assert (styles.grad.abs().sum(2) > 0).all()


def test_the_official_network_has_the_official_keys_and_shapes() -> None:
    with torch.device("meta"):
        network = StyleGAN2(StyleGAN2Config.ffhq1024())
    widths = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    expected = {"mapping.w_avg": (512,)}
    for k in range(8):
        expected |= {f"mapping.fc{k}.weight": (512, 512), f"mapping.fc{k}.bias": (512,)}
    for resolution, width in widths.items():
        block = f"synthesis.b{resolution}"
        inputs = {"conv1": width}
        expected[f"{block}.resample_filter"] = (4, 4)
        if resolution == 4:
            expected[f"{block}.const"] = (512, 4, 4)
        else:
            inputs["conv0"] = widths[resolution // 2]
        for name, count in inputs.items():
            expected |= {
                f"{block}.{name}.weight": (width, count, 3, 3),
                f"{block}.{name}.bias": (width,),
                f"{block}.{name}.noise_strength": (),
                f"{block}.{name}.noise_const": (resolution, resolution),
                f"{block}.{name}.resample_filter": (4, 4),
                f"{block}.{name}.affine.weight": (count, 512),
                f"{block}.{name}.affine.bias": (count,),
            }
        expected |= {
            f"{block}.torgb.weight": (3, width, 1, 1),
            f"{block}.torgb.bias": (3,),
            f"{block}.torgb.affine.weight": (width, 512),
            f"{block}.torgb.affine.bias": (width,),
        }
    assert {name: tuple(v.shape) for name, v in network.state_dict().items()} == expected
    assert sum(p.numel() for p in network.parameters()) == 30_370_060
    assert network.config.styles == 18


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"image_size": 48}, "image_size=48 must be a power of two"),
        ({"image_size": 4}, "image_size=4"),
        ({"image_size": 64, "w_dim": 0}, "w_dim=0 must be 1 or more"),
        ({"image_size": 64, "channel_base": 32}, "leaves no channel at 64 pixels"),
    ],
)
def test_impossible_numbers_are_refused(numbers, message) -> None:
    with pytest.raises(ValueError, match=message):
        StyleGAN2Config(**numbers)


def test_styles_of_another_shape_are_refused(network) -> None:
    with pytest.raises(ValueError, match=r"takes \(B, 6, 6\)"):
        network.synthesise(draw(2, 5, 6))
