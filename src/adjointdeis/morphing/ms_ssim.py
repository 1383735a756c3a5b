r"""Multi-scale structural similarity, per sample and differentiable everywhere.

.. math::
    \mathrm{MS\text{-}SSIM} = l_M^{\beta_M} \prod_{j=1}^{M} (c_j)^{\beta_j}, \qquad
    l = \frac{2\mu_x\mu_y + C_1}{\mu_x^2 + \mu_y^2 + C_1}, \quad
    c = \frac{2\sigma_{xy} + C_2}{\sigma_x^2 + \sigma_y^2 + C_2},

averages over an 11-pixel Gaussian window of deviation 1.5, each scale half the size of the one
before. On the coarsest scale the product :math:`l\,c` is averaged over the image, as one factor. As
in torchmetrics, whose numbers these are, windows stay inside the image on the fine scales and are
reflected at the border of the coarsest. Its power of a factor that reached zero has no gradient,
though, and a descent needs one.

References:
    | Multiscale Structural Similarity for Image Quality Assessment (Wang et al., 2003)
    | https://ieeexplore.ieee.org/document/1292216
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
WINDOW = 11


def scales(size: int) -> int:
    """How many of the five scales an image of this side has: the window must fit the coarsest.

    Raises:
        ValueError: Not even one.
    """
    if size < WINDOW:
        raise ValueError(f"images of {size} pixels are smaller than the window of {WINDOW}")
    return sum(size // 2**k >= WINDOW for k in range(len(BETAS)))


def ms_ssim(x: Tensor, y: Tensor, data_range: float = 2.0) -> Tensor:
    """Similarity of two batches of images, with shape (B); 1 where they are equal.

    Small images have fewer scales than the published five; the weights of those that are left are
    renormalised to the sum of all five, which is 1.

    Args:
        x, y: Images (B, C, H, W).
        data_range: Largest value minus smallest.

    Raises:
        ValueError: The shapes differ, or the images are smaller than the window.
    """
    if x.shape != y.shape:
        raise ValueError(
            f"images of shape {tuple(x.shape)} and {tuple(y.shape)} cannot be compared"
        )
    count = scales(min(x.shape[-2:]))
    total = sum(BETAS[:count])
    product = x.new_ones(len(x))
    for k in range(count):
        last = k == count - 1
        factor = _similarity(x, y, data_range, last)
        # Anticorrelated images have a negative factor, whose power is not a number; and the slope
        # of a power below one is infinite at zero.
        product = product * factor.clamp_min(1e-4) ** (BETAS[k] / total)
        if not last:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    return product


def _similarity(x: Tensor, y: Tensor, data_range: float, last: bool) -> Tensor:
    """Mean over the image of c, or on the last scale of l c, with shape (B)."""
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    if last:
        margin = [WINDOW // 2] * 4
        x, y = F.pad(x, margin, mode="reflect"), F.pad(y, margin, mode="reflect")
    mean_x, mean_y, xx, yy, xy = _window(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
    ratio = (2 * (xy - mean_x * mean_y) + c_2) / (xx - mean_x.square() + yy - mean_y.square() + c_2)
    if last:
        ratio = ratio * (2 * mean_x * mean_y + c_1) / (mean_x.square() + mean_y.square() + c_1)
    return ratio.mean([1, 2, 3])


def _window(x: Tensor) -> Tensor:
    """Gaussian averages at every place where the window fits."""
    offsets = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    taps = torch.exp(-offsets.square() / (2 * 1.5**2))
    taps = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(x, taps, groups=x.shape[1])
    return F.conv2d(x, taps.transpose(2, 3), groups=x.shape[1])
