r"""IResNet, the backbone of ArcFace and ElasticFace, with the official state-dict keys.

One class serves the paper's recognisers (:meth:`IResNetConfig.r100`) and the embedded ones.

References:
    | ArcFace: Additive Angular Margin Loss for Deep Face Recognition
    | https://arxiv.org/abs/1801.07698
    | ElasticFace: Elastic Margin Loss for Deep Face Recognition
    | https://arxiv.org/abs/2109.09416
"""

from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn


@dataclass(frozen=True)
class IResNetConfig:
    """Numbers of an IResNet.

    Args:
        image_size: Side of the square input in pixels.
        layers: Residual blocks in each of the four stages.
        widths: Channels of the four stages.
        embedding_dim: Length of the embedding.
        stem_stride: Stride of the first convolution: 1 in the official networks; 2 makes a small
            network about four times cheaper.
        dropout: Dropout before the embedding layer while training.
    """

    image_size: int
    layers: tuple[int, ...] = (3, 13, 30, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    embedding_dim: int = 512
    stem_stride: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "widths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.image_size < 16 * self.stem_stride:
            raise ValueError(
                f"image_size={self.image_size} is too small: the strided stages need at least "
                f"{16 * self.stem_stride} pixels"
            )
        if len(self.layers) != 4 or len(self.widths) != 4:
            raise ValueError("an IResNet has four stages: give four layers and four widths")

    @property
    def final_size(self) -> int:
        """Side of the last feature map: every strided convolution rounds up."""
        size = -(-self.image_size // self.stem_stride)
        for _ in self.layers:
            size = -(-size // 2)
        return size

    @classmethod
    def r100(cls) -> Self:
        """IResNet-100 over 112x112 faces: 65,156,160 parameters, 925 state entries."""
        return cls(image_size=112)


class IBasicBlock(nn.Module):
    """Improved residual block: norm, conv, norm, PReLU, strided conv, norm."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels, eps=1e-5)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=1e-5)
        self.prelu = nn.PReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=1e-5)
        self.downsample = None
        if stride != 1 or channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels, eps=1e-5),
            )

    def forward(self, x: Tensor) -> Tensor:
        h = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        h = self.bn3(self.conv2(h))
        return h + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Face-recognition network: aligned RGB face in [-1, 1] to an embedding, not normalised.

    Args:
        config: The network's numbers.
    """

    def __init__(self, config: IResNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.conv1 = nn.Conv2d(3, widths[0], 3, config.stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=1e-5)
        self.prelu = nn.PReLU(widths[0])
        channels = widths[0]
        for index, (blocks, width) in enumerate(zip(config.layers, widths, strict=True), start=1):
            # Every stage halves the resolution, the first included.
            stage = [IBasicBlock(channels, width, 2)]
            stage += [IBasicBlock(width, width, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{index}", nn.Sequential(*stage))
            channels = width
        self.bn2 = nn.BatchNorm2d(channels, eps=1e-5)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels * config.final_size**2, config.embedding_dim)
        self.features = nn.BatchNorm1d(config.embedding_dim, eps=1e-5)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of images in [-1, 1] of any size: the stem's and those of the four stages.

        They are the features of a perceptual loss; the last one is what the embedding is made of.
        """
        maps = [self.prelu(self.bn1(self.conv1(x)))]
        for index in range(1, 1 + len(self.config.layers)):
            maps.append(self.get_submodule(f"layer{index}")(maps[-1]))
        return maps

    def forward(self, x: Tensor) -> Tensor:
        r"""Embeds faces in [-1, 1] with shape :math:`(B, 3, S, S)` to :math:`(B, D)`."""
        size = self.config.image_size
        if x.shape[1:] != (3, size, size):
            raise ValueError(
                f"this recogniser takes faces of shape (B, 3, {size}, {size}), "
                f"got {tuple(x.shape)}; resize the aligned face first"
            )
        h = self.maps(x)[-1]
        # The embedding layer runs in the weights' own dtype: autocast covers the trunk only.
        h = self.dropout(self.bn2(h).flatten(1))
        return self.features(self.fc(h))
