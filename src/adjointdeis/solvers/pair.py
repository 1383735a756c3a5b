r"""Both latents of a reversible sampler in one tensor, to keep them or to differentiate both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.solvers.base import State
from adjointdeis.solvers.coupling import Coupling, Latents
from adjointdeis.solvers.reversible import ReversibleSolver


@dataclass(frozen=True)
class Pair(ReversibleSolver):
    r"""A reversible solver whose x is the whole pair, stacked in a new first dimension.

    A single latent does not determine a state of a coupled chain: x_0 alone cannot be taken
    back to the x_T that made it, its partner is needed too. With this wrapper ``sample`` and
    ``encode`` return both latents in one differentiable tensor of shape (2, B, \*), and every
    exact gradient method works on it unchanged; a second return value would have to pass through
    all of them. To encode and reproduce a sample exactly::

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
    def calculus(self) -> Literal["ode", "sde"]:
        """That of the solver."""
        return self.solver.calculus

    @property
    def swaps(self) -> bool:
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
