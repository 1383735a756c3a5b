"""Low-pass filters around a change of resolution: padding, gain, adjoints."""

import pytest
import torch
import torch.nn.functional as F

from adjointdeis.faces.networks.fir import binomial_filter, downsample, lowpass, upsample

KERNEL = binomial_filter().double()
UNEVEN = torch.arange(1.0, 17.0, dtype=torch.float64).view(4, 4)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_kernel_is_the_binomial_one() -> None:
    assert KERNEL.sum() == 1
    torch.testing.assert_close(64 * KERNEL[0], torch.tensor([1, 3, 3, 1]).double())
    torch.testing.assert_close(KERNEL, KERNEL.T)


def test_lowpass_is_a_convolution_with_zeros_around() -> None:
    x, before, after = draw(2, 3, 5, 6), 2, 1
    got = lowpass(x, UNEVEN, (before, after), gain=3.0)
    expected = torch.zeros_like(got)
    for b, c, i, j in torch.cartesian_prod(*(torch.arange(n) for n in got.shape)).tolist():
        for u in range(4):
            for v in range(4):
                # A convolution turns the kernel round.
                row, column = i + u - before, j + v - before
                if 0 <= row < 5 and 0 <= column < 6:
                    expected[b, c, i, j] += 3 * UNEVEN[3 - u, 3 - v] * x[b, c, row, column]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_upsampling_by_the_binomial_kernel_is_bilinear_interpolation() -> None:
    x = draw(2, 3, 4, 5)
    padded = F.pad(x, (1, 1, 1, 1))
    expected = F.interpolate(padded, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        upsample(x, KERNEL), expected[..., 2:-2, 2:-2], rtol=1e-12, atol=1e-12
    )


def test_upsampling_keeps_a_constant_away_from_the_border() -> None:
    up = upsample(torch.full((1, 1, 6, 6), 0.7, dtype=torch.float64), KERNEL)
    torch.testing.assert_close(up[..., 2:-2, 2:-2], torch.full_like(up[..., 2:-2, 2:-2], 0.7))


def test_downsampling_is_the_adjoint_of_upsampling() -> None:
    x, y = draw(2, 3, 4, 5), draw(2, 3, 8, 10, seed=1)
    forward, backward = (upsample(x, KERNEL) * y).sum(), (x * downsample(y, KERNEL)).sum()
    assert forward == pytest.approx(4 * backward.item(), rel=1e-12)
