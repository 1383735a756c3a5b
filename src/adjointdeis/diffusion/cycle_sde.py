r"""Cycle-SDE: the noises under which the reverse SDE reproduces a given sample exactly."""

from dataclasses import dataclass

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import RecordedNoise
from adjointdeis.diffusion.transition import eps_weight, noise_weight, path_scale, signal_ratio


@dataclass(frozen=True, eq=False)
class CycleSDE:
    r"""An encoding of x_0 for the first-order SDE solver: x_T and one noise per step.

    The states are one forward path, :math:`y_s = y_t + \sqrt{\rho_s^2 - \rho_t^2}\, n` from
    clean to noisy, that is the chain :math:`q(x_s | x_t)` of a single Wiener process; states
    drawn independently from :math:`q(x_s | x_0)` would give noises that are not standard
    normal. The noises then solve the solver's step for its noise.  Paper: eq. 3.7.

    Attributes:
        x_T: state at the first node of the sampling grid.
        noise: N recorded noises; ``sample(..., x_T, solver=SDEDPMSolver(), noise=noise)``
            ends at ``path[-1]`` up to rounding.
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
        cls, denoiser: Denoiser, x_0: Tensor, z: Tensor | None, grid: TimeGrid, seed: int
    ) -> "CycleSDE":
        """Encode an image along a seeded forward path.

        Args:
            denoiser: noise prediction.
            x_0: the state at the last node of ``grid``, shape (B, *). Where that node has
                sigma > 0, the image itself is taken as that state.
            z: condition, a tensor, or one per step.
            grid: sampling grid, noise to data.
            seed: determines the forward path; the draws are made on the CPU in float64.
        """
        _check_grid(grid)
        generator = torch.Generator().manual_seed(seed)
        path = [x_0]
        for index in range(grid.steps - 1, -1, -1):
            s, t = grid[index], grid[index + 1]
            draw = torch.randn(x_0.shape, generator=generator, dtype=torch.float64).to(x_0)
            path.append(s.alpha / t.alpha * path[-1] + s.alpha * path_scale(s, t) * draw)
        return cls.from_path(denoiser, tuple(reversed(path)), z, grid)

    @classmethod
    def from_path(
        cls, denoiser: Denoiser, path: tuple[Tensor, ...], z: Tensor | None, grid: TimeGrid
    ) -> "CycleSDE":
        """Solve each step of a given path of N + 1 states, noisy to clean, for its noise."""
        _check_grid(grid)
        if len(path) != len(grid):
            raise ValueError(f"{len(path)} states for a grid of {len(grid)} nodes")
        noises = []
        for index in range(grid.steps):
            s, t = grid[index], grid[index + 1]
            condition = z[index] if isinstance(z, (list, tuple)) else z
            x_s, x_t = path[index], path[index + 1]
            eps = denoiser(x_s, s.t, condition)
            drift = signal_ratio(s, t) * x_s + 2.0 * eps_weight(s, t) * eps
            noises.append((x_t - drift) / noise_weight(s, t))
        nfe = grid.steps * getattr(denoiser, "evaluations", 1)
        return cls(path[0], RecordedNoise(tuple(noises)), path, nfe)


def _check_grid(grid: TimeGrid) -> None:
    if not grid.sampling or float(grid.alpha.min()) <= 0.0:
        raise ValueError("Cycle-SDE needs a sampling grid (noise to data) with alpha > 0")
