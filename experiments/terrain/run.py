"""Every gradient method on a network that nobody here wrote: terrains from a consistency model.

python -m experiments.terrain.run [--steps 4] [--methods NAME ...] [--model FILE] [--out FOLDER]

Needs the extra ``graphs`` and the model file of ``pip install --no-deps
adaptive-terrain-diffusion==0.4.2`` (MIT). Writes result.json and result.md.
"""

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from adjointdeis import TimeGrid, VarianceExploding, sample
from adjointdeis.diffusion import from_k_diffusion
from adjointdeis.evaluation.markdown import table
from adjointdeis.gradients import Backprop, GradientMethod
from adjointdeis.gradients.catalogue import CATALOGUE
from adjointdeis.harness.network_problems import (
    TERRAIN_LEVELS,
    Terrain,
    roughness,
    terrain_file,
)
from adjointdeis.solvers.base import Solver
from experiments.common.options import parser, publish

SIGMA_MAX, SIGMA_MIN = TERRAIN_LEVELS


def gradient_of(
    terrain: Terrain, solver: Solver, method: GradientMethod, steps: int
) -> dict[str, Any]:
    """Gradients of the roughness of one terrain, and what they cost."""
    adapted = from_k_diffusion(terrain, condition="difficulty", sigma_max=SIGMA_MAX)
    grid = TimeGrid.karras(VarianceExploding(SIGMA_MAX), steps, t_min=SIGMA_MIN / SIGMA_MAX)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 1, 128, 128, generator=generator)
    x_T = (SIGMA_MAX * noise).requires_grad_()
    z = torch.tensor([50.0], requires_grad=True)
    start = time.process_time()
    rollout = sample(adapted.denoiser, x_T, z, solver=solver, grid=grid, gradient=method)
    loss = roughness(rollout.x_0)
    loss.backward()
    cost = rollout.cost
    return {
        "x_T": x_T.grad, "z": z.grad, "roughness": float(loss.detach()), "nfe": cost.nfe,
        "vjps": cost.vjps, "latents": cost.peak_latents, "seconds": time.process_time() - start,
    }  # fmt: skip


def measure(terrain: Terrain, steps: int, methods: list[str]) -> list[dict[str, Any]]:
    """A row a method: relative error of both gradients against Backprop through its sampler."""
    truths: dict[str, dict[str, Any]] = {}
    rows = []
    for one in CATALOGUE:
        if one.ode is None or (methods and one.name not in methods):
            continue
        solver = one.ode()
        try:
            found = gradient_of(terrain, solver, one.method(), steps)
        except (ValueError, ImportError) as error:  # refused, or an extra is missing
            rows.append({"method": one.name, "refused": str(error).split(";")[0][:90]})
            continue
        if str(solver) not in truths:
            truths[str(solver)] = gradient_of(terrain, solver, Backprop(), steps)
        truth = truths[str(solver)]
        errors = {k: float((found[k] - truth[k]).norm() / truth[k].norm()) for k in ("x_T", "z")}
        kept = {k: found[k] for k in ("nfe", "vjps", "latents", "seconds")}
        rows.append({"method": one.name, "solver": str(solver), **errors, **kept})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    """The table."""
    command = parser(__doc__, __file__)
    command.add_argument("--steps", type=int, default=4)
    command.add_argument("--methods", nargs="*", default=[])
    command.add_argument("--model", type=Path, default=None)
    options = command.parse_args()
    try:
        path = options.model or terrain_file()
    except FileNotFoundError as error:
        command.error(f"{error}, or give --model FILE")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of long adjoint steps, which this measures
    rows = measure(Terrain(path), options.steps, options.methods)
    text = table(
        ["method", "error of x_T", "of z", "evaluations", "products", "latents", "seconds"],
        [
            [row["method"], row["refused"], *["-"] * 5]
            if "refused" in row
            else [
                row["method"], f"{row['x_T']:.1e}", f"{row['z']:.1e}", row["nfe"], row["vjps"],
                row["latents"], f"{row['seconds']:.1f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    publish(options.out, text, {"steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
