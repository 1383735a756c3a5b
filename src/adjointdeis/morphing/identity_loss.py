r"""The identity loss that a morph minimises against both of its sources.

.. math::
    L^* = d(v_{ab}, v_a) + d(v_{ab}, v_b) + |d(v_{ab}, v_a) - d(v_{ab}, v_b)|,\qquad
    d(u, v) = 1 - \cos(u, v),\quad v = F(\text{image})

The last term keeps the morph from resembling one source only.  Paper: eq. 5.1.

With several recognisers as guides the loss is the mean of theirs. A guide that compares embeddings
by Euclidean distance has :math:`d(u, v) = \lVert u - v \rVert`, which is what it is judged by.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class IdentityDistances:
    """Distances of a batch of morphs to their sources, with shape (B), or (guides, B) for several.

    Attributes:
        a: Distance to the first source; a cosine distance is in [0, 2].
        b: Distance to the second source.
    """

    a: Tensor
    b: Tensor

    @property
    def loss(self) -> Tensor:
        """L* per morph, with shape (B). Sum it over the batch: a mean would divide the gradient
        of every pair by the batch size, and the learning rate would depend on it."""
        return self.total + self.imbalance

    @property
    def mean(self) -> tuple[Tensor, Tensor]:
        """Both distances averaged over guides, each with shape (B)."""
        return _over_guides(self.a), _over_guides(self.b)

    @property
    def total(self) -> Tensor:
        """Sum of both distances, averaged over guides, with shape (B)."""
        return _over_guides(self.a + self.b)

    @property
    def imbalance(self) -> Tensor:
        """How much farther one source is than the other, averaged over guides, with shape (B)."""
        return _over_guides((self.a - self.b).abs())

    @property
    def farthest(self) -> Tensor:
        """The larger distance, of the guide that finds it largest, with shape (B)."""
        larger = torch.maximum(self.a, self.b)
        return larger if larger.ndim == 1 else larger.amax(0)


@dataclass(frozen=True)
class IdentityLoss:
    """The loss, for given face-recognition networks.

    Its gradient jumps where a morph is equally far from both sources, where the absolute difference
    of both distances has a kink, and that is where optimisation takes it. Compare gradients of
    different samplers away from there.

    Args:
        features: Differentiable embedding of images in [-1, 1], (B, 3, H, W) to (B, D); those of
            several networks side by side.
        parts: Length and metric of each network's embedding; empty for one network and cosines.
    """

    features: Callable[[Tensor], Tensor]
    parts: tuple[tuple[int, Literal["cosine", "euclidean"]], ...] = ()

    def __call__(self, morphs: Tensor, v_a: Tensor, v_b: Tensor) -> IdentityDistances:
        """Distances of morphs (B, 3, H, W) in [-1, 1] to source embeddings (B, D)."""
        v_ab = self.features(morphs)
        return IdentityDistances(a=self._distance(v_ab, v_a), b=self._distance(v_ab, v_b))

    def _distance(self, u: Tensor, v: Tensor) -> Tensor:
        if not self.parts:
            return 1 - F.cosine_similarity(u, v, dim=1)
        sizes = [size for size, _ in self.parts]
        found = [
            1 - F.cosine_similarity(x, y, dim=1)
            if metric == "cosine"
            else torch.linalg.vector_norm(x - y, dim=1)
            for x, y, (_, metric) in zip(
                u.split(sizes, 1), v.split(sizes, 1), self.parts, strict=True
            )
        ]
        return found[0] if len(found) == 1 else torch.stack(found)


def _over_guides(values: Tensor) -> Tensor:
    return values if values.ndim == 1 else values.mean(0)
