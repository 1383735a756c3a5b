"""Where an adjoint solve of M steps has its nodes, given a sampling grid of N steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid


@dataclass(frozen=True, eq=False)
class AdjointNodes:
    r"""M + 1 nodes spread evenly over the sampling grid.

    Node j stands at the fractional step :math:`j N / M` of the sampling grid, so the two
    grids have the same shape and coincide for M = N.

    Attributes:
        sampling, grid: the sampling grid, and the nodes, noise to data.
        cell: for each node, the sampling step in which it lies.
        fraction: for each node, its place in that step: 0 at the noisy end, 1 at the clean
            end; linear in lmbda (in rho where the step ends at sigma = 0).
        exact: whether every node is a node of the sampling grid.
    """

    sampling: TimeGrid
    grid: TimeGrid
    cell: tuple[int, ...]
    fraction: tuple[float, ...]
    exact: bool

    @classmethod
    def nearest(cls, sampling: TimeGrid, steps: int) -> "AdjointNodes":
        """Nodes rounded to the nearest node of the sampling grid; needs steps <= N."""
        if not 1 <= steps <= sampling.steps:
            raise ValueError(
                f"{steps} adjoint steps on a grid of {sampling.steps} sampling steps: states can "
                "be taken from the sampling nodes only for 1 <= steps <= N. Use "
                "states='interpolated'"
            )
        # Half-integers go up: plain integer arithmetic, the same on every platform.
        index = [(2 * j * sampling.steps + steps) // (2 * steps) for j in range(steps + 1)]
        cell = tuple(min(i, sampling.steps - 1) for i in index)
        fraction = tuple(float(i - c) for i, c in zip(index, cell, strict=True))
        return cls(sampling, sampling.at(index), cell, fraction, exact=True)

    @classmethod
    def between(cls, sampling: TimeGrid, steps: int) -> "AdjointNodes":
        """Nodes at their exact fractional place, between sampling nodes where need be."""
        if steps < 1:
            raise ValueError(f"an adjoint solve needs at least one step, got {steps}")
        total = sampling.steps
        cell = [min(j * total // steps, total - 1) for j in range(steps + 1)]
        fraction = [j * total / steps - c for j, c in enumerate(cell)]
        times = []
        for c, f in zip(cell, fraction, strict=True):
            s, t = sampling[c], sampling[c + 1]
            times.append(s.towards(t, f, "lmbda" if t.sigma > 0.0 else "rho").t)
        exact = all(f in (0.0, 1.0) for f in fraction)
        grid = (
            sampling.at([c + int(f) for c, f in zip(cell, fraction, strict=True)])
            if exact
            else TimeGrid.from_times(sampling.schedule, torch.stack(times))
        )
        return cls(sampling, grid, tuple(cell), tuple(fraction), exact)

    def index(self, node: int) -> int:
        """Number of the sampling node at or before this node."""
        return self.cell[node] + int(self.fraction[node])

    def state(self, node: int, states: Mapping[int, Tensor]) -> Tensor:
        """State at a node, linear in lmbda between two states of the sampling run."""
        cell, fraction = self.cell[node], self.fraction[node]
        if fraction in (0.0, 1.0):
            return states[cell + int(fraction)]
        return torch.lerp(states[cell], states[cell + 1], fraction)

    def shares(self, interval: int) -> list[tuple[int, float]]:
        r"""The sampling steps that an interval covers, with their shares of it.

        Shares are of the clock rho, in which the integrand of a_z has no weight; they sum
        to 1. The first entry is the cleanest step.
        """
        noisy, clean = self.grid[interval], self.grid[interval + 1]
        first, last = self.cell[interval], self.cell[interval + 1]
        if self.fraction[interval + 1] == 0.0:
            last -= 1
        if self.fraction[interval] == 1.0:
            first += 1
        covered = []
        for step in range(last, first - 1, -1):
            upper = min(noisy.rho, self.sampling[step].rho)
            lower = max(clean.rho, self.sampling[step + 1].rho)
            covered.append((step, (upper - lower) / (noisy.rho - clean.rho)))
        return covered
