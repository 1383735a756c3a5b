r"""Guidance by AdjointDPM: x_T within a box around its start, by the continuous adjoint over rho.

.. math:: x_T \gets \Pi_{\|x - x_T^{(0)}\|_\infty \le r}
          \big(x_T - \eta\,\mathrm{Adam}(\nabla_{x_T} L)\big)

with the gradient from a black-box integrator. It is the setting of the paper's security audit (30
sampling steps, 30 updates at 0.01, box 0.1).

References:
    AdjointDPM, https://arxiv.org/abs/2307.10711
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch

from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.adjoint_dpm import AdjointDPM
from adjointdeis.guidance.latent_optimisation import LatentDescent, LatentOptimisation
from adjointdeis.guidance.per_sample import Box
from adjointdeis.guidance.problem import Algorithm, LatentProblem


@dataclass(frozen=True, eq=False)
class AdjointDPMGuidance(Algorithm):
    """Latent optimisation with AdjointDPM's gradient and choices.

    Optimises x_T; z stays. Cost of a step: N evaluations, and as many with a graph and products
    as the integrator asks for (N for "euler"). Needs an ODE sampler.

    Args:
        steps: Gradient steps.
        lr: Of Adam.
        radius: Largest change of an entry of x_T; None for any.
        gradient: ``AdjointDPM()``, Euler on recorded states, by default.
        keep: As for :class:`LatentOptimisation`.

    Raises:
        ValueError: A radius that is not positive.
        MissingPackageError: torchdiffeq is not installed.

    When not to use: where the gradient of the sampler that ran is wanted, which
    ``DiscreteAdjoint`` gives at the cost of "euler".
    """

    steps: int = 30
    lr: float = 0.01
    radius: float | None = 0.1
    gradient: GradientMethod | None = None
    keep: Literal["last", "best"] = "best"

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr={self.lr}: expected more than 0")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius={self.radius}: expected more than 0, or None")

    def _start(self, problem: LatentProblem) -> LatentDescent:
        radius = self.radius
        return LatentOptimisation(
            self.steps,
            partial(torch.optim.Adam, lr=self.lr),
            AdjointDPM() if self.gradient is None else self.gradient,
            keep=self.keep,
            constraint=None if radius is None else lambda x_T: Box(x_T.detach().clone(), radius),
        )._start(replace(problem, moves="x_T"))
