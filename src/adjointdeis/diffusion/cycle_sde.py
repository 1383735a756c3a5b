r"""Cycle-SDE: the noises under which the reverse SDE reproduces a given sample exactly."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from adjointdeis.diffusion.conditions import Conditions
from adjointdeis.diffusion.denoiser import Denoiser, is_wider
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.noise import RecordedNoise
from adjointdeis.diffusion.transition import path_scale


@runtime_checkable
class AdditiveNoise(Protocol):
    """A sampler whose step is a mean plus a number times the step's normal."""

    def initial_state(self, x_T: Tensor, grid: TimeGrid) -> Any:
        """State before the first step."""
        ...

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        z: Any,
        s: Node,
        t: Node,
        state: Any,
        noise: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """The state at t, and that of the sampler, which must not depend on the noise."""
        ...

    def noise_weight(self, s: Node, t: Node) -> float:
        """The number."""
        ...


@dataclass(frozen=True, eq=False)
class CycleSDE:
    r"""An encoding of x_0 for a sampler of the reverse SDE: x_T and one noise per step.

    The states are one forward path, :math:`y_s = y_t + \sqrt{\rho_s^2 - \rho_t^2}\, n` from
    clean to noisy, that is the chain :math:`q(x_s | x_t)` of a single Wiener process; states
    drawn independently from :math:`q(x_s | x_0)` would give noises that are not standard
    normal. The noises then solve the solver's step for its noise.  Paper: eq. 3.7.

    Attributes:
        x_T: state at the first node of the sampling grid.
        noise: N recorded noises; ``sample(..., x_T, solver=solver, noise=noise)`` ends at
            ``path[-1]`` up to rounding.
        path: N + 1 states, in the order of the grid.
        nfe: network evaluations spent, N.

    References:
        CycleDiffusion, https://arxiv.org/abs/2210.05559
    """

    x_T: Tensor
    noise: RecordedNoise
    path: tuple[Tensor, ...]
    nfe: int

    @classmethod
    def encode(
        cls,
        denoiser: Denoiser,
        x_0: Tensor,
        z: Any,
        grid: TimeGrid,
        seed: int,
        *,
        solver: AdditiveNoise,
    ) -> "CycleSDE":
        """Encode an image along a seeded forward path.

        Args:
            denoiser: noise prediction.
            x_0: the state at the last node of ``grid``, shape (B, *). Where that node has
                sigma > 0, the image itself is taken as that state.
            z: condition, a tensor or a pytree; ``PerStep([...])`` has one per step.
            grid: sampling grid, noise to data.
            seed: determines the forward path; the draws are made on the CPU in float64.
            solver: sampler that is to reproduce x_0, ``SDEDPMSolver`` or ``SDEDPMSolverPP``.

        Raises:
            TypeError: the solver's noise is not additive.
            ValueError: an encoding grid, or a step to which the solver adds no noise.
        """
        _check_grid(grid)
        generator = torch.Generator().manual_seed(seed)
        path = [x_0]
        for index in range(grid.steps - 1, -1, -1):
            s, t = grid[index], grid[index + 1]
            draw = torch.randn(x_0.shape, generator=generator, dtype=torch.float64).to(x_0)
            path.append(s.alpha / t.alpha * path[-1] + s.alpha * path_scale(s, t) * draw)
        return cls.from_path(denoiser, tuple(reversed(path)), z, grid, solver=solver)

    @classmethod
    def from_path(
        cls,
        denoiser: Denoiser,
        path: tuple[Tensor, ...],
        z: Any,
        grid: TimeGrid,
        *,
        solver: AdditiveNoise,
    ) -> "CycleSDE":
        """Solve each step of a given path of N + 1 states, noisy to clean, for its noise.

        Args:
            denoiser: Noise prediction.
            path: N + 1 states (B, ...), noisy to clean.
            z: Condition of every step.
            grid: Of N steps.
            solver: Whose steps the path is made of.
        """
        _check_grid(grid)
        if len(path) != len(grid):
            raise ValueError(f"{len(path)} states for a grid of {len(grid)} nodes")
        if not isinstance(solver, AdditiveNoise):
            raise TypeError(
                f"Cycle-SDE solves a step for its noise, which {type(solver).__name__} does not "
                "add with a known weight; use SDEDPMSolver or SDEDPMSolverPP"
            )

        def checked(x: Tensor, t: Tensor, z: Any) -> Tensor:
            eps = denoiser(x, t, z)
            if is_wider(eps, x):
                raise ValueError("Cycle-SDE takes as many channels as x has: network(...)[:, :C]")
            return eps

        conditions = Conditions.of(z, grid.steps)
        noises, state = [], solver.initial_state(path[0], grid)
        for index in range(grid.steps):
            s, t = grid[index], grid[index + 1]
            condition = conditions.of_step(index)
            x_s, x_t = path[index], path[index + 1]
            weight = solver.noise_weight(s, t)
            if weight == 0.0:
                raise ValueError(
                    f"{solver} adds no noise to step {index} of {grid.steps}, which can then reach "
                    "one state only: end the grid at sigma > 0, with eta > 0, or use SDEDPMSolver"
                )
            mean, state = solver.step(checked, x_s, condition, s, t, state, torch.zeros_like(x_s))
            noises.append((x_t - mean) / weight)
        nfe = grid.steps * getattr(denoiser, "evaluations", 1)
        return cls(path[0], RecordedNoise(tuple(noises)), path, nfe)


def _check_grid(grid: TimeGrid) -> None:
    if not grid.sampling or float(grid.alpha.min()) <= 0.0:
        raise ValueError("Cycle-SDE needs a sampling grid (noise to data) with alpha > 0")
