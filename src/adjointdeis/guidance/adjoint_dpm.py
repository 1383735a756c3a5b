r"""Guidance by AdjointDPM: x_T within a box around its start, by the continuous adjoint over rho.

.. math:: x_T \gets \Pi_{\|x - x_T^{(0)}\|_\infty \le r}
          \big(x_T - \eta\,\mathrm{Adam}(\nabla_{x_T} L)\big)

with the gradient from a black-box integrator. It is the setting of the paper's security audit (30
sampling steps, 30 updates at 0.01, box 0.1).

References:
    AdjointDPM, https://arxiv.org/abs/2307.10711
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients.adjoint_dpm import AdjointDPM
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.per_sample import Box
from adjointdeis.guidance.sampler import sampler_of
from adjointdeis.solvers.base import Solver


def adjoint_dpm_guidance(
    denoiser: Callable[..., Tensor],
    objective: Callable[[Tensor], Tensor],
    x_T: Tensor,
    z: Tensor,
    *,
    solver: Solver,
    grid: TimeGrid,
    radius: float | None = 0.1,
    lr: float = 0.01,
    gradient: AdjointDPM | None = None,
    optimise: Literal["both", "x_T", "z"] = "x_T",
    keep: Literal["last", "best"] = "best",
) -> LatentOptimisation:
    """Latent optimisation with AdjointDPM's gradient and choices.

    Optimises x_T (or z, or both). Cost of a step: N evaluations, and as many with a graph and
    products as the integrator asks for (N for "euler").

    Args:
        denoiser, solver, grid: As for :func:`adjointdeis.sample`; an ODE solver.
        objective: ``x_0 -> losses`` with shape (B).
        x_T, z: Latents, not modified; z as for :class:`LatentOptimisation`.
        radius: Largest change of an entry of x_T; None for any.
        lr: Of Adam.
        gradient: ``AdjointDPM()``, Euler on recorded states, by default.
        optimise, keep: As for :class:`LatentOptimisation`.

    Raises:
        ValueError: A radius that is not positive.
        MissingPackageError: torchdiffeq is not installed.

    When not to use: where the gradient of the sampler that ran is wanted, which
    ``DiscreteAdjoint`` gives at the cost of "euler".
    """
    return LatentOptimisation(
        sampler_of(denoiser, solver, grid, AdjointDPM() if gradient is None else gradient),
        objective,
        x_T,
        z,
        partial(torch.optim.Adam, lr=lr),
        keep=keep,
        optimise=optimise,
        constraint=None if radius is None else Box(x_T.detach().clone(), radius),
    )
