"""The morph grid: identity a, each attack, identity b, a row per pair, and whom morphs fooled.

Under each morph stands one box per recogniser: filled where the morph matches both subjects, hollow
where it does not, crossed out where a comparison failed. Filled and hollow need no colour. Grids
are of one run, or of the rows of a rebuilt table, whose links to runs are made here too.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageFont

from adjointdeis.images import ImageError, open_rgb
from adjointdeis.reporting.collect import AttackRuns, Collection, entries
from adjointdeis.reporting.document import Picture, Prose, Strips
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.paper_tables import Line, headline, systems_of
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.style import DPI, INK, PAPER, QUIET, figure, save
from adjointdeis.reporting.text import PROBES, share
from adjointdeis.texts import slug

CELL = 144
GAP = 10
EMPTY = "#f0f2f5"
END = "Identity"


class Column(NamedTuple):
    """One attack of a grid: its caption, its run, and its name there."""

    caption: str
    run: Run
    attack: str

    def morphs(self) -> dict[str, Path]:
        """Morph files by pair, in the order of the pair list; some may not exist."""
        pairs = self.run.result["pairs"]
        return {p["pair_id"]: self.run.path(p["morphs"].get(self.attack, "absent")) for p in pairs}


def morph_grid(
    columns: Sequence[Column],
    pairs: Sequence[Mapping[str, Any]],
    systems: Sequence[str],
    at: EvaluationSetting,
    sheet: Path,
    destination: Path,
    *,
    what: str,
    told: str,
) -> tuple[Prose, Strips]:
    """A sentence and a strip for every pair; draws them all as `sheet`, with an SVG beside it.

    Args:
        columns: The attacks.
        pairs: Of the first column's run; an image that is not there leaves its cell empty.
        systems: Recognisers, in the order of the boxes.
        at: The condition of the verdicts under each morph.
        sheet: Path of the PNG.
        destination: Folder that links are relative to.
        what: Names the columns; told: what pairs these are.

    Raises:
        ReportError: A file that is not an image.
    """
    labels = {s: c.run.system_label(s) for c in columns for s in systems if s in c.run.systems}
    morphs = [column.morphs() for column in columns]
    verdicts = [
        [(s, c.run.verdicts(c.attack, s, at)) for s in systems if s in c.run.systems]
        for c in columns
    ]
    strips = []
    for pair in pairs:
        name, run = pair["pair_id"], columns[0].run
        one, two = (
            (run.path(pair[f"source_{k}"]), f"{END} {k}: {pair[f'subject_{k}']}", ()) for k in "ab"
        )
        middle = (
            (files[name], c.caption, tuple((labels[s], of[name]) for s, of in own if name in of))
            for c, files, own in zip(columns, morphs, verdicts, strict=True)
        )
        faces = (
            Picture(path, caption, marks, relative(path, destination) if path.is_file() else "")
            for path, caption, marks in (one, *middle, two)
        )
        strips.append((f"Pair {name}", tuple(faces)))
    use = f"FMR {share(at.fmr)}, probe: {at.probe}, impostors: {at.impostors}. "
    draw_grid(strips, list(labels.values()), f"{use}Synthetic morphs, research use.", sheet)
    text = (
        f"{told} Under each morph the recognisers: filled where it matches both subjects at FMR "
        f"{share(at.fmr)} (against {PROBES.get(at.probe, at.probe)}), hollow where it does not, "
        "dashed where a comparison failed."
    )
    alt = f"Morph grid: identity a, {what}, identity b; one row per pair"
    return Prose(text), Strips(tuple(strips), sheet, alt)


def relative(path: Path, destination: Path) -> str:
    """A link from a page in `destination` to a file."""
    return Path(os.path.relpath(path, destination)).as_posix()


def draw_grid(
    strips: Sequence[tuple[str, Sequence[Picture]]],
    systems: Sequence[str],
    caption: str,
    sheet: Path,
) -> None:
    """Draws strips from top to bottom, in pixels and beside them as vectors.

    Args:
        strips: Title and faces of each pair.
        systems: Labels of the recognisers.
        caption: A line under the grid, which says which threshold and probe the boxes use.
        sheet: Path of the PNG.
    """
    from matplotlib.patches import Rectangle

    names = [title.removeprefix("Pair ") for title, _ in strips]
    captions = [face.caption for face in strips[0][1]] if strips else []
    heads = [_wrap(t, CELL, 14) for t in (f"{END} a", *captions[1:-1], f"{END} b")]
    marked = any(face.verdicts for _, faces in strips for face in faces)
    short = _abbreviations(systems)
    left = max(_width(name, 13) for name in names) + 2 * GAP if strips else GAP
    head = 18 * max(map(len, heads)) + GAP
    width = left + len(heads) * (CELL + GAP) + GAP
    key = ", ".join(f"{letters}: {label}" for label, letters in short.items())
    legend = ("Filled: matches both subjects. Hollow: does not. Crossed: comparison failed. "
              f"{key}.",) * marked  # fmt: skip
    foot = [line for text in (*legend, caption) for line in _wrap(text, width - 2 * GAP, 13)]
    row_height = CELL + 22 * marked + GAP
    height = GAP + head + len(strips) * row_height + GAP + 18 * len(foot) + GAP
    # A hair more, so that the picture is not a pixel smaller by rounding.
    with figure((width + 1e-3) / DPI, (height + 1e-3) / DPI) as (made, axes):
        made.set_layout_engine("none")
        axes.set_position((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.axis("off")

        def write(x: float, y: float, text: str, size: int, middle: bool = False, **more: Any):
            where = {"ha": "center", "va": "center_baseline"} if middle else {}
            axes.text(x, y if middle else y + 0.93 * size, text, fontsize=size * 72 / DPI,
                      parse_math=False, **where, **more)  # fmt: skip

        for column, lines in enumerate(heads):
            top = GAP + head - GAP // 2 - 18 * len(lines)
            for i, line in enumerate(lines):
                write(left + column * (CELL + GAP), top + 18 * i, line, 14, weight="bold")
        for r, (name, (_, faces)) in enumerate(zip(names, strips, strict=True)):
            y = GAP + head + r * row_height
            write(GAP, y + CELL // 2 - 8, name, 13)
            for column, face in enumerate(faces):
                x = left + column * (CELL + GAP)
                if face.path.is_file():
                    axes.imshow(_face(face.path), extent=(x, x + CELL, y + CELL, y),
                                interpolation="none", aspect="auto")  # fmt: skip
                else:
                    axes.add_patch(Rectangle((x, y), CELL, CELL, facecolor=EMPTY))
                    write(x + CELL // 2, y + CELL // 2, "no image", 12, True, color=QUIET)
                box, top = CELL / max(len(systems), 1), y + CELL + 3
                for k, system in enumerate(systems):
                    verdict = dict(face.verdicts).get(system)
                    if verdict is None:
                        continue
                    fill, ink = (INK, PAPER) if verdict == "yes" else (PAPER, INK)
                    ends = round(x + k * box), round(x + (k + 1) * box) - 4
                    patch = Rectangle((ends[0], top), ends[1] - ends[0], 16, linewidth=0.45)
                    patch.set(facecolor=fill, edgecolor=INK)
                    axes.add_patch(patch)
                    write(sum(ends) / 2, top + 8, short[system], 11, True, color=ink)
                    if verdict == "failed":
                        axes.plot(ends, (top + 16, top), color=INK, linewidth=0.45)
        for i, line in enumerate(foot):
            write(GAP, height - GAP - 18 * (len(foot) - i), line, 13, color=QUIET)
        save(made, sheet.with_suffix(""))


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
        if line and _width(longer, size) > width:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line]


def _width(text: str, size: int) -> int:
    return int(_font(size).getlength(text)) + 1


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", size)


PAIRS = 4
FIGURE = "figure"


def run_links(entry: AttackRuns, destination: Path) -> tuple[tuple[str, str], ...]:
    """(word, target) of every run's page, configuration and images, relative to `destination`."""
    found = []
    for run in entry.runs:
        seed = f"seed {run.result['run']['seed']}: " if len(entry.runs) > 1 else ""
        page = run.path("report.html").is_file()
        targets = (
            ("run", "report.html" if page else "result.json", ""),
            ("config", "config.yaml", ""),
            ("images", "report.html" if page else "morphs.png", "#morphs" if page else ""),
        )
        for word, name, anchor in targets:
            if run.path(name).is_file():
                found.append((seed + word, relative(run.path(name), destination) + anchor))
                seed = ""
    return tuple(found)


def table_grid(
    rows: Sequence[Line], at: EvaluationSetting, sheet: Path, destination: Path, pairs: int = PAIRS
) -> tuple[Prose, Strips] | None:
    """Identity a, every row's morph, identity b, for the first pairs that all rows have images of.

    Args:
        rows: a table; the paper's rows that no run made are left out.
        at: the condition of the verdicts under each morph.
        sheet: where the grid is written as one PNG, with an SVG beside it.
        destination: the folder that links are relative to.

    Returns:
        a sentence and the strips, or None where the rows have no pair with images in common.
    """
    ours = {id(line.ours): (line.label, line.ours) for line in rows if line.ours}
    columns = [Column(label, entry.runs[0], entry.attack) for label, entry in ours.values()]
    if not columns:
        return None
    run = columns[0].run
    images = [{p for p, path in c.morphs().items() if path.is_file()} for c in columns]
    common = [
        pair
        for pair in run.result["pairs"]
        if all(run.path(pair[side]).is_file() for side in ("source_a", "source_b"))
        and all(pair["pair_id"] in own for own in images)
    ]  # fmt: skip
    if not common:
        return None
    systems = [s for s in systems_of(rows) if any(s in c.run.systems for c in columns)]
    told = (
        "The first pairs that every row made, in the order of the pair list, not a selection; of "
        "several seeds the first."
    )
    return morph_grid(
        columns, common[:pairs], systems, at, sheet, destination, what="every row of the table",
        told=told,
    )  # fmt: skip


def figure_grids(collection: Collection, destination: Path) -> dict[str, tuple[Prose, Strips]]:
    """The grid of every `figure*` experiment, such as the paper's Figures 3 to 6, by its name."""
    found = {}
    for run in collection:
        name = run.result["experiment"]
        if not name.startswith(FIGURE):
            continue
        rows = [Line(entry.label, None, entry) for entry in entries([run])]
        for at in headline(rows)[:1]:
            grid = table_grid(rows, at, destination / "plots" / f"{slug(name)}.png", destination)
            if grid is not None:
                found[name] = grid
    return found
