r"""Implicit Diffusion through Langevin dynamics: weights of a potential from its own samples.

One step of sampling and one of optimisation at a time, for densities
:math:`\pi_\theta \propto e^{-V(x, \theta)}`:

.. math:: X \gets X - \gamma\,\nabla_x V(X, \theta) + \sqrt{2\gamma}\;n,\qquad
          \nabla_\theta \mathbb{E}_{\pi_\theta}[L] =
          -\mathrm{Cov}_{\pi_\theta}\big(L(X),\; \nabla_\theta V(X, \theta)\big).

No path is differentiated: the covariance over the present particles is the gradient.

References:
    Implicit Diffusion, https://arxiv.org/abs/2402.05468
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.fine_tuning import UpdatingWeights, update
from adjointdeis.guidance.per_sample import losses_of
from adjointdeis.guidance.problem import Algorithm, OptimizerFactory, Step


def covariance_gradient(
    potential: Callable[[Tensor], Tensor],
    x: Tensor,
    loss: Tensor,
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    r"""Minus the sample covariance of the losses and the potential's gradient by theta.

    :math:`-\frac{1}{B - 1}\sum_b (L_b - \bar L)\,\nabla_\theta V(x_b)`, unbiased for samples of
    the density.

    Args:
        potential: ``x -> V`` with shape (B).
        x: samples, shape (B, *), B at least 2.
        loss: their losses, shape (B).
        parameters: theta.
    """
    if len(x) < 2:
        raise ValueError("a covariance needs at least two particles")
    centred = (loss - loss.mean()).detach()
    with torch.enable_grad():
        energy = -(centred * potential(x.detach())).sum() / (len(x) - 1)
        return list(torch.autograd.grad(energy, list(parameters)))


@dataclass(frozen=True, eq=False)
class PotentialProblem:
    """Change the weights of a potential until samples of its density have a small mean loss.

    Args:
        potential: Module ``x -> V`` with shape (B); changed in place.
        x: Initial particles, with shape (B, *), B at least 2; not modified.
        loss: ``x -> losses`` with shape (B).
        draw: ``iteration -> noises``: a standard normal, shaped like the particles, per Langevin
            step.

    Raises:
        ValueError: No weight requires a gradient.
    """

    potential: nn.Module
    x: Tensor
    loss: Callable[[Tensor], Tensor] = field(kw_only=True)
    draw: Callable[[int], Sequence[Tensor]] = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError("no weight of the potential requires a gradient")

    def losses(self, x: Tensor) -> Tensor:
        """The losses of particles, with shape (B); :func:`losses_of` checks."""
        return losses_of(x, self.loss(x))

    @property
    def parameters(self) -> list[Tensor]:
        """The weights that move."""
        return [p for p in self.potential.parameters() if p.requires_grad]


@dataclass(frozen=True, eq=False)
class ImplicitLangevin(Algorithm):
    """The single loop with the unadjusted Langevin algorithm as sampler.

    Optimises theta of a potential. Cost of an iteration: two evaluations of the potential and two
    products, one for the samples and one for the weights.

    Args:
        optimizer: Factory called with the list of weights that require a gradient.
        gamma: Step of the sampler, positive. The particles follow the density up to a bias of
            order gamma.
        steps: Updates of the weights.
        samples_per_update: Langevin steps between two updates of the weights.

    Raises:
        ValueError: A step or count out of range; while it runs, the wrong number of noises.
        FloatingPointError: While it runs, if the gradient is not finite; the weights are as they
            were before the iteration.

    When not to use: where the density changes faster than the particles follow, or its modes do
    not communicate: the covariance then belongs to where the particles started.
    """

    optimizer: OptimizerFactory
    gamma: float
    steps: int = 100
    samples_per_update: int = 1
    solves: ClassVar[type] = PotentialProblem

    def __post_init__(self) -> None:
        if not self.gamma > 0 or self.samples_per_update < 1:
            raise ValueError(
                f"gamma={self.gamma}, samples_per_update={self.samples_per_update}: expected more "
                "than 0 and 1 or more"
            )

    def _start(self, problem: PotentialProblem) -> "_Particles":
        return _Particles(self, problem)


class _Particles(UpdatingWeights):
    """Particles and weights on their way."""

    def __init__(self, algorithm: ImplicitLangevin, problem: PotentialProblem) -> None:
        super().__init__(algorithm.steps)
        self.algorithm, self.problem, self.parameters = algorithm, problem, problem.parameters
        self.x = problem.x.detach().clone()
        self.optimizer = algorithm.optimizer(self.parameters)

    def step(self) -> Step:
        """Moves the particles, then the weights."""
        algorithm, problem = self.algorithm, self.problem
        noise = problem.draw(self.updates)
        if len(noise) != algorithm.samples_per_update:
            raise ValueError(f"{algorithm.samples_per_update} noises are needed, got {len(noise)}")
        cost = Cost(nfe_forward=len(noise), nfe_backward=1, vjps=len(noise) + 1)
        cost.holds(1, graphs=1)
        for draw in noise:
            with torch.enable_grad():
                leaf = self.x.requires_grad_()
                (slope,) = torch.autograd.grad(problem.potential(leaf).sum(), leaf)
            self.x = (leaf - algorithm.gamma * slope).detach() + (2 * algorithm.gamma) ** 0.5 * draw
        x = self.x.detach()
        loss = problem.losses(x)
        gradients = covariance_gradient(problem.potential, self.x, loss, self.parameters)
        norm = update(self.optimizer, self.parameters, gradients)
        self.cost.add(cost)
        return self.noted(Step(loss, cost, norm, self.x))
