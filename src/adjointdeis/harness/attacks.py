"""A morphing attack as an experiment states it: sampler, gradient, optimiser, number of steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.gradients.base import GradientMethod
from adjointdeis.solvers.base import Solver

GRIDS: dict[str, Callable[[DDPM, int], TimeGrid]] = {
    "greedy_dim": TimeGrid.greedy_dim,
    "ddim_stride": TimeGrid.ddim_stride,
}


@dataclass(frozen=True)
class Attack:
    """One row of a morphing table.

    Arguments:
        name: Identifier, used as a folder name.
        label: Name in printed tables; empty derives one from gradient, solver and learning rate.
        solver: Sampler; an SDE solver takes its noises from Cycle-SDE.
        grid: "greedy_dim", the rounding of the paper's scheduler (999 ... 50, then index 0), or
            "ddim_stride", the diffusion autoencoder's own.
        sampling_steps: N.
        encoding_steps: N_E, of the probability-flow ODE that encodes the sources.
        optimisation_steps: Gradient steps; 0 is DiM without optimisation.
        gradient: Gradient method, required when there are gradient steps.
        optimizer: Factory of the optimiser of (x_T, z).
        z_learning_rate: Learning rate of z when it differs from that of x_T.
        keep: Iterate to return, "last" as in the paper, or "best" by the identity loss.
        paper_row: Name of the paper's row that this one corresponds to, or None.
    """

    name: str
    label: str
    solver: Solver
    grid: str = "greedy_dim"
    sampling_steps: int = 20
    encoding_steps: int = 250
    optimisation_steps: int = 0
    gradient: GradientMethod | None = None
    optimizer: Callable[[list[dict]], torch.optim.Optimizer] | None = None
    z_learning_rate: float | None = None
    keep: Literal["last", "best"] = "last"
    paper_row: str | None = None

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self._derived_label())
        if self.grid not in GRIDS:
            raise ValueError(
                f"attack {self.name}: grid={self.grid!r} must be one of {', '.join(GRIDS)}"
            )
        if self.optimisation_steps < 0:
            raise ValueError(
                f"attack {self.name}: optimisation_steps={self.optimisation_steps}, expected >= 0"
            )
        if self.optimisation_steps and (self.gradient is None or self.optimizer is None):
            raise ValueError(
                f"attack {self.name} makes {self.optimisation_steps} optimisation steps and needs "
                "both a gradient method and an optimizer"
            )

    def _derived_label(self) -> str:
        parts = [type(self.solver).__name__]
        if self.optimisation_steps and self.gradient is not None:
            rate = getattr(self.optimizer, "keywords", {}).get("lr")
            parts = [repr(self.gradient), *parts, f"lr {rate:g}" if rate else ""]
        return ", ".join(part for part in parts if part)

    @property
    def stochastic(self) -> bool:
        """Whether the sampler is an SDE solver."""
        return self.solver.calculus == "sde"

    def sampling_grid(self, schedule: DDPM) -> TimeGrid:
        """Grid of the N sampling steps."""
        return GRIDS[self.grid](schedule, self.sampling_steps)

    @property
    def adjoint_steps(self) -> int:
        """M, the number of adjoint steps of one gradient."""
        steps = getattr(self.gradient, "steps", None)
        return self.sampling_steps if steps is None else int(steps)

    @property
    def nfe_paper(self) -> int:
        """Evaluations as the paper counts them: N_E + N without gradients, N_E + n (N + M) with."""
        if not self.optimisation_steps:
            return self.encoding_steps + self.sampling_steps
        per_step = self.sampling_steps + self.adjoint_steps
        return self.encoding_steps + self.optimisation_steps * per_step

    def settings(self) -> dict[str, Any]:
        """What the report prints about the row."""
        settings: dict[str, Any] = {
            "solver": repr(self.solver),
            "grid": self.grid,
            "sampling_steps": self.sampling_steps,
            "encoding_steps": self.encoding_steps,
            "optimisation_steps": self.optimisation_steps,
            "gradient": None,
            "adjoint_steps": None,
            "states": None,
            "learning_rate": None,
            "z_learning_rate": self.z_learning_rate,
            "optimizer": None,
            "keep": self.keep,
        }
        if self.optimisation_steps:
            keywords = getattr(self.optimizer, "keywords", {})
            settings |= {
                "gradient": repr(self.gradient),
                "adjoint_steps": self.adjoint_steps,
                "states": getattr(self.gradient, "states", None),
                "learning_rate": keywords.get("lr"),
                "optimizer": getattr(getattr(self.optimizer, "func", None), "__name__", None),
            }
        return settings

    def notes(self) -> list[str]:
        """Where the row departs from the paper's settings, in words."""
        notes = []
        if self.paper_row and self.optimisation_steps and self.optimisation_steps != 50:
            notes.append(f"{self.optimisation_steps} optimisation steps instead of the paper's 50")
        if self.keep == "best":
            notes.append(
                "returns the best iterate by the identity loss; the paper returns the last"
            )
        return notes
