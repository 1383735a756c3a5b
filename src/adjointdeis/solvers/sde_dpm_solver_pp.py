r"""SDE-DPM-Solver++: the reverse SDE in data prediction, single step and 2M."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.transition import log_snr_width
from adjointdeis.solvers.base import State
from adjointdeis.solvers.dpm_solver import DPMSolverPP


@dataclass(frozen=True)
class SDEDPMSolverPP(DPMSolverPP):
    r"""SDE-DPM-Solver++ of order 1 or 2M.

    With :math:`w = \gamma^2 = e^{2\lambda}` as its clock the reverse SDE in data prediction is
    :math:`d(\alpha x/\sigma^2) = \hat x_0\, dw + dM`, M a Wiener process on w, so that only
    :math:`\hat x_0` is approximated:

    .. math:: x_t = \frac{\sigma_t}{\sigma_s} e^{-\eta h} x_s
              + \alpha_t \big(1 - e^{-(1 + \eta) h}\big) D
              + \sigma_t \sqrt{1 - e^{-2 \eta h}}\; n, \qquad \eta = 1,

    D being :math:`\hat x_0(x_s)` for order 1 and the extrapolation of ``DPMSolverPP`` for 2M. Other
    eta solve :math:`d(x/\alpha) = (1 + \eta)\, \epsilon\, d\rho + \sqrt{\eta}\, dB`, which has
    the same marginals; eta = 0 is ``DPMSolverPP``.

    The noise form (``SDEDPMSolver``) overshoots on wide steps; here the weights of order 1 lie
    between 0 and 1. A step of order 1, whatever its width, has the conditional mean of the
    reverse SDE, of which :math:`E[x_0 | x_t]` is a martingale, and lacks the variance of x_0 given
    x_s. The law is exact for data at a point, and for Gaussian data the mean and dx_0/dx_T are,
    where the noise form's dx_0/dx_T is off by about its own size up to N = 40. The variance
    converges with order 1 and, for 2M, 2. Strong order 1 on a Wiener path.

    Args:
        order: 1, or 2 (also written "2M").
        lower_order_final: take the last step with order 1 when the grid has fewer than 15 steps.
        eta: share of the reverse SDE's noise, at least 0.

    Raises:
        ValueError: another order; a negative eta; a step without noise.

    When not to use: order 1 for the spread of samples, which it makes too narrow; 2M on grids
    uniform in time, which it makes too wide (use log-SNR); to encode an image (``CycleSDE``) on
    a grid that ends at sigma = 0, where the last step has no noise; to reproduce the paper.

    References:
        DPM-Solver++, section 5, https://arxiv.org/abs/2211.01095
        SA-Solver (the family eta), https://arxiv.org/abs/2309.05019
    """

    eta: float = 1.0
    calculus: ClassVar[Literal["ode", "sde"]] = "sde"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.eta < math.inf:
            raise ValueError(f"{type(self).__name__}.eta must be at least 0, got {self.eta!r}")

    @property
    def eps_factor(self) -> float:
        """Weight of the eps term of the SDE that is solved."""
        return 1.0 + self.eta

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
            raise ValueError("SDEDPMSolverPP.step needs the noise of this step")
        estimate, state = self.estimate(denoiser, x, z, s, t, state)
        decay = math.exp(-self._noisy_width(s, t))
        weight = -t.alpha * math.expm1(-self.eps_factor * log_snr_width(s, t))
        x = t.sigma / s.sigma * decay * x + weight * estimate
        return x + self.noise_weight(s, t) * noise, state

    def noise_weight(self, s: Node, t: Node) -> float:
        """Factor of the standard normal of a sampling step."""
        return t.sigma * math.sqrt(-math.expm1(-2.0 * self._noisy_width(s, t)))

    def _noisy_width(self, s: Node, t: Node) -> float:
        # eta = 0 leaves no noise even where h is infinite.
        return self.eta * log_snr_width(s, t) if self.eta else 0.0
