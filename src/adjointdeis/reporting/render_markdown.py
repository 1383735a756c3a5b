"""A document as Markdown that also reads well as text."""

from pathlib import Path

from adjointdeis.evaluation.markdown import markdown_table, plain
from adjointdeis.reporting.document import (
    Bullets,
    Cell,
    Document,
    Facts,
    Figure,
    FigureRow,
    Folded,
    Prose,
    Section,
    Strips,
    Table,
)
from adjointdeis.reporting.text import target

__all__ = ["markdown", "markdown_table"]


def markdown(document: Document, directory: Path) -> str:
    """The document with links relative to `directory`, where the file will lie."""
    parts = [f"# {plain(document.title)}", plain(document.lead)]
    for section in document.sections:
        parts.append(_section(section, directory))
    parts += [plain(line) for line in document.footer]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(section: Section, directory: Path) -> str:
    blocks = [_block(block, directory) for block in section.blocks]
    return "\n\n".join([f"## {plain(section.title)}", *(b for b in blocks if b)])


def _block(block: object, directory: Path) -> str:
    match block:
        case Prose(text):
            return plain(text)
        case Bullets(items):
            return "\n".join(f"- {_item(item)}" for item in items)
        case Facts(items):
            return "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in items)
        case Table():
            return markdown_table(block)
        case Figure():
            path = target(block.png.relative_to(directory).as_posix())
            return f"![{_escape_link(block.alt)}]({path})"
        case FigureRow(title, figures):
            drawn = [_block(figure, directory) for figure in figures]
            return "\n\n".join([f"### {plain(title)}", plain(" ".join(block.captions)), *drawn])
        case Strips():
            path = target(block.sheet.relative_to(directory).as_posix())
            return f"![{_escape_link(block.alt)}]({path})"
        case Folded(summary, blocks):
            inner = "\n\n".join(_block(b, directory) for b in blocks)
            return f"<details>\n<summary>{plain(summary)}</summary>\n\n{inner}\n\n</details>"
    raise TypeError(f"no Markdown for {type(block).__name__}")


def _item(item: str | Cell) -> str:
    if isinstance(item, Cell):
        text = (
            f"[{_escape_link(item.text)}]({target(item.href)})" if item.href else plain(item.text)
        )
        return " ".join((text, *map(plain, item.detail)))
    return plain(item)


def _escape_link(text: str) -> str:
    return plain(text.replace("[", "(").replace("]", ")"))
