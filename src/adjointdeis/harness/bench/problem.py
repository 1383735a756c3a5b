"""What a task of the bench gives to a method, and what a method gives back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients.cost import Cost
from adjointdeis.solvers.base import Solver

Kind = Literal["latents", "weights", "image"]
SHARES = ("match", "robust", "smiles")
"""Measures whose values are 0 or 1: their mean is a share and gets a Wilson interval."""


class BenchError(ValueError):
    """A row that cannot be run: a method and a task that do not belong together."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one method did on one task with one seed.

    Attributes:
        quality: values per sample, by the name of the measure.
        cost: network evaluations, products, latents held.
        notes: anything that a reader must know, such as a sample that failed.
    """

    quality: dict[str, Tensor]
    cost: Cost
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Latents:
    """A sampling problem: move x_T, z or the trajectory until the sample has a small loss.

    Attributes:
        denoiser: noise prediction, frozen.
        solver, grid: ODE sampler.
        x_T: initial noise, shape (B, *).
        z: condition, shape (B, D); for a task without one, zeros that the network ignores.
        moving: what latent optimisation moves.
        loss: ``(x_0, rows) -> losses`` of the samples of these numbers.
        quality: ``x_0 -> measures`` against the truth, which no method sees.
        reference: samples of a perfect method, where the task has a closed form.
    """

    denoiser: Callable[..., Tensor]
    solver: Solver
    grid: TimeGrid
    x_T: Tensor
    z: Tensor
    moving: Literal["both", "x_T", "z"]
    loss: Callable[[Tensor, Tensor], Tensor]
    quality: Callable[[Tensor], dict[str, Tensor]]
    reference: Callable[[], Tensor] | None = None

    @property
    def rows(self) -> Tensor:
        """Numbers of all samples."""
        return torch.arange(len(self.x_T))

    def objective(self, x_0: Tensor) -> Tensor:
        """Losses of the whole batch."""
        return self.loss(x_0, self.rows)


class Problem(Protocol):
    """A task: the same seed gives the same instance."""

    kind: Kind

    def instance(self, seed: int) -> Any:
        """What a method of this kind works on."""
        ...


class Method(Protocol):
    """An algorithm with its settings."""

    kind: Kind

    def run(self, instance: Any) -> Outcome:
        """Solve an instance of the same kind."""
        ...


def check_kinds(name: str, problem: Problem, method: Method) -> None:
    """Raise if a method does not solve this kind of task.

    Raises:
        BenchError: naming both kinds.
    """
    if problem.kind != method.kind:
        raise BenchError(
            f"{name}: {type(method).__name__} optimises the {method.kind}, and "
            f"{type(problem).__name__} is a task over the {problem.kind}"
        )
