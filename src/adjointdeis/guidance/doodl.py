r"""DOODL: end-to-end optimisation of x_T through a reversible sampler, in the memory of one step.

A tied pair :math:`x_T = y_T` is sampled by EDICT to two images; the loss of both moves the pair:

.. math:: g = \tfrac12 \cdot \tfrac12 \big(\nabla_{x_T} + \nabla_{y_T}\big)
              \big[L(x_0) + L(y_0)\big],\qquad
          m \gets 0.9\, m + \mathrm{clip}(g, \pm c),

.. math:: x_T \gets \|x_T^{(0)}\|\; \frac{x_T - \eta\, m + 10^{-4}\, n}
                                         {\|x_T - \eta\, m + 10^{-4}\, n\|} .

The states are rebuilt by the inverse of the sampler (``Reversible``). The published program keeps
every input instead and inverts nothing; ``gradient=DiscreteAdjoint()`` is what it does.

References:
    End-to-end diffusion latent optimization improves classifier guidance,
    https://arxiv.org/abs/2303.13703
    EDICT, https://arxiv.org/abs/2211.12446
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.reversible import Reversible
from adjointdeis.guidance.latent_optimisation import LatentDescent, LatentOptimisation
from adjointdeis.guidance.per_sample import Sphere
from adjointdeis.guidance.problem import Algorithm, LatentProblem, Outcome, normals
from adjointdeis.solvers.edict import EDICT
from adjointdeis.solvers.pair import Pair
from adjointdeis.solvers.reversible import ReversibleSolver


@dataclass(eq=False)
class Perturbed:
    """The constraint of DOODL: a small random push, then back to the norm of the start.

    Attributes:
        sphere: Where samples live.
        pushes: What is added to x_T after each update; none, or one for every update.
        updates: How many updates were made.
    """

    sphere: Sphere
    pushes: Sequence[Tensor]
    updates: int = 0

    def __call__(self, x_T: Tensor) -> Tensor:
        if self.pushes:
            x_T = x_T + self.pushes[self.updates]
        self.updates += 1
        return self.sphere(x_T)


@dataclass(frozen=True, eq=False)
class DOODL(Algorithm):
    """DOODL on a tied pair.

    Optimises x_T; z stays. Cost of a step with EDICT: 2N evaluations, 2N more with a graph and 2N
    products; two latents and the activations of one evaluation. The loss is asked once for each
    image of the pair and is their mean; the outcome's x_0 is the first image.

    Args:
        lr, momentum: Of SGD, without Nesterov's correction.
        steps: Gradient steps.
        clip: Largest entry of the gradient.
        perturb: Standard deviation of the push after every update; 0 for none.
        noise: Of the pushes: a seed, or a standard normal shaped like x_T for every update.
        sampling_steps: N of a grid of its own, uniform in log-SNR over the times of the
            problem's; None takes the problem's grid, which must end at t > 0, where a step can be
            undone.
        solver: Reversible sampler, in the place of the problem's.
        gradient: ``Reversible()`` by default.
        keep: As for :class:`LatentOptimisation`, by the mean loss of the pair.

    Raises:
        ValueError: A clip that is not positive, a negative perturbation, or noise of another
            length than ``steps``.

    When not to use: with few steps, where EDICT's two chains drift apart and neither is a good
    sample; in half precision. ``LatentOptimisation`` with DDIM and ``DiscreteAdjoint`` takes half
    the evaluations, for N latents.
    """

    lr: float
    steps: int = 20
    momentum: float = 0.9
    clip: float = 1e-3
    perturb: float = 1e-4
    noise: int | Sequence[Tensor] = 0
    sampling_steps: int | None = None
    solver: ReversibleSolver = field(default_factory=EDICT)
    gradient: GradientMethod | None = None
    keep: Literal["last", "best"] = "best"

    def __post_init__(self) -> None:
        if not self.clip > 0 or self.perturb < 0:
            raise ValueError(
                f"clip={self.clip}, perturb={self.perturb}: expected more than 0, and 0 or more"
            )

    def _start(self, problem: LatentProblem) -> "_PairDescent":
        def both(x_0: Tensor, rows: Tensor) -> Tensor:
            return 0.5 * (problem.losses(x_0[0], rows) + problem.losses(x_0[1], rows))

        def constraint(x_T: Tensor) -> Perturbed:
            drawn = normals(self.noise, self.steps, x_T) if self.perturb else ()
            return Perturbed(Sphere.through(x_T), [self.perturb * n for n in drawn])

        grid, times = problem.grid, problem.grid.t
        if self.sampling_steps is not None:
            ends = float(times[-1]), float(times[0])
            grid = TimeGrid.uniform_lmbda(grid.schedule, self.sampling_steps, *ends)
        descent = LatentOptimisation(
            self.steps,
            partial(torch.optim.SGD, lr=self.lr, momentum=self.momentum),
            Reversible() if self.gradient is None else self.gradient,
            keep=self.keep,
            # The derivative by the tied latent is the sum over the pair; DOODL takes the mean.
            gradient_rule=lambda g: (0.5 * g).clamp(-self.clip, self.clip),
            constraint=constraint,
        )
        tied = Pair(self.solver, tied=True)
        return _PairDescent(
            descent, replace(problem, solver=tied, grid=grid, loss=both, moves="x_T")
        )


class _PairDescent(LatentDescent):
    """Descent of a tied pair."""

    def outcome(self) -> Outcome:
        found = super().outcome()
        return replace(found, x_0=found.x_0[0])
