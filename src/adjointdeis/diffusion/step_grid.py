"""The steps of a scheduler as a grid: counted, without noise levels."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.grid import Node, TimeGrid


class StepGrid(TimeGrid):
    """The steps of a scheduler, counted: t = 1 - i / N before step i.

    A scheduler knows its own noise levels and may visit one twice (Heun, KDPM2), so these nodes
    have none. Solvers of this package need levels: give them ``from_diffusers(...).grid(steps)``.

    Args:
        total: number N of calls of ``step`` in a whole run.
        first, last: numbers of the first and the last node, 0 <= first < last <= N.
        name: class of the scheduler, for messages.

    Raises:
        ValueError: when a noise level is asked for.
    """

    def __init__(self, total: int, first: int, last: int, name: str) -> None:
        if not 0 <= first < last <= total:
            raise ValueError(f"steps {first} to {last} of {total} are no part of a run")
        numbers = torch.arange(first, last + 1, dtype=torch.float64)
        for key, value in {
            "total": total, "first": first, "last": last, "name": name, "t": 1.0 - numbers / total,
        }.items():  # fmt: skip
            object.__setattr__(self, key, value)

    total: int
    first: int
    last: int
    name: str

    def __getitem__(self, index: int) -> Node:
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"node {index} of a grid with {len(self)} nodes")
        return StepNode(self, index)

    @property
    def sampling(self) -> bool:
        return True

    def reversed(self) -> NoReturn:
        raise ValueError(f"{self.name} samples and does not encode; its steps have no reverse")

    def at(self, indices: Sequence[int]) -> "StepGrid":
        """The part of the run between two nodes.

        Raises:
            ValueError: nodes left out; a scheduler takes every one of its steps.
        """
        indices = list(indices)
        if indices != list(range(indices[0], indices[0] + len(indices))):
            raise ValueError(
                f"{self.name} takes every one of its steps, and nodes were left out. Use a solver "
                "of this package: model = from_diffusers(unet, scheduler), then model.denoiser "
                "with solver=DDIM() or DPMSolverPP(), and grid=model.grid(steps)"
            )
        first = self.first + indices[0]
        return StepGrid(self.total, first, first + len(indices) - 1, self.name)

    def _no_levels(self) -> NoReturn:
        raise ValueError(
            f"the grid of {self.name}'s own sampler counts its steps and has no noise levels. "
            "Use solver=sampler.solver with it and gradient=DiscreteAdjoint() or Backprop(); for a "
            "solver of this package, or a method that needs levels: "
            "from_diffusers(model, scheduler).grid(steps)"
        )

    alpha = sigma = lmbda = rho = h = schedule = property(_no_levels)  # type: ignore[assignment]


class StepNode(Node):
    """A node of a :class:`StepGrid`: a time and a number, no noise level."""

    def __init__(self, grid: StepGrid, index: int) -> None:
        for key, value in {"t": grid.t[index], "index": index, "grid": grid}.items():
            object.__setattr__(self, key, value)

    @property
    def number(self) -> int:
        """How many steps of the whole run lie before this node."""
        return self.grid.first + self.index  # type: ignore[attr-defined]

    alpha = sigma = lmbda = rho = property(  # type: ignore[assignment]
        lambda self: self.grid._no_levels()
    )


class AtSteps(nn.Module):
    """A network of a scheduler's timesteps, seen as one of the steps of a :class:`StepGrid`.

    Args:
        network: ``(x, timestep, z)``.
        scheduler: after ``set_timesteps``.
        steps: of the whole run.
        asked: what the scheduler asks of the network.

    Attributes:
        timesteps, levels: the scheduler's times and, where it has them, its signal levels.
    """

    def __init__(self, network: nn.Module, scheduler: Any, steps: int, asked: str) -> None:
        super().__init__()
        self.network, self.steps, self.asked = network, steps, asked
        self.timesteps: Tensor = scheduler.timesteps
        self.levels: Any = getattr(scheduler, "alphas_cumprod", None)

    def forward(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        number = round((1.0 - float(t)) * self.steps)
        if abs((1.0 - float(t)) * self.steps - number) > 1e-6 or number == self.steps:
            raise ValueError(
                f"t = {float(t)} is none of the {self.steps} times at which the scheduler "
                "evaluates the network; use from_diffusers(model, scheduler).denoiser"
            )
        return self.network(x, self.timesteps[number], z)
