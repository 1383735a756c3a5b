"""A document as Markdown that also reads well as text."""

from pathlib import Path

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


def markdown(document: Document, directory: Path) -> str:
    """The document with links relative to `directory`, where the file will lie."""
    parts = [f"# {document.title}", document.lead]
    for section in document.sections:
        parts.append(_section(section, directory))
    parts += list(document.footer)
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table, level: int = 3) -> str:
    """A table under its title and labels, cells on one line."""
    parts = [f"{'#' * level} {table.title}"] if table.title else []
    if table.labels:
        parts.append("; ".join(f"{name}: **{value}**" for name, value in table.labels) + ".")
    body = [[_escape(cell.flat) for cell in row] for row in table.rows]
    widths = [
        max(len(h), *(len(row[i]) for row in body), 3) if body else max(len(h), 3)
        for i, h in enumerate(table.header)
    ]
    lines = [_line([_escape(h) for h in table.header], widths)]
    lines.append("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    lines += [_line(row, widths) for row in body]
    parts.append("\n".join(lines))
    if table.notes:
        parts.append("\n".join(f"- {note}" for note in table.notes))
    return "\n\n".join(parts)


def _section(section: Section, directory: Path) -> str:
    blocks = [_block(block, directory) for block in section.blocks]
    return "\n\n".join([f"## {section.title}", *(b for b in blocks if b)])


def _block(block: object, directory: Path) -> str:
    match block:
        case Prose(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {_item(item)}" for item in items)
        case Facts(items):
            return "\n".join(f"- {name}: {value}" for name, value in items)
        case Table():
            return markdown_table(block)
        case Figure():
            path = block.png.relative_to(directory).as_posix()
            return f"![{_escape_link(block.alt)}]({path})"
        case FigureRow(title, figures):
            drawn = [_block(figure, directory) for figure in figures]
            return "\n\n".join([f"### {title}", " ".join(block.captions), *drawn])
        case Strips():
            path = block.sheet.relative_to(directory).as_posix()
            return f"![{_escape_link(block.alt)}]({path})"
        case Folded(summary, blocks):
            inner = "\n\n".join(_block(b, directory) for b in blocks)
            return f"<details>\n<summary>{summary}</summary>\n\n{inner}\n\n</details>"
    raise TypeError(f"no Markdown for {type(block).__name__}")


def _item(item: str | Cell) -> str:
    if isinstance(item, Cell):
        text = f"[{_escape_link(item.text)}]({item.href})" if item.href else item.text
        return " ".join((text, *item.detail))
    return item


def _line(row: list[str], widths: list[int]) -> str:
    return "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _escape_link(text: str) -> str:
    return text.replace("[", "(").replace("]", ")").replace("\n", " ")
