"""Who is ahead of whom on the leaderboard, and what that rests on.

Methods are compared problem by problem: one that errs less on every problem by a little is ahead,
however much the problems differ among themselves. The zero vector takes part: its error is 1.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

Row = Mapping[str, Any]
Problem = tuple[str, int, int]
"""Family, seed of the set, number in it."""

NETWORKS = ("mini", "terrain")
WORST, BEST = 1e3, 1e-12
"""Errors beyond these count as these: a gradient that diverged has no size."""

LEAST, DOUBT = 1.1, 3.0
"""To be ahead, an error is smaller by this factor, and by so many standard errors."""


@dataclass(frozen=True)
class Standing:
    """A method at one N, over several problems.

    Attributes:
        method, sampler, steps: what ran.
        logs: logarithm of the error against the flow, by problem.
        numbers: geometric means of bias, spread and own (the error against the sampler); medians
            of cosine, ratio, seconds and bytes.
        price: evaluations plus products, the largest over problems; both are attributes, too.
        failed: problems on which it gave no gradient that is finite.
        missing: problems that it refused while it took others: its means are over fewer, perhaps
            easier ones, so that it has no place and is on no front.
        place: one more than the number of methods that are ahead of it; None for one that is not
            ahead of the zero vector, and before :func:`placed` has compared it.
    """

    method: str
    sampler: str
    steps: int
    logs: Mapping[Problem, float]
    numbers: Mapping[str, float | None]
    price: int
    evaluations: int
    products: int
    failed: int
    missing: int = 0
    place: int | None = None

    @property
    def error(self) -> float:
        """Geometric mean of the errors against the flow."""
        return math.exp(statistics.fmean(self.logs.values()))


def standings(rows: Iterable[Row], part: str) -> list[Standing]:
    """Every method at every N that gives a gradient of this part, by error.

    Args:
        rows: of one calculus. A method that is disqualified in one of them is left out.
        part: "x_T", "z" or "theta".
    """
    groups: dict[tuple[str, int], list[Row]] = {}
    out = set()
    for row in rows:
        groups.setdefault((row["method"], row["steps"]), []).append(row)
        out |= {row["method"]} if "disqualified" in row else set()
    found = []
    for (method, steps), group in groups.items():
        done = [row for row in group if part in row.get("flow", {})]
        if not done or method in out:
            continue
        # Refused is not measured; failed and diverged are.
        logs = {key: math.log(WORST) for row in group if "failed" in row for key in _keys(row)}
        failed = len(logs)
        for row in done:
            for key, error in zip(_keys(row), row["flow"][part]["error"], strict=True):
                failed += error is None
                logs[key] = math.log(WORST if error is None else min(max(error, BEST), WORST))
        flow, chain = ([row[which][part] for row in done] for which in ("flow", "chain"))
        numbers: dict[str, float | None] = {
            name: _mean(_all(flow, name)) for name in ("bias", "spread")
        }
        numbers["own"] = _mean(_all(chain, "error"))
        for name in ("cosine", "ratio"):
            numbers[name] = _median(_all(flow, name))
        for name in ("seconds", "bytes"):
            numbers[name] = _median(row[name] for row in done)
        dearest = max(done, key=lambda row: row["evaluations"] + row["products"])
        counts = dearest["evaluations"], dearest["products"]
        missing = sum(row["members"] for row in group if "refused" in row)
        found.append(
            Standing(
                method, done[0]["sampler"], steps, logs, numbers, sum(counts), *counts, failed,
                missing,
            )
        )  # fmt: skip
    return sorted(found, key=lambda one: (round(math.log(one.error), 6), *_cheapness(one)))


def at_price(found: Sequence[Standing], budget: int) -> list[Standing]:
    """Of every method the best that the budget buys, placed; ``found`` is in order of error."""
    best: dict[str, Standing] = {}
    for one in sorted(found, key=lambda one: one.missing > 0):
        if one.price <= budget:
            best.setdefault(one.method, one)
    return placed(list(best.values()))


def placed(found: Sequence[Standing]) -> list[Standing]:
    """With their places, in their order; among equal places the cheaper one first.

    Those without a place come last, in the order in which they are given.
    """
    nothing = Standing("", "", 0, dict.fromkeys(_problems(found), 0.0), {}, 0, 0, 0, 0)
    compared = [one for one in found if not one.missing]
    placed, others = [], []
    for one in found:
        if not one.missing and ahead(one, nothing):
            before = sum(ahead(other, one) for other in compared if other is not one)
            placed.append(replace(one, place=1 + before))
        else:
            others.append(one)
    return sorted(placed, key=lambda one: (one.place, *_cheapness(one))) + others


def ahead(one: Standing, other: Standing) -> bool:
    """Whether one method is better than another beyond doubt, on the problems of both.

    Its error is smaller by a factor of :data:`LEAST` or more in the geometric mean, and by more
    than :data:`DOUBT` standard errors. Families are given and problems of a family are drawn, so
    that the standard error is that of a mean over strata.
    """
    families: dict[str, list[float]] = {}
    for key, log in one.logs.items():
        if key in other.logs:
            families.setdefault(key[0], []).append(other.logs[key] - log)
    count = sum(map(len, families.values()))
    if not count:
        return False
    gain = sum(map(sum, families.values())) / count
    # A single problem, such as a network, has no variance: the factor alone decides.
    variance = sum(len(f) * statistics.variance(f) for f in families.values() if len(f) > 1)
    return gain >= math.log(LEAST) and gain > DOUBT * math.sqrt(variance) / count


def front(found: Sequence[Standing]) -> list[Standing]:
    """Those that no other is better than at the same price or less, by price."""
    kept: list[Standing] = []
    whole = [one for one in found if not one.missing]
    for one in sorted(whole, key=lambda s: (s.price, s.error)):
        if not kept or one.error < kept[-1].error * (1 - 1e-6):
            kept.append(one)
    return kept


def first(rows: Iterable[Row], part: str, steps: int, count: int = 5) -> list[Standing]:
    """The first few gradients at one N; of methods that give the same one the cheapest."""
    found: list[Standing] = []
    for one in placed([one for one in standings(rows, part) if one.steps == steps]):
        if one.place is not None and not any(_same(one, other) for other in found):
            found.append(one)
    return found[:count]


def contradictions(sets: Sequence[Sequence[Standing]]) -> set[tuple[str, ...]]:
    """Pairs of methods of which one is ahead on one set of problems and the other on another."""
    orders = [{(a.method, b.method) for a in s for b in s if ahead(a, b)} for s in sets]
    return {
        tuple(sorted(pair))
        for one, other in combinations(orders, 2) for pair in one if pair[::-1] in other
    }  # fmt: skip


def _same(one: Standing, other: Standing) -> bool:
    """Whether two methods err alike on every problem, as exact ones of one sampler do."""
    return one.logs.keys() == other.logs.keys() and all(
        abs(log - other.logs[key]) < 1e-6 for key, log in one.logs.items()
    )


def _keys(row: Row) -> Iterator[Problem]:
    return ((row["family"], row["seed"], row["number"] + k) for k in range(row["members"]))


def _problems(found: Sequence[Standing]) -> set[Problem]:
    return {key for one in found for key in one.logs}


def _cheapness(one: Standing) -> tuple[float, float, str]:
    return one.price, one.numbers["bytes"] or math.inf, one.method


def _all(parts: Sequence[Row], name: str) -> list[float | None]:
    return [value for part in parts for value in part[name]]


def _mean(values: Iterable[float | None]) -> float:
    """Geometric mean of errors; of exact zeros and others their median."""
    found = [WORST if value is None else min(value, WORST) for value in values]
    return statistics.geometric_mean(found) if all(found) else statistics.median(found)


def _median(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None
