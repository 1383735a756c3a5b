"""How often the estimate of Certified covers the true error of a gradient, and how wide it is.

python -m experiments.certified.run [--blocks 60] [--pairs 2] [--out FOLDER]

Writes result.json and result.md.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import MixtureDenoiser
from adjointdeis.evaluation.markdown import table
from adjointdeis.gradients import Certified, DiscreteAdjoint, extrapolated_error
from adjointdeis.harness.network_problems import mini
from adjointdeis.problems import PARTS, distance
from adjointdeis.solvers import DDIM, OBELM, DPMSolverPP, RungeKutta
from adjointdeis.solvers.base import Solver
from experiments.common.options import parser, publish, started

SOLVERS: dict[str, Solver] = {
    "DDIM": DDIM(),
    "DPM-Solver++ 2M": DPMSolverPP(),
    "O-BELM": OBELM(),
    "midpoint": RungeKutta("midpoint"),
    "rk4": RungeKutta("rk4"),
}
DIMENSIONS, COUNTS, BLOCK = (2, 4, 8, 16, 32, 64), (10, 20, 40, 80), 32
LOSSES = ("distance", "classifier", "saturating reward", "similarity of features")
TRUTH = 160  # steps of rk4


def random_mixtures(
    problems: int, modes: int, dim: int, draw: torch.Generator
) -> tuple[MixtureDenoiser, Tensor]:
    """Mixtures of their own for each of P problems, and their targets, shape (P, 1, D).

    Standard deviations lie in [0.2, 1], means are as far apart as 0.5 to 2 of them, in the norm of
    x at four dimensions.
    """
    spread = (0.5 + 1.5 * uniform(draw, problems, 1, 1)) * min(1.0, (4.0 / dim) ** 0.5)
    means = spread * normal(draw, problems, modes, dim)
    scales = 0.2 + 0.8 * uniform(draw, problems, modes)
    weight = 0.5 * spread.unsqueeze(-1) * normal(draw, problems, modes, dim, 3)
    logits = 0.3 * normal(draw, problems, modes)
    mixtures = MixtureDenoiser(VPLinear(), means, scales, weight, logits)
    return mixtures, spread * normal(draw, problems, 1, dim)


def normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def uniform(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=draw, dtype=torch.float64)


def losses(target: Tensor, draw: torch.Generator) -> dict[str, Callable[[Tensor], Tensor]]:
    """Of x_0, shape (P, B, D), summed: each problem has a target and features of its own."""
    features = normal(draw, *target.shape[::2], 5) / target.shape[-1] ** 0.5
    label = torch.randint(5, target.shape[:1], generator=draw)

    def classifier(x: Tensor) -> Tensor:
        score = (x @ features).log_softmax(-1)
        return -sum(score[problem, :, one].sum() for problem, one in enumerate(label.tolist()))

    functions = (
        lambda x: (x - target).square().sum(),
        classifier,
        lambda x: -torch.tanh((x @ features)[..., 0]).sum(),
        lambda x: -torch.cosine_similarity(x @ features, target @ features, dim=-1).sum(),
    )
    return dict(zip(LOSSES, functions, strict=True))


def gradients(
    mixtures: MixtureDenoiser,
    x_T: Tensor,
    z: Tensor,
    loss: Callable,
    solver: Solver,
    grid: TimeGrid,
) -> dict[str, Tensor]:
    """By part, a row for each problem."""
    leaves = [x_T.clone().requires_grad_(), z.clone().requires_grad_(), *mixtures.parameters()]
    x_0 = sample(mixtures, leaves[0], leaves[1], solver=solver, grid=grid).x_0
    found = [g.reshape(len(x_T), -1) for g in torch.autograd.grad(loss(x_0), leaves)]
    return dict(zip(PARTS, (found[0], found[1], torch.cat(found[2:], 1)), strict=True))


def block(seed: int) -> list[dict[str, Any]]:
    """Random problems that share dimension, loss, sampler and N, and nothing else."""
    draw = torch.Generator().manual_seed(seed)
    solver = [*SOLVERS][seed % len(SOLVERS)]
    steps = COUNTS[seed // len(SOLVERS) % len(COUNTS)]
    dim, modes, batch, loss_name = (
        choices[int(torch.randint(len(choices), (), generator=draw))]
        for choices in (DIMENSIONS, (2, 3, 4, 6, 8), (1, 2, 4), LOSSES)
    )
    mixtures, target = random_mixtures(BLOCK, modes, dim, draw)
    x_T, z = normal(draw, BLOCK, batch, dim), normal(draw, BLOCK, batch, 3)
    loss = losses(target, draw)[loss_name]
    grid = TimeGrid.uniform_lmbda(mixtures.schedule, steps)
    runs = [
        gradients(mixtures, x_T, z, loss, SOLVERS[solver], grid.at([*range(0, steps, k), steps]))
        for k in (1, 2, 4)
    ]
    fine = TimeGrid.uniform_lmbda(mixtures.schedule, TRUTH)
    truth = gradients(mixtures, x_T, z, loss, RungeKutta("rk4"), fine)
    return [
        {
            "seed": seed, "problem": row, "dim": dim, "modes": modes, "batch": batch,
            "loss": loss_name, "solver": solver, "steps": steps, "part": part,
            "error": distance(runs[0][part][row], truth[part][row]).relative,
            "estimate": extrapolated_error(
                *([run[part][row]] for run in runs), order=SOLVERS[solver].order
            ),
            **moves(*(run[part][row] for run in runs)),
        }
        for part in PARTS
        for row in range(BLOCK)
    ]  # fmt: skip


MOVES = ("size", "a", "b", "ab", "ga", "gb")


def moves(fine: Tensor, half: Tensor, quarter: Tensor) -> dict[str, float]:
    """Norms and products of a gradient and of what it moved by, from grid to grid."""
    a, b = fine - half, half - quarter
    found = (fine.norm(), a.norm(), b.norm(), a @ b, fine @ a, fine @ b)
    return dict(zip(MOVES, map(float, found), strict=True))


def embedded(pairs: int) -> list[dict[str, Any]]:
    """The embedded network, in float32, through ``Certified`` itself; with its measured price."""
    problem, found = mini(pairs, encoding_steps=40), []
    truth = problem.differentiate(
        DiscreteAdjoint(), RungeKutta("rk4"), problem.grid("log-SNR", 80), parts=("x_T", "z")
    ).gradients
    for name in ("DDIM", "DPM-Solver++ 2M", "midpoint"):
        for steps in (20, 40):
            seconds: dict[str, float] = {}
            for kind, method in (
                ("alone", DiscreteAdjoint()), ("certified", Certified(problem.loss)),
            ):  # fmt: skip
                x_T, z = (t.clone().requires_grad_() for t in (problem.x_T, problem.z))
                start = time.process_time()
                rollout = sample(
                    problem.denoiser, x_T, z, solver=SOLVERS[name],
                    grid=problem.grid("log-SNR", steps), gradient=method, parameters=(),
                )  # fmt: skip
                gradient = torch.autograd.grad(problem.loss(rollout.x_0), (x_T, z))
                seconds[kind] = time.process_time() - start
            for part, value in zip(("x_T", "z"), gradient, strict=True):
                error = distance(value.flatten().double(), truth[part]).relative
                found.append(
                    {
                        "pairs": pairs, "solver": name, "steps": steps, "part": part,
                        "error": error, "estimate": rollout.gradient_error[part],
                        "price": seconds["certified"] / seconds["alone"],
                    }
                )  # fmt: skip
            print(found[-2:], file=sys.stderr, flush=True)
    return found


def packed(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for a block and a part, with the numbers of its problems in a list."""
    entries: dict[tuple[int, str], dict[str, Any]] = {}
    for one in rows:
        shared = {k: v for k, v in one.items() if k not in ("problem", "error", "estimate", *MOVES)}
        entry = entries.setdefault(
            (one["seed"], one["part"]), shared | {"error": [], "estimate": []}
        )
        for key in ("error", "estimate"):
            entry[key].append(float(f"{one[key]:.4g}"))
    return list(entries.values())


def row_of(name: str, found: Sequence[dict[str, Any]]) -> list[str]:
    """How many, share covered, ratios of estimate to error, and the median error."""
    ratios = [one["estimate"] / one["error"] for one in found]
    low, middle, high = (
        statistics.quantiles(ratios, n=20)[0], statistics.median(ratios),
        statistics.quantiles(ratios, n=20)[-1],
    )  # fmt: skip
    return [
        name,
        str(len({(one["seed"], one["problem"]) for one in found})),
        str(len(found)),
        f"{100 * statistics.fmean(ratio >= 1.0 for ratio in ratios):.1f}",
        f"{low:.2f}",
        f"{middle:.2f}",
        f"{high:.1f}",
        f"{statistics.median(one['error'] for one in found):.2g}",
    ]


READINGS = (0.01, 0.1, 1.0)


def summary(rows: Sequence[dict[str, Any]], parts: Sequence[dict[str, Any]]) -> str:
    """Tables of coverage."""
    header = ["problems", "gradients", "covered %", "ratio, 5%", "median", "95%", "median error"]
    text = []
    for key in ("steps", "solver", "loss", "dim", "part"):
        lines = [row_of("all", rows)] if key == "steps" else []
        for value in dict.fromkeys(
            one[key] for one in sorted(rows, key=lambda r: str(r[key]).zfill(3))
        ):
            lines.append(row_of(str(value), [one for one in rows if one[key] == value]))
        text.append(table([key, *header], lines))
    lines = [
        row_of(f"at most {most:g}", [one for one in rows if one["estimate"] <= most])
        for most in READINGS
    ]
    text.append(table(["estimate", *header], lines))
    header = ["sampler", "N", "gradient of", "error", "estimate", "ratio", "price"]
    lines = [
        [
            one["solver"], str(one["steps"]), one["part"], f"{one['error']:.2g}",
            f"{one['estimate']:.2g}", f"{one['estimate'] / one['error']:.2f}",
            f"{one['price']:.2f}",
        ]
        for one in parts
    ]  # fmt: skip
    return "\n\n".join([*text, table(header, lines)])


def main() -> None:
    """Runs the study."""
    command = parser(__doc__, __file__)
    command.add_argument("--blocks", type=int, default=60, help=f"of {BLOCK} problems each")
    command.add_argument("--first", type=int, default=200_000, help="seed of the first block")
    command.add_argument("--pairs", type=int, default=2, help="of the embedded network")
    options = started(command)
    rows: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.blocks):
        rows += block(seed)
        print(seed, rows[-1]["solver"], rows[-1]["steps"], file=sys.stderr, flush=True)
    parts = embedded(options.pairs) if options.pairs else []
    found = {"truth_steps": TRUTH, "blocks": packed(rows), "embedded": parts}
    publish(options.out, summary(rows, parts), found)


if __name__ == "__main__":
    main()
