"""FlowGrad, truncation and the one-step gradient: exact where they must be, and known bias."""

from dataclasses import dataclass

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    MLPDenoiser,
    RungeKutta4,
    agree,
    differentiate,
    gaussian,
    inputs,
    mixture,
    normal,
    relative_error,
)

from adjointdeis import DDPM, PerStep, RectifiedFlow, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.gradients import (
    Backprop,
    DiscreteAdjoint,
    FlowGrad,
    NotSupportedError,
    OneStep,
    Truncated,
)
from adjointdeis.gradients.flowgrad import deviations, merged_steps
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

N = 10
GRIDS = {
    "lmbda": TimeGrid.uniform_lmbda(VPLinear(), N),
    "time": TimeGrid.uniform_time(VPLinear(), N),
    "sigma0": TimeGrid.ddim_stride(DDPM(), N),
}
COTANGENT = normal(BATCH, DIM, seed=99)


def test_nodes_start_where_the_sum_of_deviations_reaches_the_threshold() -> None:
    assert merged_steps([0.1] * 5, 0.0) == [0, 1, 2, 3, 4]
    assert merged_steps([0.0, 0.0, 0.0], 0.0) == [0, 1, 2]  # straight, but threshold 0 is exact
    assert merged_steps([0.0, 0.0, 1.0, 0.0], 0.5) == [0, 2, 3]
    assert merged_steps([0.25, 0.25, 0.25, 0.25, 0.25], 0.6) == [0, 2, 4]
    assert merged_steps([0.25, 0.25, 0.25, 0.25], 99.0) == [0]
    assert merged_steps([5.0], 1.0) == [0]


def test_the_deviation_compares_a_velocity_with_both_neighbours() -> None:
    """Velocities 1, 2, 2, 5 in y, by hand."""
    grid = TimeGrid.uniform_time(RectifiedFlow(), 4, t_min=0.1, t_max=0.9)
    y, states = torch.zeros(1, 2, dtype=torch.float64), []
    velocity = [1.0, 2.0, 2.0, 5.0, 0.0]
    for node, v in zip(grid, velocity, strict=True):
        states.append(node.alpha * y)
        if node.index < 4:
            y = y + (grid[node.index + 1].rho - node.rho) * v
    found = deviations(states, grid)
    # Step 0 has no neighbour before it: the last velocity (5) must not count as one.
    assert found == pytest.approx([1.0, 1.0 / 4.0, 9.0 / 4.0, 9.0 / 25.0], abs=1e-12)
    # In a batch the least straight sample decides; one that stands still is straight.
    straight = [torch.zeros_like(x) for x in states]
    both = [torch.cat((x, s)) for x, s in zip(states, straight, strict=True)]
    assert deviations(both, grid) == pytest.approx(found)
    assert deviations(straight, grid) == [0.0] * 4


@pytest.mark.parametrize("scheduled", [False, True], ids=["z", "z_t"])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("solver", [DDIM(), RungeKutta4()], ids=["ddim", "outside"])
def test_flowgrad_without_merging_is_exact(solver, spacing: str, scheduled: bool) -> None:
    if spacing == "sigma0" and not isinstance(solver, DDIM):
        pytest.skip("this reference solver has no limit at sigma = 0")
    network, (x_T, z) = MLPDenoiser(), inputs(N if scheduled else 0)
    exact, found = (
        differentiate(network, x_T, z, method, solver=solver, grid=GRIDS[spacing])
        for method in (Backprop(), FlowGrad(threshold=0.0))
    )
    for part, value in exact.parts().items():
        assert relative_error(found.parts()[part], value) < 1e-12, part


@dataclass(frozen=True)
class Controlled:
    """FlowGrad's own setting: a control u_i is added to the state before step i."""

    calculus: str = "ode"

    def step(self, denoiser, x, z, s, t, state, noise):
        return DDIM().step(denoiser, x + z, None, s, t, state, noise)


def controls(method) -> tuple[torch.Tensor, int]:
    us = [torch.zeros(BATCH, DIM, dtype=torch.float64).requires_grad_() for _ in range(100)]
    grid = TimeGrid.uniform_time(RectifiedFlow(), 100)
    network = mixture(RectifiedFlow()).requires_grad_(False)
    rollout = sample(
        lambda x, t, z: network(x, t, inputs()[1]), inputs()[0], PerStep(us),
        solver=Controlled(), grid=grid, gradient=method,
    )  # fmt: skip
    (rollout.x_0 * COTANGENT).sum().backward()
    return torch.stack([u.grad for u in us]), rollout.cost.vjps


def test_the_published_trade_of_products_for_error() -> None:
    """Gradients of the controls on a mixture with 100 steps: few products, visible error."""
    exact, products = controls(Backprop())
    assert products == 100
    unmerged, _ = controls(FlowGrad(threshold=0.0, members="copied"))
    assert relative_error(unmerged, exact) < 1e-12
    previous = (101, 0.0)
    for threshold in (5e-4, 5e-3, 2e-2):
        found, products = controls(FlowGrad(threshold, members="copied"))
        error = relative_error(found, exact)
        assert products < previous[0] and error > previous[1]
        previous = (products, error)
        if threshold == FlowGrad().threshold:
            cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), 0)
            assert products < 40 and 0.05 < error < 0.4 and cosine > 0.95
    # Members of one node share one adjoint.
    assert len({tuple(u.flatten().tolist()) for u in found}) == products


def test_flowgrad_counts_one_evaluation_and_one_product_per_node() -> None:
    network, (x_T, z) = mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 40)
    method = FlowGrad(threshold=0.05)
    cost = differentiate(network, x_T, z, method, solver=DDIM(), grid=grid).rollout.cost
    states = [x_T]
    with torch.no_grad():
        for i in range(40):
            states.append(DDIM().step(network, states[-1], z, grid[i], grid[i + 1], (), None)[0])
    nodes = len(merged_steps(deviations(states, grid), 0.05))
    assert 1 < nodes < 40
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (40, nodes, nodes)
    assert (cost.peak_latents, cost.peak_graphs) == (41, 1)


def test_what_flowgrad_cannot_merge_is_refused() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    x_T.requires_grad_()
    grid = GRIDS["time"]
    with pytest.raises(NotSupportedError, match="DPMSolverPP carries a history"):
        sample(network, x_T, z, solver=DPMSolverPP(2), grid=grid, gradient=FlowGrad())
    with pytest.raises(NotSupportedError, match="sampling grids"):
        encode(network, x_T, z, solver=DDIM(), grid=grid.reversed(), gradient=FlowGrad())
    for build in (lambda: FlowGrad(-1.0), lambda: FlowGrad(members="averaged")):
        with pytest.raises(ValueError, match="FlowGrad"):
            build()


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(2), SDEDPMSolver()], ids=["1", "2m", "sde"])
def test_truncation_at_the_full_length_is_exact(solver) -> None:
    network, (x_T, zs) = MLPDenoiser(), inputs(N)
    for z in zs:
        z.requires_grad_()
    noise = None
    if solver.calculus == "sde":
        noise = RecordedNoise.draw(N, (BATCH, DIM), seed=1, dtype=torch.float64)

    def weights_and_conditions(method):
        network.zero_grad()
        x_0 = sample(
            network, x_T, PerStep(zs), solver=solver, grid=GRIDS["time"], noise=noise,
            gradient=method,
        ).x_0  # fmt: skip
        found = torch.autograd.grad((x_0 * COTANGENT).sum(), [*zs, *network.parameters()])
        return torch.stack(found[:N]), torch.cat([g.flatten() for g in found[N:]])

    exact = weights_and_conditions(Backprop())
    for last in (N, N + 5):
        found = weights_and_conditions(Truncated(last=last))
        assert all(agree(a, b) for a, b in zip(found, exact, strict=True))
    # The kept z_i are exact, the early ones receive nothing, and theta misses their share.
    cut = weights_and_conditions(Truncated(last=4))
    assert agree(cut[0][-4:], exact[0][-4:])
    assert torch.equal(cut[0][:-4], torch.zeros_like(cut[0][:-4]))
    assert relative_error(cut[1], exact[1]) > 0.05
    for method in (
        Truncated(last=4, snapshots=2),
        Truncated(last=4, keep_activations=2),
        Truncated(last=4, budget="1 MB"),
    ):
        again = weights_and_conditions(method)
        assert all(agree(a, b) for a, b in zip(again, cut, strict=True))


def test_truncation_costs_what_is_left_and_refuses_the_noise() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    arguments = {"solver": DDIM(), "grid": GRIDS["time"], "gradient": Truncated(last=3)}
    rollout = sample(network, x_T, z, **arguments)
    rollout.x_0.sum().backward()
    cost = rollout.cost
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (N, 3, 3)
    assert (cost.peak_latents, cost.peak_graphs) == (4, 1)
    with pytest.raises(NotSupportedError, match="Truncated gives no gradient of the initial noise"):
        sample(network, x_T.requires_grad_(), z, **arguments)
    with pytest.raises(ValueError, match="at least 1"):
        Truncated(last=0)


@pytest.mark.parametrize("spacing", GRIDS)
def test_one_step_is_exact_for_one_step(spacing: str) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    grid = GRIDS[spacing].at([3, N])
    exact, found = (
        differentiate(network, x_T, z, method, solver=DDIM(), grid=grid)
        for method in (DiscreteAdjoint(), OneStep())
    )
    for part, value in exact.parts().items():
        assert agree(found.parts()[part], value), part
    # And for more steps it is the gradient of that one step.
    more = differentiate(
        network, x_T, z, OneStep(), solver=DDIM(), grid=GRIDS[spacing].at([3, 7, N])
    )
    for part, value in exact.parts().items():
        assert agree(more.parts()[part], value), part
    cost = more.rollout.cost
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps, cost.peak_latents) == (2, 1, 1, 1)


def test_one_step_differentiates_the_posterior_mean_of_gaussian_data() -> None:
    r"""E[x_0 | x] = m + alpha s^2 / v (x - alpha m): its derivative is alpha s^2 / v."""
    oracle, (x_T, z) = gaussian(DDPM(), scale=0.7), inputs()
    for start in (0, 5, 9):
        grid = GRIDS["sigma0"].at(range(start, N + 1))
        s = grid[0]
        v = s.alpha**2 * 0.7**2 + s.sigma**2
        for solver in (DDIM(), SDEDPMSolver()):
            noise = None
            if solver.calculus == "sde":
                noise = RecordedNoise.draw(grid.steps, x_T.shape, seed=2, dtype=torch.float64)
            found = differentiate(oracle, x_T, z, OneStep(), solver=solver, grid=grid, noise=noise)
            assert agree(found.x_T, s.alpha * 0.7**2 / v * COTANGENT)
            in_mean = (1.0 - s.alpha**2 * 0.7**2 / v) * COTANGENT
            assert agree(found.z, in_mean @ oracle.weight)


def test_one_step_points_the_right_way_with_the_wrong_length() -> None:
    network, (x_T, z) = mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 80)
    exact, found = (
        differentiate(network, x_T, z, method, solver=DDIM(), grid=grid).x_T
        for method in (DiscreteAdjoint(), OneStep())
    )
    cosine = torch.nn.functional.cosine_similarity(found.flatten(), exact.flatten(), 0)
    assert cosine > 0.8 and float(found.norm() / exact.norm()) < 0.05
