r"""BDIA: bidirectional integration approximation, a reversible leapfrog over DDIM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import eps_weight, signal_ratio
from adjointdeis.solvers.coupling import Coupling, weighted_eps
from adjointdeis.solvers.reversible import ReversibleSolver


@dataclass(frozen=True)
class BDIA(ReversibleSolver):
    r"""BDIA-DDIM, a two-step method with one evaluation per step.

    :math:`x_{n+1} = \gamma x_{n-1} + D_{n \to n+1}(x_n) - \gamma D_{n \to n-1}(x_n)` with the
    DDIM maps D, both of which use :math:`\epsilon(x_n, t_n)`; the first step is DDIM. The
    partner in the state is :math:`x_{n-1}`. Second order for gamma = 1, first below.

    The inverse divides by gamma at every step: :math:`\gamma^{-N}`.

    Args:
        gamma: weight of the backward integration, 0 < gamma <= 1.

    Raises:
        ValueError: gamma outside (0, 1].

    When not to use: with gamma < 1 and more than a few steps, since the inverse blows up (2^N
    for 0.5); with gamma = 1 on coarse grids or rough networks, since a leapfrog does not damp
    the oscillation between even and odd steps, in samples and in gradients. ``OBELM`` takes
    unequal steps into account.

    References:
        Exact diffusion inversion via bidirectional integration approximation,
        https://arxiv.org/abs/2307.10829
    """

    gamma: float = 1.0
    swaps: ClassVar[bool] = True
    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    multistep: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"BDIA needs 0 < gamma <= 1, got {self.gamma}")

    @property
    def order(self) -> int:
        """2 for gamma = 1, else 1."""
        return 2 if self.gamma == 1.0 else 1

    def couplings(self, s: Node, t: Node, noise: Tensor | None) -> Sequence[Coupling]:
        del noise
        if s.previous is None:
            return (first_step(s, t),)
        before, gamma = s.previous, self.gamma
        mix = signal_ratio(s, t) - gamma * signal_ratio(s, before)
        weight = eps_weight(s, t) - gamma * eps_weight(s, before)
        return (Coupling(1, gamma, mix, weighted_eps(weight, s)),)

    def opening(self, s: Node, t: Node) -> Sequence[Coupling]:
        return (first_step(s, t),)

    def amplification(self, grid: TimeGrid) -> float:
        r""":math:`\gamma^{-N}`."""
        return self.gamma ** (-float(grid.steps))


def first_step(s: Node, t: Node) -> Coupling:
    """DDIM from x_T, for a two-step method whose earlier latent is a copy of x_T.

    The copy keeps its factor 1, so that the first step is as invertible as the others.
    """
    return Coupling(1, 1.0, signal_ratio(s, t) - 1.0, weighted_eps(eps_weight(s, t), s))
