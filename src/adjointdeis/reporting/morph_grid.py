"""The morph grid: identity a, each attack, identity b, a row per pair, and whom morphs fooled.

Under each morph stands one box per recogniser: filled where the morph matches both subjects, hollow
where it does not, crossed out where a comparison failed. Filled and hollow need no colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from adjointdeis.files import write_atomically

from .errors import ReportError

CELL = 144
GAP = 10
INK = (27, 29, 33)
QUIET = (100, 106, 116)
PAPER = (255, 255, 255)
EMPTY = (240, 242, 245)


@dataclass(frozen=True)
class GridRow:
    """One pair: its label, its images in column order (None leaves the cell empty), its verdicts.

    `verdicts[i]` belongs to `images[i]`: system -> `yes`, `no` or `failed`; empty for sources.
    """

    label: str
    images: tuple[Path | None, ...]
    verdicts: tuple[Mapping[str, str], ...]


def morph_grid(
    rows: Sequence[GridRow], header: Sequence[str], systems: Mapping[str, str], caption: str
) -> Image.Image:
    """Draws the grid.

    Args:
        rows: pairs from top to bottom.
        header: one title per column.
        systems: name -> printed label, in the order of the boxes.
        caption: a line under the grid; it should say which threshold and probe the boxes use.

    Raises:
        ReportError: a file that is not an image.
    """
    marked = any(verdict for row in rows for verdict in row.verdicts)
    box_height = 22 if marked else 0
    left = max(_width(row.label, 13) for row in rows) + 2 * GAP if rows else GAP
    head_lines = [_wrap(title, CELL, 14) for title in header]
    head = 18 * max(len(lines) for lines in head_lines) + GAP
    width = left + len(header) * (CELL + GAP) + GAP
    key = [f"{short}: {label}" for short, label in _abbreviations(systems).values()]
    legend = ["Filled: matches both subjects. Hollow: does not. Crossed: comparison failed. "
              + ", ".join(key) + "."] if marked else []  # fmt: skip
    foot = [line for text in (*legend, caption) for line in _wrap(text, width - 2 * GAP, 13)]
    row_height = CELL + box_height + GAP
    height = GAP + head + len(rows) * row_height + GAP + 18 * len(foot) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, lines in enumerate(head_lines):
        x = left + column * (CELL + GAP)
        top = GAP + head - GAP // 2 - 18 * len(lines)
        for i, line in enumerate(lines):
            draw.text((x, top + 18 * i), line, INK, _font(14, bold=True))
    for r, row in enumerate(rows):
        y = GAP + head + r * row_height
        draw.text((GAP, y + CELL // 2 - 8), row.label, INK, _font(13))
        for column, (path, verdicts) in enumerate(zip(row.images, row.verdicts, strict=True)):
            x = left + column * (CELL + GAP)
            if path is None:
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=EMPTY)
                draw.text((x + CELL // 2, y + CELL // 2), "no image", QUIET, _font(12), anchor="mm")
            else:
                sheet.paste(_face(path), (x, y))
            _boxes(draw, x, y + CELL + 3, verdicts, systems)
    for i, line in enumerate(foot):
        draw.text((GAP, height - GAP - 18 * (len(foot) - i)), line, QUIET, _font(13))
    return sheet


def write_morph_grid(sheet: Image.Image, path: Path) -> Path:
    """Writes the sheet as PNG, atomically."""
    write_atomically(path, lambda f: sheet.save(f, "PNG"), mode="wb")
    return path


def _boxes(
    draw: ImageDraw.ImageDraw,
    x: int,
    y: int,
    verdicts: Mapping[str, str],
    systems: Mapping[str, str],
) -> None:
    short = _abbreviations(systems)
    shown = [name for name in systems if name in verdicts]
    if not shown:
        return
    step = CELL / max(len(systems), 1)
    for name in shown:
        at = list(systems).index(name)
        left, right = round(x + at * step), round(x + (at + 1) * step) - 4
        box = (left, y, right, y + 16)
        verdict = verdicts[name]
        filled = verdict == "yes"
        draw.rectangle(box, fill=INK if filled else PAPER, outline=INK, width=1)
        draw.text(
            ((left + right) // 2, y + 8), short[name][0], PAPER if filled else INK, _font(11),
            anchor="mm",
        )  # fmt: skip
        if verdict == "failed":
            draw.line((left, y + 16, right, y), INK, 1)


def _abbreviations(systems: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The shortest distinct beginnings of the labels, two letters at least."""
    labels = list(systems.values())
    found = {}
    for name, label in systems.items():
        n = 2
        while n < len(label) and sum(other[:n] == label[:n] for other in labels) > 1:
            n += 1
        found[name] = (label[:n], label)
    return found


def _face(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ReportError(f"{path}: not a readable image ({error}); make it again") from None
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
