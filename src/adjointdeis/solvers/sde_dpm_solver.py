r"""SDE-DPM-Solver: the first-order exponential integrator of the reverse SDE."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.transition import eps_weight, noise_weight, signal_ratio
from adjointdeis.solvers.base import Solver, State


@dataclass(frozen=True)
class SDEDPMSolver(Solver):
    r"""SDE-DPM-Solver-1 in noise prediction.

    :math:`x_t = \frac{\alpha_t}{\alpha_s} x_s - 2 \sigma_t (e^h - 1)\, \epsilon(x_s, z, s)
    + \sigma_t \sqrt{e^{2h} - 1}\; n`.  Paper: eq. 3.6.

    The noise is additive, so Ito and Stratonovich solutions coincide and the scheme has
    strong order 1. Only sampling grids (h > 0).

    When not to use: with few steps, or for a gradient of x_T. Wide steps overshoot, the first ones
    most; ``SDEDPMSolverPP`` cannot.

    References:
        DPM-Solver++, section 5, https://arxiv.org/abs/2211.01095
    """

    order: ClassVar[int] = 1
    calculus: ClassVar[Literal["ode", "sde"]] = "sde"
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
        if noise is None:
            raise ValueError("SDEDPMSolver.step needs the noise of this step")
        ratio, weight = signal_ratio(s, t), 2.0 * eps_weight(s, t)
        x = ratio * x + weight * denoiser(x, s.t, z) + self.noise_weight(s, t) * noise
        return x, state

    def noise_weight(self, s: Node, t: Node) -> float:
        """Factor of the standard normal of a sampling step."""
        return noise_weight(s, t)
