"""Whether a denoiser, a solver, a grid and an initial state belong together.

Each of them alone is right, so that nothing but their comparison shows that they are those of two
samplers.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.classifier_free import Guidance
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.prediction import wide
from adjointdeis.diffusion.schedule import Schedule
from adjointdeis.diffusion.scheduler_solver import SchedulerSolver
from adjointdeis.diffusion.step_grid import AtSteps, StepGrid

_ENOUGH = 64  # numbers of a sample, whose standard deviation is then known to a tenth
_FAR = 3.0
_OF_ONE_SAMPLER = (
    "take all of one sampler: sample(sampler.denoiser, sampler.initial(noise), z, "
    "solver=sampler.solver, grid=sampler.grid)"
)


class OtherSamplerError(ValueError):
    """A denoiser of one sampler with the solver or the grid of another."""


class InitialNoiseWarning(UserWarning):
    """An initial state that is much smaller or larger than the noise that a sampler begins with."""


def check_fit(denoiser: Any, solver: Any, grid: TimeGrid, x: Tensor) -> None:
    """Compare what a run is made of, as far as it says of itself what it is.

    Args:
        denoiser, solver, grid: as given to ``sample``.
        x: the initial state.

    Raises:
        OtherSamplerError: the denoiser has another noise schedule than the grid, predicts
            something else than the solver asks for, or belongs to another scheduler's run.

    Warns:
        InitialNoiseWarning: x has less than a third, or more than three times, of the standard
            deviation of the noise that the run begins with.
    """
    if isinstance(solver, SchedulerSolver):
        _check_scheduler(denoiser, solver)
    elif not isinstance(grid, StepGrid):
        _check_levels(denoiser, solver, grid)
    if grid.sampling:
        _check_noise(solver, grid, x)


def _inside(denoiser: Any) -> Any:
    """The denoiser that is guided."""
    while isinstance(denoiser, Guidance):
        denoiser = denoiser.denoiser
    return denoiser


def _at_steps(denoiser: Any) -> Iterator[AtSteps]:
    modules = denoiser.modules() if isinstance(denoiser, nn.Module) else ()
    return (module for module in modules if isinstance(module, AtSteps))


def _check_scheduler(denoiser: Any, solver: SchedulerSolver) -> None:
    own = solver.scheduler
    for other in _at_steps(denoiser):
        levels, wanted = other.levels, getattr(own, "alphas_cumprod", None)
        if other.asked != solver.kind:
            what = f"predicts {other.asked}, and the solver asks for {solver.kind}"
        elif not _equal(other.timesteps, own.timesteps):
            what = f"is evaluated at other times than those of the solver's {solver.steps} steps"
        elif levels is not None and wanted is not None and not _equal(levels, wanted):
            what = "has other noise levels (alphas_cumprod) than the solver"
        else:
            continue
        raise OtherSamplerError(
            f"the denoiser is that of another sampler than {solver!r}: it {what}; {_OF_ONE_SAMPLER}"
        )
    found = _inside(denoiser)
    if isinstance(getattr(found, "schedule", None), Schedule) or _predicts(found) is not None:
        raise OtherSamplerError(
            f"{type(found).__name__} takes a time of a noise schedule, and {solver!r} counts its "
            f"steps: {_OF_ONE_SAMPLER}; or take a solver of this package with this denoiser and "
            "grid=from_diffusers(model, scheduler).grid(steps)"
        )


def _check_levels(denoiser: Any, solver: Any, grid: TimeGrid) -> None:
    for other in _at_steps(denoiser):
        raise OtherSamplerError(
            f"the denoiser is that of a scheduler's run of {other.steps} steps, and takes no times "
            f"of a noise schedule: {_OF_ONE_SAMPLER}; or, for {type(solver).__name__}, "
            "sample(model.denoiser, x_T, z, solver=..., grid=model.grid(steps)) of "
            "model = from_diffusers(...)"
        )
    found = _inside(denoiser)
    own, asked = _predicts(found), getattr(solver, "predicts", "eps")
    if own is not None and asked in ("eps", "velocity") and own != asked:
        names = {"eps": "the noise", "velocity": "a velocity"}
        call = (
            "EpsFromFlow(network, schedule)"
            if own == "velocity"
            else "the network itself (model.velocity of from_diffusers), or solver=DDIM()"
        )
        raise OtherSamplerError(
            f"{type(found).__name__} predicts {names[own]}, and {type(solver).__name__} asks for "
            f"{names[asked]}: pass {call}"
        )
    schedule = getattr(found, "schedule", None)
    if not isinstance(schedule, Schedule) or schedule is grid.schedule or schedule == grid.schedule:
        return
    for name in ("alpha", "sigma"):
        here, there = (getattr(one, name)(grid.t) for one in (schedule, grid.schedule))
        off = ((here - there).abs() / (1.0 + there.abs())).max()
        if float(off) > 1e-2:
            raise OtherSamplerError(
                f"{type(found).__name__} has the schedule {type(schedule).__name__}, and the grid "
                f"is one of {type(grid.schedule).__name__}: their {name} is off by {float(off):.2g}"
                ". Make the grid of the denoiser's own, "
                "grid=TimeGrid.uniform_lmbda(denoiser.schedule, steps)"
            )


def _check_noise(solver: Any, grid: TimeGrid, x: Tensor) -> None:
    if x.device.type == "meta" or x.numel() < _ENOUGH * x.shape[0] or not x.numel():
        return
    if isinstance(solver, SchedulerSolver):
        if not isinstance(grid, StepGrid) or grid.first > 0:
            return
        expected = float(getattr(solver.scheduler, "init_noise_sigma", 1.0))
        call = "pass sampler.initial(noise)"
    elif isinstance(grid, StepGrid) or grid[0].sigma <= _FAR:
        return  # data may be of any size where noise is not much larger
    else:
        expected, call = grid[0].sigma, "pass grid[0].sigma * torch.randn(...)"
    with torch.no_grad():
        found = float(wide(x.detach()).std())
    if math.isfinite(found) and not expected / _FAR <= found <= expected * _FAR:
        name = getattr(solver, "name", type(solver).__name__)
        warnings.warn(
            f"x_T has a standard deviation of {found:.3g}, and the noise that {name} begins with "
            f"one of {expected:.3g}: {call}",
            InitialNoiseWarning,
            stacklevel=2,
        )


def _predicts(denoiser: Any) -> str | None:
    """What a denoiser of this package says that it predicts."""
    found = getattr(denoiser, "predicts", None)
    return found if found in ("eps", "velocity") else None


def _equal(one: Any, other: Any) -> bool:
    one, other = (torch.as_tensor(values).detach().double().cpu() for values in (one, other))
    return one.shape == other.shape and bool(torch.allclose(one, other))
