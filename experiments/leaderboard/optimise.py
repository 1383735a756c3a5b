"""Does a better gradient give a better result? Latents and weights optimised at equal price.

python -m experiments.leaderboard.optimise [--price 1200] [--network-price 480] [--seeds 3]
    [--out FOLDER]

Latents: x_T of drawn mixtures in 16 dimensions, by Adam and by plain descent, as many steps as the
price buys; judged by the loss that a fine solve from the x_T that was found has. The embedded
network: x_T and z of a pair of faces, a pair for each seed, under the identity loss, by Adam at
another price; judged alike. Weights: the
Gaussian of adjoint_matching, with every estimator of the loss's gradient; judged by how far the law
has moved from the base once the loss is that of the tilted law, whose own move is the least there
is. Writes optimisation.json and optimisation.md.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from adjointdeis import sample
from adjointdeis.diffusion import GaussianDenoiser, TimeGrid, VPLinear
from adjointdeis.evaluation.markdown import table
from adjointdeis.gradients.catalogue import entry
from adjointdeis.guidance import AdjointMatching, Algorithm, FineTuning
from adjointdeis.harness.network_problems import network_problem
from adjointdeis.problems import GradientProblem, drawn
from adjointdeis.solvers import DPMSolverPP, RungeKutta, SDEDPMSolver
from adjointdeis.solvers.base import Solver
from experiments.adjoint_matching import run as tilted
from experiments.common.options import parser, publish, started

N = 20
LATENTS = (
    "DiscreteAdjoint, 2M sampler", "Reversible, BDIA", "DiscreteAdjoint", "SymplecticAdjoint",
    "FlowGrad", "Lookahead, 4 leaps", "AdjointDEIS-1", "AdjointDEIS-2M", "OneStep",
    "LeapAlign, two leaps",
)  # fmt: skip
EMBEDDED = (
    "DiscreteAdjoint, 2M sampler", "Reversible, BDIA", "DiscreteAdjoint", "FlowGrad",
    "Lookahead, 4 leaps", "AdjointDEIS-1", "OneStep", "LeapAlign, two leaps",
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
    """Optimises x_T of a drawn mixture for a price."""
    problem = drawn("mixture-16", "distance", seed)
    problem.denoiser.requires_grad_(False)
    x_T = problem.x_T.clone().requires_grad_()
    move = OPTIMISERS[optimiser]([x_T])
    found = descended(problem, name, x_T, problem.z, move, price, (RungeKutta("rk4"), 200))
    return {"method": name, "optimiser": optimiser, "seed": seed, **found}


def embedded(name: str, seed: int, price: int) -> dict[str, Any]:
    """Optimises x_T and z of a pair of the embedded network under the identity loss, by Adam."""
    problem = network_problem("mini", "distance", seed - 1)
    x_T, z = (t.clone().requires_grad_() for t in (problem.x_T, problem.z))
    move = torch.optim.Adam([x_T, z], lr=0.03)
    found = descended(problem, name, x_T, z, move, price, (DPMSolverPP(), 100))
    return {"method": name, "seed": seed, **found}


def descended(
    problem: GradientProblem,
    name: str,
    x_T: Tensor,
    z: Tensor,
    move: torch.optim.Optimizer,
    price: int,
    judge: tuple[Solver, int],
) -> dict[str, Any]:
    """As many steps as a price buys; the loss per sample before and after.

    That of a fine solve, which is the same for all, and that of what was sampled on the way.
    """
    one = entry(name)
    solver, method = one.solver("ode"), one.method()
    assert solver is not None
    grid, fine = problem.grid("log-SNR", N), problem.grid("log-SNR", judge[1])
    leaves = [leaf for leaf in (x_T, z) if leaf.requires_grad]

    def judged() -> float:
        with torch.no_grad():
            x_0 = sample(problem.denoiser, x_T, z, solver=judge[0], grid=fine).x_0
            return float(problem.loss(x_0)) / len(x_T)

    before, spent, steps, sampled = judged(), 0, 0, []
    while True:
        rollout = sample(problem.denoiser, x_T, z, solver=solver, grid=grid, gradient=method)
        loss = problem.loss(rollout.x_0)
        sampled.append(float(loss.detach()) / len(x_T))
        found = torch.autograd.grad(loss, leaves)
        spent += rollout.cost.nfe + rollout.cost.vjps
        if spent > price or not all(gradient.isfinite().all() for gradient in found):
            break
        for leaf, gradient in zip(leaves, found, strict=True):
            leaf.grad = gradient
        move.step()
        steps += 1
    return {"before": before, "after": judged(), "steps": steps,
            "sampled_before": sampled[0], "sampled_after": sampled[-1]}  # fmt: skip


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
    command = parser(__doc__, __file__)
    command.add_argument("--price", type=int, default=1200)
    command.add_argument("--network-price", type=int, default=480)
    command.add_argument("--seeds", type=int, default=3, help="at most 3, the pairs that there are")
    options = started(command)
    warnings.simplefilter("ignore")  # of long adjoint steps, which this measures
    seeds = range(1, options.seeds + 1)
    moved = [
        latents(name, optimiser, seed, options.price)
        for name in LATENTS for optimiser in OPTIMISERS for seed in seeds
    ]  # fmt: skip
    print("latents done", file=sys.stderr, flush=True)
    faces = [embedded(name, seed, options.network_price) for name in EMBEDDED for seed in seeds]
    print("embedded done", file=sys.stderr, flush=True)
    tuned = [weights(name, seed) for name in ("adjoint matching", *WEIGHTS) for seed in seeds]
    record = {"price": options.price, "latents": moved, "network_price": options.network_price,
              "embedded": faces, "weights": tuned}  # fmt: skip
    lines = []
    for name in LATENTS:
        cells = []
        for optimiser in OPTIMISERS:
            mine = [r for r in moved if (r["method"], r["optimiser"]) == (name, optimiser)]
            cells += [mine[0]["steps"], shown([r["after"] / r["before"] for r in mine])]
        lines.append([name, *cells])
    header = ["method", *(w for o in OPTIMISERS for w in (f"steps, {o}", f"loss left, {o}"))]
    text = table(header, lines)
    lines = []
    for name in EMBEDDED:
        mine = [r for r in faces if r["method"] == name]
        left = [shown([r[f"{k}after"] / r[f"{k}before"] for r in mine]) for k in ("", "sampled_")]
        lines.append([name, mine[0]["steps"], *left])
    header = [
        "method",
        "steps, embedded network",
        "loss left, Adam",
        "of its own sampler at N = 20",
    ]
    text += "\n\n" + table(header, lines)
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
    publish(options.out, text, record, "optimisation")


if __name__ == "__main__":
    main()
