"""Plots of the studies, labelled directly at the lines."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.reporting.style import beside, figure, halo, leader, look, save, spread

Line = tuple[str, Sequence[float], Sequence[float]]


def lines(
    axes: Any, series: Sequence[Line], floor: float = 1e-14, ceiling: float = 1e3, room: float = 0.9
) -> None:
    """Draw labelled lines on logarithmic axes.

    Values outside [floor, ceiling] are drawn at the border: a method that blows up leaves the
    picture at its top, an exact one runs along its bottom.

    Args:
        axes: where to draw.
        series: name, x and y of each line.
        floor, ceiling: range of y.
        room: share of the height that labels may take.
    """
    ends = []
    for i, (name, x, y) in enumerate(series):
        style = look(i)
        shown = np.clip(np.nan_to_num(y, nan=ceiling, posinf=ceiling), floor, ceiling)
        axes.loglog(
            x, shown, color=style.colour, linestyle=style.dash, marker=style.marker, markersize=3.5
        )
        ends.append((name, x[-1], math.log10(shown[-1]), style.colour))
    axes.set_ylim(floor / 2, ceiling * 2)
    low, high = math.log10(floor), math.log10(ceiling)
    gap = (high - low) * min(1 / 16, room / max(len(ends), 1))
    for (name, x, y, colour), place in zip(
        ends, spread([y for *_, y, _ in ends], gap, low, high), strict=True
    ):
        axes.annotate(
            name,
            (x, 10**y),
            xytext=(1.06, 10**place),
            textcoords=beside(axes),
            fontsize=7,
            va="center",
            color=colour,
            annotation_clip=False,
            path_effects=halo(),
            arrowprops=leader(colour, 2),
        )


def error_curves(rows: Sequence[dict[str, Any]], stem: Path, part: str = "x_T") -> None:
    """Error of the gradient of x_T against N, one panel a spacing; writes SVG and PNG.

    Full error against the continuous flow: the error that a user meets who wants the gradient
    of the model rather than of its sampler.
    """
    spacings = list(dict.fromkeys(row["spacing"] for row in rows))
    with figure(9.2, 2.9 * len(spacings), rows=len(spacings), squeeze=False) as (made, axes):
        for panel, spacing in zip(axes[:, 0], spacings, strict=True):
            found: dict[str, list[tuple[int, float]]] = {}
            for row in rows:
                if row["spacing"] == spacing and part in row.get("flow", {}):
                    # None is a gradient that is not finite: it leaves the picture at its top.
                    error = row["flow"][part]["relative"]
                    error = math.inf if error is None else error
                    found.setdefault(row["method"], []).append((row["steps"], error))
            series = [
                (name, [n for n, _ in points], [e for _, e in points])
                for name, points in found.items()
            ]
            lines(panel, series, floor=1e-6, ceiling=1e2)
            counts = sorted({row["steps"] for row in rows})
            panel.set_xticks(counts, [str(n) for n in counts])
            panel.set_xticks([], minor=True)
            panel.axhline(1.0, color="#7a818c", linewidth=0.6)
            panel.set_ylabel(f"relative error of dL/d{part}")
            panel.set_title(f"nodes uniform in {spacing}")
        axes[-1, 0].set_xlabel("sampling steps N")
        save(made, stem)
