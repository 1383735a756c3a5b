"""A report as data: sections of paragraphs, tables, figures; what renders it is elsewhere.

Text is plain: renderers escape it for their language. A cell may carry detail lines under its
main text (a count, an interval) and a link to what stands behind the number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DASH = "–"


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: the number itself.
        detail: further lines, shown smaller or after the text.
        href: where the number leads; `#id` stays within an HTML report.
        mark: `ours`, `paper` or empty; how the cell is set.
        links: (word, target) pairs set under the details; HTML alone shows them.
    """

    text: str
    detail: tuple[str, ...] = ()
    href: str = ""
    mark: str = ""
    links: tuple[tuple[str, str], ...] = ()

    @property
    def flat(self) -> str:
        """Text and details on one line."""
        return " ".join((self.text, *self.detail))


@dataclass(frozen=True)
class Table:
    """A table with its labels.

    Attributes:
        key: a stable identifier, also its file name.
        title: what it shows, in one line.
        labels: (name, value) pairs that a reader needs to doubt the numbers.
        header: column titles; the first column names the row.
        rows: cells in the order of the header.
        notes: lines under the table.
        fold: whether a narrow page turns each row into a card; long tables of short cells scroll.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    fold: bool = True


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of lines; a `Cell` among them may carry a link."""

    items: tuple[str | Cell, ...]


@dataclass(frozen=True)
class Facts:
    """Name and value pairs."""

    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        svg: its file, set inline in HTML; png: the same for Markdown.
        caption: how to read it; alt: the finding in words, for readers who cannot see it.
    """

    key: str
    svg: Path
    png: Path
    caption: str
    alt: str


@dataclass(frozen=True)
class FigureRow:
    """Figures of one kind, one per system, side by side where there is room; captions said once."""

    title: str
    figures: tuple[Figure, ...]

    @property
    def captions(self) -> tuple[str, ...]:
        """The distinct captions in order."""
        return tuple(dict.fromkeys(figure.caption for figure in self.figures))


@dataclass(frozen=True)
class Picture:
    """One face of a strip: its file, its caption and whom it matched as (system, verdict)."""

    path: Path
    caption: str
    verdicts: tuple[tuple[str, str], ...] = ()
    href: str = ""


@dataclass(frozen=True)
class Strips:
    """Strips of pictures, one strip per pair, and one image file that shows them all."""

    strips: tuple[tuple[str, tuple[Picture, ...]], ...]
    sheet: Path
    alt: str


@dataclass(frozen=True)
class Folded:
    """Blocks behind a summary line that the reader may open."""

    summary: str
    blocks: tuple["Block", ...]
    key: str = ""


Block = Prose | Bullets | Facts | Table | Figure | FigureRow | Strips | Folded


@dataclass(frozen=True)
class Section:
    """A headed part of a document."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report: the lead stands between the title and the first section."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    footer: tuple[str, ...] = ()


def cells(values: Sequence[str | Cell]) -> tuple[Cell, ...]:
    """Plain text turned into cells, cells left as they are."""
    return tuple(v if isinstance(v, Cell) else Cell(str(v)) for v in values)
