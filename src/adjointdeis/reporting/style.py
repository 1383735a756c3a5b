"""How plots look: one ink, one ground, hues that differ in lightness, labels instead of legends.

Colours are those of Okabe and Ito, ordered so that neighbours differ in grey value; every colour
comes with its own dash and marker, so that none of the plots needs colour to be read.

References:
    | Color Universal Design (Okabe and Ito)
    | https://jfly.uni-koeln.de/color/
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.files import write_atomically

DPI = 160
# Read back when a plot is set inline in HTML, hence two hex values that nothing else uses.
INK = "#1b1d21"
PAPER = "#fefefe"
QUIET = "#7a818c"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#5b5b5b")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Look:
    """Colour, dash and marker of one attack, the same in every plot of a report."""

    colour: str
    dash: Any
    marker: str


def look(index: int) -> Look:
    """The look of the index-th attack."""
    return Look(
        _COLOURS[index % len(_COLOURS)],
        _DASHES[index % len(_DASHES)],
        _MARKERS[index % len(_MARKERS)],
    )


@contextmanager
def figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[Any]:
    """A figure and its axes in the reports' style; closed on leaving.

    Args:
        width, height: inches. Reports show plots about 22 rem wide, so 4.6 inches keep the type
            at the size of captions.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "axes.titlesize": 9,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.linewidth": 0.7,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.facecolor": PAPER,
        "figure.facecolor": PAPER,
        "savefig.facecolor": PAPER,
        "lines.linewidth": 1.5,
        # Unhinted, so that a label is as wide in the file as it was when the layout was solved.
        "text.hinting": "none",
        "svg.fonttype": "path",
        "svg.hashsalt": "adjointdeis",
    }
    with mpl.rc_context(settings):
        made = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        FigureCanvasAgg(made)
        axes = made.subplots(rows, columns, **options)
        yield made, axes


def save(made: Any, stem: Path) -> tuple[Path, Path]:
    """Writes `stem`.svg and `stem`.png atomically and returns both paths."""
    from matplotlib.mathtext import MathTextParser
    from matplotlib.text import Text

    for artist in made.findobj(Text):
        # Labels come from data, where `$` need not begin a formula.
        if "$" in artist.get_text():
            try:
                MathTextParser("path").parse(artist.get_text())
            except ValueError:
                artist.set_parse_math(False)
    # The layout is solved before writing, so that both files share it; labels outside of the axes
    # move when the axes shrink, hence the second pass.
    for _ in range(2):
        made.draw_without_rendering()
    made.set_layout_engine("none")
    paths = []
    for suffix, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": DPI})):
        data = io.BytesIO()
        made.savefig(data, format=suffix, **options)
        path = stem.with_name(f"{stem.name}.{suffix}")
        write_atomically(path, data.getvalue())
        paths.append(path)
    return paths[0], paths[1]


def spread(
    positions: Sequence[float] | np.ndarray, gap: float, low: float, high: float
) -> np.ndarray:
    """Label positions at least `gap` apart, near the given ones, within [low, high] if they fit.

    Labels keep the order of what they name: by least squares, neighbours that are too close become
    one block centred on its mean.

    Args:
        positions: Where the labels would be, in data units.
        gap: Least distance of two labels.
        low, high: The ends of the axis.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(positions, kind="stable")
    if not order.size:
        return np.empty(0)
    below = gap * np.arange(len(order))
    free = isotonic_regression(np.asarray(positions, dtype=np.float64)[order] - below).x
    result = np.empty(len(order))
    result[order] = np.clip(free, low, high - below[-1]) + below
    return result


def growth(labels: int, gap: float, span: float) -> float:
    """How many times as high a figure must be for its labels to stand `gap` apart within `span`."""
    return max(1.0, (labels - 1) * gap / span)


def label_beside(
    axes: Any,
    ends: Sequence[tuple[str, float, float, str]],
    low: float,
    high: float,
    *,
    x: float = 1.04,
    **text: Any,
) -> None:
    """Writes the name of every curve beside the axes, with a thin line from the curve's end.

    The figure grows until no name covers another.

    Args:
        axes: Where the curves are.
        ends: Name, x and y of the end in data, and colour of each curve.
        low, high: Range of the labels, in decades on a logarithmic axis.
        x: Where labels start, in widths of the axes.
        text: More of ``Axes.annotate``; the size is 8 points.
    """
    logarithmic = axes.get_yscale() == "log"
    text = {"fontsize": 8, **text}
    lines = max((name.count("\n") + 1 for name, *_ in ends), default=1)
    room = lines * text["fontsize"] * 1.3 / 72
    made = axes.figure
    made.draw_without_rendering()
    inches = axes.get_window_extent().height / made.dpi
    # What is written later takes a line of it.
    inches -= 0.2 * [axes.get_xlabel(), axes.get_title("left")].count("")
    limits = np.log10(axes.get_ylim()) if logarithmic else axes.get_ylim()
    span = inches * (high - low) / abs(limits[1] - limits[0])
    higher = growth(len(ends), room, span)
    if higher > 1:
        width, height = made.get_size_inches()
        rows = axes.get_subplotspec().get_gridspec().nrows
        made.set_size_inches(width, height + rows * (higher - 1) * inches)
    gap = room / (higher * span) * (high - low)
    values = np.array([y for _, _, y, _ in ends], dtype=np.float64)
    heights = spread(np.log10(values) if logarithmic else values, gap, low, high)
    heights = 10**heights if logarithmic else heights
    for (name, at, y, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (at, y),
            xytext=(x, height),
            textcoords=beside(axes),
            va="center",
            annotation_clip=False,
            arrowprops=leader(colour, 2),
            **text,
        )


def label_points(axes: Any, points: Sequence[tuple[str, float, float]], **text: Any) -> None:
    """Writes the name of every point near it, inside the axes and over no other name.

    Beside the point if there is room, else further away with a thin line to it; where there is
    none at all, where it covers least.

    Args:
        axes: With its data, scales and limits: names are fitted to them.
        points: Name, x and y in data; the first ones choose first.
        text: More of ``Axes.annotate``.
    """
    from matplotlib.text import Text

    axes.figure.draw_without_rendering()
    frame, taken = axes.get_window_extent(), []

    def box_of(label: Any) -> Any:
        label.update_positions(axes.figure.canvas.get_renderer())
        return Text.get_window_extent(label)  # without its line

    def covered(label: Any) -> float:
        box = box_of(label)
        outside = max(frame.x0 - box.x0, box.x1 - frame.x1, frame.y0 - box.y0, 0.0)
        return outside + frame.width * sum(box.overlaps(other) for other in taken)

    for name, x, y in points:
        tried: list[tuple[float, Any]] = []
        for up in (5, -5, 14, -14, 23, -23, 32, -32, 41, -41):
            for side in (1, -1):
                if not tried or tried[-1][0] > 0.0:
                    line = {**leader(QUIET, 2), "relpos": (side < 0, 0.5)}
                    label = axes.annotate(
                        name, (x, y), xytext=(4 * side, up), textcoords="offset points",
                        ha="left" if side > 0 else "right", va="bottom" if up > 0 else "top",
                        arrowprops=line if abs(up) > 5 else None, **text,
                    )  # fmt: skip
                    # The axes stay as wide as they were when the label was fitted.
                    label.set_in_layout(False)
                    tried.append((covered(label), label))
        best = min(tried, key=lambda one: one[0])[1]
        for _, label in tried:
            if label is not best:
                label.remove()
        taken.append(box_of(best))


def halo() -> list[Any]:
    """A ground-coloured outline that keeps a label readable on top of data."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=2.4, foreground=PAPER)]


def leader(colour: str, gap: float) -> dict[str, Any]:
    """The thin line from a mark, `gap` points away from it, to the left end of its label."""
    line = {"arrowstyle": "-", "relpos": (0, 0.5), "color": colour, "linewidth": 0.6}
    return {**line, "shrinkA": 1, "shrinkB": gap}


def beside(axes: Any) -> Any:
    """Coordinates for labels beside the axes: x as a fraction of them, y in data."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transAxes, axes.transData)


def above(axes: Any) -> Any:
    """Coordinates for labels above the axes: x in data, y as a fraction of them."""
    from matplotlib.transforms import blended_transform_factory

    return blended_transform_factory(axes.transData, axes.transAxes)
