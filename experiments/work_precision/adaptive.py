"""Steps by tolerance on the error-price front of the fixed grids.

python -m experiments.work_precision.adaptive [--out FOLDER]

Takes the price of a product and the fixed grids of every method from result.json, and adds those of
the samplers that adaptive_grid uses. Writes adaptive.json, adaptive.md and a plot.
"""

import json
from typing import Any

import torch

from adjointdeis import TimeGrid, adaptive_grid, sample
from adjointdeis.evaluation.markdown import table
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.problems import PARTS, GradientProblem, distance, mixture
from adjointdeis.reporting.style import figure, save
from adjointdeis.solvers import DPMSolverPP, RungeKutta
from experiments.common.options import parser, publish, started
from experiments.common.plots import lines
from experiments.work_precision.run import HERE, error_of, price

SOLVERS = {
    f"{name}, {prediction}": RungeKutta(name, prediction)
    for name in ("heun", "bosh3", "dopri5")
    for prediction in ("noise", "data")
}
TOLERANCES = (3e-1, 1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
COUNTS = (4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 32, 40)
FIRST = 20  # steps of the log-SNR grid whose first width is tried first


def measured(
    problem: GradientProblem, solver: Any, grid: TimeGrid, truth: dict[str, Any], states: Any = None
) -> dict[str, Any]:
    """Errors of the exact gradient on a grid, and its counts; states as for ``sample``."""
    found = problem.differentiate(DiscreteAdjoint(), solver, grid, states=states)
    counts = {name: getattr(found.cost, name) for name in ("nfe_forward", "nfe_backward", "vjps")}
    errors = {part: vars(distance(found.gradients[part], truth[part])) for part in PARTS}
    return {"steps": grid.steps, "flow": errors, **counts}


def slopes_of_the_loss(
    problem: GradientProblem, solver: RungeKutta, tolerance: float, truth: dict[str, Any]
) -> dict[str, float]:
    """The derivative along one direction of x_T: of the replay, and with the grid chosen anew."""
    way = torch.randn(problem.x_T.shape, generator=torch.Generator().manual_seed(0)).double()
    step = 1e-5

    def loss(shift: float) -> float:
        x_T = problem.x_T + shift * way
        settings = {"solver": solver, "grid": problem.grid("log-SNR", FIRST)}
        found = adaptive_grid(
            problem.denoiser, x_T, problem.z, rtol=tolerance, atol=tolerance, **settings
        )
        with torch.no_grad():
            x_0 = sample(problem.denoiser, x_T, problem.z, solver=solver, grid=found.grid).x_0
        return float(problem.loss(x_0))

    settings = {"solver": solver, "grid": problem.grid("log-SNR", FIRST)}
    grid = adaptive_grid(
        problem.denoiser, problem.x_T, problem.z, rtol=tolerance, atol=tolerance, **settings
    ).grid
    replay = problem.differentiate(DiscreteAdjoint(), solver, grid).gradients["x_T"]
    exact = float(truth["x_T"] @ way.flatten())
    return {
        "replay": float(replay @ way.flatten()) / exact - 1.0,
        "controller": (loss(step) - loss(-step)) / (2.0 * step) / exact - 1.0,
    }


def main() -> None:
    """Measures, and compares each adaptive point with the cheapest fixed grid as good."""
    options = started(parser(__doc__, __file__))
    before = json.loads((HERE / "result.json").read_text())
    units, problem = before["seconds"], mixture()
    truth = problem.differentiate(
        DiscreteAdjoint(), RungeKutta("dopri5"), problem.grid("log-SNR", 400)
    ).gradients
    fixed, adaptive, slopes = list(before["rows"]), [], []
    for name, solver in {**SOLVERS, "DPM-Solver++ 2M": DPMSolverPP()}.items():
        for steps in COUNTS:
            row = measured(problem, solver, problem.grid("log-SNR", steps), truth)
            fixed.append({"method": f"fixed, {name}", **row, "price": price(row, units)})
    for name, solver in SOLVERS.items():
        for tolerance in TOLERANCES:
            found = adaptive_grid(
                problem.denoiser, problem.x_T, problem.z, solver=solver,
                grid=problem.grid("log-SNR", FIRST), rtol=tolerance, atol=tolerance,
            )  # fmt: skip
            row = measured(problem, solver, found.grid, truth)
            again = price(row, units)
            known = measured(problem, solver, found.grid, truth, found.states)
            cheapest = min(
                (r for r in fixed if error_of(r) <= error_of(row)), key=lambda r: r["price"]
            )
            adaptive.append(
                {
                    "method": name, "tolerance": tolerance, "rejected": found.rejected,
                    "search": found.cost.nfe, **row, "price": price(known, units) + found.cost.nfe,
                    "price_again": again, "fixed_price": cheapest["price"],
                    "fixed": f"{cheapest['method']}, N = {cheapest['steps']}",
                }
            )  # fmt: skip
    for name in ("bosh3, noise", "dopri5, noise"):
        for tolerance in TOLERANCES[1::2]:
            slopes.append(
                {"method": name, "tolerance": tolerance}
                | slopes_of_the_loss(problem, SOLVERS[name], tolerance, truth)
            )
    text = table(
        [
            "pair", "tolerance", "N", "rejected", "error", "price", "grid known",
            "cheapest fixed grid as good", "its price",
        ],
        [
            [
                r["method"], f"{r['tolerance']:g}", str(r["steps"]), str(r["rejected"]),
                f"{error_of(r):.2g}", f"{r['price']:.0f}", f"{r['price_again']:.0f}", r["fixed"],
                f"{r['fixed_price']:.0f}",
            ]
            for r in adaptive
        ],
    )  # fmt: skip
    text += "\n\n" + table(
        ["pair", "tolerance", "derivative of the replay", "with the grid chosen anew"],
        [
            [r["method"], f"{r['tolerance']:g}", f"{r['replay']:+.2g}", f"{r['controller']:+.2g}"]
            for r in slopes
        ],
    )
    with figure(8.6, 4.6) as (made, axes):
        shown = ("DPM-Solver++ 2M", "bosh3, noise", "dopri5, noise")
        series = [(f"fixed, {n}", f"fixed, {n}", fixed, "price") for n in shown]
        series += [(f"tolerance, {n}", n, adaptive, "price") for n in shown[1:]]
        series += [(f"tolerance, {n}, grid known", n, adaptive, "price_again") for n in shown[1:]]
        lines(
            axes,
            [
                (
                    label,
                    [r[key] for r in rows if r["method"] == method],
                    [error_of(r) for r in rows if r["method"] == method],
                )
                for label, method, rows, key in series
            ],
            floor=1e-6,
            ceiling=1e1,
        )
        axes.set_xlabel("price in forward passes")
        axes.set_ylabel("relative error of dL/dx_T")
        axes.set_title("Steps by tolerance, mixture")
        save(made, options.out / "adaptive")
    record = {
        "adaptive": adaptive, "slopes": slopes,
        "fixed": [r for r in fixed if r["method"].startswith("fixed")],
    }  # fmt: skip
    publish(options.out, text, record, "adaptive")


if __name__ == "__main__":
    main()
