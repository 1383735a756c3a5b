"""Where each gradient flips its sign or blows up, and how far reversible solvers can be reversed.

python -m experiments.stability.run [--quick] [--out FOLDER]

Writes result.json, result.md and a plot.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch

from adjointdeis.evaluation.markdown import table
from adjointdeis.gradients import DiscreteAdjoint, Reversible
from adjointdeis.problems import distance, mixture
from adjointdeis.reporting.style import figure, halo, label_beside, look, save
from adjointdeis.solvers import BDIA, EDICT, OBELM, Rex
from experiments.common.methods import entries, short_name, shown
from experiments.common.options import parser, publish, started
from experiments.stability.factors import factor, first_flip

REVERSIBLE = (EDICT(), BDIA(), BDIA(gamma=0.5), OBELM(), Rex(), Rex(zeta=0.9))


def sign_flips(widths: list[float]) -> list[dict[str, Any]]:
    """Factor against step width, and the width from which the sign is wrong."""
    rows = []
    for calculus in ("ode", "sde"):
        for one in entries(calculus):
            if not one.capability("x_T"):
                continue
            found = {h: factor(one, calculus, h) for h in widths}
            rows.append(
                {
                    "method": one.name,
                    "calculus": calculus,
                    "ratio": {
                        h: None if f is None or not math.isfinite(f.ratio) else f.ratio
                        for h, f in found.items()
                    },
                    "first_flip": first_flip(one, calculus),
                }
            )
            print(f"{calculus}, {one.name}", file=sys.stderr, flush=True)
    return rows


def reversals(counts: list[int]) -> list[dict[str, Any]]:
    """Error of the reversible gradient against that of its own chain, by precision."""
    rows = []
    for dtype in (torch.float64, torch.float32):
        problem = mixture().to("cpu", dtype)
        for solver in REVERSIBLE:
            errors = {}
            for steps in counts:
                grid = problem.grid("log-SNR", steps)
                pair = [
                    problem.differentiate(method, solver, grid, parts=["x_T"]).gradients["x_T"]
                    for method in (Reversible(), DiscreteAdjoint())
                ]
                bad = not bool(pair[1].isfinite().all()) or float(pair[1].norm()) == 0.0
                error = math.inf if bad else distance(*pair).relative
                errors[steps] = error if math.isfinite(error) else None
            rows.append({"solver": short_name(solver), "dtype": str(dtype)[6:], "error": errors})
    return rows


def main() -> None:
    """Both measurements."""
    command = parser(__doc__, __file__)
    command.add_argument("--quick", action="store_true")
    options = started(command)
    import warnings

    warnings.simplefilter("ignore")  # the study measures what the warnings warn of
    widths = [0.4, 1.0] if options.quick else [round(0.1 * i, 1) for i in range(1, 16)]
    counts = [20, 50] if options.quick else [20, 50, 100, 160, 320]
    flips, reversed_ = sign_flips(widths), reversals(counts)
    text = tables(flips, reversed_, widths, counts)
    draw([row for row in flips if row["calculus"] == "ode"], widths, options.out / "stability")
    publish(options.out, text, {"sign": flips, "reversal": reversed_})


def tables(
    flips: list[dict[str, Any]],
    reversed_: list[dict[str, Any]],
    widths: list[float],
    counts: list[int],
) -> str:
    """Both tables."""
    columns = [h for h in (0.2, 0.4, 0.7, 1.0, 1.5) if h in widths] or widths
    first = table(
        ["method", "calculus", "wrong sign from h", *(f"ratio at h = {h}" for h in columns)],
        [
            [
                row["method"],
                row["calculus"],
                "-" if row["first_flip"] is None else f"{row['first_flip']:.3f}",
                *("-" if (v := row["ratio"][h]) is None else f"{v:.3g}" for h in columns),
            ]
            for row in flips
        ],
    )
    second = table(
        ["gradient of", "precision", *(f"N = {n}" for n in counts)],
        [
            [row["solver"], row["dtype"], *(shown(e, ".1g") for e in row["error"].values())]
            for row in reversed_
        ],
    )
    return f"{first}\n\n{second}"


def draw(rows: list[dict[str, Any]], widths: list[float], stem: Path) -> None:
    """Gradient over true gradient against the width of a step."""
    with figure(8.0, 3.8) as (made, axes):
        ends = []
        for i, row in enumerate(rows):
            style = look(i)
            points = [(h, row["ratio"][h]) for h in widths if row["ratio"][h] is not None]
            if not points:
                continue
            x, y = zip(*points, strict=True)
            y = [max(-3.0, min(3.0, value)) for value in y]
            axes.plot(x, y, color=style.colour, linestyle=style.dash)
            ends.append((row["method"], x[-1], y[-1], style.colour))
        axes.axhline(0.0, color="#7a818c", linewidth=0.6)
        axes.set_ylim(-3.2, 3.2)
        axes.set_xlabel("log-SNR width h of a step")
        axes.set_ylabel("gradient / true gradient")
        axes.set_title("1 is right; below 0 the descent goes up")
        label_beside(axes, ends, -3.1, 3.1, fontsize=7, path_effects=halo())
        save(made, stem)


if __name__ == "__main__":
    main()
