r"""Diffusion autoencoder: a semantic encoder and a noise-prediction U-Net conditioned on its code.

One class serves the paper's checkpoint and the embedded one: :meth:`DiffAEConfig.ffhq256` has the
official numbers, and the state-dict keys and their order are the official ones.

References:
    | Diffusion Autoencoders: Toward a Meaningful and Decodable Representation
    | https://arxiv.org/abs/2111.15640
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjointdeis.faces.networks.blocks import (
    Norm,
    ResidualBlock,
    SelfAttention,
    Stage,
    TimeEmbedding,
)


@dataclass(frozen=True)
class DiffAEConfig:
    """Numbers of a diffusion autoencoder.

    Args:
        image_size: Height and width of the image in pixels.
        channels: Colour channels.
        model_channels: Width at the finest level.
        channel_mult: Width multiplier of each U-Net level; every level halves the resolution.
        encoder_channel_mult: The same for the encoder.
        residual_blocks: Residual blocks per level.
        attention_resolutions: Resolutions, after patching, whose blocks get self-attention.
        embed_channels: Width of the time embedding.
        code_channels: Width of the code z.
        patch_size: Side of the pixel blocks folded into channels before the first convolution;
            1 is the official network. Folding 2x2 blocks makes a small network about 3.5 times
            cheaper at the same image size.
        dropout: Dropout of the U-Net's conditioned blocks while training.
    """

    image_size: int
    channels: int = 3
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    encoder_channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4, 4, 4)
    residual_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    embed_channels: int = 512
    code_channels: int = 512
    patch_size: int = 1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        # JSON model cards hold lists; a frozen, hashable config wants tuples.
        for name in ("channel_mult", "encoder_channel_mult", "attention_resolutions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        levels = max(len(self.channel_mult), len(self.encoder_channel_mult))
        multiple = self.patch_size * 2 ** (levels - 1)
        if self.image_size % multiple:
            raise ValueError(
                f"image_size={self.image_size} must be a multiple of {multiple} "
                f"(patch_size {self.patch_size} times 2^{levels - 1} for {levels} levels)"
            )

    @classmethod
    def ffhq256(cls) -> Self:
        """The published FFHQ 256x256 autoencoder: 168,492,291 parameters in 706 tensors."""
        return cls(image_size=256)


class SemanticEncoder(nn.Module):
    """Maps an image to its code z, deterministically."""

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        widths = [config.model_channels * m for m in config.encoder_channel_mult]
        resolution = config.image_size // config.patch_size
        width = widths[0]
        first = nn.Conv2d(config.channels * config.patch_size**2, width, 3, padding=1)
        self.input_blocks = nn.ModuleList([Stage(first)])
        for level, out in enumerate(widths):
            for _ in range(config.residual_blocks):
                layers: list[nn.Module] = [ResidualBlock(width, out)]
                width = out
                if resolution in config.attention_resolutions:
                    layers.append(SelfAttention(width))
                self.input_blocks.append(Stage(*layers))
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(ResidualBlock(width, width, direction=-1)))
                resolution //= 2
        self.middle_block = Stage(
            ResidualBlock(width, width), SelfAttention(width), ResidualBlock(width, width)
        )
        self.out = nn.Sequential(
            Norm(width),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Conv2d(width, config.code_channels, 1),
            nn.Flatten(),
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.input_blocks:
            x = block(x)
        return self.out(self.middle_block(x))


class DiffAE(nn.Module):
    r"""Diffusion autoencoder over images in [-1, 1].

    Args:
        config: The network's numbers.
    """

    def __init__(self, config: DiffAEConfig) -> None:
        super().__init__()
        self.config = config
        embed, code = config.embed_channels, config.code_channels
        folded = config.channels * config.patch_size**2

        def residual(channels: int, out: int, direction: int = 0) -> ResidualBlock:
            return ResidualBlock(channels, out, embed, code, direction, config.dropout)

        self.time_embed = TimeEmbedding(config.model_channels, embed)
        widths = [config.model_channels * m for m in config.channel_mult]
        resolution = config.image_size // config.patch_size
        width = widths[0]
        self.input_blocks = nn.ModuleList([Stage(nn.Conv2d(folded, width, 3, padding=1))])
        laterals = [[width]]  # widths of the skip connections, one list per level
        for level, out in enumerate(widths):
            for _ in range(config.residual_blocks):
                layers: list[nn.Module] = [residual(width, out)]
                width = out
                if resolution in config.attention_resolutions:
                    layers.append(SelfAttention(width))
                self.input_blocks.append(Stage(*layers))
                laterals[level].append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage(residual(width, width, direction=-1)))
                laterals.append([width])
                resolution //= 2
        self.middle_block = Stage(
            residual(width, width), SelfAttention(width), residual(width, width)
        )
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for index in range(config.residual_blocks + 1):
                layers = [residual(width + laterals[level].pop(), widths[level])]
                width = widths[level]
                if resolution in config.attention_resolutions:
                    layers.append(SelfAttention(width))
                if level and index == config.residual_blocks:
                    layers.append(residual(width, width, direction=1))
                    resolution *= 2
                self.output_blocks.append(Stage(*layers))
        last = nn.Conv2d(width, folded, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.out = nn.Sequential(Norm(width), nn.SiLU(), last)
        self.encoder = SemanticEncoder(config)

    def encode(self, x: Tensor) -> Tensor:
        r"""Semantic code of images in [-1, 1] with shape :math:`(B, C, H, W)`: :math:`(B, D)`."""
        return self.encoder(self._fold(x))

    def forward(self, x: Tensor, timesteps: Tensor, z: Tensor) -> Tensor:
        r"""Network output for noisy images.

        Args:
            x: Noisy images :math:`x_t`, with shape :math:`(B, C, H, W)`.
            timesteps: Integer timesteps in 0..999, with shape :math:`()` or :math:`(B)`.
            z: Codes, with shape :math:`(B, D)`.

        Returns:
            The prediction (noise for the official weights), with the shape of ``x``.
        """
        h = self._fold(x)
        embedding = self.time_embed(timesteps.expand(x.shape[0]))
        laterals: list[Tensor] = []
        for block in self.input_blocks:
            h = block(h, embedding, z)
            laterals.append(h)
        h = self.middle_block(h, embedding, z)
        for block in self.output_blocks:
            # The decoder's features come first: the official weights depend on the order.
            h = block(torch.cat([h, laterals.pop()], dim=1), embedding, z)
        h = self.out(h)
        return F.pixel_shuffle(h, self.config.patch_size) if self.config.patch_size > 1 else h

    def _fold(self, x: Tensor) -> Tensor:
        size = self.config.image_size
        if x.shape[-2:] != (size, size) or x.shape[1] != self.config.channels:
            raise ValueError(
                f"this autoencoder takes images of shape (B, {self.config.channels}, {size}, "
                f"{size}), got {tuple(x.shape)}; align or resize them first"
            )
        return F.pixel_unshuffle(x, self.config.patch_size) if self.config.patch_size > 1 else x
