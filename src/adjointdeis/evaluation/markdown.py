"""Tables as Markdown that also reads well as text."""

import re
from collections.abc import Iterable, Sequence

from adjointdeis.evaluation.tables import Table
from adjointdeis.texts import printable

# Where CommonMark takes a `<` for the beginning of HTML or of a link; `p < 0.1` stays as it is.
_OPENS = re.compile(r"<(?=[A-Za-z/!?])")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, cells padded so that it also reads well as text."""
    body = [[_escape(str(cell)) for cell in row] for row in rows]
    head = [_escape(name) for name in header]
    widths = [max(len(h), *(len(r[i]) for r in body), 3) for i, h in enumerate(head)]
    lines = [_line(head, widths), "|" + "|".join("-" * (w + 2) for w in widths) + "|"]
    return "\n".join([*lines, *(_line(row, widths) for row in body)])


def markdown_table(found: Table, level: int = 3) -> str:
    """A table under its title and labels, cells on one line, notes below; level 0: no title."""
    parts = [f"{'#' * level} {plain(found.title)}"] if found.title and level else []
    if found.labels:
        parts.append(
            "; ".join(f"{plain(name)}: **{plain(value)}**" for name, value in found.labels) + "."
        )
    parts.append(table(found.header, ([cell.flat for cell in row] for row in found.rows)))
    if found.notes:
        parts.append("\n".join(f"- {plain(note)}" for note in found.notes))
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Text of others on one line of Markdown: no HTML, no links, no control characters."""
    return _OPENS.sub(r"\\<", printable(text.replace("\n", " "))).replace("](", "]\\(")


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"


def _escape(text: str) -> str:
    return plain(text).replace("|", "\\|")
