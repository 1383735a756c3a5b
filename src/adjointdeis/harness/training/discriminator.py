r"""StyleGAN2's residual discriminator. It is needed for training only.

References:
    | Analyzing and Improving the Image Quality of StyleGAN
    | https://arxiv.org/abs/1912.04958
    | Progressive Growing of GANs (minibatch standard deviation)
    | https://arxiv.org/abs/1710.10196
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjointdeis.faces.networks.fir import binomial_filter, downsample, lowpass
from adjointdeis.faces.networks.stylegan2 import ScaledLinear, StyleGAN2Config, leaky


class ScaledConvolution(nn.Module):
    """Convolution with an equalised learning rate, optionally halving the resolution."""

    def __init__(
        self, inputs: int, outputs: int, size: int, down: bool = False, bias: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, size, size))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain, self.down = 1 / math.sqrt(inputs * size * size), down
        self.kernel: Tensor
        self.register_buffer("kernel", binomial_filter())

    def forward(self, x: Tensor) -> Tensor:
        weight, size = self.weight * self.gain, self.weight.shape[-1]
        if not self.down:
            x = F.conv2d(x, weight, padding=size // 2)
        elif size == 1:
            x = F.conv2d(downsample(x, self.kernel), weight)
        else:
            x = F.conv2d(lowpass(x, self.kernel, (2, 2)), weight, stride=2)
        return x if self.bias is None else x + self.bias[:, None, None].to(x.dtype)


class ResidualDown(nn.Module):
    """Two convolutions beside a shortcut, to half the resolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = ScaledConvolution(inputs, inputs, 3)
        self.conv1 = ScaledConvolution(inputs, outputs, 3, down=True)
        self.skip = ScaledConvolution(inputs, outputs, 1, down=True, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = leaky(self.conv1(leaky(self.conv0(x))))
        return (h + self.skip(x)) / math.sqrt(2)


class Discriminator(nn.Module):
    """Images (B, 3, S, S) to logits (B), positive for what it takes for real.

    Args:
        config: Size and widths, those of the generator.
        group: Images over which the standard deviation of the last features is taken; it shows the
            discriminator a lack of variety. It must divide the batch.
    """

    def __init__(self, config: StyleGAN2Config, group: int = 4) -> None:
        super().__init__()
        self.group = group
        down = list(reversed(config.resolutions))
        self.from_rgb = ScaledConvolution(3, config.channels(down[0]), 1)
        self.blocks = nn.Sequential(
            *(
                ResidualDown(config.channels(fine), config.channels(coarse))
                for fine, coarse in pairwise(down)
            )
        )
        width = config.channels(4)
        self.last = ScaledConvolution(width + 1, width, 3)
        self.hidden = ScaledLinear(16 * width, width, activate=True)
        self.logit = ScaledLinear(width, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(leaky(self.from_rgb(images)))
        x = leaky(self.last(torch.cat([x, self._variety(x)], 1)))
        return self.logit(self.hidden(x.flatten(1)))[:, 0].float()

    def _variety(self, x: Tensor) -> Tensor:
        grouped = x.float().unflatten(0, (self.group, -1))
        spread = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean([1, 2, 3], keepdim=True)
        return spread.repeat(self.group, 1, x.shape[2], x.shape[3]).to(x.dtype)
