"""The morph grid: identity a, each attack, identity b, a row per pair, and whom morphs fooled.

Under each morph stands one box per recogniser: filled where the morph matches both subjects, hollow
where it does not, crossed out where a comparison failed. Filled and hollow need no colour.
"""

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from adjointdeis.files import write_atomically
from adjointdeis.images import ImageError, open_rgb
from adjointdeis.reporting.document import Picture
from adjointdeis.reporting.errors import ReportError
from adjointdeis.texts import printable

Colour = tuple[int, int, int]
CELL = 144
GAP = 10
INK = (27, 29, 33)
QUIET = (100, 106, 116)
PAPER = (255, 255, 255)
EMPTY = (240, 242, 245)
END = "Identity"


@dataclass(frozen=True)
class Text:
    """A line of text; `anchor` is Pillow's: `la` left and top, `mm` centred both ways."""

    x: float
    y: float
    line: str
    size: int
    ink: Colour = INK
    bold: bool = False
    anchor: str = "la"


@dataclass(frozen=True)
class Rectangle:
    """A rectangle, or with `stroke` alone a line from one corner to the other."""

    left: float
    top: float
    right: float
    bottom: float
    fill: Colour | None = None
    stroke: Colour | None = None


@dataclass(frozen=True)
class GridFace:
    """An image, a square of CELL pixels."""

    x: float
    y: float
    image: Image.Image


@dataclass(frozen=True)
class Sheet:
    """A grid laid out, to be drawn as pixels or as vectors."""

    width: int
    height: int
    items: tuple[Text | Rectangle | GridFace, ...]

    def pixels(self) -> Image.Image:
        """The sheet as an image."""
        sheet = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(sheet)
        for item in self.items:
            match item:
                case GridFace():
                    sheet.paste(item.image, (round(item.x), round(item.y)))
                case Text():
                    font = _font(item.size, bold=item.bold)
                    draw.text((item.x, item.y), item.line, item.ink, font, anchor=item.anchor)
                case Rectangle(fill=None):
                    draw.line((item.left, item.bottom, item.right, item.top), item.stroke, 1)
                case Rectangle():
                    corners = (item.left, item.top, item.right, item.bottom)
                    draw.rectangle(corners, fill=item.fill, outline=item.stroke, width=1)
        return sheet

    def svg(self) -> str:
        """The sheet as SVG: text and boxes as vectors, faces as the pixels they are."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" '
            'font-family="DejaVu Sans, Verdana, sans-serif">',
            f'<rect width="{self.width}" height="{self.height}" fill="{_hex(PAPER)}"/>',
        ]
        return "\n".join([*parts, *map(_svg, self.items), "</svg>\n"])


def pair_strip(
    pair: str,
    sources: Sequence[tuple[str, Path]],
    morphs: Iterable[tuple[Path, str, Sequence[tuple[str, str]]]],
    link: Callable[[Path], str],
) -> tuple[str, tuple[Picture, ...]]:
    """Title and faces of a pair, as `Strips` takes them: identity a, every morph, identity b.

    Args:
        sources: name and file of identity a, then of b.
        morphs: file, caption and (recogniser, verdict) of each.
        link: where a click on a file leads.
    """
    one, two = (
        (path, f"{END} {k}: {name}", ()) for k, (name, path) in zip("ab", sources, strict=True)
    )
    faces = (Picture(p, caption, tuple(v), link(p)) for p, caption, v in (one, *morphs, two))
    return f"Pair {pair}", tuple(faces)


def morph_grid(
    rows: Sequence[tuple[str, Sequence[Picture]]], systems: Sequence[str], caption: str
) -> Sheet:
    """Lays the grid out.

    Args:
        rows: strips of `pair_strip` from top to bottom; a file that is not there leaves its cell
            empty.
        systems: labels of the recognisers, in the order of the boxes.
        caption: a line under the grid; it should say which threshold and probe the boxes use.

    Raises:
        ReportError: a file that is not an image.
    """
    labels = [title.removeprefix("Pair ") for title, _ in rows]
    captions = [face.caption for face in rows[0][1]] if rows else []
    header = [f"{END} a", *captions[1:-1], f"{END} b"]
    marked = any(face.verdicts for _, faces in rows for face in faces)
    box_height = 22 if marked else 0
    left = max(_width(label, 13) for label in labels) + 2 * GAP if rows else GAP
    head_lines = [_wrap(title, CELL, 14) for title in header]
    head = 18 * max(len(lines) for lines in head_lines) + GAP
    width = left + len(header) * (CELL + GAP) + GAP
    key = [f"{short}: {label}" for label, short in _abbreviations(systems).items()]
    legend = ["Filled: matches both subjects. Hollow: does not. Crossed: comparison failed. "
              + ", ".join(key) + "."] if marked else []  # fmt: skip
    foot = [line for text in (*legend, caption) for line in _wrap(text, width - 2 * GAP, 13)]
    row_height = CELL + box_height + GAP
    height = GAP + head + len(rows) * row_height + GAP + 18 * len(foot) + GAP
    items: list[Text | Rectangle | GridFace] = []
    for column, lines in enumerate(head_lines):
        x = left + column * (CELL + GAP)
        top = GAP + head - GAP // 2 - 18 * len(lines)
        items += [Text(x, top + 18 * i, line, 14, bold=True) for i, line in enumerate(lines)]
    for r, (label, (_, faces)) in enumerate(zip(labels, rows, strict=True)):
        y = GAP + head + r * row_height
        items.append(Text(GAP, y + CELL // 2 - 8, label, 13))
        for column, face in enumerate(faces):
            x = left + column * (CELL + GAP)
            if not face.path.is_file():
                middle = Text(x + CELL // 2, y + CELL // 2, "no image", 12, QUIET, anchor="mm")
                items += [Rectangle(x, y, x + CELL - 1, y + CELL - 1, fill=EMPTY), middle]
            else:
                items.append(GridFace(x, y, _face(face.path)))
            items += _boxes(x, y + CELL + 3, dict(face.verdicts), systems)
    for i, line in enumerate(foot):
        items.append(Text(GAP, height - GAP - 18 * (len(foot) - i), line, 13, QUIET))
    return Sheet(width, height, tuple(items))


def write_morph_grid(sheet: Sheet, path: Path) -> Path:
    """Writes the sheet as PNG, and as SVG beside it, atomically; returns the PNG's path."""
    image = sheet.pixels()
    write_atomically(path, lambda f: image.save(f, "PNG"), mode="wb")
    write_atomically(path.with_suffix(".svg"), sheet.svg())
    return path


def _boxes(
    x: int, y: int, verdicts: Mapping[str, str], systems: Sequence[str]
) -> Iterator[Text | Rectangle]:
    short = _abbreviations(systems)
    step = CELL / max(len(systems), 1)
    for at, name in enumerate(systems):
        if name not in verdicts:
            continue
        left, right = round(x + at * step), round(x + (at + 1) * step) - 4
        filled = verdicts[name] == "yes"
        yield Rectangle(left, y, right, y + 16, fill=INK if filled else PAPER, stroke=INK)
        middle = ((left + right) // 2, y + 8)
        yield Text(*middle, short[name], 11, PAPER if filled else INK, anchor="mm")
        if verdicts[name] == "failed":
            yield Rectangle(left, y, right, y + 16, stroke=INK)


def _svg(item: Text | Rectangle | GridFace) -> str:
    match item:
        case GridFace():
            data = io.BytesIO()
            item.image.save(data, "PNG", optimize=True)
            encoded = base64.b64encode(data.getvalue()).decode("ascii")
            return (
                f'<image x="{item.x}" y="{item.y}" width="{CELL}" height="{CELL}" '
                f'href="data:image/png;base64,{encoded}"/>'
            )
        case Text():
            middle = item.anchor == "mm"
            where = 'text-anchor="middle" dominant-baseline="central"' if middle else ""
            # SVG sets text on its baseline, Pillow from its top.
            y = item.y if middle else item.y + 0.93 * item.size
            weight = ' font-weight="bold"' if item.bold else ""
            return (
                f'<text x="{item.x}" y="{y:g}" font-size="{item.size}" fill="{_hex(item.ink)}"'
                f"{weight} {where}>{escape(printable(item.line))}</text>"
            )
        case Rectangle(fill=None):
            ends = f'x1="{item.left}" y1="{item.bottom}" x2="{item.right}" y2="{item.top}"'
            return f'<line {ends} stroke="{_hex(item.stroke or INK)}"/>'
    stroke = f' stroke="{_hex(item.stroke)}"' if item.stroke else ""
    return (
        f'<rect x="{item.left}" y="{item.top}" width="{item.right - item.left}" '
        f'height="{item.bottom - item.top}" fill="{_hex(item.fill or PAPER)}"{stroke}/>'
    )


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _abbreviations(labels: Sequence[str]) -> dict[str, str]:
    """Two letters for each label, which its box is wide enough for: its first and another of it."""
    found: dict[str, str] = {}
    for number, label in enumerate(labels, 1):
        pairs = (label[0] + letter for letter in label[1:])
        found[label] = next((pair for pair in pairs if pair not in found.values()), str(number))
    return found


def _face(path: Path) -> Image.Image:
    try:
        image = open_rgb(path)
    except (ImageError, OSError) as error:
        raise ReportError(f"{error}; or make the morph again") from None
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image.resize((CELL, CELL), Image.Resampling.LANCZOS)


def _wrap(text: str, width: int, size: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and _width(longer, size, bold=True) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def _width(text: str, size: int, bold: bool = False) -> int:
    return int(_font(size, bold=bold).getlength(text)) + 1


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / name), size)
