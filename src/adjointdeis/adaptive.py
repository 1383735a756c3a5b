"""What a tolerance needs: the steps of a sampler, or sampler and steps of a gradient."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion.conditions import Conditions, PerStep
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import Certified, Cost, DiscreteAdjoint, NotSupportedError
from adjointdeis.gradients.cost import CountedDenoiser
from adjointdeis.rollout import Condition, sample, wanted_weights
from adjointdeis.solvers import DPMSolverPP, RungeKutta, ToleranceError
from adjointdeis.solvers.adaptive import accepted_steps
from adjointdeis.solvers.base import Solver


@dataclass(frozen=True, eq=False)
class AdaptiveGrid:
    """The result of :func:`adaptive_grid`.

    Attributes:
        solver: the one whose steps these are.
        grid: the accepted nodes, for :func:`sample` with the same solver.
        states: x at these nodes, x_T first.
        cost: counters; the evaluations of rejected steps are among them.
        rejected: how many steps were rejected.
    """

    solver: RungeKutta
    grid: TimeGrid
    states: tuple[Tensor, ...]
    cost: Cost
    rejected: int

    @property
    def settings(self) -> dict[str, Any]:
        """Solver, grid and states, as :func:`sample` takes them: ``sample(..., **settings)``.

        For the same denoiser, x_T and z; with others give ``solver`` and ``grid`` alone.
        """
        return {"solver": self.solver, "grid": self.grid, "states": self.states}


def adaptive_grid(
    denoiser: Callable[..., Tensor],
    x_T: Tensor,
    z: Condition = None,
    *,
    solver: RungeKutta,
    grid: TimeGrid,
    rtol: float = 1e-2,
    atol: float = 1e-2,
) -> AdaptiveGrid:
    """The steps that a sampler needs for a tolerance, as a grid for :func:`sample`.

    An embedded pair takes its steps by an estimate of their error, and the accepted nodes are
    an ordinary grid: :func:`sample` on it, with the same solver, x_T and z, passes through the same
    states, and every gradient method is on it what it is on any grid, exact ones exact. With
    ``sample(denoiser, x_T, z, **found.settings)`` these states are not computed a second time.

    The gradient holds the grid fixed. The controller's own dependence on x_T, z and the weights is
    left out: with it the derivative would be that of a function that jumps where a step is accepted
    or not, and from the flow's both differ by the tolerance.

    Args:
        denoiser: as in :func:`sample`.
        x_T: state at the first node; one grid serves the whole batch, and its worst sample decides.
        z: condition, one for all steps.
        solver: ``RungeKutta`` with "heun", "bosh3" or "dopri5", in either prediction.
        grid: sampling grid with the ends of the run; the nodes between them are not used, but the
            first width in log-SNR is tried first.
        rtol, atol: the error that a step may have, in units of x: rtol times its absolute value,
            plus atol; not below the rounding of x.

    Raises:
        NotSupportedError: the sampler of an SDE.
        ValueError: a solver without an embedded pair, a grid that encodes or whose log-SNR is
            infinite at an end, a schedule of conditions, tolerances that are not positive.
        ToleranceError: no step meets the tolerance.

    When not to use: for large gradient errors, above a hundredth, where a few even steps are
    cheaper than any estimate of their error; experiments/work_precision says what it costs.
    """
    if getattr(solver, "calculus", None) == "sde":
        raise NotSupportedError(
            f"adaptive_grid() takes ODE samplers, and {type(solver).__name__} is one of an SDE, "
            "without an embedded pair on a Wiener path. Take a fixed grid, and double N on one "
            "path until the gradient stays: sample(..., solver=SDEDPMSolverPP(), "
            "grid=TimeGrid.uniform_lmbda(schedule, 50), noise=BrownianPath(x_T.shape, seed=0))"
        )
    if not isinstance(solver, RungeKutta) or not solver.tableau.embedded:
        raise ValueError(
            f"{solver!r} has no embedded pair to estimate the error of a step: use "
            'RungeKutta("bosh3"), "heun" or "dopri5"'
        )
    _check_ends("adaptive_grid", grid)
    if not (rtol >= 0.0 and atol >= 0.0 and 0.0 < rtol + atol < math.inf):
        raise ValueError(f"rtol={rtol} and atol={atol}: neither below 0, one of them above")
    if isinstance(z, PerStep):
        raise ValueError(
            "PerStep has one condition for each step, and how many steps there are is not known "
            "before adaptive_grid() has taken them: pass one z"
        )
    cost = Cost()
    with torch.no_grad():
        times, states, rejected = accepted_steps(
            CountedDenoiser(denoiser, cost),
            x_T,
            z,
            solver=solver,
            grid=grid,
            rtol=rtol,
            atol=atol,
        )
    accepted = TimeGrid.from_times(grid.schedule, torch.stack(times))
    return AdaptiveGrid(solver, accepted, tuple(states), cost, rejected)


@dataclass(frozen=True, eq=False)
class AdaptiveGradient:
    """The result of :func:`adaptive_gradient`.

    Attributes:
        solver, grid, gradient: what was chosen.
        error: estimated distance to the gradient of the continuous flow, for each of "x_T", "z" and
            "theta", as :class:`~adjointdeis.gradients.Certified` gives it.
        cost: counters of everything that was tried.
    """

    solver: Solver
    grid: TimeGrid
    gradient: DiscreteAdjoint
    error: dict[str, float]
    cost: Cost

    @property
    def settings(self) -> dict[str, Any]:
        """Solver, grid and gradient, as :func:`sample` takes them: ``sample(..., **settings)``."""
        return {"solver": self.solver, "grid": self.grid, "gradient": self.gradient}


# Each with its evaluations a step, by which the price of an exact gradient goes, its order, and the
# N that is tried first: on 2 or 3 steps, the coarsest grid of 8 or 12, rk4 says nothing.
_TRIED: tuple[tuple[Solver, int, int, int], ...] = (
    (DPMSolverPP(), 1, 2, 8), (RungeKutta("rk4"), 4, 4, 16),
)  # fmt: skip
# The first of several estimates that is small enough is more often too small than an estimate is.
_SAFETY = 0.8
_LEAST_GROWTH, _MOST_GROWTH = 1.25, 2.0


def adaptive_gradient(
    loss: Callable[[Tensor], Tensor],
    denoiser: Callable[..., Tensor],
    x_T: Tensor,
    z: Condition = None,
    *,
    grid: TimeGrid,
    gradient_tol: float = 0.05,
    parameters: Sequence[Tensor] | None = None,
    most_steps: int = 640,
) -> AdaptiveGradient:
    r"""Sampler, number of steps and memory plan of a gradient that is as exact as is asked for.

    The gradient is that of the probability-flow ODE without steps, and :class:`Certified` estimates
    how far one of N steps is from it. DPM-Solver++ 2M and the classical Runge-Kutta method are
    tried on grids uniform in log-SNR: each time the one that should be within the tolerance for
    less, by its last estimate e, at :math:`N (e / 0.8\,\mathrm{tol})^{1/p}` steps, but at most
    twice as many as it had. The first estimate within 0.8 of the tolerance decides. The memory is
    that of ``DiscreteAdjoint(budget="auto")``: half of what is free, spent on fewer evaluations.

    What was chosen serves every later gradient of a similar problem, as in an optimisation; all
    that was tried cost 2 to 6 times as much as one of them, 2.5 in the median.

    Args:
        loss: what will be differentiated, as a function of x_0 alone with one number as its value.
        denoiser, x_T, z, parameters: as in :func:`sample`; that of x_T, z and the weights which
            requires a gradient is held to the tolerance. No ``.grad`` is written.
        grid: sampling grid with the ends of the run; the nodes between them are not used.
        gradient_tol: largest distance, relative to the norm of the gradient.
        most_steps: where a sampler is given up.

    Raises:
        ToleranceError: no sampler comes within the tolerance.
        ValueError: a grid that encodes or whose log-SNR is infinite at an end, a schedule of
            conditions, a tolerance that is not positive, or nothing that requires a gradient.

    When not to use: for the gradient of a sampler itself, as in training through the very steps
    that will be used. The estimate is no bound (experiments/certified).
    """
    _check_ends("adaptive_gradient", grid)
    if not 0.0 < gradient_tol < math.inf:
        raise ValueError(f"gradient_tol={gradient_tol}: expected a number above 0, such as 0.05")
    if isinstance(z, PerStep):
        raise ValueError("adaptive_gradient() chooses the number of steps: pass one z, no PerStep")
    leaves = [x_T] if x_T.requires_grad else []
    leaves += [*Conditions.of(z, 1).wanted(0), *wanted_weights(denoiser, parameters)]
    if not leaves:
        raise ValueError("nothing requires a gradient: x_T.requires_grad_(), or that of z")
    cost, method, best = Cost(), DiscreteAdjoint(budget="auto"), (math.inf, "")
    wanted = {solver: first for solver, _, _, first in _TRIED}
    while wanted:
        solver, _, order, _ = min(
            (one for one in _TRIED if one[0] in wanted), key=lambda one: wanted[one[0]] * one[1]
        )
        steps = wanted[solver]
        ends = {"t_min": float(grid.t[-1]), "t_max": float(grid.t[0])}
        tried = TimeGrid.uniform_lmbda(grid.schedule, steps, **ends)
        rollout = sample(
            denoiser, x_T, z, solver=solver, grid=tried, parameters=parameters,
            gradient=Certified(loss, method, coarse=method),
        )  # fmt: skip
        torch.autograd.grad(loss(rollout.x_0), leaves, allow_unused=True)
        cost.add(rollout.cost)
        found = max(rollout.gradient_error.values())
        if found <= _SAFETY * gradient_tol:
            return AdaptiveGradient(solver, tried, method, rollout.gradient_error, cost)
        best = min(best, (found, f"{type(solver).__name__} with N = {steps}"))
        growth = (found / (_SAFETY * gradient_tol)) ** (1.0 / order)
        growth = min(_MOST_GROWTH, max(_LEAST_GROWTH, growth))
        # A multiple of 4: the two coarser grids of Certified are uniform as well.
        wanted[solver] = 4 * math.ceil(steps * growth / 4)
        if wanted[solver] > most_steps:
            del wanted[solver]
    raise ToleranceError(
        f"gradient_tol={gradient_tol:g} is not reached with {most_steps} steps: the least "
        f"estimate is {best[0]:.2g}, of {best[1]}. Rounding in {x_T.dtype}, or a network with "
        f"kinks, may be larger; call adaptive_gradient(..., "
        f"gradient_tol={1.1 * best[0] / _SAFETY:.2g}), or raise most_steps"
    )


def _check_ends(name: str, grid: TimeGrid) -> None:
    if not grid.sampling or not bool(grid.lmbda.isfinite().all()):
        raise ValueError(
            f"{name}() needs a grid from noise to data with a finite log-SNR at both ends, such as "
            "TimeGrid.uniform_lmbda(schedule, 20)"
        )
