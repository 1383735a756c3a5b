r"""What every algebraically reversible sampler is made of: couplings of a pair of latents.

A coupling changes one latent of the pair by a function of the other,
:math:`u \leftarrow \mathrm{scale}\,u + \mathrm{mix}\,v + F(v)`, and is undone by
:math:`u \leftarrow (u - \mathrm{mix}\,v - F(v)) / \mathrm{scale}`: the network is evaluated at
the same v in both directions. EDICT, BDIA, O-BELM and Rex are sequences of such couplings and
differ only in the numbers and in F, so a step, its inverse, and its gradient (one evaluation of
F with a graph, for the value and for the product) are written once.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.solvers.base import Solver, State

Increment = Callable[[Denoiser, Tensor, Tensor | None], Tensor]
Latents = tuple[Tensor, Tensor]

LARGEST_ERROR = 1e-3


class AmplificationWarning(UserWarning):
    """Inverting a sampler amplifies rounding so much that the reconstruction cannot be trusted."""


class GridEndError(ValueError):
    """A step that cannot be inverted because of an exact end of the grid."""


@dataclass(frozen=True)
class Coupling:
    r"""One invertible move, :math:`u \leftarrow \mathrm{scale}\,u + \mathrm{mix}\,v + F(v)`.

    Args:
        updated: which of the pair is u, 0 or 1; v is the other.
        scale: factor of u, not 0.
        mix: factor of v.
        increment: F, called as ``increment(denoiser, v, z)``; None for a move without network.

    Raises:
        GridEndError: scale is 0 or not finite.
    """

    updated: Literal[0, 1]
    scale: float
    mix: float = 0.0
    increment: Increment | None = None

    def __post_init__(self) -> None:
        if self.scale == 0.0 or not math.isfinite(self.scale):
            raise GridEndError(
                f"a coupling with factor {self.scale:g} cannot be inverted: it occurs where alpha "
                "or sigma is exactly 0. End the grid at a t_min > 0 and start it at the "
                "schedule's t_max"
            )

    def split(self, pair: Latents) -> tuple[Tensor, Tensor]:
        """u and v of a pair."""
        return pair[self.updated], pair[1 - self.updated]

    def joined(self, u: Tensor, v: Tensor) -> Latents:
        """The pair of a u and a v."""
        return (u, v) if self.updated == 0 else (v, u)

    def moved(self, u: Tensor, v: Tensor, change: Tensor | None) -> Tensor:
        """u after the move, ``change`` being F(v)."""
        u = self.scale * u
        if self.mix != 0.0:
            u = u + self.mix * v
        return u if change is None else u + change

    def restored(self, u: Tensor, v: Tensor, change: Tensor | None) -> Tensor:
        """u before the move, ``change`` being F(v)."""
        if change is not None:
            u = u - change
        if self.mix != 0.0:
            u = u - self.mix * v
        return u / self.scale

    def apply(self, denoiser: Denoiser, pair: Latents, z: Tensor | None) -> Latents:
        """The pair after the move."""
        u, v = self.split(pair)
        change = None if self.increment is None else self.increment(denoiser, v, z)
        return self.joined(self.moved(u, v, change), v)

    def inverse(self) -> "Coupling":
        """The move that undoes this one; a coupling as well."""
        forward, factor = self.increment, -1.0 / self.scale

        def backward(denoiser: Denoiser, v: Tensor, z: Tensor | None) -> Tensor:
            assert forward is not None
            return factor * forward(denoiser, v, z)

        return Coupling(
            self.updated,
            1.0 / self.scale,
            factor * self.mix,
            None if forward is None else backward,
        )


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
    def calculus(self) -> Literal["ode", "sde"]:  # pyright: ignore
        """That of the solver."""
        return self.solver.calculus

    @property
    def swaps(self) -> bool:  # pyright: ignore
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


@dataclass(frozen=True)
class Pair(ReversibleSolver):
    r"""A reversible solver whose x is the whole pair, stacked in a new first dimension.

    A single latent does not determine a state of a coupled chain: x_0 alone cannot be taken
    back to the x_T that made it, its partner is needed too. With this wrapper ``sample`` and
    ``encode`` return both latents in one differentiable tensor of shape (2, B, \*), and every
    exact gradient method works on it unchanged. To encode and reproduce a sample exactly::

        code = encode(denoiser, x_0, z, solver=Pair(EDICT(), tied=True), grid=grid.reversed()).x_T
        same = sample(denoiser, code, z, solver=Pair(EDICT()), grid=grid).x_0[0]

    To decode both latents from one x_T, as DOODL does, and differentiate a loss of both::

        both = sample(denoiser, x_T, z, solver=Pair(EDICT(), tied=True), grid=grid).x_0

    Args:
        solver: sampler of pairs.
        tied: x_T (x_0 when encoding) is one latent of shape (B, \*), used for both; otherwise
            it is a pair of shape (2, B, \*), as an encoding or a run of this class returns.

    When not to use: for plain sampling; the second latent is only an image of the error.

    References:
        End-to-end diffusion latent optimization improves classifier guidance,
        https://arxiv.org/abs/2303.13703
    """

    solver: ReversibleSolver
    tied: bool = False

    @property
    def calculus(self) -> Literal["ode", "sde"]:  # pyright: ignore
        """That of the solver."""
        return self.solver.calculus

    @property
    def swaps(self) -> bool:  # pyright: ignore
        """That of the solver."""
        return self.solver.swaps

    def initial_state(self, x_T: Tensor, grid: TimeGrid) -> State:
        return self.solver.initial_state(x_T, grid) if self.tied else ()

    def pair(self, x: Tensor, state: State) -> Latents:
        if state:
            return x, state[0]
        if x.shape[0] != 2:
            raise ValueError(
                f"Pair takes two latents stacked in a first dimension of 2, got {tuple(x.shape)}; "
                "use Pair(solver, tied=True) to begin with one latent"
            )
        return x[0], x[1]

    def unpair(self, first: Tensor, second: Tensor) -> tuple[Tensor, State]:
        return torch.stack((first, second)), ()

    def couplings(self, s: Node, t: Node, noise: Tensor | None) -> Sequence[Coupling]:
        return self.solver.couplings(s, t, noise)

    def opening(self, s: Node, t: Node) -> Sequence[Coupling]:
        return self.solver.opening(s, t)

    def amplification(self, grid: TimeGrid) -> float:
        return self.solver.amplification(grid)

    def inverted(self, grid: TimeGrid, tied: bool | None = None) -> ReversibleSolver:
        """As for any reversible solver; ``tied`` is this object's own by default."""
        tied = self.tied if tied is None else tied
        return Pair(self.solver.inverted(grid, tied), tied)


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
