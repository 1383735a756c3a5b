r"""The identity loss that a morph minimises against both of its sources.

.. math::
    L^* = d(v_{ab}, v_a) + d(v_{ab}, v_b) + |d(v_{ab}, v_a) - d(v_{ab}, v_b)|,\qquad
    d(u, v) = 1 - \cos(u, v),\quad v = F(\text{image})

The last term keeps the morph from resembling one source only.  Paper: eq. 5.1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class IdentityDistances:
    """Cosine distances of a batch of morphs to their sources, each in [0, 2] with shape (B).

    Attributes:
        a: Distance to the first source.
        b: Distance to the second source.
    """

    a: Tensor
    b: Tensor

    @property
    def loss(self) -> Tensor:
        """L* per morph, with shape (B). Sum it over the batch: a mean would divide the gradient
        of every pair by the batch size, and the learning rate would depend on it."""
        return self.a + self.b + (self.a - self.b).abs()


@dataclass(frozen=True)
class IdentityLoss:
    """The loss, for a given face-recognition network.

    Args:
        features: Differentiable embedding of images in [-1, 1], (B, 3, H, W) to (B, D).
    """

    features: Callable[[Tensor], Tensor]

    def __call__(self, morphs: Tensor, v_a: Tensor, v_b: Tensor) -> IdentityDistances:
        """Distances of morphs (B, 3, H, W) in [-1, 1] to source embeddings (B, D)."""
        v_ab = self.features(morphs)
        return IdentityDistances(
            a=1 - F.cosine_similarity(v_ab, v_a, dim=1),
            b=1 - F.cosine_similarity(v_ab, v_b, dim=1),
        )
