"""Plots of the studies, labelled directly at the lines."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from adjointdeis.reporting.style import halo, label_beside, look

Line = tuple[str, Sequence[float], Sequence[float]]


def lines(axes: Any, series: Sequence[Line], floor: float = 1e-14, ceiling: float = 1e3) -> None:
    """Draw labelled lines on logarithmic axes.

    Values outside [floor, ceiling] are drawn at the border: a method that blows up leaves the
    picture at its top, an exact one runs along its bottom.

    Args:
        axes: where to draw.
        series: name, x and y of each line.
        floor, ceiling: range of y.
    """
    ends = []
    for i, (name, x, y) in enumerate(series):
        style = look(i)
        shown = np.clip(np.nan_to_num(y, nan=ceiling, posinf=ceiling), floor, ceiling)
        axes.loglog(
            x, shown, color=style.colour, linestyle=style.dash, marker=style.marker, markersize=3.5
        )
        ends.append((name, x[-1], shown[-1], style.colour))
    axes.set_ylim(floor / 2, ceiling * 2)
    low, high = math.log10(floor), math.log10(ceiling)
    label_beside(axes, ends, low, high, x=1.06, fontsize=7, path_effects=halo())
