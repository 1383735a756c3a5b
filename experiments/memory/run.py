"""Peak memory of each gradient against the number of steps, on the embedded network.

python -m experiments.memory.run [--counts 5 10 20 40 80] [--device cpu] [--out FOLDER]

Every byte of tensor storage alive is counted (on CUDA: the allocator's). Writes result.json,
result.md and a plot.
"""

import sys
from functools import partial
from typing import Any

import torch

from adjointdeis.evaluation.markdown import table
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint, Reversible
from adjointdeis.harness.live_memory import peak_bytes
from adjointdeis.harness.network_problems import mini
from adjointdeis.problems import GradientProblem
from adjointdeis.reporting.style import figure, save
from adjointdeis.rollout import sample
from adjointdeis.solvers import BDIA, DDIM
from experiments.common.options import parser, publish, started
from experiments.common.plots import lines

MIB = 2**20
METHODS: dict[str, Any] = {
    "Backprop": (Backprop, DDIM),
    "DiscreteAdjoint": (DiscreteAdjoint, DDIM),
    "DiscreteAdjoint, 5 activations": (partial(DiscreteAdjoint, keep_activations=5), DDIM),
    "DiscreteAdjoint, 3 snapshots": (partial(DiscreteAdjoint, snapshots=3), DDIM),
    "AdjointDEIS-1, recorded": (AdjointDEIS, DDIM),
    "AdjointDEIS-1, re-solved": (partial(AdjointDEIS, states="resolved"), DDIM),
    "Reversible, BDIA": (Reversible, BDIA),
}
STORE_EVERY_LATENT = (
    "DiscreteAdjoint",
    "DiscreteAdjoint, 5 activations",
    "AdjointDEIS-1, recorded",
)


def peak(problem: GradientProblem, method: Any, solver: Any, steps: int, device: str) -> int:
    """Peak bytes of one rollout and its gradient with respect to x_T and z."""
    grid = problem.grid("log-SNR", steps)
    x_T = problem.x_T.to(device).requires_grad_()
    z = problem.z.to(device).requires_grad_()

    def run() -> None:
        rollout = sample(problem.denoiser, x_T, z, solver=solver, grid=grid, gradient=method)
        # A plain loss: what the identity network needs is the same for every method.
        torch.autograd.grad(rollout.x_0.square().sum(), (x_T, z))

    return peak_bytes(run, device)


def main() -> None:
    """Measures every method at every N."""
    command = parser(__doc__, __file__)
    command.add_argument("--counts", type=int, nargs="+", default=[5, 10, 20, 40, 80])
    command.add_argument("--pairs", type=int, default=1, help="batch size")
    command.add_argument("--device", default="cpu")
    options = started(command)
    problem = mini(options.pairs, encoding_steps=20)
    problem.denoiser.to(options.device)
    latent = problem.x_T.numel() * problem.x_T.element_size()
    rows, cells = [], []
    for name, (make, solver) in METHODS.items():
        found = {}
        for steps in options.counts:
            found[steps] = peak(problem, make(), solver(), steps, options.device)
            print(f"{name}, N = {steps}: {found[steps] / MIB:.2f} MiB", file=sys.stderr, flush=True)
        latents = [bytes_ - steps * latent for steps, bytes_ in found.items()]
        stores_all = name in STORE_EVERY_LATENT
        ends = (min(found), max(found))
        row = {
            "method": name,
            "peak_bytes": found,
            # Between the smallest and the largest N.
            "growth": found[ends[1]] / found[ends[0]] - 1.0,
            "growth_beyond_latents": latents[-1] / latents[0] - 1.0 if stores_all else None,
        }
        rows.append(row)
        cells.append(
            [name, *(f"{b / MIB:.2f}" for b in found.values()), f"{100 * row['growth']:+.1f}%",
             f"{100 * row['growth_beyond_latents']:+.1f}%" if stores_all else "-"]
        )  # fmt: skip
    header = ["MiB at N =", *map(str, options.counts), "growth", "growth beyond N latents"]
    text = table(header, cells)
    result = {"latent_bytes": latent, "device": options.device, "rows": rows}
    with figure(7.2, 3.2) as (made, axes):
        series = [
            (row["method"], options.counts, [b / MIB for b in row["peak_bytes"].values()])
            for row in rows
        ]
        every = [y for _, _, ys in series for y in ys]
        lines(axes, series, floor=min(every), ceiling=max(every))
        axes.set_xticks(options.counts, [str(n) for n in options.counts])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("sampling steps N")
        axes.set_ylabel("peak, MiB")
        axes.set_title("Memory of one gradient, mini DiffAE")
        save(made, options.out / "memory")
    publish(options.out, text, result)


if __name__ == "__main__":
    main()
