"""How sharp an estimate from the three runs of Certified could be, whatever its formula.

python -m experiments.certified.limit [--blocks 120] [--out FOLDER]

A boosted regression of the 95% quantile is given all that the three runs say of a gradient, and
learns the true error itself on two thirds of the problems; on the last third it is scaled until it
covers 95%. Beside it, where the estimate's excess comes from. Writes limit.md.
"""

import math
import sys
from itertools import pairwise
from typing import Any

import numpy as np

from adjointdeis.evaluation.markdown import table
from experiments.certified.run import COUNTS, SOLVERS, block
from experiments.common.options import parser, publish, started

FOLDS = 3
STRATA = (0.0, 0.3, 0.5, 0.7, 0.85, 1.15, 1.5, math.inf)


def declared(one: dict[str, Any]) -> float:
    """By how much a gradient moves from a coarse grid to the next, for one move of the finer."""
    return 2.0 ** SOLVERS[one["solver"]].order


def richardson(one: dict[str, Any]) -> float:
    """Relative error by the run on every second node alone, with the declared order."""
    return one["a"] / (declared(one) - 1.0) / one["size"]


def features(rows: list[dict[str, Any]]) -> np.ndarray:
    """Of each gradient: moves, their angles, order, N, and the moves of the problem's others."""
    own = np.array([
        [
            math.log(one["b"] / one["a"] / declared(one)), one["ab"] / (one["a"] * one["b"]),
            math.log(one["a"] / one["size"]), math.log(one["b"] / one["size"]),
            one["ga"] / (one["size"] * one["a"]), one["gb"] / (one["size"] * one["b"]),
        ]
        for one in rows
    ])  # fmt: skip
    problems: dict[tuple[int, int], list[int]] = {}
    for index, one in enumerate(rows):
        problems.setdefault((one["seed"], one["problem"]), []).append(index)
    beside = np.zeros((len(rows), 3 * own.shape[1]))
    for members in problems.values():
        beside[members] = own[members].flatten()
    run = np.array([[declared(one), math.log(one["steps"])] for one in rows])
    return np.concatenate([own, beside, run], axis=1)


def learned(rows: list[dict[str, Any]]) -> np.ndarray:
    """Estimates of a regression that has not seen their block."""
    from sklearn.ensemble import HistGradientBoostingRegressor

    base = np.array([richardson(one) for one in rows])
    wanted = np.log([one["error"] for one in rows]) - np.log(base)
    seeds, inputs, found = (
        np.array([one["seed"] for one in rows]),
        features(rows),
        np.zeros(len(rows)),
    )
    # Seeds of one sampler and N follow each other at twenty: every fold has all of them.
    fold = (seeds - seeds.min()) // 20 % FOLDS
    for test in range(FOLDS):
        model = HistGradientBoostingRegressor(
            loss="quantile", quantile=0.95, max_iter=80, learning_rate=0.1, max_leaf_nodes=12,
            min_samples_leaf=60, random_state=0,
        )  # fmt: skip
        model.fit(inputs[fold != test], wanted[fold != test])
        found[fold == test] = model.predict(inputs[fold == test])
    return np.exp(found) * base


def line(name: str, estimate: np.ndarray, error: np.ndarray) -> list[str]:
    """Share covered, ratios, and the median once it is scaled to cover 95%."""
    ratio = estimate / error
    low, middle, high = np.quantile(ratio, (0.05, 0.5, 0.95))
    return [
        name, str(len(ratio)), f"{100 * (ratio >= 1).mean():.1f}", f"{low:.2f}", f"{middle:.2f}",
        f"{high:.1f}", f"{middle / low:.2f}",
    ]  # fmt: skip


def main() -> None:
    """Both tables."""
    command = parser(__doc__, __file__)
    command.add_argument("--blocks", type=int, default=120, help="a multiple of 60")
    command.add_argument("--first", type=int, default=500_000, help="seed of the first block")
    options = started(command)
    rows: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.blocks):
        rows += block(seed)
        print(seed, file=sys.stderr, flush=True)
    error, ours, base = (
        np.array([value(one) for one in rows])
        for value in (lambda r: r["error"], lambda r: r["estimate"], richardson)
    )
    other = learned(rows)
    header = ["", "gradients", "covered %", "ratio, 5%", "median", "95%", "median at 95% covered"]
    lines = [line("Certified", ours, error), line("learned", other, error)]
    for steps in COUNTS:
        here = np.array([one["steps"] == steps for one in rows])
        lines += [
            line(f"{name}, N = {steps}", found[here], error[here])
            for name, found in (("Certified", ours), ("learned", other))
        ]
    text = table(header, lines)
    seen, lines = np.array([one["b"] / one["a"] / declared(one) for one in rows]), []
    for low, high in pairwise(STRATA):
        here = (seen >= low) & (seen < high)
        for name, found in (("Certified", ours), ("Richardson, declared order", base)):
            lines.append(line(f"{low:g} to {high:g}: {name}", found[here], error[here]))
    text += "\n\n" + table(["contraction seen / declared", *header[1:]], lines)
    publish(options.out, text, name="limit")


if __name__ == "__main__":
    main()
