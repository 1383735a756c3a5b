"""Who is ahead of whom on the leaderboard, what that rests on, and the tables of it.

Methods are compared problem by problem: one that errs less on every problem by a little is ahead,
however much the problems differ among themselves. The zero vector takes part: its error is 1.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from adjointdeis.reporting.document import DASH, Cell, Table, cells

Row = Mapping[str, Any]
Problem = tuple[str, int, int]
"""Family, seed of the set, number in it."""

NETWORKS = ("mini", "terrain")
WORST, BEST = 1e3, 1e-12
"""Errors beyond these count as these: a gradient that diverged has no size."""

LEAST, DOUBT = 1.1, 3.0
"""To be ahead, an error is smaller by this factor, and by so many standard errors."""

_UNPLACED = (
    "a dash for a place: not ahead of the zero vector, or refused on some of the problems, so that "
    "its means are over the others alone"
)
_DETAIL = ("bias", "spread", "own sampler", "cosine", "length", "ms", "KiB")


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


def _detail(one: Standing) -> list[str]:
    numbers = one.numbers
    return [
        *(number(numbers[name]) for name in ("bias", "spread", "own")),
        cosine(one),
        number(numbers["ratio"]),
        DASH if numbers["seconds"] is None else f"{1e3 * numbers['seconds']:.0f}",
        DASH if numbers["bytes"] is None else f"{numbers['bytes'] / 1024:.0f}",
    ]


def cosine(one: Standing) -> str:
    """Median cosine with the truth."""
    value = one.numbers["cosine"]
    return DASH if value is None else f"{value:.3f}"


def price_table(
    found: Sequence[Standing], calculus: str, part: str, budgets: Sequence[int], moves: str
) -> Table:
    """The best N of every method at the first price, with the errors that the others buy."""
    main, *others = budgets
    board = at_price(found, main)
    names = {one.method for one in board}
    missing = [one for one in at_price(found, 10**9) if one.method not in names]
    by_budget = {b: {one.method: one for one in at_price(found, b)} for b in others}
    lines = []
    for one in [*board, *missing]:
        on_board = one.method in names
        columns = [
            _place(one) if on_board else DASH,
            Cell(one.method, (f"with {one.sampler}",)),
            str(one.steps) if on_board else DASH,
            f"{one.evaluations} + {one.products}" if on_board else DASH,
            number(one.error) if on_board else DASH,
            *(
                number(by_budget[b][one.method].error) if one.method in by_budget[b] else DASH
                for b in others
            ),
            *(_detail(one) if on_board else [DASH] * len(_DETAIL)),
        ]
        lines.append(cells(columns))
    header = (
        "place", "method", "N", "evaluations + products", f"error at price {main}",
        *(f"at {b}" for b in others), *_DETAIL,
    )  # fmt: skip
    return Table(
        f"{calculus}-{part}", f"Gradient of {part}", header, tuple(lines),
        labels=(("truth moves on halving its steps", moves),),
        notes=(
            _UNPLACED,
            *((f"a dash for N: its smallest costs more than {main}",) if missing else ()),
        ),
        fold=False,
    )  # fmt: skip


def level_table(
    found: Sequence[Standing],
    key: str,
    part: str,
    steps: int,
    before: str = "",
    others: Sequence[int] = (),
    labels: Sequence[tuple[str, str]] = (),
) -> Table:
    """Every method at one N, with its errors at others beside; ``before`` opens the title."""
    by_steps = {n: {one.method: one.error for one in found if one.steps == n} for n in others}
    lines = [
        cells([
            _place(one), Cell(one.method, (f"with {one.sampler}",)),
            f"{one.evaluations} + {one.products}", number(one.error),
            *(number(by_steps[n].get(one.method)) for n in others), *_detail(one),
            str(one.failed or DASH),
        ])
        for one in placed([one for one in found if one.steps == steps])
    ]  # fmt: skip
    header = (
        "place", "method", "evaluations + products", f"error at N = {steps}",
        *(f"at {n}" for n in others), *_DETAIL, "failed on",
    )  # fmt: skip
    title = f"{before}Gradient of {part} at N = {steps}"
    return Table(
        f"{key}-{part}-{steps}", title, header, tuple(lines), tuple(labels), notes=(_UNPLACED,),
        fold=False,
    )  # fmt: skip


def family_table(rows: Sequence[Row], calculus: str, part: str, steps: int) -> Table:
    """Errors by family of problems."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    by_family = {
        family: {
            one.method: one.error
            for one in standings([r for r in rows if r["family"] == family], part)
            if one.steps == steps
        }
        for family in families
    }
    methods = dict.fromkeys(name for found in by_family.values() for name in found)
    lines = [
        cells([name, *(number(by_family[family].get(name)) for family in families)])
        for name in methods
    ]
    return Table(
        f"{calculus}-{part}-families", f"Error in {part} at N = {steps} by family",
        ("method", *families), tuple(lines), fold=False,
    )  # fmt: skip


def _place(one: Standing) -> str:
    return DASH if one.place is None else str(one.place)


def moves(rows: Sequence[Row], part: str) -> str:
    """How far the truth itself is known."""
    truths = {
        (row["family"], row["seed"], row["number"], row["calculus"]): row["truth_moves"]
        for row in rows
    }
    found = sorted(move for one in truths.values() for move in one.get(part, ()))
    if not found:
        return DASH
    return f"median {number(found[len(found) // 2])}, at most {number(found[-1])}"


def number(value: float | None) -> str:
    """Two digits; what is beyond any use as such."""
    if value is None:
        return DASH
    if value >= WORST:
        return ">1000"
    return f"{value:.0f}" if value >= 100 else f"{value:.2g}"
