r"""O-BELM: the bidirectional explicit linear two-step method of least truncation error."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import rho_gap, signal_ratio
from adjointdeis.solvers.bdia import first_step
from adjointdeis.solvers.coupling import Coupling, weighted_eps
from adjointdeis.solvers.reversible import ReversibleSolver


@dataclass(frozen=True)
class OBELM(ReversibleSolver):
    r"""Optimal bidirectional explicit linear multistep sampler.

    In :math:`y = x/\alpha` over rho, with the widths :math:`h_n = \rho_n - \rho_{n+1}` and
    :math:`r = h_n / h_{n-1}`,
    :math:`y_{n+1} = r^2 y_{n-1} + (1 - r^2) y_n - (1 + r) h_n\, \epsilon(x_n, t_n)`:
    second order on any grid, one evaluation per step; the first step is DDIM. The partner in
    the state is :math:`x_{n-1}`.

    The inverse has no factor of its own, but where the data vary more than the noise it divides
    a difference within the pair by :math:`r^2`: in all by the square of the widest :math:`h_n`
    below rho = 1 over the last. That is near 1 for times spread evenly and about
    :math:`1/\rho_{\min}^2` for even log-SNR, where float32 needs ``t_min`` of 1e-3 or more.

    When not to use: on very coarse grids or with rough networks (a two-step method whose
    inverse is explicit cannot damp its parasitic root where steps are equal).

    References:
        BELM, https://arxiv.org/abs/2410.07273
    """

    swaps: ClassVar[bool] = True
    order: ClassVar[int] = 2
    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    multistep: ClassVar[bool] = True

    def couplings(self, s: Node, t: Node, noise: Tensor | None) -> Sequence[Coupling]:
        del noise
        if s.previous is None:
            return (first_step(s, t),)
        before, width = s.previous, rho_gap(s, t)
        r = width / rho_gap(before, s)
        return (
            Coupling(
                1,
                r**2 * signal_ratio(before, t),
                (1.0 - r**2) * signal_ratio(s, t),
                weighted_eps(-(1.0 + r) * width * t.alpha, s),
            ),
        )

    def opening(self, s: Node, t: Node) -> Sequence[Coupling]:
        return (first_step(s, t),)

    def amplification(self, grid: TimeGrid) -> float:
        """Square of the widest step in rho below rho = 1 over the last, at least 1."""
        widths = [rho_gap(s, t) for s, t in pairwise(grid) if s.rho < 1.0]
        return max(1.0, (max(widths) / widths[-1]) ** 2) if widths else 1.0
