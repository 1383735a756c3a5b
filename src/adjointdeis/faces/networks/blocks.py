r"""Building blocks of the diffusion autoencoder: norm, residual block, attention, time embedding.

The order of modulation inside a residual block is part of the checkpoint's meaning: the time
embedding scales and shifts first, the code then scales,

.. math:: h \gets \big(\mathrm{GN}(h)\,(1 + s_t) + b_t\big)\,(1 + s_z).

References:
    | Diffusion Autoencoders: Toward a Meaningful and Decodable Representation
    | https://arxiv.org/abs/2111.15640
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Norm(nn.GroupNorm):
    """Group norm over ``gcd(32, channels)`` groups, in float32 at least.

    For the widths of the official networks, all multiples of 32, that is their 32 groups.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        # The official code normalises in float32 and casts back; float64 stays float64 so that
        # gradients can be checked to machine precision.
        wide = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        return super().forward(wide).to(input.dtype)


class Resample(nn.Module):
    """Change of resolution by two: nearest-neighbour up, average pooling down, or none."""

    def __init__(self, direction: int) -> None:
        super().__init__()
        self.direction = direction

    def forward(self, x: Tensor) -> Tensor:
        if self.direction > 0:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        if self.direction < 0:
            return F.avg_pool2d(x, 2)
        return x


class ResidualBlock(nn.Module):
    """Residual block of the U-Net (``embed_channels`` given) or of the encoder (``None``).

    An encoder block has no second convolution: with no condition the official code never builds
    ``out_layers``, so the block is :math:`skip(x) + conv(SiLU(GN(x)))`.

    Args:
        channels: Channels of the input.
        out_channels: Channels of the output.
        embed_channels: Width of the time embedding, or None for an unconditioned block.
        code_channels: Width of the code z.
        direction: +1 upsamples, -1 downsamples, 0 keeps the resolution.
        dropout: Probability of dropping an activation while training.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        embed_channels: int | None = None,
        code_channels: int | None = None,
        direction: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            Norm(channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.resample = Resample(direction)
        self.conditioned = embed_channels is not None
        if embed_channels is not None:
            code_channels = embed_channels if code_channels is None else code_channels
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed_channels, 2 * out_channels))
            self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(code_channels, out_channels))
            last = nn.Conv2d(out_channels, out_channels, 3, padding=1)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)  # type: ignore[arg-type]
            self.out_layers = nn.Sequential(
                Norm(out_channels), nn.SiLU(), nn.Dropout(dropout), last
            )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, z: Tensor | None = None
    ) -> Tensor:
        norm, activation, convolution = self.in_layers
        h = convolution(self.resample(activation(norm(x))))
        x = self.resample(x)
        if self.conditioned:
            scale_t, shift_t = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)
            scale_z = self.cond_emb_layers(z)[..., None, None]
            norm, *rest = self.out_layers
            h = norm(h) * (1 + scale_t) + shift_t
            h = h * (1 + scale_z)
            for layer in rest:
                h = layer(h)
        return self.skip_connection(x) + h


class SelfAttention(nn.Module):
    """Single-head self-attention over the pixels, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = Norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = self.qkv(self.norm(flat)).transpose(1, 2).chunk(3, dim=2)
        # scaled_dot_product_attention divides by sqrt(C), which is the official C^-1/4 on both
        # q and k, and picks a fused kernel where there is one.
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(h.transpose(1, 2)).reshape(x.shape)


class Stage(nn.Sequential):
    """Sequence whose residual blocks receive the time embedding and the code."""

    def forward(
        self, x: Tensor, embedding: Tensor | None = None, z: Tensor | None = None
    ) -> Tensor:
        for layer in self:
            x = layer(x, embedding, z) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class TimeEmbedding(nn.Module):
    r"""Sinusoidal embedding of the integer timestep, cosines first, then a two-layer network.

    Args:
        channels: Number of sinusoids, even.
        embed_channels: Width of the output.
    """

    def __init__(self, channels: int, embed_channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.time_embed = nn.Sequential(
            nn.Linear(channels, embed_channels),
            nn.SiLU(),
            nn.Linear(embed_channels, embed_channels),
        )

    def forward(self, timesteps: Tensor) -> Tensor:
        r"""Embeds timesteps in 0..999 (not rescaled), with shape :math:`(B)`, to :math:`(B, E)`."""
        half = self.channels // 2
        exponent = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
        frequencies = torch.exp(-math.log(10000.0) * exponent)
        dtype = next(self.time_embed.parameters()).dtype
        angles = timesteps.to(torch.float32)[:, None] * frequencies
        return self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype))
