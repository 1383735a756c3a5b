r"""StyleGAN2 generator, with the state-dict keys of the official PyTorch checkpoints (``G_ema``).

A mapping network turns a standard normal :math:`z` into a style :math:`w`; a synthesis network
grows a learned 4x4 constant to the image. Every convolution is modulated by an affine function
:math:`s` of :math:`w` and renormalised per sample,

.. math::
    w'_{oik} = s_i\, w_{oik}, \qquad
    w''_{oik} = w'_{oik} \Big/ \sqrt{\textstyle\sum_{i,k} w'^2_{oik} + 10^{-8}},

which is evaluated here as a convolution with the shared weights, its input scaled by :math:`s` and
its output by the square root's inverse: the same numbers, without a set of weights per sample.
Weights are stored at unit variance and scaled when they are used (equalised learning rate). RGB
images of all resolutions are summed on the way up ("skip" architecture).

One class serves the official faces (:meth:`StyleGAN2Config.ffhq1024`) and the embedded generator.
Everything is ordinary torch, in the precision of the input: the official code's custom operations
and its half-precision layers compute the same functions.

Paper: section 2.2 and appendix B (demodulation), section 4 (skip connections); StyleGAN, appendix C
(truncation, equalised rates).

References:
    | Analyzing and Improving the Image Quality of StyleGAN
    | https://arxiv.org/abs/1912.04958
    | A Style-Based Generator Architecture for Generative Adversarial Networks
    | https://arxiv.org/abs/1812.04948
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjointdeis.faces.networks.fir import binomial_filter, lowpass, upsample

NoiseMode = Literal["random", "const", "none"]


@dataclass(frozen=True)
class StyleGAN2Config:
    """Numbers of a StyleGAN2 generator.

    Args:
        image_size: Side of the image in pixels, a power of two of at least 8.
        z_dim: Length of the normal latent.
        w_dim: Length of a style.
        mapping_layers: Fully connected layers of the mapping network.
        channel_base: Channels at resolution R are ``channel_base / R``, at most ``channel_max``.
        channel_max: Widest layer.
        clamp: Largest magnitude that an activation keeps, None for no limit. The official
            checkpoints were trained with 256 for the sake of half precision.
    """

    image_size: int
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768
    channel_max: int = 512
    clamp: float | None = None

    def __post_init__(self) -> None:
        if self.image_size < 8 or self.image_size & (self.image_size - 1):
            raise ValueError(f"image_size={self.image_size} must be a power of two, 8 or more")
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be 1 or more")
        if self.channel_base < self.image_size:
            raise ValueError(
                f"channel_base={self.channel_base} leaves no channel at {self.image_size} pixels"
            )

    @property
    def resolutions(self) -> list[int]:
        """4, 8, ..., image_size."""
        return [2**k for k in range(2, int(math.log2(self.image_size)) + 1)]

    @property
    def styles(self) -> int:
        """Number of styles that the synthesis network takes: 18 at 1024 pixels, 10 at 64."""
        return 2 * len(self.resolutions)

    def channels(self, resolution: int) -> int:
        """Width of the layers at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @classmethod
    def ffhq1024(cls) -> Self:
        """The official FFHQ generator at 1024x1024 (configuration F): 30,370,060 parameters."""
        return cls(image_size=1024, clamp=256.0)


class ScaledLinear(nn.Module):
    """Linear layer with an equalised learning rate, and optionally a leaky rectifier.

    Args:
        inputs: Features in.
        outputs: Features out.
        activate: Apply :func:`leaky`.
        bias: Initial bias.
        rate: Learning-rate multiplier: weights are stored 1 / rate times larger.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activate: bool = False,
        bias: float = 0.0,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full([outputs], bias))
        self.gain, self.rate, self.activate = rate / math.sqrt(inputs), rate, activate

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight * self.gain, self.bias * self.rate)
        return leaky(x) if self.activate else x


def leaky(x: Tensor, clamp: float | None = None) -> Tensor:
    r"""Leaky rectifier of slope 0.2, times :math:`\sqrt 2` so that it keeps the second moment."""
    x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    return x if clamp is None else x.clamp(-clamp, clamp)


class MappingNetwork(nn.Module):
    """Normal latents to styles, and the running average of the styles (``w_avg``)."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.layers = config.mapping_layers
        for k in range(self.layers):
            inputs = config.z_dim if k == 0 else config.w_dim
            self.add_module(f"fc{k}", ScaledLinear(inputs, config.w_dim, activate=True, rate=0.01))
        self.w_avg: Tensor
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor) -> Tensor:
        w = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for k in range(self.layers):
            w = self.get_submodule(f"fc{k}")(w)
        return w


def modulated_convolution(
    x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: Tensor | None = None
) -> Tensor:
    """Convolution whose weights are scaled by a style per sample, padded to keep the size.

    Args:
        x: Features (B, I, H, W).
        weight: Shared weights (O, I, k, k), k odd.
        style: Scale of each input channel (B, I).
        demodulate: Bring every output channel back to unit variance.
        up: Low-pass filter (m, m) of a 2x upsampling before the convolution; None for none. With
            it the weights act mirrored, as in the official checkpoints.

    Returns:
        (B, O, H, W), or (B, O, 2H, 2W).
    """
    x = x * style[:, :, None, None].to(x.dtype)
    if up is None:
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    else:
        # Transposing the strided convolution first and filtering after it costs a quarter of
        # filtering the image and then convolving at the doubled size, and is the same map: both
        # are shift-invariant on the fine grid.
        x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        x = lowpass(x, up, padding=(1, 1), gain=4)
    if demodulate:
        energy = style.square() @ weight.square().sum([2, 3]).T
        x = x * (energy + 1e-8).rsqrt()[:, :, None, None].to(x.dtype)
    return x


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky rectifier."""

    def __init__(
        self, config: StyleGAN2Config, inputs: int, outputs: int, resolution: int, up: bool
    ) -> None:
        super().__init__()
        self.up, self.clamp = up, config.clamp
        self.affine = ScaledLinear(config.w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.resample_filter: Tensor
        self.noise_const: Tensor
        self.register_buffer("resample_filter", binomial_filter())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: NoiseMode) -> Tensor:
        kernel = self.resample_filter if self.up else None
        x = modulated_convolution(x, self.weight, self.affine(w), True, kernel)
        if noise == "const":
            x = x + (self.noise_const * self.noise_strength).to(x.dtype)
        elif noise == "random":
            drawn = torch.randn(len(x), 1, *x.shape[2:], device=x.device, dtype=x.dtype)
            x = x + drawn * self.noise_strength.to(x.dtype)
        return leaky(x + self.bias[:, None, None].to(x.dtype), self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels, without demodulation."""

    def __init__(self, config: StyleGAN2Config, channels: int) -> None:
        super().__init__()
        self.clamp = config.clamp
        self.affine = ScaledLinear(config.w_dim, channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(3, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.affine(w) / math.sqrt(self.weight.shape[1])
        x = modulated_convolution(x, self.weight, style, demodulate=False)
        x = x + self.bias[:, None, None].to(x.dtype)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class SynthesisBlock(nn.Module):
    """All layers of one resolution; the first block starts from the constant."""

    def __init__(self, config: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        channels = config.channels(resolution)
        self.first = resolution == 4
        self.resample_filter: Tensor
        self.register_buffer("resample_filter", binomial_filter())
        if self.first:
            self.const = nn.Parameter(torch.randn(channels, 4, 4))
        else:
            inputs = config.channels(resolution // 2)
            self.conv0 = SynthesisLayer(config, inputs, channels, resolution, up=True)
        self.conv1 = SynthesisLayer(config, channels, channels, resolution, up=False)
        self.torgb = ToRGB(config, channels)

    def forward(
        self, x: Tensor | None, image: Tensor | None, styles: Tensor, noise: NoiseMode
    ) -> tuple[Tensor, Tensor]:
        """Features and image; ``styles`` holds one row per convolution and one for the RGB."""
        if x is None or image is None:
            features = self.const.expand(len(styles), -1, -1, -1)
        else:
            features = self.conv0(x, styles[:, 0], noise)
            image = upsample(image, self.resample_filter)
        features = self.conv1(features, styles[:, -2], noise)
        rgb = self.torgb(features, styles[:, -1])
        rgb = rgb.to(torch.promote_types(features.dtype, torch.float32))
        return features, rgb if image is None else image + rgb


class SynthesisNetwork(nn.Module):
    """Styles (B, n, D) to images."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.resolutions = config.resolutions
        for resolution in self.resolutions:
            self.add_module(f"b{resolution}", SynthesisBlock(config, resolution))

    def forward(self, styles: Tensor, noise: NoiseMode = "const") -> Tensor:
        x, image, first = None, None, 0
        for resolution in self.resolutions:
            convolutions = 1 if resolution == 4 else 2
            # A block's RGB layer shares its style with the next block's first convolution.
            x, image = self.get_submodule(f"b{resolution}")(
                x, image, styles[:, first : first + convolutions + 1], noise
            )
            first += convolutions
        assert image is not None
        return image


class StyleGAN2(nn.Module):
    """Image generator: normal latents to faces in about [-1, 1] (not clipped).

    Args:
        config: The network's numbers.
    """

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.synthesis = SynthesisNetwork(config)
        self.mapping = MappingNetwork(config)

    def map(self, z: Tensor, truncation: float = 1.0) -> Tensor:
        """Styles (B, n, D) of latents (B, z_dim), one style repeated for all layers.

        Args:
            z: Standard normal.
            truncation: 1 leaves the styles alone, 0 gives the average style; in between, less
                variety and fewer bad images.
        """
        w = self.mapping(z)
        w = self.mapping.w_avg.to(w.dtype).lerp(w, truncation)
        return w[:, None].expand(-1, self.config.styles, -1)

    @property
    def average_style(self) -> Tensor:
        """Mean style, repeated for all layers, with shape (n, D)."""
        return self.mapping.w_avg.expand(self.config.styles, -1)

    def synthesise(self, styles: Tensor, noise: NoiseMode = "const") -> Tensor:
        """Images (B, 3, S, S) of styles (B, n, D): W+ where the rows differ.

        Args:
            styles: One row per layer.
            noise: Per-pixel noise: the stored one ("const"), fresh ("random"), or "none". Only the
                first and the last make the image a function of the styles.

        Raises:
            ValueError: The number of rows or their length is wrong.
        """
        wanted = (self.config.styles, self.config.w_dim)
        if styles.ndim != 3 or styles.shape[1:] != wanted:
            raise ValueError(
                f"styles of shape {tuple(styles.shape)}: a {self.config.image_size}-pixel "
                f"StyleGAN2 takes (B, {wanted[0]}, {wanted[1]})"
            )
        return self.synthesis(styles, noise)

    def forward(self, z: Tensor, truncation: float = 1.0, noise: NoiseMode = "const") -> Tensor:
        return self.synthesise(self.map(z, truncation), noise)
