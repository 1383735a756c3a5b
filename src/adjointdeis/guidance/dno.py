r"""DNO: direct optimisation of the initial noise, kept white by a decorrelation penalty.

.. math:: x_T \gets \mathrm{Adam}\Big(\frac{g}{\|g\|}\Big),\qquad
          g = \nabla_{x_T} \big[ L(x_0(x_T)) + \gamma\, D(x_T) \big]

with the penalty summed over a pyramid of averages :math:`x^{(0)} = x_T, x^{(1)}, \dots`

.. math:: D(x) = \sum_m \sum_d \Big(\frac{1}{n_m} \sum_i x^{(m)}_i x^{(m)}_{i + e_d}\Big)^2 .

It is the latent optimisation of this package with three choices made: Adam at 0.05, each sample's
gradient divided by its norm, and the penalty.

References:
    Optimizing Diffusion Noise Can Serve As Universal Motion Priors,
    https://arxiv.org/abs/2312.11994
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.guidance.latent_optimisation import (
    LatentOptimisation,
    Objective,
    OptimizerFactory,
    Sampler,
)
from adjointdeis.guidance.per_sample import normalised

ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=0.05)


@dataclass(frozen=True)
class Decorrelation:
    r"""Squared correlation of neighbours in the noise, at every scale of a pyramid.

    White noise has none at any scale; an optimiser that writes a pattern into x_T creates some.
    Neighbours wrap around. One level of the pyramid averages pairs along every listed axis.

    Args:
        dims: axes with a neighbourhood: (-2, -1) for images, (-1,) for sequences.
        smallest: the pyramid ends when an axis is not longer than this, or of odd length.

    When not to use: on states without an order of their coordinates, such as a point in the
    plane; a plain norm constraint (``Sphere``) is what those have.
    """

    dims: Sequence[int] = (-2, -1)
    smallest: int = 2

    def __call__(self, x_T: Tensor) -> Tensor:
        """Penalty per sample, with shape (B), of noise (B, *)."""
        rest = tuple(range(1, x_T.ndim))
        total = x_T.new_zeros(len(x_T))
        while True:
            for dim in self.dims:
                total = total + (x_T * x_T.roll(1, dim)).mean(rest).square()
            lengths = [x_T.shape[dim] for dim in self.dims]
            if min(lengths) <= self.smallest or any(length % 2 for length in lengths):
                return total
            for dim in self.dims:
                x_T = x_T.unflatten(dim, (-1, 2)).mean(_inner(dim))


def _inner(dim: int) -> int:
    """Where the pairs of an axis are after it was unflattened into (n / 2, 2)."""
    return dim + 1 if dim >= 0 else dim


def direct_noise_optimisation(
    sampler: Sampler,
    objective: Objective,
    x_T: Tensor,
    z: Tensor,
    *,
    weight: float = 1000.0,
    penalty: Objective | None = None,
    optimizer: OptimizerFactory = ADAM,
    keep: Literal["last", "best"] = "best",
) -> LatentOptimisation:
    """Latent optimisation of x_T alone with DNO's choices.

    Optimises x_T; z stays. Cost of a step: N evaluations and the gradient method's N products
    (the sampler carries any method; the authors used plain backpropagation over 10 DDIM steps).

    Args:
        sampler, objective, x_T, z, optimizer, keep: as for :class:`LatentOptimisation`.
        weight: weight of the penalty; the authors use 1000.
        penalty: per-sample penalty of x_T; ``Decorrelation()`` by default.

    Raises:
        ValueError: a negative weight.
    """
    if weight < 0:
        raise ValueError(f"weight={weight}: expected 0 or more")
    measure = Decorrelation() if penalty is None else penalty
    return LatentOptimisation(
        sampler,
        objective,
        x_T,
        z,
        optimizer,
        keep=keep,
        optimise="x_T",
        penalty=(lambda x: weight * measure(x)) if weight else None,
        gradient_rule=normalised,
    )
