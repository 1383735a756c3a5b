"""Tables of standings: at equal price, at one N, by family; and how their numbers are written."""

from collections.abc import Sequence

from adjointdeis.reporting.document import DASH, Cell, Table, cells
from adjointdeis.reporting.standings import (
    WORST,
    Row,
    Standing,
    at_price,
    placed,
    standings,
)

_UNPLACED = (
    "a dash for a place: not ahead of the zero vector, or refused on some of the problems, so that "
    "its means are over the others alone"
)
_DETAIL = ("bias", "spread", "own sampler", "cosine", "length", "ms", "KiB")


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
