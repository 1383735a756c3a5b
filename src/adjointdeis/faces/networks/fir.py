r"""Low-pass filtering around a change of resolution by two.

Upsampling by inserting zeros, or dropping every second pixel, aliases; StyleGAN2 filters with the
binomial kernel :math:`[1, 3, 3, 1] \otimes [1, 3, 3, 1] / 64` before or after it.

References:
    | Making Convolutional Networks Shift-Invariant Again
    | https://arxiv.org/abs/1904.11486
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def binomial_filter() -> Tensor:
    """The kernel above, with shape (4, 4) and sum 1."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps) / 64


def lowpass(
    x: Tensor, kernel: Tensor, padding: tuple[int, int], gain: float = 1.0, stride: int = 1
) -> Tensor:
    """Convolves every channel with one kernel.

    Args:
        x: (B, C, H, W).
        kernel: (m, m).
        padding: Rows and columns of zeros before and after.
        gain: Factor on the result.
        stride: Keep every stride-th pixel, the first included.
    """
    channels = x.shape[1]
    weight = (kernel.flip(0, 1) * gain).to(x.dtype).expand(channels, 1, -1, -1)
    before, after = padding
    x = F.pad(x, (before, after, before, after))
    return F.conv2d(x, weight, stride=stride, groups=channels)


def upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C, 2H, 2W): zeros between the pixels, then the filter."""
    size = kernel.shape[0]
    zeros = x.new_zeros(*x.shape[:2], x.shape[2], 2, x.shape[3], 2)
    zeros[:, :, :, 0, :, 0] = x
    fine = zeros.reshape(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    return lowpass(fine, kernel, ((size + 1) // 2, (size - 2) // 2), gain=4)


def downsample(x: Tensor, kernel: Tensor) -> Tensor:
    """(B, C, 2H, 2W) to (B, C, H, W): the filter, then every second pixel."""
    size = kernel.shape[0]
    return lowpass(x, kernel, ((size - 1) // 2, (size - 2) // 2), stride=2)
