"""Numbers as a reader writes them, the same in every table of a report."""

import math
from collections.abc import Mapping
from typing import Any

from adjointdeis.reporting.document import DASH, Cell

PROBES = {
    "other": "another image of each subject",
    "source": "the very images that made the morph",
}
IMPOSTORS = {
    "all": "all pairs of different people (all)",
    "same-sex": "pairs of the same sex (same-sex)",
    "same-sex-and-group": "pairs of the same sex and group (same-sex-and-group)",
}


def percent(value: float | None, n: int | None = None) -> str:
    """A share as percent without its sign; one digit where one of n weighs over 0.5 points."""
    if value is None or math.isnan(value):
        return DASH
    digits = 1 if n is not None and n < 200 else 2
    return f"{100 * value:.{digits}f}"


def small(value: float) -> str:
    """A ratio to three digits, without an exponent above one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def share(value: float) -> str:
    """A target share as a reader writes it: 0.001 is `0.1%`."""
    return f"{100 * value:g}%"


def count(value: float | None) -> str:
    """A count with thousands separated; means over pairs keep one digit."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def of(k: float | None, n: int | None) -> str:
    """`k/N`."""
    if k is None or n is None:
        return DASH
    return f"{k:g}/{n}" if float(k).is_integer() else f"{k:.1f}/{n}"


def interval(lo: float | None, hi: float | None, n: int | None = None) -> str:
    """`[lo, hi]` in percent."""
    if lo is None or hi is None:
        return ""
    return f"[{percent(lo, n)}, {percent(hi, n)}]"


def rate_cell(row: Mapping[str, Any] | None, href: str = "", mark: str = "") -> Cell:
    """MMPMR in percent with k/N and the Wilson interval under it; a dash for no row."""
    if row is None:
        return Cell(DASH)
    n = row["n"]
    detail = (of(row["k"], n), interval(row["wilson_lo"], row["wilson_hi"], n))
    return Cell(percent(row["value"], n), tuple(d for d in detail if d), href, mark)


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them."""
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def plural(n: int, noun: str) -> str:
    """`1 pair`, `16 pairs`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def listed(words: list[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
