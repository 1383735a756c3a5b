"""A report as data: sections of paragraphs, tables, figures; what renders it is elsewhere.

Text is plain: renderers escape it for their language. A cell may carry detail lines under its
main text (a count, an interval) and a link to what stands behind the number.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from adjointdeis.evaluation.tables import DASH, Cell, Table, cells

__all__ = [
    "DASH", "Block", "Bullets", "Cell", "Document", "Facts", "Figure", "FigureRow", "Folded",
    "Picture", "Prose", "Section", "Strips", "Table", "cells", "drawn", "drawn_files",
    "folded", "parts",
]  # fmt: skip


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


def folded(table: Table, title: str = "", key: str = "") -> "Folded":
    """A table behind its own title, or another one."""
    return Folded(title or table.title, (replace(table, title=""),), key)


Block = Prose | Bullets | Facts | Table | Figure | FigureRow | Strips | Folded


def parts(blocks: Iterable[Block]) -> Iterator[Block]:
    """Every block, those that are folded away too."""
    for block in blocks:
        yield block
        if isinstance(block, Folded):
            yield from parts(block.blocks)


def drawn(figures: Iterable[Figure | None]) -> tuple[Figure, ...]:
    """The figures that there were."""
    return tuple(figure for figure in figures if figure is not None)


def drawn_files(blocks: Iterable[Block]) -> list[Path]:
    """The files of every figure."""
    rows = [block for block in parts(blocks) if isinstance(block, FigureRow)]
    return [path for row in rows for figure in row.figures for path in (figure.svg, figure.png)]


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

    @property
    def blocks(self) -> list[Block]:
        """Those of all sections."""
        return [block for section in self.sections for block in section.blocks]
