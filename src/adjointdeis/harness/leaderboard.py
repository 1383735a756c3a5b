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
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import Backprop, DiscreteAdjoint, GradientMethod, NotSupportedError
from adjointdeis.gradients.catalogue import CATALOGUE, Calculus, Entry
from adjointdeis.gradients.cost import Cost
from adjointdeis.harness.audit import audited
from adjointdeis.harness.live_memory import peak_bytes
from adjointdeis.harness.network_problems import network_problem
from adjointdeis.plugins import plugins
from adjointdeis.problems import FAMILIES, LOSSES, PARTS, GradientProblem, drawn
from adjointdeis.solvers import DDIM, RungeKutta, SDEDPMSolver, SDEDPMSolverPP
from adjointdeis.solvers.base import Solver

COMMITTED = 24091
"""Seed of the committed set of problems."""

NETWORKS = ("mini", "terrain")

SPACING = {"flow-matching": "time"}
"""Grid of families whose usage it is; all others are uniform in log-SNR."""

LIMIT = 3000
"""Evaluations of the network that a method may make for one gradient."""


class Disqualified(Exception):
    """A method that is not what it says: the row is shown, and takes no place."""


@dataclass(frozen=True)
class Case:
    """A problem of the board.

    Attributes:
        family: of ``adjointdeis.problems.FAMILIES`` or :data:`NETWORKS`.
        loss: of ``adjointdeis.problems.LOSSES``.
        seed: what it is drawn from; :data:`COMMITTED` for the committed set.
        calculus: "ode" or "sde".
    """

    family: str
    loss: str
    seed: int
    calculus: Calculus

    @property
    def key(self) -> str:
        """A name that no other case has."""
        return f"{self.family}-{self.loss}-{self.seed}-{self.calculus}"

    def problem(self) -> GradientProblem:
        """The problem itself."""
        if self.family in NETWORKS:
            return network_problem(self.family, self.loss)
        return drawn(self.family, self.loss, self.seed)

    def paths(self, problem: GradientProblem, count: int) -> list["BrownianPath | None"]:
        """A Wiener path a seed; None for the ODE."""
        if self.calculus == "ode":
            return [None] * count
        return [RememberedPath(problem.x_T.shape, seed=self.seed * 100 + s) for s in range(count)]


@dataclass(frozen=True, eq=False)
class RememberedPath(BrownianPath):
    """A Wiener path that keeps what was asked for: every method asks at the same nodes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_known", {})

    def value(self, rho: float) -> Tensor:
        known: dict[float, Tensor] = self._known  # type: ignore[attr-defined]
        if rho not in known:
            known[rho] = super().value(rho)
        return known[rho].clone()


def cases(
    problems: Sequence[str],
    losses: Sequence[str],
    calculi: Sequence[Calculus],
    seed: int,
    draws: int,
    drawn_losses: Sequence[str],
    network_losses: Sequence[str],
) -> list[Case]:
    """The committed set, then ``draws`` sets drawn from ``seed``, ``seed`` + 1, ...

    Networks are trained and not drawn: they belong to the committed set alone, and have losses of
    their own, for they cost a thousand times as much.

    Raises:
        ValueError: an unknown problem or loss, or a seed that is the committed set's.
    """
    families = (*FAMILIES, *NETWORKS)
    for key, given, known in (
        ("problems", problems, families),
        ("losses", losses, LOSSES),
        ("drawn_losses", drawn_losses, LOSSES),
        ("network_losses", network_losses, LOSSES),
    ):
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise ValueError(f"task.{key}={list(given)}: expected some of {', '.join(known)}")
    seeds = [COMMITTED, *range(seed, seed + draws)]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seed={seed}: {COMMITTED} is the committed set; choose another")
    found = []
    for one in seeds:
        for family in problems:
            if family in NETWORKS and one != COMMITTED:
                continue
            mine = drawn_losses if one != COMMITTED else losses
            mine = network_losses if family in NETWORKS else mine
            found += [Case(family, loss, one, calculus) for calculus in calculi for loss in mine]
    return found


def contestants() -> list[Entry]:
    """The catalogue, then every method that an installed package adds by entry point.

    A class may name the samplers it is to be run with in an attribute ``entries``, a tuple of
    :class:`~adjointdeis.gradients.catalogue.Entry`; otherwise it gets DDIM and SDE-DPM-Solver.
    """
    found = list(CATALOGUE)
    for name, method in plugins("gradients").items():
        found += getattr(method, "entries", None) or [Entry(name, method, target="own")]
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
            halved; errors below it cannot be told apart.
    """

    gradients: list[dict[str, Tensor]]
    moves: dict[str, float]


def truth_of(
    problem: GradientProblem,
    paths: Sequence[BrownianPath | None],
    steps: int,
    parts: Sequence[str] = PARTS,
) -> Truth:
    """Fine solves, differentiated exactly.

    The ODE's is the classical Runge-Kutta method, the SDE's SDE-DPM-Solver++ 2M on the same Wiener
    paths, both on a log-SNR grid.
    """

    def solve(count: int, path: BrownianPath | None) -> dict[str, Tensor]:
        solver = RungeKutta("rk4") if path is None else SDEDPMSolverPP()
        grid = problem.grid("log-SNR", count)
        return problem.differentiate(DiscreteAdjoint(), solver, grid, path, parts).gradients

    # An ODE has one truth, whatever the seed.
    once = [solve(steps, path) for path in (paths[:1] if paths[0] is None else paths)]
    coarse = solve(steps // 2, paths[0])
    moves = {part: errors([coarse[part]], [once[0][part]])["error"] for part in parts}
    return Truth([once[s % len(once)] for s in range(len(paths))], moves)


def errors(found: Sequence[Tensor], truth: Sequence[Tensor]) -> dict[str, float]:
    """Error, bias and spread over seeds, cosine and ratio of norms; see the module.

    Args:
        found: flat gradients by seed.
        truth: the same of the reference.

    Returns:
        ``spread`` is the root of the variance. All are infinite, the cosine NaN, where a gradient
        is not finite, or the truth is zero: a sampler that diverged far into the tail of a reward.
    """
    ours, theirs = torch.stack(list(found)), torch.stack(list(truth))
    difference = ours - theirs
    size = float(theirs.square().sum(1).mean().sqrt())
    if not bool(ours.isfinite().all()) or not 0.0 < size < math.inf:
        return {**dict.fromkeys(("error", "bias", "spread", "ratio"), math.inf), "cosine": math.nan}
    mean = difference.mean(0)
    product = float(ours.square().sum().sqrt() * theirs.square().sum().sqrt())
    return {
        "error": float(difference.square().sum(1).mean().sqrt()) / size,
        "bias": float(mean.norm()) / size,
        "spread": float((difference - mean).square().sum(1).mean().sqrt()) / size,
        "cosine": float((ours * theirs).sum()) / product if product else 0.0,
        "ratio": float(ours.square().sum().sqrt() / theirs.square().sum().sqrt()),
    }


@dataclass(frozen=True, eq=False)
class Trial:
    """One gradient, with what it took.

    Attributes:
        gradients: by part.
        x_0: the sample.
        cost: the method's own counters, which those at the network do not exceed.
        seconds: of the processor.
    """

    gradients: dict[str, Tensor]
    x_0: Tensor
    cost: Cost
    seconds: float


def attempt(
    problem: GradientProblem,
    method: Callable[[], GradientMethod],
    solver: Solver,
    steps: int,
    path: BrownianPath | None,
    parts: Sequence[str],
    seed: int,
) -> Trial:
    """Runs a method once, the generators of torch seeded.

    Raises:
        Disqualified: it evaluates more than it counts, or changes the weights.
        TooManyEvaluations: it makes more than :data:`LIMIT`.
    """
    grid = problem.grid(SPACING.get(problem.name, "log-SNR"), steps)
    samples: list[Tensor] = []

    def loss(x_0: Tensor) -> Tensor:
        samples.append(x_0.detach().clone())
        return problem.loss(x_0)

    watched = replace(problem, loss=loss)
    weights = [weight.detach().clone() for weight in problem.denoiser.parameters()]
    try:
        with audited(problem.denoiser, problem.x_T, grid[0].t, problem.z, LIMIT) as audit:
            torch.manual_seed(seed)
            start = time.process_time()
            found = watched.differentiate(method(), solver, grid, path, parts)
            seconds = time.process_time() - start
    finally:
        changed = False
        for weight, kept in zip(problem.denoiser.parameters(), weights, strict=True):
            changed |= not torch.equal(weight, kept)
            weight.data.copy_(kept)
    cost = found.cost
    if changed:
        raise Disqualified("changes the weights of the network")
    if audit.evaluations > cost.nfe:
        raise Disqualified(f"makes {audit.evaluations} evaluations and counts {cost.nfe}")
    if audit.products > cost.vjps:
        raise Disqualified(f"makes {audit.products} products and counts {cost.vjps}")
    return Trial(found.gradients, samples[-1], cost, seconds)


def row(
    case: Case,
    problem: GradientProblem,
    entry: Entry,
    steps: int,
    paths: Sequence[BrownianPath | None],
    truth: Truth,
    chains: dict[str, list[Trial]],
    with_bytes: bool,
) -> dict[str, Any] | None:
    """What an entry does on a case with so many steps; None where it has no sampler to do it with.

    A request that the method refuses gives ``refused``, a numerical failure of its own ``failed``,
    a method that is not what it says ``disqualified``; each with the reason.

    Args:
        chains: gradients of the samplers that ran before, by sampler; this adds to it.
        with_bytes: whether to measure the peak of memory, which takes several times as long.
    """
    found: dict[str, Any] = {
        "family": case.family, "loss": case.loss, "seed": case.seed, "calculus": case.calculus,
        "steps": steps, "method": entry.name,
    }  # fmt: skip
    solver = entry.solver(case.calculus)
    try:
        if not entry.available:
            raise NotSupportedError(f"needs {', '.join(entry.requires)}")
        method = entry.method()
        if solver is None:
            # A variant for the samplers of one calculus alone is no refusal.
            method.refuse(DDIM() if case.calculus == "ode" else SDEDPMSolver(), ())
            return None
        found["sampler"] = short_name(solver)
        parts = [part for part in truth.moves if getattr(method, part)]
        with warnings.catch_warnings():
            # The board measures what the warnings warn of.
            warnings.simplefilter("ignore")
            if found["sampler"] not in chains:
                chains[found["sampler"]] = _of_sampler(problem, solver, steps, paths, truth)
            chain = chains[found["sampler"]]
            trials, size = _trials(problem, entry, solver, steps, paths, parts, chain, with_bytes)
    except Disqualified as error:
        return found | {"disqualified": str(error)}
    except NotSupportedError as error:
        return found | {"refused": str(error).splitlines()[0]}
    except Exception as error:
        # torchdiffeq asserts on a step size that underflows; a submission may raise anything.
        return found | {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    used = range(len(trials))
    return found | {
        "evaluations": max(trial.cost.nfe for trial in trials),
        "products": max(trial.cost.vjps for trial in trials),
        "latents": trials[0].cost.peak_latents,
        "graphs": trials[0].cost.peak_graphs,
        "seconds": min(trial.seconds for trial in trials),
        "bytes": size,
        "flow": _distances(trials, [truth.gradients[s] for s in used], parts),
        "chain": _distances(trials, [chain[s].gradients for s in used], parts),
    }


def _of_sampler(
    problem: GradientProblem,
    solver: Solver,
    steps: int,
    paths: Sequence[BrownianPath | None],
    truth: Truth,
) -> list[Trial]:
    once = [
        attempt(problem, Backprop, solver, steps, path, list(truth.moves), seed)
        for seed, path in enumerate(paths[:1] if paths[0] is None else paths)
    ]
    return [once[s % len(once)] for s in range(len(paths))]


def _trials(
    problem: GradientProblem,
    entry: Entry,
    solver: Solver,
    steps: int,
    paths: Sequence[BrownianPath | None],
    parts: Sequence[str],
    chain: Sequence[Trial],
    with_bytes: bool,
) -> tuple[list[Trial], int | None]:
    """A trial a seed, and the peak of memory in bytes.

    Raises:
        Disqualified: under the same seed it gives another gradient, or x_0 is not the sampler's.
    """
    rounding = 1e3 * torch.finfo(problem.x_T.dtype).eps

    def differ(one: Tensor, other: Tensor) -> bool:
        moved = float((one - other).norm())
        # A gradient that is not finite is told as such.
        return moved > rounding * float(other.norm())

    def trial(seed: int) -> Trial:
        made = attempt(problem, entry.method, solver, steps, paths[seed], parts, seed)
        if differ(made.x_0, chain[seed].x_0):
            raise Disqualified(f"its x_0 is not that of {short_name(solver)}")
        return made

    trials, again = [trial(0)], []
    # Beside each other they tell a method that draws nothing from all others.
    for seed in range(1, len(paths)):
        trials.append(trial(seed))
        constant = all(torch.equal(trials[-1].gradients[p], trials[0].gradients[p]) for p in parts)
        if paths[0] is None and constant:
            break
    else:
        again.append(trial(0))
    size = peak_bytes(lambda: again.append(trial(0)), problem.x_T.device) if with_bytes else None
    for part, value in trials[0].gradients.items():
        if any(differ(other.gradients[part], value) for other in again):
            raise Disqualified(f"gives another gradient of {part} under the same seed")
    return trials, size


def _distances(
    trials: Sequence[Trial], references: Sequence[Mapping[str, Tensor]], parts: Sequence[str]
) -> dict[str, dict[str, float | None]]:
    """Errors by part as JSON has them: None where a number is not finite."""
    return {
        part: {
            name: value if math.isfinite(value) else None
            for name, value in errors(
                [trial.gradients[part] for trial in trials],
                [reference[part] for reference in references],
            ).items()
        }
        for part in parts
    }


class Measurement:
    """The measurement of one case; its truth is solved for once, when the first row is wanted.

    Args:
        case: the problem.
        seeds: Wiener paths, and states of the generators.
        truth_steps: steps of the fine solve.
        with_bytes: whether to measure peaks of memory.
    """

    def __init__(self, case: Case, seeds: int, truth_steps: int, with_bytes: bool) -> None:
        self.case, self.seeds, self.truth_steps = case, seeds, truth_steps
        self.with_bytes = with_bytes

    @cached_property
    def problem(self) -> GradientProblem:
        """The problem."""
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
        return truth_of(self.problem, self.paths, self.truth_steps, parts)

    def rows(self, steps: int, entries: Sequence[Entry]) -> Iterator[dict[str, Any] | None]:
        """A row an entry, each with how far the truth can be trusted; None as :func:`row` says."""
        chains: dict[str, list[Trial]] = {}
        for entry in entries:
            made = row(
                self.case, self.problem, entry, steps, self.paths, self.truth, chains,
                self.with_bytes,
            )  # fmt: skip
            yield made if made is None else made | {"truth_moves": self.truth.moves}
