r"""Perceptual distance: mean squared difference of a network's feature maps.

.. math::
    d(x, y) = \sum_i \frac{1}{N_i} \lVert F_i(x) - F_i(y) \rVert^2,

:math:`N_i` the number of values of layer :math:`i`.

References:
    | Perceptual Losses for Real-Time Style Transfer and Super-Resolution
    | https://arxiv.org/abs/1603.08155
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from adjointdeis.faces.networks import IResNet

FeatureMaps = Callable[[Tensor], Sequence[Tensor]]
"""Differentiable feature maps (B, C_i, H_i, W_i) of images in [-1, 1]."""


def perceptual_distance(maps_x: Sequence[Tensor], maps_y: Sequence[Tensor]) -> Tensor:
    """Distance of two batches by their feature maps, with shape (B)."""
    layers = zip(maps_x, maps_y, strict=True)
    terms = [(x - y).square().flatten(1).mean(1) for x, y in layers]
    return sum(terms[1:], terms[0])


@dataclass(frozen=True, eq=False)
class TrunkMaps:
    """Feature maps of a recogniser's trunk on the whole image, for want of a pretrained VGG.

    Each pixel's feature vector is brought to unit length, so that layers count alike whatever
    their scale. The maps belong to a network trained to tell faces apart, which ignores what does
    not identify: colours and hair weigh less than in a VGG's.

    Args:
        network: The recogniser, frozen and in evaluation mode.
        stages: How many of its four stages to use.
    """

    network: IResNet
    stages: int = 3

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        maps = self.network.maps(images)[: self.stages + 1]
        # Times the number of channels: a map's mean square is then about 1, as its values'.
        return [F.normalize(x, dim=1, eps=1e-6) * x.shape[1] ** 0.5 for x in maps]
