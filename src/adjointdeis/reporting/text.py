"""Numbers as a reader writes them, the same in every table of a report; and where links lead."""

from urllib.parse import quote

from adjointdeis.evaluation.tables import DASH, interval, of, percent, rate_cell, share
from adjointdeis.texts import slug

__all__ = [
    "IMPOSTORS", "PROBES", "count", "duration", "interval", "listed", "of", "percent", "plural",
    "rate_cell", "share", "small", "target",
]  # fmt: skip

PROBES = {
    "other": "another image of each subject",
    "source": "the very images that made the morph",
}
IMPOSTORS = {
    "all": "all pairs of different people (all)",
    "same-sex": "pairs of the same sex (same-sex)",
    "same-sex-and-group": "pairs of the same sex and group (same-sex-and-group)",
}


def small(value: float) -> str:
    """A ratio to three digits, without an exponent above one."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def count(value: float | None) -> str:
    """A count with thousands separated; means over pairs keep one digit."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


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


def target(href: str) -> str:
    """Where a link of a page leads: an anchor in it, or a path; never a scheme like `javascript:`.

    Names of others become anchors by `slug`, and are quoted in paths.
    """
    path, _, anchor = href.partition("#")
    return quote(path, safe="/") + (f"#{slug(anchor)}" if anchor else "")
