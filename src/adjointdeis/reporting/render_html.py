"""A document as one HTML file that asks for nothing from outside: styles, plots, images inside.

Plots are set as inline SVG whose black ink and white ground become the page's own colours, so
that they follow light, dark and print. Photographs are embedded, no wider than `EMBED_WIDTH`.
"""

import base64
import html as markup
import io
import re
from importlib.resources import files
from pathlib import Path

from PIL import Image

from adjointdeis.files import write_atomically
from adjointdeis.images import ImageError, open_rgb
from adjointdeis.reporting.document import (
    DASH,
    Bullets,
    Cell,
    Document,
    Facts,
    Figure,
    FigureRow,
    Folded,
    Picture,
    Prose,
    Section,
    Strips,
    Table,
)
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.render_markdown import markdown
from adjointdeis.reporting.style import INK, PAPER
from adjointdeis.reporting.text import target
from adjointdeis.texts import printable, slug

EMBED_WIDTH = 256
_NUMBER = re.compile(r"^[-+–~<>]?[\d.,]*[%/\d.e+-]*( s| min| h)?$")
_URL = re.compile(r"https?://[^\s<>\"')]+[^\s<>\"').,;]")
VERDICTS = {"yes": "matches both subjects", "no": "does not", "failed": "comparison failed"}


def escape(text: str) -> str:
    """Text as HTML, in content and in attributes; control characters are shown, not sent."""
    return markup.escape(printable(text, "\n"))


def html(document: Document) -> str:
    """The document as a complete page."""
    css = files("adjointdeis.reporting").joinpath("report.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#{slug(s.key)}">{escape(s.title)}</a></li>' for s in document.sections
    )
    sections = "\n".join(_section(s) for s in document.sections)
    footer = "".join(f"<p>{_text(line)}</p>" for line in document.footer)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        f'<a class="skip" href="#{slug(document.sections[0].key)}">Skip to the results</a>\n'
        f'<header><h1>{escape(document.title)}</h1><p class="lead">{_text(document.lead)}</p>\n'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n'
        f'<main class="main">\n{sections}\n</main>\n<footer>{footer}</footer>\n</body>\n</html>\n'
    )


def write_pages(document: Document, folder: Path) -> list[Path]:
    """Writes the document as `report.md` and `report.html` into a folder; returns both paths."""
    pages = {"report.md": markdown(document, folder), "report.html": html(document)}
    for name, text in pages.items():
        write_atomically(folder / name, text)
    return [folder / name for name in pages]


def _html_table(table: Table) -> str:
    """A table under its title and labels; on a narrow page its rows become cards."""
    labels = "".join(f"<li>{escape(n)}: <b>{escape(v)}</b></li>" for n, v in table.labels)
    fold = ' class="fold"' if table.fold else ""
    words = {
        i
        for i in range(1, len(table.header))
        if table.rows and not all(_NUMBER.match(row[i].text) for row in table.rows)
    }
    head = "".join(
        f'<th scope="col" role="columnheader"{" class=words" if i in words else ""}>'
        f"{escape(name)}</th>"
        for i, name in enumerate(table.header)
    )
    body = "".join(_row(row, table.header, words) for row in table.rows)
    notes = "".join(f"<li>{_text(note)}</li>" for note in table.notes)
    parts = [f'<div class="tbl" id="{slug(table.key)}">']
    if table.title:
        parts.append(f'<h3 id="{slug(table.key)}-title">{escape(table.title)}</h3>')
    if labels:
        parts.append(f'<ul class="labels">{labels}</ul>')
    name = f'aria-labelledby="{slug(table.key)}-title"' if table.title else 'aria-label="Table"'
    parts.append(
        f'<div class="scroll" role="region" tabindex="0" {name}>'
        f'<table role="table"{fold} {name}><thead role="rowgroup"><tr role="row">{head}</tr>'
        "</thead>"
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )
    if notes:
        parts.append(f'<ul class="notes">{notes}</ul>')
    return "\n".join([*parts, "</div>"])


def _row(row: tuple[Cell, ...], header: tuple[str, ...], words: set[int]) -> str:
    parts = [f'<tr role="row"><th scope="row" role="rowheader">{_cell(row[0])}</th>']
    for i, cell in enumerate(row[1:], start=1):
        empty = cell.text == DASH and not cell.detail
        kinds = ((cell.mark, cell.mark), ("words", i in words), ("none", empty))
        names = [name for name, on in kinds if on]
        style = f' class="{" ".join(names)}"' if names else ""
        parts.append(
            f'<td role="cell"{style} data-label="{escape(header[i])}">'
            f"<span>{_cell(cell)}</span></td>"
        )
    return "".join([*parts, "</tr>\n"])


def _cell(cell: Cell) -> str:
    text = escape(cell.text.replace(" = ", "\u00a0=\u00a0"))
    if cell.href:
        text = f'<a href="{target(cell.href)}">{text}</a>'
    detail = "".join(f'<span class="detail">{escape(line)}</span> ' for line in cell.detail)
    links = "".join(f'<a href="{target(to)}">{escape(word)}</a> ' for word, to in cell.links)
    links = f'<span class="detail links">{links.rstrip()}</span>' if links else ""
    return f'<span class="value">{text}</span> {detail}{links}'.rstrip()


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    title = f"<h2>{escape(section.title)}</h2>"
    return f'<section id="{slug(section.key)}">\n{title}\n{blocks}\n</section>'


def _block(block: object) -> str:
    match block:
        case Prose(text):
            return f"<p>{_text(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_item(item)}</li>" for item in items) + "</ul>"
        case Facts(items):
            return (
                "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{_text(v)}</dd>" for n, v in items)
            ) + "</dl>"
        case Table():
            return _html_table(block)
        case Figure():
            return f'<div class="figs">{_figure(block)}</div>'
        case FigureRow(title, figures):
            drawn = "\n".join(_figure(f) for f in figures)
            caption = _text(" ".join(block.captions))
            return (
                f'<h3>{escape(title)}</h3><p class="caption">{caption}</p>'
                f'<div class="figs">{drawn}</div>'
            )
        case Strips():
            return "\n".join(_strip(title, faces) for title, faces in block.strips)
        case Folded(summary, blocks, key):
            inner = "\n".join(_block(b) for b in blocks)
            # The target lies inside, so that following a link to it opens the fold.
            anchor = f'<span id="{slug(key)}"></span>' if key else ""
            return f"<details><summary>{escape(summary)}</summary>\n{anchor}{inner}\n</details>"
    raise TypeError(f"no HTML for {type(block).__name__}")


def _item(item: str | Cell) -> str:
    return _cell(item) if isinstance(item, Cell) else _text(item)


def _text(text: str) -> str:
    parts, at = [], 0
    for found in _URL.finditer(text):
        parts.append(escape(text[at : found.start()]))
        url = escape(found.group())
        parts.append(f'<a href="{url}">{url}</a>')
        at = found.end()
    return "".join([*parts, escape(text[at:])])


def _figure(figure: Figure) -> str:
    return f'<figure class="plot" id="{slug(figure.key)}">{_inline_svg(figure)}</figure>'


def _inline_svg(figure: Figure) -> str:
    svg = figure.svg.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', r'<svg viewBox="\1">', svg, count=1)
    # Two inline drawings share one name space of ids.
    prefix = re.sub(r"[^A-Za-z0-9]+", "-", figure.key)
    svg = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{prefix}-\1"', svg)
    svg = svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    title = f'<svg role="img" aria-label="{escape(figure.alt)}" '
    return svg.replace("<svg ", title, 1)


def _strip(title: str, faces: tuple[Picture, ...]) -> str:
    inner = "\n".join(_face(face) for face in faces)
    return (
        f'<div class="strip"><h3>{escape(title)}</h3>'
        f'<div class="faces" style="--n: {len(faces)}">{inner}</div></div>'
    )


def _face(face: Picture) -> str:
    if face.path.is_file():
        image = f'<img src="{_data_uri(face.path)}" alt="{escape(face.caption)}" loading="lazy">'
        if face.href:
            image = f'<a href="{target(face.href)}">{image}</a>'
    else:
        image = '<div class="missing">no image</div>'
    marks = "".join(
        f'<li class="{verdict}" title="{escape(system)}: {VERDICTS[verdict]}">{escape(system)}'
        f'<span class="hidden"> {VERDICTS[verdict]}</span></li>'
        for system, verdict in face.verdicts
    )
    marks = f'<ul class="verdicts">{marks}</ul>' if marks else ""
    return f"<figure>{image}<figcaption>{escape(face.caption)}</figcaption>{marks}</figure>"


def _data_uri(path: Path) -> str:
    try:
        image = open_rgb(path)
    except (ImageError, OSError) as error:
        raise ReportError(f"{error}; or make the morph again") from None
    if image.width > EMBED_WIDTH:
        height = round(image.height * EMBED_WIDTH / image.width)
        image = image.resize((EMBED_WIDTH, height), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if image.width <= 128:
        image.save(data, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(data, "JPEG", quality=90)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"
