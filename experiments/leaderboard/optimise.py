"""Does a better gradient give a better result? Latents and weights optimised at equal price.

python -m experiments.leaderboard.optimise [--price 1200] [--seeds 3] [--out FOLDER]

Latents: x_T of drawn mixtures in 16 dimensions, by Adam and by plain descent, as many steps as the
price buys; judged by the loss that a fine solve from the x_T that was found has. Weights: the
Gaussian of adjoint_matching, with every estimator of the loss's gradient; judged by how far the law
has moved from the base once the loss is that of the tilted law, whose own move is the least there
is. Writes optimisation.json and optimisation.md.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adjointdeis import sample
from adjointdeis.diffusion import GaussianDenoiser, TimeGrid, VPLinear
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.storage import write_json
from adjointdeis.files import write_atomically
from adjointdeis.gradients.catalogue import entry
from adjointdeis.guidance import AdjointMatching, Algorithm, FineTuning
from adjointdeis.problems import drawn
from adjointdeis.solvers import RungeKutta, SDEDPMSolver
from experiments.adjoint_matching import run as tilted

N = 20
LATENTS = (
    "DiscreteAdjoint, 2M sampler", "Reversible, BDIA", "DiscreteAdjoint", "SymplecticAdjoint",
    "FlowGrad", "Lookahead, 4 leaps", "AdjointDEIS-1", "AdjointDEIS-2M", "OneStep",
    "LeapAlign, two leaps",
)  # fmt: skip
WEIGHTS = (
    "DiscreteAdjoint", "Lookahead, 4 leaps", "Truncated, last 3 steps",
    "ReFL, third step from the end", "DRTune, 4 steps", "LeapAlign, two leaps",
    "FlowBP-Bridge, 4 steps", "SDO, middle step", "OneStep", "AdjointDEIS-1",
)  # fmt: skip
OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": partial(torch.optim.Adam, lr=0.1),
    "descent": partial(torch.optim.SGD, lr=0.1),
}


def latents(name: str, optimiser: str, seed: int, price: int) -> dict[str, Any]:
    """Optimises x_T for a price; the loss per sample of a fine solve before and after."""
    problem = drawn("mixture-16", "distance", seed)
    problem.denoiser.requires_grad_(False)
    one = entry(name)
    solver, method = one.solver("ode"), one.method()
    assert solver is not None
    x_T = problem.x_T.clone().requires_grad_()
    grid, fine = problem.grid("log-SNR", N), problem.grid("log-SNR", 200)

    def judged() -> float:
        with torch.no_grad():
            x_0 = sample(problem.denoiser, x_T, problem.z, solver=RungeKutta("rk4"), grid=fine).x_0
            return float(problem.loss(x_0)) / len(x_T)

    before, spent, steps = judged(), 0, 0
    move = OPTIMISERS[optimiser]([x_T])
    while True:
        rollout = sample(
            problem.denoiser, x_T, problem.z, solver=solver, grid=grid, gradient=method
        )
        (x_T.grad,) = torch.autograd.grad(problem.loss(rollout.x_0), x_T)
        spent += rollout.cost.nfe + rollout.cost.vjps
        if spent > price or not x_T.grad.isfinite().all():
            break
        move.step()
        steps += 1
    return {"method": name, "optimiser": optimiser, "seed": seed, "before": before,
            "after": judged(), "steps": steps}  # fmt: skip


def weights(name: str, seed: int, updates: int = 60) -> dict[str, Any]:
    """Divergence from the base where the loss comes down to the tilted law's, and the price."""
    schedule, solver = VPLinear(), SDEDPMSolver()
    grid = TimeGrid.uniform_lmbda(schedule, N)
    denoiser = GaussianDenoiser(schedule, tilted.normal(tilted.DIM, seed=8), tilted.SCALE)
    base = tilted.sampled_law(denoiser, solver, grid)
    adam = partial(torch.optim.Adam, lr=tilted.RATE)
    algorithm: Algorithm = (
        AdjointMatching(adam, updates)
        if name == "adjoint matching"
        else FineTuning(adam, updates, entry(name).method())
    )
    run = algorithm.start(tilted.gaussian_problem(denoiser, solver, grid, seed))
    wanted = tilted.mean_loss(*tilted.tilted_law())
    while not run.finished:
        run.step()
        law = tilted.sampled_law(denoiser, solver, grid)
        if tilted.mean_loss(*law) <= wanted:
            return {
                "method": name, "seed": seed, "moved": tilted.divergence(*law, *base),
                "price": run.cost.nfe + run.cost.vjps, "updates": len(run.history),
            }  # fmt: skip
    return {"method": name, "seed": seed, "moved": None, "price": None, "updates": updates}


def shown(values: list[float | None], digits: int = 3) -> str:
    """Mean and range over seeds."""
    found = [value for value in values if value is not None]
    if len(found) < len(values):
        return f"not reached on {len(values) - len(found)} of {len(values)}"
    mean = sum(found) / len(found)
    return f"{mean:.{digits}g} [{min(found):.{digits}g}, {max(found):.{digits}g}]"


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--price", type=int, default=1200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of long adjoint steps, which this measures
    seeds = range(1, options.seeds + 1)
    moved = [
        latents(name, optimiser, seed, options.price)
        for name in LATENTS for optimiser in OPTIMISERS for seed in seeds
    ]  # fmt: skip
    print("latents done", file=sys.stderr, flush=True)
    tuned = [weights(name, seed) for name in ("adjoint matching", *WEIGHTS) for seed in seeds]
    write_json({"price": options.price, "latents": moved, "weights": tuned},
               options.out / "optimisation.json")  # fmt: skip
    lines = []
    for name in LATENTS:
        cells = []
        for optimiser in OPTIMISERS:
            mine = [r for r in moved if (r["method"], r["optimiser"]) == (name, optimiser)]
            cells += [mine[0]["steps"], shown([r["after"] / r["before"] for r in mine])]
        lines.append([name, *cells])
    header = ["method", *(w for o in OPTIMISERS for w in (f"steps, {o}", f"loss left, {o}"))]
    text = table(header, lines)
    least = tilted.divergence(*tilted.tilted_law(), tilted.normal(tilted.DIM, seed=8),
                              tilted.SCALE**2)  # fmt: skip
    lines = [
        [
            name,
            *(
                shown([r[key] for r in tuned if r["method"] == name])
                for key in ("moved", "price", "updates")
            ),
        ]
        for name in ("adjoint matching", *WEIGHTS)
    ]
    text += f"\n\nThe tilted law itself has moved by {least:.3g} nats.\n\n" + table(
        ["method", "KL from the base at the tilted law's loss", "price", "updates"], lines
    )
    write_atomically(options.out / "optimisation.md", lambda f: f.write(text + "\n"))
    print(text)


if __name__ == "__main__":
    main()
