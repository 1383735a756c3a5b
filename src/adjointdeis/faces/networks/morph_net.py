"""A small convolutional network that tells morphs from bona fide images by their fine structure."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class MorphNetConfig:
    """Numbers of a MorphNet.

    Args:
        widths: Channels of each stage; every stage after the first halves the image. The first
            one works on blocks of 2 x 2 pixels as channels: no detail is lost, at a quarter of the
            cost.
        high_pass: Feed what a 3 x 3 mean leaves of the image beside the image itself: traces of
            blending, warping and sampling are in the finest detail, and faces are not.
    """

    widths: tuple[int, ...] = (24, 32, 48)
    high_pass: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths}: expected one number above 0 for each stage")


class MorphNet(nn.Module):
    """Convolutions, mean and deviation over the image, one linear layer: a logit of "morph".

    It takes images of any size, and is the same for an image and its mirror image only as far as
    training makes it so.

    Args:
        config: Its numbers.
    """

    def __init__(self, config: MorphNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, layers = 4 * (6 if config.high_pass else 3), []
        for k, width in enumerate(config.widths):
            layers += [
                nn.Conv2d(channels, width, 3, 1 + (k > 0), padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
            channels = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(2 * channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B) of images (B, 3, H, W) in [-1, 1]; above 0 is a morph."""
        if self.config.high_pass:
            smooth = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            # Fine detail is a tenth as large as the image.
            images = torch.cat([images, 10 * (images - smooth)], dim=1)
        odd = [side % 2 for side in images.shape[-2:]]
        images = F.pad(images, (0, odd[1], 0, odd[0]), mode="replicate")
        features = self.layers(F.pixel_unshuffle(images, 2)).flatten(2)
        spread = features.var(2, correction=0).add(1e-6).sqrt()
        return self.head(torch.cat([features.mean(2), spread], dim=1))[:, 0]
