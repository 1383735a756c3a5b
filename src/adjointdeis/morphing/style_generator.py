"""A style generator as MIPGAN sees it: images of styles, and the features it compares them by."""

from dataclasses import dataclass

from torch import Tensor, nn

from adjointdeis.faces.networks import StyleGAN2
from adjointdeis.morphing.perceptual import FeatureMaps


@dataclass(frozen=True, eq=False)
class StyleGenerator:
    """A trained StyleGAN2 and a trained network whose features make the perceptual loss.

    Args:
        network: The generator, frozen and in evaluation mode.
        maps: Feature maps of the perceptual loss.
        maps_network: The network behind them.
        perceptual_weight: What the scale of these features calls for in MIPGAN's loss: 0.0002 for
            VGG16's.
        fingerprint: SHA-256 of the generator's file.
        maps_fingerprint: SHA-256 of the features' file.
        licence: Licence of the generator's weights, one line.
    """

    network: StyleGAN2
    maps: FeatureMaps
    maps_network: nn.Module
    perceptual_weight: float
    fingerprint: str
    maps_fingerprint: str
    licence: str

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.network.config.image_size

    @property
    def average_style(self) -> Tensor:
        """Mean style, with shape (n, D)."""
        return self.network.average_style

    def synthesise(self, styles: Tensor) -> Tensor:
        """Images of styles (B, n, D), with the stored noise: a function of the styles."""
        return self.network.synthesise(styles, "const")
