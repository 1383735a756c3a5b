"""How far each gradient is from that of the continuous flow, and from that of its sampler."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import DiscreteAdjoint, NotSupportedError
from adjointdeis.gradients.catalogue import Calculus, Entry
from adjointdeis.problems import PARTS, GradientProblem, Gradients, distance
from adjointdeis.solvers import RungeKutta, SDEDPMSolverPP
from experiments.common.methods import entries, short_name


def true_gradient(
    problem: GradientProblem, calculus: Calculus, steps: int, noise: BrownianPath | None
) -> Gradients:
    """Gradient of the continuous equations, by a fine solve differentiated exactly.

    The ODE is solved by the classical Runge-Kutta method on a log-SNR grid; the SDE by
    SDE-DPM-Solver++ 2M on the same Wiener path, whose strong error bounds what can be seen. The
    noise form is no reference for x_T: its gradient is half wrong even at 80 steps.
    """
    solver = RungeKutta("rk4") if calculus == "ode" else SDEDPMSolverPP()
    grid = problem.grid("log-SNR", steps)
    return problem.differentiate(DiscreteAdjoint(), solver, grid, noise)


def measure(
    problem: GradientProblem,
    calculus: Calculus,
    counts: Sequence[int],
    spacings: Sequence[str],
    truth: Gradients,
    noise: BrownianPath | None = None,
    methods: Sequence[Entry] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Iterator[dict[str, Any]]:
    """One row per spacing, number of steps and method.

    A method that refuses, or that fails by a numerical error of its own, gives a row with
    ``refused`` instead of distances.
    """
    for spacing in spacings:
        for steps in counts:
            grid = problem.grid(spacing, steps)
            chains: dict[str, Gradients] = {}
            for one in entries(calculus) if methods is None else methods:
                solver = one.solver(calculus)
                assert solver is not None
                row: dict[str, Any] = {
                    "problem": problem.name,
                    "calculus": calculus,
                    "spacing": spacing,
                    "steps": steps,
                    "method": one.name,
                    "solver": short_name(solver),
                }
                parts = [part for part in PARTS if one.capability(part)]
                try:
                    with warnings.catch_warnings():
                        # The study measures what the warnings warn of.
                        warnings.simplefilter("ignore")
                        if repr(solver) not in chains:
                            chains[repr(solver)] = problem.differentiate(
                                DiscreteAdjoint(), solver, grid, noise
                            )
                        found = problem.differentiate(one.method(), solver, grid, noise, parts)
                except (NotSupportedError, ValueError, ArithmeticError, AssertionError) as error:
                    # torchdiffeq asserts on a step size that underflows.
                    yield row | {"refused": str(error).splitlines()[0]}
                    continue
                chain = chains[repr(solver)].gradients
                yield row | {
                    "flow": _distances(found.gradients, truth.gradients),
                    "chain": _distances(found.gradients, chain),
                    "nfe_forward": found.cost.nfe_forward,
                    "nfe_backward": found.cost.nfe_backward,
                    "vjps": found.cost.vjps,
                    "latents": found.cost.peak_latents,
                    "graphs": found.cost.peak_graphs,
                }
            report(f"{problem.name}, {calculus}, {spacing}, N = {steps}")


def _distances(
    found: dict[str, Tensor], reference: dict[str, Tensor]
) -> dict[str, dict[str, float | None]]:
    """Distances as JSON has them: None where a gradient is not finite."""
    return {
        part: {
            key: number if math.isfinite(number) else None
            for key, number in asdict(distance(value, reference[part])).items()
        }
        for part, value in found.items()
    }
