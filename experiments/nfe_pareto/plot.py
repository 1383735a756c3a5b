"""MMPMR against evaluations, one panel per recogniser; seeds of one attack as a band."""

from pathlib import Path
from typing import Any

import numpy as np
from report import PAPER_NFE

from adjointdeis.reporting.style import QUIET, figure, look


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes the plot: solid over all pairs, dashed over the subset; other-probe MMPMR."""
    base = result["baseline"]
    judges = list(dict.fromkeys(key.split("/")[0] for key in base))
    names = list(dict.fromkeys(curve["name"].split(" seed ")[0] for curve in result["curves"]))
    with figure(11.0, 4.2, columns=len(judges), sharey=True) as (made, axes):
        for axis, judge in zip(axes, judges, strict=True):
            key = f"{judge}/other"
            found = base[key]
            axis.axhspan(found["low"], found["high"], color=QUIET, alpha=0.12, lw=0)
            axis.axhline(found["value"], color=QUIET, lw=0.8)
            axis.plot([PAPER_NFE], [found["value"]], "*", color="k", ms=9)
            axis.axvline(PAPER_NFE / 5, color=QUIET, lw=0.8, ls=":")
            for number, name in enumerate(names):
                _curves(axis, result["curves"], name, key, number)
            axis.set_xscale("log")
            axis.set_xticks(
                [50, 100, 200, 450, 1000, 2250], ["50", "100", "200", "450", "1000", "2250"]
            )
            axis.minorticks_off()
            axis.set_xlabel("network evaluations (as the paper counts them)")
            axis.set_title(judge)
        axes[0].set_ylabel("MMPMR, other probe")
        handles, labels = axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=7, frameon=False)
        made.savefig(path, dpi=150)


def _curves(axis: Any, curves: list[dict[str, Any]], name: str, key: str, number: int) -> None:
    style = look(number)
    for pairs in sorted({curve["pairs"] for curve in curves}, reverse=True):
        chosen = [
            curve
            for curve in curves
            if curve["name"].split(" seed ")[0] == name and curve["pairs"] == pairs
        ]
        if not chosen:
            continue
        x = [point["nfe"] for point in chosen[0]["points"]]
        values = np.array([[p["rates"][key]["value"] for p in c["points"]] for c in chosen])
        label = f"{name}, {pairs} pairs" + (f", {len(chosen)} seeds" if len(chosen) > 1 else "")
        axis.plot(
            x,
            values.mean(0),
            color=style.colour,
            ls="-" if pairs >= 100 else "--",
            lw=1.8 if pairs >= 100 else 0.9,
            marker=style.marker,
            ms=3,
            label=label,
        )
        if len(chosen) > 1:
            axis.fill_between(x, values.min(0), values.max(0), color=style.colour, alpha=0.2, lw=0)
