r"""Samplers whose steps can be undone, their inverses, and a warning where rounding wins."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.solvers.base import Solver, State
from adjointdeis.solvers.coupling import Coupling, Latents

LARGEST_ERROR = 1e-3


class AmplificationWarning(UserWarning):
    """Inverting a sampler amplifies rounding so much that the reconstruction cannot be trusted."""


class ReversibleSolver(Solver):
    r"""A sampler of pairs of latents, each step of which can be undone exactly.

    The pair is (x, partner); ``state`` is the 1-tuple of the partner, which starts as a copy
    of x_T. Subclasses give :meth:`couplings`, and :meth:`amplification` where the inverse
    enlarges rounding errors.

    Attributes:
        swaps: whether the pair changes places after the couplings of a step, as it does in
            leapfrog methods, where the older latent becomes the newer.

    References:
        Reversible residual network (additive couplings), https://arxiv.org/abs/1707.04585
        EDICT, https://arxiv.org/abs/2211.12446
    """

    swaps: ClassVar[bool] = False

    def couplings(self, s: Node, t: Node, noise: Tensor | None) -> Sequence[Coupling]:
        """The moves of the step s -> t in their order; ``noise`` as for :meth:`step`."""
        raise NotImplementedError

    def opening(self, s: Node, t: Node) -> Sequence[Coupling]:
        """Moves that make the pair of a chain's clean end from two copies of x_0.

        Args:
            s, t: last node of the sampling grid, and the one before it.
        """
        del s, t
        return ()

    def amplification(self, grid: TimeGrid) -> float:
        """Factor by which undoing every step enlarges a difference within the pair."""
        del grid
        return 1.0

    def initial_state(self, x_T: Tensor, grid: TimeGrid) -> State:
        del grid
        return (x_T,)

    def pair(self, x: Tensor, state: State) -> Latents:
        """The two latents of what :meth:`step` takes."""
        return x, state[0]

    def unpair(self, first: Tensor, second: Tensor) -> tuple[Tensor, State]:
        """What :meth:`step` returns, of two latents."""
        return first, (second,)

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
        pair = self.pair(x, state)
        for coupling in self.couplings(s, t, noise):
            pair = coupling.apply(denoiser, pair, z)
        return self.unpair(*self.turned(pair))

    def inverse_step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        z: Tensor | None,
        s: Node,
        t: Node,
        state: State,
        noise: Tensor | None,
    ) -> tuple[Tensor, State]:
        """Undo :meth:`step`: from x and state at t to those at s.

        Everything but x and state is what the step was given. Costs the step's evaluations.

        Args:
            denoiser, z, s, t, noise: As :meth:`step` had them.
            x: Latents (B, ...) at t.
            state: The solver's, after the step.
        """
        pair = self.turned(self.pair(x, state))
        for coupling in reversed(self.couplings(s, t, noise)):
            pair = coupling.inverse().apply(denoiser, pair, z)
        return self.unpair(*pair)

    def turned(self, pair: Latents) -> Latents:
        """The pair with its places changed where the solver does so after a step."""
        return (pair[1], pair[0]) if self.swaps else pair

    def inverted(self, grid: TimeGrid, tied: bool = True) -> "ReversibleSolver":
        """The solver on ``grid.reversed()`` whose steps undo those of this one on ``grid``.

        Args:
            grid: sampling grid.
            tied: begin with two copies of one latent; otherwise with a pair that a chain made.
        """
        return Inverted(self, grid, tied)


@dataclass(frozen=True)
class Inverted(ReversibleSolver):
    """A reversible solver run backwards; itself a reversible solver.

    Args:
        solver: whose steps are undone.
        grid: the sampling grid they were taken on; this solver runs on its reversal.
        tied: whether the first step begins with two copies of x_0, see
            :meth:`ReversibleSolver.opening`.

    References:
        EDICT, https://arxiv.org/abs/2211.12446
    """

    solver: ReversibleSolver
    grid: TimeGrid
    tied: bool = True

    @property
    def calculus(self) -> Literal["ode", "sde"]:
        """That of the solver."""
        return self.solver.calculus

    @property
    def swaps(self) -> bool:
        """That of the solver."""
        return self.solver.swaps

    def couplings(self, s: Node, t: Node, noise: Tensor | None) -> Sequence[Coupling]:
        steps = self.grid.steps
        noisy, clean = self.grid[steps - t.index], self.grid[steps - s.index]
        moves = [c.inverse() for c in reversed(self.solver.couplings(noisy, clean, noise))]
        if self.swaps:
            # The solver swaps before these moves; here the swap comes after them.
            moves = [replace(move, updated=1 - move.updated) for move in moves]
        if self.tied and s.previous is None:
            moves = [*self.solver.opening(clean, noisy), *moves]
        return moves

    def amplification(self, grid: TimeGrid) -> float:
        """1: undoing an inverse is the forward direction, which is the damped one."""
        del grid
        return 1.0

    def inverted(self, grid: TimeGrid, tied: bool = True) -> ReversibleSolver:
        """The solver itself."""
        del grid, tied
        return self.solver


def warn_of_amplification(solver: ReversibleSolver, grid: TimeGrid, dtype: torch.dtype) -> None:
    """Warn when predicted amplification times the rounding of a dtype passes 1e-3."""
    factor, rounding = solver.amplification(grid), torch.finfo(dtype).eps
    if factor * rounding > LARGEST_ERROR:
        warnings.warn(
            f"undoing {grid.steps} steps of {solver} enlarges rounding errors {factor:.3g} times; "
            f"with latents of {dtype} (eps = {rounding:.2g}) the states it reconstructs are off "
            f"by up to {factor * rounding:.2g}, and gradients taken there with them. Use "
            "gradient=DiscreteAdjoint(), which stores the states, latents of float64, fewer "
            "steps, or a coefficient nearer to 1",
            AmplificationWarning,
            stacklevel=3,
        )
