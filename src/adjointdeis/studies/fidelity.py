"""How far each gradient is from that of the continuous flow, and from that of its sampler."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor

from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import DiscreteAdjoint, NotSupportedError
from adjointdeis.gradients.catalogue import CATALOGUE, Calculus, Entry
from adjointdeis.solvers import RungeKutta, SDEDPMSolverPP
from adjointdeis.solvers.base import Solver
from adjointdeis.studies.problems import PARTS, Found, Problem

# The same gradient as DiscreteAdjoint in other memory.
MEMORY_VARIANTS = ("snapshots", "activations", "MiB")


@dataclass(frozen=True)
class Distance:
    """A gradient against a reference.

    Attributes:
        relative: norm of the difference over the norm of the reference.
        cosine: of the angle between them.
        ratio: norm over norm of the reference.
    """

    relative: float
    cosine: float
    ratio: float


def distance(found: Tensor, reference: Tensor) -> Distance:
    """Compare two flat gradients; infinite where the first is not finite."""
    if not bool(found.isfinite().all()):
        return Distance(math.inf, math.nan, math.inf)
    size, other = float(found.norm()), float(reference.norm())
    cosine = float(found @ reference) / (size * other) if size else 0.0
    return Distance(float((found - reference).norm()) / other, cosine, size / other)


def entries(calculus: Calculus) -> list[Entry]:
    """The catalogue's methods for samplers of this calculus, without variants in memory alone."""
    return [
        one
        for one in CATALOGUE
        if one.available
        and one.solver(calculus) is not None
        and not any(word in one.name for word in MEMORY_VARIANTS)
    ]


def short_name(solver: Solver) -> str:
    """The class and the arguments that are not its defaults."""
    given = [
        f"{field.name}={getattr(solver, field.name)!r}"
        for field in fields(solver)  # type: ignore[arg-type]
        if getattr(solver, field.name) != field.default
    ]
    return f"{type(solver).__name__}({', '.join(given)})"


def true_gradient(
    problem: Problem, calculus: Calculus, steps: int, noise: BrownianPath | None
) -> Found:
    """Gradient of the continuous equations, by a fine solve differentiated exactly.

    The ODE is solved by the classical Runge-Kutta method on a log-SNR grid; the SDE by
    SDE-DPM-Solver++ 2M on the same Wiener path, whose strong error bounds what can be seen. The
    noise form is no reference for x_T: its gradient is half wrong even at 80 steps.
    """
    solver = RungeKutta("rk4") if calculus == "ode" else SDEDPMSolverPP()
    grid = problem.grid("log-SNR", steps)
    return problem.differentiate(DiscreteAdjoint(), solver, grid, noise)


def measure(
    problem: Problem,
    calculus: Calculus,
    counts: Sequence[int],
    spacings: Sequence[str],
    truth: Found,
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
            chains: dict[str, Found] = {}
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


def shown(number: float | None, style: str = ".2g") -> str:
    """A number of a table; "diverged" where it is not finite."""
    return "diverged" if number is None else format(number, style)
