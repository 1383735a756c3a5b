"""MS-SSIM against torchmetrics and its own properties."""

import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from adjointdeis.morphing.ms_ssim import BETAS, ms_ssim, scales


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images in [-1, 1]: white noise has next to no structure in common."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(*shape[:-2], 8, 8, generator=generator, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, shape[-2:], mode="bicubic")
    return torch.tanh(smooth + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(("size", "count"), [(176, 5), (64, 3), (48, 3), (24, 2), (11, 1)])
def test_equals_torchmetrics(size, count) -> None:
    x = images(1 if size > 64 else 2, 3, size, size)
    y = 0.7 * x + 0.3 * images(*x.shape, seed=1)
    betas = tuple(b / sum(BETAS[:count]) for b in BETAS[:count])
    assert scales(size) == count
    expected = multiscale_structural_similarity_index_measure(
        x, y, data_range=2.0, betas=betas, reduction="none", normalize="relu"
    )
    # torchmetrics keeps the exponents in float32.
    torch.testing.assert_close(ms_ssim(x, y), expected, rtol=1e-7, atol=0)


def test_is_one_for_equal_images_symmetric_and_alone_in_a_batch() -> None:
    x, y = images(3, 3, 48, 48), images(3, 3, 48, 48, seed=1)
    torch.testing.assert_close(ms_ssim(x, x), torch.ones(3).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(ms_ssim(x, y), ms_ssim(y, x), rtol=1e-12, atol=0)
    alone = torch.cat([ms_ssim(x[k : k + 1], y[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(ms_ssim(x, y), alone, rtol=1e-12, atol=0)
    assert (ms_ssim(x, y) < 0.9).all()


def test_opposite_images_have_a_value_and_a_gradient() -> None:
    x = images(2, 3, 48, 48).requires_grad_()
    value = ms_ssim(x, -x.detach())
    assert value.isfinite().all() and (value < 0.1).all()
    (gradient,) = torch.autograd.grad(value.sum(), x)
    assert gradient.isfinite().all()


def test_gradient_by_finite_differences() -> None:
    x, y = images(1, 1, 24, 24), images(1, 1, 24, 24, seed=1) * 0.5
    y = (x + y) / 2
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(ms_ssim(x, y).sum(), x)
    direction = images(1, 1, 24, 24, seed=2)
    h = 1e-5
    slope = (ms_ssim(x + h * direction, y) - ms_ssim(x - h * direction, y)) / (2 * h)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        ms_ssim(images(1, 3, 24, 24), images(2, 3, 24, 24))
    with pytest.raises(ValueError, match="smaller than the window of 11"):
        ms_ssim(images(1, 3, 8, 8), images(1, 3, 8, 8))
