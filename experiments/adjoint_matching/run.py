"""How near each fine-tuning comes to the tilted law of a Gaussian, where that is known.

python -m experiments.adjoint_matching.run [--steps 20 80] [--updates 100] [--seeds 3]
    [--out FOLDER]

The base is N(m, s^2) in four dimensions, the loss q/2 |x - c|^2: the tilted law is a Gaussian in
closed form. Every method has the same updates of Adam and the same batches. Writes result.json and
result.md.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise, TimeGrid, VPLinear
from adjointdeis.evaluation.markdown import table
from adjointdeis.guidance import (
    AdjointMatching,
    Algorithm,
    Batch,
    DRaFT,
    FineTuning,
    ImplicitDiffusion,
    WeightProblem,
)
from adjointdeis.solvers import SDEDPMSolver
from adjointdeis.solvers.base import Solver
from experiments.common.options import parser, publish, started

DIM, SCALE, CURVATURE, BATCH = 4, 0.7, 2.0, 128
RATE = 0.02


def normal(*shape: int, seed: int) -> Tensor:
    """Seeded standard normals in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def divergence(mean: Tensor, variance: float, other: Tensor, other_variance: float) -> float:
    """KL divergence of N(mean, variance) from N(other, other_variance), isotropic, in nats."""
    ratio = variance / other_variance
    distance = float((mean - other).square().sum()) / other_variance
    return 0.5 * (mean.numel() * (ratio - 1 - math.log(ratio)) + distance)


def sampled_law(denoiser: GaussianDenoiser, solver: Solver, grid: TimeGrid) -> tuple[Tensor, float]:
    """Mean and variance of what N steps draw: every step is affine in x, and adds known noise."""
    mean, variance = torch.zeros(1, DIM, dtype=torch.float64), 1.0
    zero, one = mean, mean + 1.0
    with torch.no_grad():
        for k in range(grid.steps):
            s, t = grid[k], grid[k + 1]
            ends = [solver.step(denoiser, x, None, s, t, (), zero)[0] for x in (mean, zero, one)]
            factor = float((ends[2] - ends[1]).mean())
            mean, variance = ends[0], factor**2 * variance
            variance += solver.noise_weight(s, t) ** 2  # type: ignore[attr-defined]
    return mean[0], variance


def methods(updates: int) -> dict[str, Callable[[], Algorithm]]:
    """Every method with the same optimiser and as many updates."""
    adam = partial(torch.optim.Adam, lr=RATE)
    return {
        "adjoint matching": lambda: AdjointMatching(adam, updates),
        "adjoint matching, last 5 steps": lambda: AdjointMatching(adam, updates, last=5),
        "exact fine-tuning": lambda: FineTuning(adam, updates),
        "DRaFT-1": lambda: DRaFT(adam, updates, last=1),
        "DRaFT-5": lambda: DRaFT(adam, updates, last=5),
        "Implicit Diffusion": lambda: ImplicitDiffusion(adam, updates),
    }


def tilted_law() -> tuple[Tensor, float]:
    """Mean and variance of the law in closed form: precisions add up."""
    precision = 1 / SCALE**2 + CURVATURE
    mean = (normal(DIM, seed=8) / SCALE**2 + CURVATURE * normal(DIM, seed=5)) / precision
    return mean, 1 / precision


def mean_loss(mean: Tensor, variance: float) -> float:
    """Expected loss of samples of a Gaussian."""
    gap = float((mean - normal(DIM, seed=5)).square().sum()) + DIM * variance
    return 0.5 * CURVATURE * gap


def gaussian_problem(
    denoiser: GaussianDenoiser, solver: Solver, grid: TimeGrid, seed: int
) -> WeightProblem:
    """The fine-tuning problem; the same batches for every method."""
    c = normal(DIM, seed=5)

    def draw(step: int) -> Batch:
        place = (seed * 10_000 + step) * 2
        noise = RecordedNoise.draw(grid.steps, (BATCH, DIM), place, torch.float64)
        return Batch(normal(BATCH, DIM, seed=place + 1), None, noise)

    def loss(x_0: Tensor) -> Tensor:
        return 0.5 * CURVATURE * (x_0 - c).square().sum(1)

    return WeightProblem(denoiser, draw, loss=loss, solver=solver, grid=grid)


def study(name: str, steps: int, updates: int, seed: int) -> dict[str, Any]:
    """One method: divergence of its samples from the tilted law, at the end and at its least."""
    schedule, solver = VPLinear(), SDEDPMSolver()
    grid = TimeGrid.uniform_lmbda(schedule, steps)
    denoiser, tilted = GaussianDenoiser(schedule, normal(DIM, seed=8), SCALE), tilted_law()

    def now() -> float:
        return divergence(*sampled_law(denoiser, solver, grid), *tilted)

    best = GaussianDenoiser(schedule, tilted[0], tilted[1] ** 0.5)
    run = methods(updates)[name]().start(gaussian_problem(denoiser, solver, grid, seed))
    curve = [now()]
    while not run.finished:
        if run.step() is not None:
            curve.append(now())
    return {
        "method": name, "steps": steps, "seed": seed, "updates": updates,
        "before": curve[0], "end": curve[-1], "least": min(curve),
        "least_at": curve.index(min(curve)),
        "tilted_network": divergence(*sampled_law(best, solver, grid), *tilted),
        "loss": mean_loss(*sampled_law(denoiser, solver, grid)),
        "evaluations": run.cost.nfe, "products": run.cost.vjps,
    }  # fmt: skip


def main() -> None:
    """The table."""
    command = parser(__doc__, __file__)
    command.add_argument("--steps", type=int, nargs="+", default=[20, 80])
    command.add_argument("--updates", type=int, default=100)
    command.add_argument("--seeds", type=int, default=3)
    options = started(command)
    rows = []
    for steps in options.steps:
        for name in methods(1):
            for seed in range(options.seeds):
                rows.append(study(name, steps, options.updates, seed))
                print(rows[-1], file=sys.stderr, flush=True)
    header = [
        "method", "N", "KL at the end", "range over seeds", "least on the way (update)", "loss",
        "evaluations", "products",
    ]  # fmt: skip
    lines = []
    for steps in options.steps:
        for name in methods(1):
            mine = [row for row in rows if (row["method"], row["steps"]) == (name, steps)]
            ends = sorted(row["end"] for row in mine)
            lines.append([
                name, steps, f"{sum(ends) / len(ends):.3g}", f"{ends[0]:.3g} to {ends[-1]:.3g}",
                f"{min(row['least'] for row in mine):.3g} ({mine[0]['least_at']})",
                f"{sum(row['loss'] for row in mine) / len(mine):.3g}",
                mine[0]["evaluations"], mine[0]["products"],
            ])  # fmt: skip
    known = {row["steps"]: row for row in rows}
    notes = "; ".join(
        f"N = {steps}: base {row['before']:.3g}, "
        f"the tilted law's own network {row['tilted_network']:.2g}"
        for steps, row in known.items()
    )
    text = table(header, lines) + f"\n\nKL of the samples from the tilted law, {notes}."
    publish(options.out, text, {"rows": rows})


if __name__ == "__main__":
    main()
