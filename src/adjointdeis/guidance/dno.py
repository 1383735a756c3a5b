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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients import GradientMethod
from adjointdeis.guidance.latent_optimisation import LatentDescent, LatentOptimisation
from adjointdeis.guidance.per_sample import normalised
from adjointdeis.guidance.problem import ADAM, Algorithm, LatentProblem, OptimizerFactory


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
        x_T, rest = wide(x_T), tuple(range(1, x_T.ndim))
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


@dataclass(frozen=True, eq=False)
class DirectNoiseOptimisation(Algorithm):
    """DNO: latent optimisation of x_T alone with the authors' choices.

    Optimises x_T; z stays. Cost of a step: N evaluations and the gradient method's N products
    (any method; the authors used plain backpropagation over 10 DDIM steps).

    Args:
        steps, optimizer, gradient, keep: As for :class:`LatentOptimisation`.
        weight: Weight of the penalty; the authors use 1000, 0 leaves it out.
        penalty: Per-sample penalty of x_T.

    Raises:
        ValueError: A negative weight.
    """

    steps: int = 20
    optimizer: OptimizerFactory = ADAM
    gradient: GradientMethod | None = None
    weight: float = 1000.0
    penalty: Callable[[Tensor], Tensor] = Decorrelation()
    keep: Literal["last", "best"] = "best"

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight={self.weight}: expected 0 or more")

    def _start(self, problem: LatentProblem) -> LatentDescent:
        return LatentOptimisation(
            self.steps,
            self.optimizer,
            self.gradient,
            keep=self.keep,
            penalty=(lambda x: self.weight * self.penalty(x)) if self.weight else None,
            gradient_rule=normalised,
        )._start(replace(problem, moves="x_T"))
