"""The problems of the leaderboard: a committed set, and sets drawn from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from torch import Tensor

from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients.catalogue import Calculus
from adjointdeis.harness.network_problems import network_problem
from adjointdeis.problems import GradientProblem, drawn, together
from adjointdeis.reporting.standings import NETWORKS

COMMITTED = 24091
"""Seed of the committed set of problems."""


@dataclass(frozen=True)
class Case:
    """Problems of one family, each drawn by itself, that are measured at once.

    Attributes:
        family: of ``adjointdeis.problems.FAMILIES`` or :data:`NETWORKS`.
        losses: of ``adjointdeis.problems.LOSSES``; the problems take them in turn.
        seed: what they are drawn from; :data:`COMMITTED` for the committed set.
        calculus: "ode" or "sde".
        members: how many.
        number: which problem it is of a network, whose problems are measured one by one.
    """

    family: str
    losses: tuple[str, ...]
    seed: int
    calculus: Calculus
    members: int = 1
    number: int = 0

    @property
    def key(self) -> str:
        """A name that no other case has."""
        which = f"no{self.number}" if self.family in NETWORKS else f"{self.seed}x{self.members}"
        return "-".join((self.family, *self.losses, which, self.calculus))

    def problem(self) -> GradientProblem:
        """The problems themselves, as one."""
        if self.family in NETWORKS:
            return network_problem(self.family, self.losses[0], self.number)
        seeds = range(1000 * self.seed, 1000 * self.seed + self.members)
        turns = zip(cycle(self.losses), seeds, strict=False)
        return together([drawn(self.family, loss, seed) for loss, seed in turns])

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
    each: int,
    drawn_each: int,
    network_losses: Sequence[str],
) -> list[Case]:
    """The committed set, then ``draws`` sets drawn from ``seed``, ``seed`` + 1, ...

    The committed set has ``each`` problems of every family, a drawn one ``drawn_each``, which take
    the losses in turn. Networks are trained and not drawn: they belong to the committed set alone,
    with one problem for each of ``network_losses``, for they cost a thousand times as much.

    Raises:
        ValueError: a seed that is the committed set's.
    """
    seeds = [COMMITTED, *range(seed, seed + draws)]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seed={seed}: {COMMITTED} is the committed set; choose another")
    found = []
    for one in seeds:
        for family in problems:
            if family not in NETWORKS:
                members = each if one == COMMITTED else drawn_each
                found += [
                    Case(family, tuple(losses), one, calculus, members) for calculus in calculi
                ]
            elif one == COMMITTED:
                found += [
                    Case(family, (loss,), one, calculus, number=number)
                    for calculus in calculi for number, loss in enumerate(network_losses)
                ]  # fmt: skip
    return found
