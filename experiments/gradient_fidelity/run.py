"""Errors of every gradient method against the continuous flow and against its own sampler.

python -m experiments.gradient_fidelity.run [--problems gaussian mixture sde mini] [--quick]
    [--out FOLDER]

Writes result.json, result.md, and one plot a problem.
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adjointdeis.diffusion import BrownianPath
from adjointdeis.evaluation.markdown import table
from adjointdeis.harness.network_problems import mini
from adjointdeis.problems import PARTS, SPACINGS, distance, gaussian, mixture
from adjointdeis.reporting.style import figure, save
from experiments.common.methods import entries, shown
from experiments.common.options import parser, publish, started
from experiments.common.plots import lines
from experiments.gradient_fidelity.measure import measure, true_gradient

COUNTS = (5, 10, 20, 40, 80, 160, 320)
# Two pairs whose morphs are not equally far from both sources. There the identity loss d_a + d_b +
# |d_a - d_b| has a kink, and x_0 moved by any sampler's error may have another gradient altogether.
OFF_THE_KINK = partial(mini, 10, only=slice(1, 5, 3))
# The stochastic truth is of strong order one; the network costs a million times the mixture.
PLANS: dict[str, dict[str, Any]] = {
    "gaussian": {"make": gaussian, "calculus": "ode", "counts": COUNTS, "truth": 2000},
    "mixture": {"make": mixture, "calculus": "ode", "counts": COUNTS, "truth": 2000},
    "sde": {"make": mixture, "calculus": "sde", "counts": COUNTS, "truth": 5120},
    # An adaptive solve in float32 over a schedule with a kink at every timestep does not end.
    "mini": {
        "make": OFF_THE_KINK,
        "calculus": "ode",
        "counts": (10, 20, 40),
        "truth": 80,
        "without": ("Backsolve",),
    },
    # What the SDE makes of these pairs is nearer to one of them, by 0.16 and more.
    "mini-sde": {"make": mini, "calculus": "sde", "counts": (10, 20), "truth": 160},
}
QUICK: dict[str, Any] = {"counts": (10, 20), "truth": 160}


def study(name: str, plan: dict[str, Any]) -> dict[str, Any]:
    """Rows of one problem, with the error of its own truth."""
    problem = plan["make"]()
    path = BrownianPath(problem.x_T.shape, seed=0) if plan["calculus"] == "sde" else None
    noise = path
    coarse, truth = (
        true_gradient(problem, plan["calculus"], steps, noise)
        for steps in (plan["truth"] // 2, plan["truth"])
    )
    rows = list(
        measure(
            problem,
            plan["calculus"],
            plan["counts"],
            SPACINGS,
            truth,
            noise,
            methods=[
                one for one in entries(plan["calculus"]) if one.name not in plan.get("without", ())
            ],
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
    )
    return {
        "problem": name,
        "calculus": plan["calculus"],
        "truth_steps": plan["truth"],
        # The truth moves by this much when its steps are halved: nothing below it can be seen.
        "truth_moves": {
            part: distance(coarse.gradients[part], truth.gradients[part]).relative for part in PARTS
        },
        "rows": rows,
    }


def closing_table(found: dict[str, Any], steps: int, spacing: str = "log-SNR") -> str:
    """Every method at one N: errors, evaluations, memory."""
    header = [
        "method", "sampler", "x_T", "z", "theta", "cos x_T", "own chain, x_T", "F", "F with graph",
        "VJPs", "latents", "graphs",
    ]  # fmt: skip
    lines = []
    for row in found["rows"]:
        if (row["steps"], row["spacing"]) != (steps, spacing):
            continue
        if "refused" in row:
            lines.append([row["method"], row["solver"], "refused: " + row["refused"][:60]])
            lines[-1] += ["-"] * (len(header) - len(lines[-1]))
            continue
        flow, chain = row["flow"], row["chain"]
        lines.append(
            [
                row["method"],
                row["solver"],
                *(shown(flow[part]["relative"]) if part in flow else "-" for part in PARTS),
                shown(flow["x_T"]["cosine"], ".3f") if "x_T" in flow else "-",
                shown(chain["x_T"]["relative"], ".1g") if "x_T" in chain else "-",
                row["nfe_forward"],
                row["nfe_backward"],
                row["vjps"],
                row["latents"],
                row["graphs"],
            ]
        )
    return table(header, lines)


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


def main() -> None:
    """Runs the chosen problems; each is written as soon as it is done."""
    command = parser(__doc__, __file__)
    command.add_argument("--problems", nargs="+", choices=list(PLANS), default=list(PLANS))
    command.add_argument("--quick", action="store_true", help="N = 10 and 20 only, coarse truth")
    options = started(command)
    for name in options.problems:
        found = study(name, PLANS[name] | (QUICK if options.quick else {}))
        text = "\n\n".join(
            f"{name}, N = 20, nodes uniform in {spacing}. Truth: {found['truth_steps']} steps, "
            f"moves by {max(found['truth_moves'].values()):.1g} when halved.\n\n"
            + closing_table(found, 20, spacing)
            for spacing in SPACINGS
        )
        error_curves(found["rows"], options.out / name)
        publish(options.out, text, found, name)


if __name__ == "__main__":
    main()
