"""A page that shows gradients through sampling: trajectories, the true gradient, the method's.

python -m experiments.teaching.run [--out docs/_static/gradients.html]

Computes every sampler, method and N on a mixture in two dimensions, and writes one HTML file that
asks for nothing from outside.
"""

import argparse
import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjointdeis import sample
from adjointdeis.diffusion import MixtureDenoiser, VPLinear
from adjointdeis.files import write_atomically
from adjointdeis.gradients import DiscreteAdjoint, GradientMethod, NotSupportedError
from adjointdeis.gradients.catalogue import entry
from adjointdeis.harness.problem_sets import RememberedPath
from adjointdeis.problems import GradientProblem, distance
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    OBELM,
    DPMSolverPP,
    Rex,
    RungeKutta,
    SDEDPMSolver,
    SDEDPMSolverPP,
)
from adjointdeis.solvers.base import Solver

HERE = Path(__file__).parent
COUNTS = (5, 10, 20, 50, 100)
TARGET = (1.4, 0.9)
SAMPLERS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DPM-Solver++ 2M": DPMSolverPP(),
    "BDIA": BDIA(),
    "O-BELM": OBELM(),
    "Rex, midpoint": Rex("midpoint"),
    "Runge-Kutta 4": RungeKutta("rk4"),
    "SDE-DPM-Solver": SDEDPMSolver(),
    "SDE-DPM-Solver++ 2M": SDEDPMSolverPP(),
    "Rex, SDE": Rex(calculus="sde"),
}
METHODS = (
    "DiscreteAdjoint",
    "Reversible, BDIA",
    "SymplecticAdjoint",
    "AdjointDEIS-1",
    "AdjointDEIS-2M",
    "AdjointDEIS-2M, data prediction",
    "FlowGrad",
    "Lookahead, 4 leaps",
    "LeapAlign, two leaps",
    "OneStep",
    "Truncated, last 3 steps",
)
# Spread over the noise, so that paths end in all modes.
STARTS = ((-1.3, 1.0), (0.9, 1.2), (1.4, -0.7), (-0.6, -1.1), (0.1, 0.4), (-1.6, -0.2))


def problem() -> GradientProblem:
    """Three modes in the plane, six starting points, the squared distance to a point."""
    schedule = VPLinear()
    denoiser = MixtureDenoiser(
        schedule,
        means=torch.tensor([[-1.5, 0.9], [1.3, 1.1], [0.2, -1.4]], dtype=torch.float64),
        scales=torch.tensor([0.35, 0.3, 0.45], dtype=torch.float64),
    )
    denoiser.requires_grad_(False)
    x_T = torch.tensor(STARTS, dtype=torch.float64)
    target = torch.tensor(TARGET, dtype=torch.float64)

    def loss(x_0: Tensor) -> Tensor:
        return 0.5 * (x_0 - target).square().sum()

    return GradientProblem("plane", denoiser, schedule, x_T, torch.zeros(6, 0), loss)


def rounded(values: Tensor) -> list[Any]:
    """Four digits are enough to draw; what is not finite is null."""
    return [
        rounded(value) if value.ndim else (round(float(value), 4) if value.isfinite() else None)
        for value in values
    ]


def gradient(
    one: GradientProblem, method: GradientMethod, solver: Solver, steps: int, noise: Any
) -> Tensor:
    """dL/dx_T of every start, shape (6, 2)."""
    x_T = one.x_T.clone().requires_grad_()
    rollout = sample(
        one.denoiser, x_T, None, solver=solver, grid=one.grid("log-SNR", steps), noise=noise,
        gradient=method,
    )  # fmt: skip
    return torch.autograd.grad(one.loss(rollout.x_0), x_T)[0]


def computed() -> dict[str, Any]:
    """Everything that the page shows."""
    one = problem()
    path = RememberedPath(one.x_T.shape, seed=3)
    truths = {
        "ode": gradient(one, DiscreteAdjoint(), RungeKutta("rk4"), 1000, None),
        "sde": gradient(one, DiscreteAdjoint(), SDEDPMSolverPP(), 4000, path),
    }
    paths: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name, solver in SAMPLERS.items():
        noise = path if solver.calculus == "sde" else None
        for steps in COUNTS:
            grid = one.grid("log-SNR", steps)
            with torch.no_grad():
                states = sample(
                    one.denoiser, one.x_T, None, solver=solver, grid=grid, noise=noise,
                    trajectory=True,
                ).states  # fmt: skip
            # An evaluation in the middle of a step is no state: N + 1 of them.
            paths[f"{name}|{steps}"] = rounded(torch.stack(states, 1))
            for label in METHODS:
                method = entry(label).method()
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        value = gradient(one, method, solver, steps, noise)
                except (NotSupportedError, ValueError) as error:
                    found[f"{name}|{label}|{steps}"] = str(error).splitlines()[0]
                    continue
                error = distance(value.flatten(), truths[solver.calculus].flatten())
                found[f"{name}|{label}|{steps}"] = {
                    "g": rounded(value),
                    "error": error.relative if math.isfinite(error.relative) else None,
                    "cosine": error.cosine if math.isfinite(error.cosine) else None,
                    "length": error.ratio if math.isfinite(error.ratio) else None,
                }
    denoiser = one.denoiser
    return {
        "counts": COUNTS,
        "samplers": {name: solver.calculus for name, solver in SAMPLERS.items()},
        "methods": {label: entry(label).bias or "exact" for label in METHODS},
        "truth": {calculus: rounded(value) for calculus, value in truths.items()},
        "paths": paths,
        "gradients": found,
        "target": TARGET,
        "modes": [
            [*mean, scale]
            for mean, scale in zip(
                denoiser.means.tolist(), denoiser.log_scales.exp().tolist(), strict=True
            )
        ],
    }


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=HERE.parents[1] / "docs" / "_static" / "gradients.html"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = json.dumps(computed(), separators=(",", ":"), allow_nan=False)
    template = (HERE / "page.html").read_text(encoding="utf-8")
    page = template.replace("__DATA__", data.replace("</", "<\\/"))
    write_atomically(options.out, page)
    print(f"{options.out}: {len(page) // 1024} KiB")


if __name__ == "__main__":
    main()
