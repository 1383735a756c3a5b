"""A byte budget: what is counted, the split that is chosen, and that it holds while running."""

import gc
import weakref

import pytest
import torch
from oracles import (
    BATCH,
    COND,
    DIM,
    MLPDenoiser,
    RungeKutta4,
    agree,
    differentiate,
    inputs,
    normal,
)

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    Backprop,
    DiscreteAdjoint,
    MemoryBudgetError,
    discrete_adjoint,
    memory_plan,
)
from adjointdeis.gradients.memory_plan import MemoryPlan, SavedBytes, choose_plan, parse_bytes
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (17, 17), ("17 B", 17), ("2 GiB", 2 * 2**30), ("1.5KiB", 1536), ("500 MB", 500 * 10**6),
        (" 3 TB ", 3 * 10**12),
    ],
)  # fmt: skip
def test_sizes_are_read(text, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    "text", ["2 gigabytes", "GiB", "-1 MB", "", 0, "0 B", "2 GiBs", "2 GiB MB"]
)
def test_other_sizes_are_refused(text) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="size"):
        DiscreteAdjoint(budget=text)


def test_every_saved_storage_counts_once() -> None:
    x, w = normal(8, 4, seed=1).requires_grad_(), normal(4, 16, seed=2).requires_grad_()
    with SavedBytes([x, w]) as saved:
        h = torch.tanh(x @ w)  # saves its result: 8 * 16 doubles
    assert saved.total == 8 * 16 * 8
    with SavedBytes([x, w]) as saved:
        h = torch.tanh(x @ w)
        out = h.view(16, 8).square() * 2.0  # saves a view of the same storage
    assert saved.total == 8 * 16 * 8 and out.requires_grad
    with SavedBytes() as saved:
        h = torch.tanh(x @ w)  # now the inputs count as well
    assert saved.total == (8 * 16 + 8 * 4 + 4 * 16) * 8
    with SavedBytes() as saved, torch.no_grad():
        torch.tanh(x @ w)
    assert saved.total == 0 and h.requires_grad


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("activations", [1, 10, 300])
def test_the_chosen_plan_is_the_best_that_fits(steps: int, activations: int) -> None:
    latent = 4
    plans = [MemoryPlan(s, k) for s in (*range(1, steps + 1), None) for k in range(steps + 1)]
    least = MemoryPlan(1, 0).bytes(steps, latent, activations)
    most = MemoryPlan(None, steps).bytes(steps, latent, activations)
    previous = None
    for budget in range(least, most + latent, max(1, (most - least) // 40)):
        plan = choose_plan(steps, budget, latent, activations)
        assert plan.bytes(steps, latent, activations) <= budget
        fitting = [p for p in plans if p.bytes(steps, latent, activations) <= budget]
        assert plan.recomputed(steps) == min(p.recomputed(steps) for p in fitting)
        assert previous is None or plan.recomputed(steps) <= previous
        previous = plan.recomputed(steps)
    assert choose_plan(steps, most, latent, activations).recomputed(steps) == 0
    with pytest.raises(MemoryBudgetError, match=rf"take {least}"):
        choose_plan(steps, least - 1, latent, activations)


@pytest.mark.parametrize("kept", [0, 1, 4, 9])
@pytest.mark.parametrize("snapshots", [1, 2, 3, 8, None])
def test_the_bytes_of_a_plan_are_what_a_run_holds(snapshots, kept: int) -> None:
    x_T, z = inputs()
    grid, plan = TimeGrid.uniform_time(VPLinear(), 9), MemoryPlan(snapshots, kept)
    method = DiscreteAdjoint(snapshots=snapshots, keep_activations=kept)
    cost = differentiate(MLPDenoiser(), x_T, z, method, solver=DDIM(), grid=grid).rollout.cost
    assert plan.bytes(9, 1, 0) == cost.peak_latents
    assert plan.bytes(9, 0, 1) == cost.peak_graphs
    assert plan.recomputed(9) == cost.nfe_backward


@pytest.mark.parametrize("name", ["ddim", "2m"])
def test_one_step_is_measured(name: str, monkeypatch) -> None:
    """The plan is chosen from the bytes of x, the history, and what the network saves."""
    asked = []

    def remember(steps, budget, latent, activations):
        asked.append((steps, budget, latent, activations))
        return MemoryPlan(None, 0)

    monkeypatch.setattr(discrete_adjoint, "choose_plan", remember)
    x_T, z = inputs()
    grid = TimeGrid.uniform_time(VPLinear(), 9)
    differentiate(Wide(), x_T, z, DiscreteAdjoint(budget="1 MB"), solver=SOLVERS[name], grid=grid)
    ((steps, budget, latent, activations),) = asked
    assert (steps, budget) == (9, 1_000_000)
    assert latent == BATCH * DIM * 8 * (2 if name == "2m" else 1)
    # The concatenated inputs and the hidden layer; besides those only times and coefficients.
    arrays = BATCH * (DIM + COND + 1) * 8 + BATCH * 200 * 8
    assert arrays <= activations <= arrays + 200


class Live:
    """The largest number of bytes that autograd held at one time, weights left out."""

    def __init__(self, besides) -> None:
        self.besides = {tensor.untyped_storage().data_ptr() for tensor in besides}
        self.held: dict[int, int] = {}
        self.pointers: dict[int, int] = {}
        self.peak = 0

    def __enter__(self) -> "Live":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda box: box[0])
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def pack(self, tensor):
        class Box(list):
            pass

        # Without its graph: a saved output that holds it would keep a graph nobody uses for ever.
        box, storage = Box([tensor.detach()]), tensor.untyped_storage()
        if storage.data_ptr() not in self.besides:
            key = id(box)
            known = any(self.pointers[other] == storage.data_ptr() for other in self.held)
            self.held[key] = 0 if known else storage.nbytes()
            self.pointers[key] = storage.data_ptr()
            weakref.finalize(box, self.drop, key)
            self.peak = max(self.peak, sum(self.held.values()))
        return box

    def drop(self, key: int) -> None:
        self.held.pop(key, None)


@pytest.mark.parametrize("snapshots", [None, 3], ids=["every-latent", "3-snapshots"])
def test_what_is_held_beside_the_latents_does_not_grow_with_the_number_of_steps(snapshots) -> None:
    held, latents = [], []
    for steps in (8, 32, 128):
        network, (x_T, z) = Wide(), inputs()
        grid = TimeGrid.uniform_time(VPLinear(), steps)
        grid = grid.at(range(len(grid)))
        method = DiscreteAdjoint(snapshots=snapshots)
        with Live([*network.parameters(), grid.t]) as live:
            found = differentiate(network, x_T, z, method, solver=DDIM(), grid=grid)
        held.append(live.peak)
        latents.append(found.rollout.cost.peak_latents)
    assert held[0] > 3000 and max(held) <= 1.05 * min(held)
    assert latents == ([9, 33, 129] if snapshots is None else [5, 5, 5])


class Marked(torch.autograd.Function):
    """tanh, by whose context it can be seen whether its graph is alive."""

    graphs: list[weakref.ref] = []

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.mark = Marked.Mark()
        Marked.graphs.append(weakref.ref(ctx.mark))
        ctx.save_for_backward(y)
        return y

    class Mark:
        pass

    @staticmethod
    def backward(ctx, cotangent):
        (y,) = ctx.saved_tensors
        return cotangent * (1 - y * y)


def test_no_graph_outlives_the_run() -> None:
    # A hook that holds an output holds the graph that holds the hook.
    Marked.graphs.clear()
    x_T, z = inputs()
    grid = TimeGrid.uniform_time(VPLinear(), 6)
    x_0 = sample(
        lambda x, t, z: Marked.apply(x), x_T.requires_grad_(), z, solver=DDIM(), grid=grid,
        gradient=DiscreteAdjoint(budget=8 * BATCH * DIM * 8),
    ).x_0  # fmt: skip
    torch.autograd.grad(x_0.sum(), x_T)
    del x_0
    gc.collect()
    assert Marked.graphs and not any(graph() for graph in Marked.graphs)


class Wide(MLPDenoiser):
    """Activations far larger than the latent."""

    def __init__(self) -> None:
        super().__init__(hidden=200)


SOLVERS = {"ddim": DDIM(), "2m": DPMSolverPP(2), "sde": SDEDPMSolver(), "outside": RungeKutta4()}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_budget_is_kept_and_changes_nothing_but_the_cost(name: str) -> None:
    network, steps = Wide(), 9
    grid = TimeGrid.uniform_lmbda(VPLinear(), steps, t_max=0.7)
    x_T, zs = inputs(steps)
    noise = BrownianPath((BATCH, DIM), seed=1) if name == "sde" else None
    arguments = {"solver": SOLVERS[name], "grid": grid, "noise": noise}
    exact = differentiate(network, x_T, zs, Backprop(), **arguments)
    per_step = exact.rollout.cost.nfe_forward // steps
    latent = BATCH * DIM * 8  # the counter counts a history of one as a second latent
    with SavedBytes(network.parameters()) as saved:
        differentiate(network, x_T, zs, Backprop(), **arguments)
    whole = saved.total
    # What autograd saves of the call itself: the conditions, both ends, the loss.
    call = sum(z.numel() for z in zs) * 8 + 3 * latent
    costs, peaks = [], []
    for budget in (whole // 6, whole // 3, whole // 2, 2 * whole):
        with Live([*network.parameters()]) as live:
            found = differentiate(network, x_T, zs, DiscreteAdjoint(budget=budget), **arguments)
        for part, value in exact.parts().items():
            assert agree(found.parts()[part], value), part
        cost = found.rollout.cost
        assert cost.nfe_forward == cost.vjps == steps * per_step
        assert live.peak - call + cost.peak_latents * latent <= budget
        costs.append(cost.nfe_backward)
        peaks.append(cost.peak_graphs)
        again = differentiate(network, x_T, zs, DiscreteAdjoint(budget=budget), **arguments)
        assert again.rollout.cost == cost and torch.equal(again.x_T, found.x_T)
    assert costs == sorted(costs, reverse=True) and costs[0] > costs[1] > costs[-1] == 0
    assert peaks == sorted(peaks) and peaks[-1] == steps * per_step


def test_latents_are_given_up_before_activations_would_burst_the_budget() -> None:
    """A latent larger than its activations: snapshots become few, and no graph is kept."""
    x_T, z = normal(64, DIM, seed=1), normal(64, 3, seed=2)
    grid, latent = TimeGrid.uniform_time(VPLinear(), 12), 64 * DIM * 8
    network = MLPDenoiser(hidden=1)
    method = DiscreteAdjoint(budget="40 KB")
    cost = differentiate(network, x_T, z, method, solver=DDIM(), grid=grid).rollout.cost
    assert cost.peak_latents * latent <= 40_000 and cost.peak_latents >= 3
    with pytest.raises(MemoryBudgetError, match="checkpoint_blocks"):
        differentiate(network, x_T, z, DiscreteAdjoint(budget="5 KB"), solver=DDIM(), grid=grid)


def test_a_budget_stands_alone() -> None:
    for method in ({"snapshots": 2}, {"keep_activations": 1}):
        with pytest.raises(ValueError, match="give it alone"):
            DiscreteAdjoint(budget="1 GB", **method)


def test_an_automatic_budget_is_half_of_what_is_left(monkeypatch) -> None:
    network, (x_T, zs) = Wide(), inputs(9)
    arguments = {"solver": DDIM(), "grid": TimeGrid.uniform_lmbda(VPLinear(), 9, t_max=0.7)}
    asked = []

    def left(device):
        asked.append(device)
        return 60_000

    monkeypatch.setattr(memory_plan, "free_bytes", left)
    found = differentiate(network, x_T, zs, DiscreteAdjoint(budget="auto"), **arguments)
    expected = differentiate(network, x_T, zs, DiscreteAdjoint(budget=30_000), **arguments)
    assert asked == [torch.device("cpu")]  # once a run, where the latents are
    assert found.rollout.cost == expected.rollout.cost
    assert 0 < found.rollout.cost.nfe_backward < 9  # a budget that binds
    assert torch.equal(found.x_T, expected.x_T)


def test_with_this_machines_memory_a_small_network_keeps_everything() -> None:
    network, (x_T, zs) = Wide(), inputs(9)
    arguments = {"solver": DDIM(), "grid": TimeGrid.uniform_lmbda(VPLinear(), 9, t_max=0.7)}
    cost = differentiate(network, x_T, zs, DiscreteAdjoint(budget="auto"), **arguments).rollout.cost
    assert (cost.nfe_backward, cost.peak_graphs) == (0, 9)
