r"""What the leaderboard measures: every gradient method on problems whose gradient is known.

Two gradients are called true, and every error says which one it is against. That of the *flow* is
the gradient of the continuous equations, on the same Wiener path where these are stochastic; an
exact method misses it by the error of its sampler. That of the *sampler* is autograd through the
very sampler that ran; an exact method has no error against it. With :math:`\hat g_s` the estimate
and :math:`g_s` the truth under seed s, which draws the path and whatever the method itself draws,
and :math:`|g|^2` the mean of :math:`|g_s|^2`,

.. math:: \mathrm{error}^2 = \frac{\mathrm{mean}_s |\hat g_s - g_s|^2}{|g|^2}
    = \underbrace{\frac{|\mathrm{mean}_s (\hat g_s - g_s)|^2}{|g|^2}}_{\mathrm{bias}^2}
    + \underbrace{\frac{\mathrm{mean}_s |\hat g_s - g_s - \mathrm{mean}|^2}{|g|^2}
    }_{\mathrm{variance}}.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    Backprop,
    DiscreteAdjoint,
    MemoryBudgetError,
    NotSupportedError,
)
from adjointdeis.gradients.catalogue import CATALOGUE, Entry
from adjointdeis.harness.audit import Disqualified, Trial, attempt
from adjointdeis.harness.live_memory import peak_bytes
from adjointdeis.harness.problem_sets import Case
from adjointdeis.plugins import plugins
from adjointdeis.problems import PARTS, GradientProblem
from adjointdeis.reporting.standings import NETWORKS
from adjointdeis.solvers import DPMSolverPP, RungeKutta, SDEDPMSolverPP
from adjointdeis.solvers.base import Solver

SPACING = {"flow-matching": "time"}
"""Grid of families whose usage it is; all others are uniform in log-SNR."""

AUTOGRAD = Entry("", Backprop)
"""The gradient that every method is held against for its own sampler."""


def contestants() -> dict[str, list[Entry]]:
    """The catalogue, then every method that an installed package adds by entry point.

    By name; the name of an entry point stands for all entries of its class. That may name the
    samplers it is to be run with in an attribute ``entries``, a tuple of
    :class:`~adjointdeis.gradients.catalogue.Entry`; otherwise it gets DDIM and SDE-DPM-Solver.
    """
    found = {entry.name: [entry] for entry in CATALOGUE}
    for name, method in plugins("gradients").items():
        own = getattr(method, "entries", None) or [Entry(name, method, target="own")]
        found |= {name: list(own)} | {entry.name: [entry] for entry in own}
    return found


def short_name(solver: Solver) -> str:
    """The class and the arguments that are not its defaults."""
    given = [
        f"{field.name}={getattr(solver, field.name)!r}"
        for field in fields(solver)  # type: ignore[arg-type]
        if getattr(solver, field.name) != field.default
    ]
    return f"{type(solver).__name__}({', '.join(given)})" if given else type(solver).__name__


@dataclass(frozen=True, eq=False)
class Truth:
    """Gradients of the continuous equations.

    Attributes:
        gradients: by seed and part.
        moves: relative change of each part under the first seed when the steps of the solve are
            halved, by problem; errors below it cannot be told apart.
    """

    gradients: list[dict[str, Tensor]]
    moves: dict[str, list[float]]


def truth_of(
    problem: GradientProblem,
    paths: Sequence[BrownianPath | None],
    steps: int,
    parts: Sequence[str] = PARTS,
    ode: Solver | None = None,
) -> Truth:
    """Fine solves, differentiated exactly.

    The ODE's is ``ode``, by default the classical Runge-Kutta method, the SDE's SDE-DPM-Solver++ 2M
    on the same Wiener paths, both on a log-SNR grid.
    """

    def solve(count: int, path: BrownianPath | None) -> dict[str, Tensor]:
        solver = (ode or RungeKutta("rk4")) if path is None else SDEDPMSolverPP()
        grid = problem.grid("log-SNR", count)
        method = DiscreteAdjoint(budget="1 GiB")
        return problem.differentiate(method, solver, grid, path, parts).gradients

    # An ODE has one truth, whatever the seed.
    once = [solve(steps, path) for path in (paths[:1] if paths[0] is None else paths)]
    coarse = solve(steps // 2, paths[0])
    moves = {
        part: errors([coarse[part]], [once[0][part]], problem.members)["error"] for part in parts
    }
    return Truth([once[s % len(once)] for s in range(len(paths))], moves)


def errors(
    found: Sequence[Tensor], truth: Sequence[Tensor], members: int = 1
) -> dict[str, list[float]]:
    """Error, bias and spread over seeds, cosine and ratio of norms; see the module.

    Args:
        found: flat gradients by seed, member by member.
        truth: the same of the reference.
        members: how many problems they are of.

    Returns:
        Each by problem; ``spread`` is the root of the variance. All are infinite, the cosine NaN,
        where a gradient is not finite, or the truth is zero: a sampler that diverged far into the
        tail of a reward.
    """
    # Seed by seed, and without more temporaries than needed: weights are millions of numbers.
    pairs = [
        (ours.unflatten(0, (members, -1)), theirs.unflatten(0, (members, -1)))
        for ours, theirs in zip(found, truth, strict=True)
    ]
    differences = [ours - theirs for ours, theirs in pairs]
    mean = sum(differences[1:], differences[0]) / len(pairs)
    rest = [one - mean for one in differences] if len(pairs) > 1 else [mean.new_zeros(members, 1)]
    lengths = [_length(side) for side in zip(*pairs, strict=True)]
    product = lengths[0] * lengths[1]
    inner = sum(torch.linalg.vecdot(ours, theirs) for ours, theirs in pairs)
    numbers = {
        "error": _length(differences) / lengths[1],
        "bias": mean.norm(dim=1) / lengths[1] * len(pairs) ** 0.5,
        "spread": _length(rest) / lengths[1],
        "ratio": lengths[0] / lengths[1],
        "cosine": torch.where(product > 0, inner / product, 0.0),
    }
    right = lengths[0].isfinite() & (lengths[1] > 0) & lengths[1].isfinite()
    return {
        name: torch.where(right, value, math.nan if name == "cosine" else math.inf).tolist()
        for name, value in numbers.items()
    }


def _length(vectors: Sequence[Tensor]) -> Tensor:
    """Norm over seeds and numbers of each problem."""
    return torch.stack([one.norm(dim=1) for one in vectors]).norm(dim=0)


class Measurement:
    """The measurement of one case; its truth is solved for once, when the first row is wanted.

    Args:
        case: the problems.
        seeds: Wiener paths, and states of the generators; with one, that the same seed gives the
            same gradient is not looked at.
        truth_steps: steps of the fine solve.
        with_bytes: whether to measure peaks of memory, which takes several times as long.
        limit: evaluations of the network that a method may make for one gradient.
    """

    def __init__(
        self, case: Case, seeds: int, truth_steps: int, with_bytes: bool, limit: int = 3000
    ) -> None:
        self.case, self.seeds, self.truth_steps = case, seeds, truth_steps
        self.with_bytes, self.limit = with_bytes, limit

    @cached_property
    def problem(self) -> GradientProblem:
        """The problems, as one."""
        return self.case.problem()

    @cached_property
    def paths(self) -> list["BrownianPath | None"]:
        """Its Wiener paths."""
        return self.case.paths(self.problem, self.seeds)

    @cached_property
    def truth(self) -> Truth:
        """Its truth."""
        # The weights of the terrain model come as constants of a graph.
        parts = [part for part in PARTS if part != "theta" or self.case.family != "terrain"]
        # Halving 640 steps of 2M moves the gradient of x_T of the identity loss by 0.3%, halving
        # 160 of rk4, which are as many evaluations, by 2.7%: that loss has kinks.
        ode = DPMSolverPP() if self.case.family in NETWORKS else None
        return truth_of(self.problem, self.paths, self.truth_steps, parts, ode)

    def rows(self, steps: int, entries: Sequence[Entry]) -> Iterator[dict[str, Any] | None]:
        """What each entry does with so many steps; None where it has no sampler to do it with.

        A row has its numbers by problem, with how far the truth can be trusted. A request that the
        method refuses gives ``refused``, a numerical failure of its own ``failed``, a method that
        is not what it says ``disqualified``; each with the reason.
        """
        chains: dict[str, list[Trial]] = {}
        for entry in entries:
            if entry.solver(self.case.calculus) is None and self._variant(entry):
                yield None
                continue
            row = {
                "family": self.case.family, "seed": self.case.seed, "calculus": self.case.calculus,
                "members": self.case.members, "number": self.case.number, "steps": steps,
                "method": entry.name, "truth_moves": self.truth.moves,
            }  # fmt: skip
            try:
                yield row | self._row(entry, steps, chains)
            except Disqualified as error:
                yield row | {"disqualified": str(error)}
            except (NotSupportedError, MemoryBudgetError) as error:
                yield row | {"refused": str(error).splitlines()[0]}
            except Exception as error:
                # torchdiffeq asserts on a step size that underflows; a submission may raise
                # anything.
                told = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                yield row | {"failed": told}

    def _variant(self, entry: Entry) -> bool:
        """Whether an entry without a sampler is one of a method that would take one."""
        try:
            entry.method().refuse(self._usual(), ())
        except Exception:
            return False
        return True

    def _usual(self) -> Solver:
        """The sampler of an entry that names none."""
        solver = AUTOGRAD.solver(self.case.calculus)
        assert solver is not None
        return solver

    def _row(self, entry: Entry, steps: int, chains: dict[str, list[Trial]]) -> dict[str, Any]:
        """The numbers of a row; gradients of its sampler are taken from ``chains``, or added."""
        if not entry.available:
            raise NotSupportedError(f"needs {', '.join(entry.requires)}")
        method, solver = entry.method(), entry.solver(self.case.calculus)
        if solver is None:
            solver = self._usual()
            method.refuse(solver, ())
        parts = [part for part in self.truth.moves if getattr(method, part)]
        sampler = short_name(solver)
        with warnings.catch_warnings():
            # The board measures what the warnings warn of.
            warnings.simplefilter("ignore")
            if sampler not in chains:
                own = list(self.truth.moves)
                # An ODE has one gradient, whatever the seed.
                seeds = range(1 if self.case.calculus == "ode" else self.seeds)
                chains[sampler] = [self._trial(AUTOGRAD, solver, steps, own, s) for s in seeds]
            chain = chains[sampler]
            trials, size = self._trials(entry, solver, steps, parts, chain)
        return {
            "sampler": sampler,
            "evaluations": max(trial.cost.nfe for trial in trials),
            "products": max(trial.cost.vjps for trial in trials),
            "latents": trials[0].cost.peak_latents,
            "graphs": trials[0].cost.peak_graphs,
            "seconds": min(trial.seconds for trial in trials),
            "bytes": size,
            "flow": self._distances(trials, self.truth.gradients, parts),
            "chain": self._distances(trials, [one.gradients for one in chain], parts),
        }

    def _trial(
        self, entry: Entry, solver: Solver, steps: int, parts: Sequence[str], seed: int
    ) -> Trial:
        grid = self.problem.grid(SPACING.get(self.case.family, "log-SNR"), steps)
        path = self.paths[seed]
        return attempt(self.problem, entry.method, solver, grid, path, parts, seed, self.limit)

    def _trials(
        self, entry: Entry, solver: Solver, steps: int, parts: Sequence[str], chain: Sequence[Trial]
    ) -> tuple[list[Trial], int | None]:
        """A trial a seed, and the peak of memory in bytes.

        Raises:
            Disqualified: under the same seed it gives another gradient, or x_0 is not the
                sampler's.
        """
        rounding = 1e3 * torch.finfo(self.problem.x_T.dtype).eps

        def differ(one: Tensor, other: Tensor) -> bool:
            moved = float((one - other).norm())
            # A gradient that is not finite is told as such.
            return moved > rounding * float(other.norm())

        def trial(seed: int) -> Trial:
            made = self._trial(entry, solver, steps, parts, seed)
            if differ(made.x_0, chain[seed % len(chain)].x_0):
                raise Disqualified(f"its x_0 is not that of {short_name(solver)}")
            return made

        size = None
        again: list[Trial] = []
        # First, so that one which does not end is not waited for with every tensor counted.
        trials = [trial(0)]
        if self.with_bytes:
            size = peak_bytes(lambda: again.append(trial(0)), self.problem.x_T.device)
        # Beside each other they tell a method that draws nothing from all others.
        for seed in range(1, self.seeds):
            if self.case.calculus == "ode" and self._constant([*again, *trials], parts):
                break
            trials.append(trial(seed))
        else:
            again += [] if again or self.seeds == 1 else [trial(0)]
        for part, value in trials[0].gradients.items():
            if any(differ(other.gradients[part], value) for other in again):
                raise Disqualified(f"gives another gradient of {part} under the same seed")
        return trials, size

    @staticmethod
    def _constant(trials: Sequence[Trial], parts: Sequence[str]) -> bool:
        """Whether two or more gradients are the same in every bit."""
        first, *others = trials
        return bool(others) and all(
            torch.equal(other.gradients[part], first.gradients[part])
            for other in others for part in parts
        )  # fmt: skip

    def _distances(
        self,
        trials: Sequence[Trial],
        references: Sequence[dict[str, Tensor]],
        parts: Sequence[str],
    ) -> dict[str, dict[str, list[float | None]]]:
        """Errors by part and problem as JSON has them: None where a number is not finite."""
        return {
            part: {
                name: [value if math.isfinite(value) else None for value in values]
                for name, values in errors(
                    [trial.gradients[part] for trial in trials],
                    [references[s % len(references)][part] for s in range(len(trials))],
                    self.problem.members,
                ).items()
            }
            for part in parts
        }
