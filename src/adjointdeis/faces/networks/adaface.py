r"""AdaFace's IR backbone, with the official state-dict keys.

It differs from :class:`adjointdeis.faces.networks.iresnet.IResNet` in three ways that matter to a
checkpoint: a max-pool shortcut where a block keeps its width (so the first strided block has no
``downsample``), an output batch norm without scale and shift, and an output that is a pair.

References:
    | AdaFace: Quality Adaptive Margin for Face Recognition
    | https://arxiv.org/abs/2204.00964
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn


@dataclass(frozen=True)
class AdaFaceConfig:
    """Numbers of an AdaFace backbone.

    Args:
        image_size: Side of the square input in pixels.
        layers: Residual blocks in each of the four stages; the first of each halves the resolution.
        widths: Channels of the four stages; the stem has the first stage's.
        embedding_dim: Length of the embedding.
        dropout: Dropout before the embedding layer while training.
    """

    image_size: int
    layers: tuple[int, ...] = (3, 13, 30, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_dim: int = 512
    dropout: float = 0.4

    def __post_init__(self) -> None:
        for name in ("layers", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.layers) != 4 or len(self.widths) != 4:
            raise ValueError(
                "an AdaFace backbone has four stages: give four layers and four widths"
            )
        if self.image_size < 16:
            raise ValueError(
                f"image_size={self.image_size} is too small: four strided stages need 16 pixels"
            )

    @property
    def final_size(self) -> int:
        """Side of the last feature map: every strided layer rounds up."""
        size = self.image_size
        for _ in self.layers:
            size = -(-size // 2)
        return size

    @classmethod
    def ir101(cls) -> Self:
        """IR-101 over 112x112 faces: 65,150,912 parameters, 917 state entries."""
        return cls(image_size=112)


class BasicBlockIR(nn.Module):
    """Norm, conv, norm, PReLU, strided conv, norm; beside a max-pool or a 1x1 shortcut."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if channels == out_channels:
            # A window of one pixel: this only picks every stride-th pixel.
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out_channels, 3, 1, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.PReLU(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFace(nn.Module):
    """Face-recognition network: aligned **BGR** face in [-1, 1] to a unit feature and its norm.

    The norm is the paper's proxy of image quality. The channel order is the official weights'; use
    ``FaceCrop(112, bgr=True)`` in front of it.

    Args:
        config: The network's numbers.
    """

    def __init__(self, config: AdaFaceConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.widths[0], config.widths[-1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first)
        )
        # Before the body, as in the official module: the order of the state dict follows.
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(last),
            nn.Dropout(config.dropout),
            nn.Flatten(),
            nn.Linear(last * config.final_size**2, config.embedding_dim),
            nn.BatchNorm1d(config.embedding_dim, affine=False),
        )
        blocks = []
        channels = first
        for count, width in zip(config.layers, config.widths, strict=True):
            for index in range(count):
                blocks.append(BasicBlockIR(channels, width, 1 if index else 2))
                channels = width
        self.body = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""Unit features :math:`(B, D)` and norms :math:`(B, 1)` of faces :math:`(B, 3, S, S)`.

        Args:
            x: BGR faces in [-1, 1], with shape :math:`(B, 3, S, S)`.
        """
        size = self.config.image_size
        if x.shape[1:] != (3, size, size):
            raise ValueError(
                f"this recogniser takes faces of shape (B, 3, {size}, {size}), "
                f"got {tuple(x.shape)}; resize the aligned face first"
            )
        feature = self.output_layer(self.body(self.input_layer(x)))
        norm = feature.norm(dim=1, keepdim=True)
        return feature / norm, norm
