"""Error of each gradient against what it costs, in forward passes of the embedded network.

python -m experiments.work_precision.run [--rows ../gradient_fidelity/mixture.json] [--out FOLDER]

The errors and counts are those of gradient_fidelity; the price of an evaluation with a graph and
of a vector-Jacobian product is measured here. Writes result.json, result.md and a plot.
"""

import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from adjointdeis.evaluation.markdown import table
from adjointdeis.harness.network_problems import mini
from adjointdeis.problems import GradientProblem
from adjointdeis.reporting.style import figure, save
from experiments.common.options import parser, publish, started
from experiments.common.plots import lines

HERE = Path(__file__).parent


def unit_costs(problem: GradientProblem, repeats: int) -> dict[str, float]:
    """Seconds of a forward pass, of one with a graph, and of its product with a cotangent.

    Medians of interleaved repeats: a machine that slows down slows all three.
    """
    network = problem.denoiser
    t = torch.tensor(0.5, dtype=torch.float64)
    x = problem.x_T.clone().requires_grad_()
    z = problem.z.clone().requires_grad_()
    ones = torch.ones_like(x)
    seconds: dict[str, list[float]] = {"forward": [], "with_graph": [], "vjp": []}

    def timed(name: str, run: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = run()
        seconds[name].append(time.perf_counter() - start)
        return result

    def plain() -> None:
        with torch.no_grad():
            network(x, t, z)

    for _ in range(repeats + 2):
        timed("forward", plain)
        eps = timed("with_graph", lambda: network(x, t, z))
        timed("vjp", lambda eps=eps: torch.autograd.grad(eps, (x, z), ones))
    # The first two of each warm up.
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def price(row: dict[str, Any], units: dict[str, float]) -> float:
    """Forward passes that a row's evaluations and products are worth.

    Every product goes through one evaluation with a graph; the other evaluations have none.
    """
    plain = row["nfe_forward"] + row["nfe_backward"] - row["vjps"]
    pulled = (units["with_graph"] + units["vjp"]) / units["forward"]
    return plain + row["vjps"] * pulled


def error_of(row: dict[str, Any]) -> float:
    """Error of the gradient of x_T; infinite where that is not finite."""
    error = row["flow"]["x_T"]["relative"]
    return math.inf if error is None else error


def main() -> None:
    """Prices the rows and draws error against price."""
    command = parser(__doc__, __file__)
    command.add_argument(
        "--rows", type=Path, default=HERE.parent / "gradient_fidelity" / "mixture.json"
    )
    command.add_argument("--spacing", default="log-SNR")
    command.add_argument("--target", type=float, default=0.1, help="error that is to be reached")
    command.add_argument("--repeats", type=int, default=30)
    options = started(command)
    units = unit_costs(mini(1, encoding_steps=20), options.repeats)
    rows = [
        row | {"price": price(row, units)}
        for row in json.loads(options.rows.read_text())["rows"]
        if row["spacing"] == options.spacing and "x_T" in row.get("flow", {})
    ]
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    cells = []
    for name, found in methods.items():
        cheapest = min(
            (r for r in found if error_of(r) <= options.target),
            key=lambda r: r["price"],
            default=None,
        )
        at_20 = next((r for r in found if r["steps"] == 20), None)
        cells.append(
            [
                name,
                "-" if at_20 is None else f"{at_20['price']:.0f}",
                "-" if at_20 is None else f"{error_of(at_20):.2g}",
                f"none up to N = {found[-1]['steps']}"
                if cheapest is None
                else f"N = {cheapest['steps']}",
                "-" if cheapest is None else f"{cheapest['price']:.0f}",
            ]
        )
    header = [
        "method",
        "price at N = 20",
        "error at N = 20",
        f"first N with error <= {options.target:g}",
        "its price",
    ]
    ratios = {name: value / units["forward"] for name, value in units.items()}
    text = (
        f"One evaluation with a graph costs {ratios['with_graph']:.2f} and one product "
        f"{ratios['vjp']:.2f} forward passes of the mini DiffAE.\n\n" + table(header, cells)
    )
    with figure(8.6, 4.6) as (made, axes):
        lines(
            axes,
            [
                (name, [r["price"] for r in found], [error_of(r) for r in found])
                for name, found in methods.items()
            ],
            floor=1e-6,
            ceiling=1e2,
        )
        axes.set_xlabel("price in forward passes")
        axes.set_ylabel("relative error of dL/dx_T")
        axes.set_title("Work and precision, mixture")
        save(made, options.out / "work_precision")
    publish(options.out, text, {"seconds": units, "ratios": ratios, "rows": rows})


if __name__ == "__main__":
    main()
