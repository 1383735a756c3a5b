"""AdjointDEIS against the paper's equations, written here a second time in the paper's form."""

import math

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    MLPDenoiser,
    RungeKutta4,
    agree,
    differentiate,
    inputs,
    mixture,
    normal,
    relative_error,
)

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, RecordedNoise
from adjointdeis.gradients import AdjointDEIS
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning"
)
GRID = TimeGrid.uniform_time(VPLinear(), 6, t_min=0.02)


def trajectory(network, x_T, z, grid, solver, noise=None) -> list[torch.Tensor]:
    """Every state of a sampling run, by one-step rollouts of the solver."""
    states, history = [x_T], ()
    with torch.no_grad():
        for i in range(grid.steps):
            s, t = grid[i], grid[i + 1]
            n = None if noise is None else noise.normal(s, t, x_T)
            condition = z if isinstance(z, torch.Tensor) else z[i]
            x, history = solver.step(network, states[-1], condition, s, t, history, n)
            states.append(x)
    return states


def jacobian_products(network, x, t, z, a):
    """a^T d eps / d(x, z, theta) at one point."""
    x, z = x.clone().requires_grad_(), z.clone().requires_grad_()
    eps = network(x, t, z)
    weights = list(network.parameters())
    in_x, in_z, *in_theta = torch.autograd.grad(eps, (x, z, *weights), a)
    return in_x, in_z, torch.cat([g.flatten() for g in in_theta])


def paper_adjoint(network, grid, states, z, a_x, order, factor):
    """Equations 2.14 and 2.15 as printed: h < 0, sigma_s (e^h - 1), powers of alpha."""
    a_z, a_theta, before = 0.0, 0.0, None
    increments = []
    for j in range(grid.steps, 0, -1):
        s, t = grid[j - 1], grid[j]
        h = s.lmbda - t.lmbda
        condition = z if isinstance(z, torch.Tensor) else z[j - 1]
        in_x, in_z, in_theta = jacobian_products(network, states[j], t.t, condition, a_x)
        v = (t.alpha**2 * in_x, t.alpha * in_z, t.alpha * in_theta)
        d = v
        if order == 2 and before is not None:
            r = before[1] / h
            d = [
                (1 + 1 / (2 * r)) * now - past / (2 * r)
                for now, past in zip(v, before[0], strict=True)
            ]
        before = (v, h)
        phi = factor * (math.exp(h) - 1.0)
        a_x = t.alpha / s.alpha * a_x + s.sigma / s.alpha**2 * phi * d[0]
        increments.insert(0, s.sigma / s.alpha * phi * d[1])
        a_z = a_z + increments[0]
        a_theta = a_theta + s.sigma / s.alpha * phi * d[2]
    return a_x, a_z, a_theta, torch.stack(increments)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP(2), SDEDPMSolver()], ids=["ddim", "2m", "sde"]
)
def test_recorded_adjoints_are_the_printed_equations(solver, order: int) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    sde = solver.calculus == "sde"
    noise = RecordedNoise.draw(6, (BATCH, DIM), seed=2, dtype=torch.float64) if sde else None
    found = differentiate(
        network, x_T, z, AdjointDEIS(order), solver=solver, grid=GRID, noise=noise
    )
    states = trajectory(network, x_T, z, GRID, solver, noise)
    a_0 = normal(BATCH, DIM, seed=99)
    a_x, a_z, a_theta, _ = paper_adjoint(network, GRID, states, z, a_0, order, 2.0 if sde else 1.0)
    assert agree(found.x_T, a_x)
    assert agree(found.z, a_z)
    assert agree(found.theta, a_theta)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_the_gradient_of_a_scheduled_condition_is_the_increment(solver, order: int) -> None:
    network, (x_T, zs) = MLPDenoiser(), inputs(GRID.steps)
    sde = solver.calculus == "sde"
    noise = BrownianPath((BATCH, DIM), seed=2) if sde else None
    found = differentiate(
        network, x_T, zs, AdjointDEIS(order), solver=solver, grid=GRID, noise=noise
    )
    states = trajectory(network, x_T, zs, GRID, solver, noise)
    a_0 = normal(BATCH, DIM, seed=99)
    a_x, _, _, increments = paper_adjoint(
        network, GRID, states, zs, a_0, order, 2.0 if sde else 1.0
    )
    assert agree(found.x_T, a_x)
    for step in range(GRID.steps):
        assert agree(found.z[step], increments[step], 1e-11), step
    # With equal conditions the increments add up to the gradient of the constant one.
    equal = differentiate(
        network,
        x_T,
        [zs[0]] * GRID.steps,
        AdjointDEIS(order),
        solver=solver,
        grid=GRID,
        noise=noise,
    )
    constant = differentiate(
        network, x_T, zs[0], AdjointDEIS(order), solver=solver, grid=GRID, noise=noise
    )
    assert agree(equal.z.sum(0), constant.z)


def test_first_order_recorded_is_the_euler_adjoint_over_rho() -> None:
    """The same numbers from torchdiffeq's augmented Euler solve at all rho nodes."""
    torchdiffeq = pytest.importorskip("torchdiffeq")
    schedule, network, (x_T, z) = VPLinear(), mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(schedule, 12)

    class Flow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.z = torch.nn.Parameter(z.clone())

        def forward(self, rho, y):
            # Snapped to the node: t(rho) by log and exp differs from it by rounding.
            index = int((grid.rho - rho).abs().argmin())
            return self.network(grid[index].alpha * y, grid[index].t, self.z)

    flow = Flow()
    y_T = (x_T / grid[0].alpha).requires_grad_()
    y = torchdiffeq.odeint_adjoint(flow, y_T, grid.rho, method="euler")
    x_0 = grid[-1].alpha * y[-1]
    (x_0 * normal(BATCH, DIM, seed=99)).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    found = differentiate(network, x_T, z, AdjointDEIS(), solver=DDIM(), grid=grid)
    assert agree(found.rollout.x_0.detach(), x_0.detach(), 1e-12)
    assert agree(found.x_T, y_T.grad / grid[0].alpha)
    assert agree(found.z, flow.z.grad)
    assert agree(found.theta, theta)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_resolved_states_follow_the_same_integrator(solver, order: int) -> None:
    """x is carried back by the exponential integrator of the adjoint's own order."""
    network, (x_T, z) = MLPDenoiser(), inputs()
    sde = solver.calculus == "sde"
    factor = 2.0 if sde else 1.0
    noise = RecordedNoise.draw(6, (BATCH, DIM), seed=2, dtype=torch.float64) if sde else None
    method = AdjointDEIS(order, states="resolved")
    found = differentiate(network, x_T, z, method, solver=solver, grid=GRID, noise=noise)
    x, before = found.rollout.x_0.detach(), None
    states = [x]
    with torch.no_grad():
        for j in range(GRID.steps, 0, -1):
            s, t = GRID[j - 1], GRID[j]
            h = t.lmbda - s.lmbda
            eps = network(x, t.t, z)
            d = eps
            if order == 2 and before is not None:
                d = eps + h / (2.0 * before[1]) * (eps - before[0])
            before = (eps, h)
            x = s.alpha / t.alpha * x + factor * s.sigma * (1.0 - math.exp(-h)) * d
            if sde:
                x = x - s.alpha * math.sqrt(s.rho**2 - t.rho**2) * noise.values[j - 1]
            states.insert(0, x)
    a_0 = normal(BATCH, DIM, seed=99)
    a_x, a_z, a_theta, _ = paper_adjoint(network, GRID, states, z, a_0, order, factor)
    assert agree(found.x_T, a_x, 1e-11)
    assert agree(found.z, a_z, 1e-11)
    assert agree(found.theta, a_theta, 1e-11)
    assert found.rollout.cost.peak_latents == 1


def test_fewer_recorded_steps_use_the_nearest_sampling_nodes() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    states = trajectory(network, x_T, z, GRID, DDIM())
    a_0 = normal(BATCH, DIM, seed=99)
    for steps, chosen in ((3, [0, 2, 4, 6]), (2, [0, 3, 6]), (4, [0, 2, 3, 5, 6])):
        found = differentiate(network, x_T, z, AdjointDEIS(steps=steps), solver=DDIM(), grid=GRID)
        a_x, a_z, a_theta, _ = paper_adjoint(
            network, GRID.at(chosen), [states[i] for i in chosen], z, a_0, 1, 1.0
        )
        assert agree(found.x_T, a_x) and agree(found.z, a_z) and agree(found.theta, a_theta)


def test_interpolated_states_are_linear_in_lmbda() -> None:
    network, (x_T, z), steps = MLPDenoiser(), inputs(), 9
    states = trajectory(network, x_T, z, GRID, DDIM())
    times, between = [], []
    for j in range(steps + 1):
        place = j * GRID.steps / steps
        i = min(int(place), GRID.steps - 1)
        s, t, f = GRID[i], GRID[i + 1], place - i
        lmbda = (1.0 - f) * s.lmbda + f * t.lmbda
        times.append(float(GRID.schedule.t_of(lmbda)))
        between.append((1.0 - f) * states[i] + f * states[i + 1])
    grid = TimeGrid.from_times(GRID.schedule, times)
    a_0 = normal(BATCH, DIM, seed=99)
    for order in (1, 2):
        method = AdjointDEIS(order, steps=steps, states="interpolated")
        found = differentiate(network, x_T, z, method, solver=DDIM(), grid=GRID)
        a_x, a_z, a_theta, _ = paper_adjoint(network, grid, between, z, a_0, order, 1.0)
        assert agree(found.x_T, a_x, 1e-11) and agree(found.z, a_z, 1e-11)
        assert agree(found.theta, a_theta, 1e-11)
        assert found.rollout.cost.nfe_backward == found.rollout.cost.vjps == steps


@pytest.mark.parametrize("states", ["recorded", "interpolated", "resolved"])
def test_with_as_many_steps_all_sampling_nodes_are_used(states: str) -> None:
    nodes = AdjointDEIS(states=states).nodes(GRID)
    assert torch.equal(nodes.grid.t, GRID.t) and nodes.exact
    assert [nodes.shares(i) for i in range(6)] == [[(i, 1.0)] for i in range(6)]


@pytest.mark.parametrize(
    ("states", "steps"), [("recorded", 4), ("interpolated", 4), ("interpolated", 11)]
)
def test_a_schedule_shares_out_the_intervals_that_cross_its_steps(states: str, steps: int) -> None:
    """Every increment is given away once, in proportion to the overlap in rho."""
    nodes = AdjointDEIS(steps=steps, states=states).nodes(GRID)
    for interval in range(steps):
        noisy, clean = nodes.grid[interval], nodes.grid[interval + 1]
        shares = dict(nodes.shares(interval))
        for step in range(GRID.steps):
            upper, lower = min(noisy.rho, GRID[step].rho), max(clean.rho, GRID[step + 1].rho)
            expected = max(0.0, upper - lower) / (noisy.rho - clean.rho)
            assert shares.get(step, 0.0) == pytest.approx(expected, abs=1e-12)
    network, (x_T, zs) = MLPDenoiser(), inputs(GRID.steps)
    method = AdjointDEIS(steps=steps, states=states)
    equal = differentiate(network, x_T, [zs[0]] * 6, method, solver=DDIM(), grid=GRID)
    constant = differentiate(network, x_T, zs[0], method, solver=DDIM(), grid=GRID)
    assert agree(equal.z.sum(0), constant.z) and agree(equal.x_T, constant.x_T)


def test_a_clean_end_without_noise_is_a_finite_limit() -> None:
    """sigma_0 = 0: h is infinite, e^-h is 0, and 2M drops its correction."""
    grid = TimeGrid.uniform_time(VPLinear(), 6, t_min=0.0)
    near = TimeGrid.from_times(VPLinear(), [*grid.t[:-1].tolist(), 1e-13])
    denoiser, (x_T, z) = mixture(), inputs()
    for order in (1, 2):
        for states in ("recorded", "resolved", "interpolated"):
            for steps in (6, 4):
                method = AdjointDEIS(order, steps=steps, states=states)
                exact, close = (
                    differentiate(denoiser, x_T, z, method, solver=DDIM(), grid=g)
                    for g in (grid, near)
                )
                for part, value in exact.parts().items():
                    assert value.isfinite().all()
                    if steps == 6 and order == 1:
                        assert relative_error(close.parts()[part], value) < 1e-3, (method, part)


def test_a_solver_from_outside_is_differentiated_through_its_states() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    found = differentiate(network, x_T, z, AdjointDEIS(), solver=RungeKutta4(), grid=GRID)
    with torch.no_grad():
        states = [
            x_T,
            *(
                sample(network, x_T, z, solver=RungeKutta4(), grid=GRID.at(range(i + 1))).x_0
                for i in range(1, 7)
            ),
        ]
    a_x, _, _, _ = paper_adjoint(network, GRID, states, z, normal(BATCH, DIM, seed=99), 1, 1.0)
    assert agree(found.x_T, a_x)
    assert found.rollout.cost.nfe_forward == 4 * 6 and found.rollout.cost.nfe_backward == 6
