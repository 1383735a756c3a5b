"""Orders of convergence of the samplers, by slope, against exact or high-order solutions."""

import pytest
import torch
from oracles import (
    BATCH,
    COND,
    DIM,
    RungeKutta4,
    gaussian,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)

from adjointdeis import RectifiedFlow, TimeGrid, VPCosine, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.solvers import DDIM, DPMSolverPP, FlowEuler, SDEDPMSolver

STEPS = [20, 40, 80, 160]
SPACINGS = {"lmbda": TimeGrid.uniform_lmbda, "time": TimeGrid.uniform_time}


def solve(denoiser, solver, grid, noise=None, seed=30):
    x_T, z = inputs(seed=seed)
    with torch.no_grad():
        return sample(denoiser, x_T, z, solver=solver, grid=grid, noise=noise).x_0


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    ("solver", "order"),
    [(DDIM(), 1), (DPMSolverPP(1), 1), (DPMSolverPP(2), 2)],
    ids=["ddim", "dpmpp1", "dpmpp2m"],
)
def test_ode_solvers_reach_the_order_they_declare(solver, order: int, spacing: str) -> None:
    oracle, schedule = gaussian(), VPLinear()
    x_T, z = inputs()
    errors = []
    steps = STEPS if spacing == "lmbda" else [80, 160, 320, 640]
    for n in steps:
        grid = SPACINGS[spacing](schedule, n)
        exact = oracle.flow(x_T, grid.t[0], grid.t[-1], z)
        errors.append(relative_error(solve(oracle, solver, grid), exact))
    assert observed_order(steps, errors) == pytest.approx(order, abs=0.25)
    assert solver.order == order and solver.calculus == "ode"
    assert solver.multistep == (order == 2)


def test_the_reference_solver_is_of_fourth_order() -> None:
    oracle, (x_T, z) = gaussian(), inputs()
    steps, errors = [40, 80, 160], []
    for n in steps:
        grid = TimeGrid.uniform_lmbda(VPLinear(), n)
        exact = oracle.flow(x_T, grid.t[0], grid.t[-1], z)
        errors.append(relative_error(solve(oracle, RungeKutta4(), grid), exact))
    assert observed_order(steps, errors) == pytest.approx(4.0, abs=0.25)
    assert errors[-1] < 1e-6


@pytest.mark.parametrize("schedule", [VPCosine(), RectifiedFlow()], ids=["cosine", "flow"])
def test_orders_hold_on_other_schedules(schedule) -> None:
    oracle = gaussian(schedule)
    x_T, z = inputs()
    for solver, order in ((DDIM(), 1), (DPMSolverPP(2), 2)):
        errors = []
        for n in STEPS:
            grid = TimeGrid.uniform_lmbda(schedule, n)
            exact = oracle.flow(x_T, grid.t[0], grid.t[-1], z)
            errors.append(relative_error(solve(oracle, solver, grid), exact))
        assert observed_order(STEPS, errors) == pytest.approx(order, abs=0.25)


def test_the_sde_solver_converges_strongly_on_one_path() -> None:
    denoiser, path = mixture(), BrownianPath((BATCH, DIM), seed=11)
    fine = TimeGrid.uniform_lmbda(VPLinear(), 640)
    reference = solve(denoiser, SDEDPMSolver(), fine, path)
    steps = [10, 20, 40, 80]
    errors = [
        relative_error(
            solve(denoiser, SDEDPMSolver(), fine.at(range(0, 641, 640 // n)), path), reference
        )
        for n in steps
    ]
    assert observed_order(steps, errors) == pytest.approx(SDEDPMSolver.order, abs=0.25)


def test_the_sde_samples_the_distribution_of_the_data() -> None:
    """Mean and variance of the reverse SDE: wrong noise or drift factors change them."""
    oracle, schedule = gaussian(scale=0.5), VPLinear()
    count = 4000
    x_T = normal(count, DIM, seed=1)
    z = normal(1, COND, seed=2).expand(count, COND)
    grid = TimeGrid.uniform_lmbda(schedule, 60)
    with torch.no_grad():
        noise = [normal(count, DIM, seed=100 + i) for i in range(60)]
        x_0 = sample(oracle, x_T, z, solver=SDEDPMSolver(), grid=grid, noise=noise).x_0
        centre = oracle.centre(z[:1])[0]
    deviation = 0.5 / count**0.5
    assert float((x_0.mean(0) - centre).abs().max()) < 5.0 * deviation + 0.02
    assert float((x_0.std(0) - 0.5).abs().max()) < 0.03


def test_encoding_is_the_same_ode_run_backwards() -> None:
    denoiser, (x_0, z) = mixture(), inputs()
    steps, errors = [20, 40, 80, 160], []
    for n in steps:
        grid = TimeGrid.uniform_lmbda(VPLinear(), n)
        with torch.no_grad():
            code = encode(denoiser, x_0, z, solver=DDIM(), grid=grid.reversed())
            back = sample(denoiser, code.x_T, z, solver=DDIM(), grid=grid)
        assert code.cost.nfe == n
        errors.append(relative_error(back.x_0, x_0))
    assert observed_order(steps, errors) == pytest.approx(1.0, abs=0.25)
    assert errors[-1] < 0.05


def test_first_order_solvers_are_one_method() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 9)
    a, b = solve(mixture(), DDIM(), grid), solve(mixture(), DPMSolverPP(1), grid)
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    # And FlowEuler is DDIM on a straight path: tests/diffusion/test_from_diffusers.py.
    assert DDIM.order == DPMSolverPP(1).order == FlowEuler.order == 1
