r"""The first layers of VGG16, whose features a perceptual loss compares.

Of its thirteen convolutions the first seven are kept, up to ``conv3_3``, with torchvision's keys
(``features.0.weight`` ... ``features.14.bias``). The weights meant are the original ones of
Simonyan and Zisserman, which take colours in 0..255 minus their means: the published weight of the
perceptual loss, 0.0002, is read here as belonging to features of that scale.

References:
    | Very Deep Convolutional Networks for Large-Scale Image Recognition
    | https://arxiv.org/abs/1409.1556
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEANS = (0.48235, 0.45882, 0.40784)
_WIDTHS = (64, 64, None, 128, 128, None, 256, 256, 256)
_OUTPUTS = (1, 3, 8, 15)  # conv1_1, conv1_2, conv2_2, conv3_3, after their rectifiers


@dataclass(frozen=True)
class VGG16Config:
    """Numbers of the feature extractor.

    Args:
        image_size: Side that images are resized to, 256 in MIPGAN; None keeps them.
    """

    image_size: int | None = 256

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 4:
            raise ValueError(f"image_size={self.image_size} is too small for two poolings")


class VGG16(nn.Module):
    """Feature maps after conv1_1, conv1_2, conv2_2 and conv3_3 of RGB images in [-1, 1].

    Args:
        config: Size of its images; None is the published one.
    """

    def __init__(self, config: VGG16Config | None = None) -> None:
        super().__init__()
        self.config = config or VGG16Config()
        layers: list[nn.Module] = []
        channels = 3
        for width in _WIDTHS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps (B, C, H, W) of images (B, 3, H, W)."""
        size = self.config.image_size
        if size is not None and images.shape[-2:] != (size, size):
            images = F.interpolate(
                images, (size, size), mode="bilinear", align_corners=False, antialias=True
            )
        means = torch.tensor(MEANS, dtype=images.dtype, device=images.device)
        x, maps = 255 * ((images + 1) / 2 - means[:, None, None]), []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _OUTPUTS:
                maps.append(x)
        return maps
