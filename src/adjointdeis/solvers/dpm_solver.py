r"""DPM-Solver++ (data prediction), single step and 2M."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.transition import log_snr_width, x0_weight
from adjointdeis.solvers.base import Solver, State, data_prediction


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    r"""DPM-Solver++ of order 1 (equivalent to DDIM) or 2M.

    :math:`x_t = \frac{\sigma_t}{\sigma_s} x_s + \alpha_t (1 - e^{-h}) D`, where order 1 takes
    :math:`D = \hat x_0(x_s)` and 2M extrapolates with the previous step,
    :math:`D = \hat x_0^i + \frac{1}{2 r} (\hat x_0^i - \hat x_0^{i-1})`,
    :math:`r = h_{i-1} / h_i`. One network evaluation per step. The first step of 2M is of
    order 1, and so is a step to sigma = 0, where h is infinite and extrapolation has no limit.

    Args:
        order: 1, or 2 (also written "2M").
        lower_order_final: take the last step with order 1 when the grid has fewer than 15
            steps, as the reference implementation does.

    Raises:
        ValueError: another order; a grid whose first node has sigma = 0.

    When not to use: 2M does not converge monotonically on very coarse grids (N < 8).

    References:
        DPM-Solver++, algorithm 2, https://arxiv.org/abs/2211.01095
    """

    order: Literal[1, 2, "2M"] = 2
    lower_order_final: bool = False
    calculus: ClassVar[Literal["ode", "sde"]] = "ode"

    def __post_init__(self) -> None:
        orders: dict[int | str, int] = {1: 1, 2: 2, "2M": 2}
        if self.order not in orders:
            name = type(self).__name__
            raise ValueError(f"{name} has orders 1 and 2 (or '2M'), got {self.order!r}")
        object.__setattr__(self, "order", orders[self.order])

    @property
    def multistep(self) -> bool:
        """Whether the previous data prediction is carried."""
        return self.order == 2

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
        estimate, state = self.estimate(denoiser, x, z, s, t, state)
        return t.sigma / s.sigma * x + x0_weight(s, t) * estimate, state

    def estimate(
        self,
        denoiser: Denoiser,
        x: Tensor,
        z: Tensor | None,
        s: Node,
        t: Node,
        state: State,
    ) -> tuple[Tensor, State]:
        """D of a step, and what the next step extrapolates from.

        Raises:
            ValueError: sigma = 0 at s.
        """
        if s.sigma == 0.0:
            name = type(self).__name__
            raise ValueError(f"{name} cannot start a step where sigma = 0; use DDIM to encode")
        x0 = data_prediction(denoiser, x, z, s)
        if self.order == 1:
            return x0, ()
        if not state or self._lowered(s, t):
            return x0, (x0,)
        assert s.previous is not None  # a carried prediction implies an earlier node
        r = log_snr_width(s.previous, s) / log_snr_width(s, t)
        return x0 + (x0 - state[0]) / (2.0 * r), (x0,)

    def _lowered(self, s: Node, t: Node) -> bool:
        if not math.isfinite(t.lmbda):
            return True
        steps = t.grid.steps
        return self.lower_order_final and steps < 15 and t.index == steps
