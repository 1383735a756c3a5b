r"""DDIM: the first-order exponential integrator of the probability-flow ODE."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.prediction import eps_from_x0, x0_from_eps
from adjointdeis.diffusion.transition import eps_weight, signal_ratio
from adjointdeis.solvers.base import Solver, State, data_prediction


@dataclass(frozen=True)
class DDIM(Solver):
    r"""Deterministic DDIM, equivalent to DPM-Solver-1 and to Euler in :math:`(y, \rho)`.

    :math:`x_t = \frac{\alpha_t}{\alpha_s} x_s - \sigma_t (e^h - 1)\, \epsilon(x_s, z, s)`.
    First order. The same step on a reversed grid encodes data to noise. From pure noise, alpha = 0,
    it starts with networks that predict v, a flow or the data.

    Args:
        clip_x0: clamp the data prediction to [-1, 1] and re-derive eps from it, as DiffAE
            does. The gradient is exactly zero where it clamps; leave it off for guidance.

    When not to use: with fewer than about 15 steps DPMSolverPP is more accurate at equal cost.

    References:
        Denoising diffusion implicit models, https://arxiv.org/abs/2010.02502
        DPM-Solver, https://arxiv.org/abs/2206.00927
    """

    clip_x0: bool = False
    order: ClassVar[int] = 1
    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    multistep: ClassVar[bool] = False

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        z: Tensor | None,
        s: Node,
        t: Node,
        state: State,
        noise: Tensor | None,
    ) -> tuple[Tensor, State]:
        del noise
        if s.alpha == 0.0:
            # The limit of the step: x is noise, and eps = x / sigma whatever the network says.
            x0 = data_prediction(denoiser, x, z, s)
            x0 = x0.clamp(-1.0, 1.0) if self.clip_x0 else x0
            return t.alpha * x0 + t.sigma / s.sigma * x, state
        ratio, weight = signal_ratio(s, t), eps_weight(s, t)
        eps = denoiser(x, s.t, z)
        if not self.clip_x0:
            return ratio * x + weight * eps, state
        x0 = x0_from_eps(x, eps, s.alpha, s.sigma).clamp(-1.0, 1.0)
        if s.sigma > 0.0:
            eps = eps_from_x0(x, x0, s.alpha, s.sigma)
        return t.alpha * x0 + t.sigma * eps, state
