"""Binomial checkpointing and kept activations: exact, and exactly as costly as promised."""

from functools import cache

import pytest
import torch
from oracles import BATCH, DIM, Dropout, MLPDenoiser, agree, differentiate, inputs

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import Backprop, DiscreteAdjoint, FlowGrad
from adjointdeis.gradients.snapshots import advances, placements
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

PUBLISHED = {
    (50, 1): 1225, (50, 2): 285, (50, 3): 180, (50, 5): 122, (50, 8): 95, (50, 10): 88,
    (100, 1): 4950, (100, 2): 845, (100, 3): 490, (100, 5): 316, (100, 8): 245, (100, 10): 222,
    (20, 1): 190, (20, 2): 65, (20, 3): 45, (20, 5): 33, (20, 8): 30, (20, 10): 28,
}  # fmt: skip


@cache
def least(steps: int, snapshots: int) -> int:
    """The optimum by dynamic programming over the place of the next snapshot."""
    if steps <= 1:
        return 0
    if snapshots == 1:
        return steps * (steps - 1) // 2
    return min(m + least(steps - m, snapshots - 1) + least(m, snapshots) for m in range(1, steps))


def test_the_formula_is_the_optimum() -> None:
    assert all(advances(*key) == value for key, value in PUBLISHED.items())
    for steps in range(1, 41):
        for snapshots in range(1, 12):
            assert advances(steps, snapshots) == least(steps, snapshots)


def test_placements_stay_inside_their_segment() -> None:
    for steps in range(1, 60):
        for snapshots in range(1, 9):
            chosen = placements(5, steps, snapshots)
            assert chosen == sorted(set(chosen)) and chosen[0] == 5
            assert chosen[-1] < 5 + steps and len(chosen) <= snapshots


SOLVERS = {"ddim": DDIM(), "2m": DPMSolverPP(2), "sde": SDEDPMSolver()}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    ("snapshots", "keep"), [(1, 0), (2, 0), (3, 0), (5, 0), (50, 0), (None, 4), (None, 99), (2, 3)]
)
def test_every_budget_gives_the_exact_gradient(solver: str, snapshots, keep: int) -> None:
    network, steps = MLPDenoiser(), 11
    grid = TimeGrid.uniform_lmbda(VPLinear(), steps, t_max=0.8)
    x_T, zs = inputs(steps)
    noise = BrownianPath((BATCH, DIM), seed=1) if solver == "sde" else None
    arguments = {"solver": SOLVERS[solver], "grid": grid, "noise": noise}
    exact = differentiate(network, x_T, zs, Backprop(), **arguments)
    method = DiscreteAdjoint(snapshots=snapshots, keep_activations=keep)
    found = differentiate(network, x_T, zs, method, **arguments)
    for part, value in exact.parts().items():
        assert agree(found.parts()[part], value), part
    cost, redone = found.rollout.cost, max(0, steps - keep)
    extra = 0
    if snapshots is not None and redone:
        extra = advances(redone, snapshots) - (redone - 1)
    assert cost.nfe_forward == cost.vjps == steps
    assert cost.nfe_backward == redone + extra
    assert cost.peak_graphs == max(1, min(keep, steps))


@pytest.mark.parametrize(("steps", "snapshots"), [(20, 1), (20, 3), (20, 10), (50, 5)])
def test_the_counters_equal_the_formula_and_memory_stays_in_budget(steps, snapshots) -> None:
    x_T, z = inputs()
    grid = TimeGrid.uniform_time(VPLinear(), steps)
    method = DiscreteAdjoint(snapshots=snapshots)
    cost = differentiate(MLPDenoiser(), x_T, z, method, solver=DDIM(), grid=grid).rollout.cost
    # The sampling run is the first sweep: N - 1 advances, and the step that ends at x_0.
    advanced = (cost.nfe_forward - 1) + (cost.nfe_backward - steps)
    assert advanced == PUBLISHED[steps, snapshots]
    # Besides the snapshots: the input of the last step, and x_0.
    assert cost.peak_latents == snapshots + 2 and cost.peak_graphs == 1


def test_memory_falls_with_the_number_of_snapshots() -> None:
    x_T, z = inputs()
    grid = TimeGrid.uniform_time(VPLinear(), 12)
    peaks = [
        differentiate(
            MLPDenoiser(), x_T, z, DiscreteAdjoint(snapshots=s), solver=DDIM(), grid=grid
        ).rollout.cost.peak_latents
        for s in (1, 2, 4, 8, 12)
    ]
    assert peaks == [3, 4, 6, 10, 13]


@pytest.mark.parametrize(
    "method",
    [
        DiscreteAdjoint(snapshots=2),
        DiscreteAdjoint(keep_activations=5),
        DiscreteAdjoint(budget="4 KB"),
        FlowGrad(threshold=0.0),
    ],
    ids=["s", "k", "bytes", "flowgrad"],
)
def test_random_layers_are_repeated_and_a_second_pass_is_possible(method) -> None:
    network, grid = Dropout(), TimeGrid.uniform_time(VPLinear(), 9)
    found = []
    for one in (Backprop(), method):
        x_T, z = (value.requires_grad_() for value in inputs())
        torch.manual_seed(5)
        x_0 = sample(network, x_T, z, solver=DDIM(), grid=grid, gradient=one).x_0
        loss = x_0.square().sum()
        found += [torch.autograd.grad(loss, (x_T, z), retain_graph=True) for _ in range(2)]
    for again in found[1:]:
        assert all(agree(a, b) for a, b in zip(again, found[0], strict=True))


def test_impossible_budgets_are_refused() -> None:
    with pytest.raises(ValueError, match="snapshots"):
        DiscreteAdjoint(snapshots=0)
    with pytest.raises(ValueError, match="keep_activations"):
        DiscreteAdjoint(keep_activations=-1)
