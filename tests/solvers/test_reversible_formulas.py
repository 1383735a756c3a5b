"""Steps of the reversible samplers against their equations, written out once more."""

import math

import pytest
import torch
from oracles import BATCH, DIM, inputs, mixture, normal

from adjointdeis import DDPM, TimeGrid, VPLinear
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    DPMSolverPP,
    Rex,
    RungeKutta,
    SDEDPMSolver,
)

GRID = TimeGrid.uniform_time(VPLinear(), 6)
DENOISER = mixture().requires_grad_(False)


def close(value, expected) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)


def take(solver, index: int, x, partner, z, noise=None):
    x, (partner,) = solver.step(DENOISER, x, z, GRID[index], GRID[index + 1], (partner,), noise)
    return x, partner


def ddim(x, z, index: int, to: int):
    s, t = GRID[index], GRID[to]
    return t.alpha / s.alpha * x + t.alpha * (t.rho - s.rho) * DENOISER(x, s.t, z)


@pytest.mark.parametrize("index", [2, 3])
def test_edict_alternates_which_latent_goes_first_and_mixes_x_first(index: int) -> None:
    (x, z), y, p = inputs(), normal(BATCH, DIM, seed=8), 0.9
    s, t = GRID[index], GRID[index + 1]
    a, b = t.alpha / s.alpha, t.sigma - t.alpha / s.alpha * s.sigma
    if index % 2 == 0:
        x_i = a * x + b * DENOISER(y, s.t, z)
        y_i = a * y + b * DENOISER(x_i, s.t, z)
    else:
        y_i = a * y + b * DENOISER(x, s.t, z)
        x_i = a * x + b * DENOISER(y_i, s.t, z)
    x_t = p * x_i + (1 - p) * y_i
    found = take(EDICT(p), index, x, y, z)
    close(found[0], x_t)
    close(found[1], p * y_i + (1 - p) * x_t)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_bdia_integrates_forwards_and_backwards_from_the_middle(gamma: float) -> None:
    (x, z), before = inputs(), normal(BATCH, DIM, seed=8)
    expected = gamma * before + ddim(x, z, 3, 4) - gamma * ddim(x, z, 3, 2)
    found = take(BDIA(gamma), 3, x, before, z)
    close(found[0], expected)
    close(found[1], x)


def test_o_belm_has_the_coefficients_of_least_truncation_error() -> None:
    (x, z), before = inputs(), normal(BATCH, DIM, seed=8)
    p, s, t = GRID[2], GRID[3], GRID[4]
    h, h_before = s.rho - t.rho, p.rho - s.rho
    expected = (
        h**2 / h_before**2 * t.alpha / p.alpha * before
        + (h_before**2 - h**2) / h_before**2 * t.alpha / s.alpha * x
        - h * (h + h_before) / h_before * t.alpha * DENOISER(x, s.t, z)
    )
    found = take(OBELM(), 3, x, before, z)
    close(found[0], expected)
    close(found[1], x)


def test_o_belm_is_exact_for_a_flow_quadratic_in_rho() -> None:
    """Second order on unequal steps: eps = rho gives y = rho^2 / 2 without error."""

    def linear(x, t, z):
        return torch.full_like(x, float(VPLinear().rho(t)))

    def at(index: int):
        node = GRID[index]
        return torch.full((1, 1), node.alpha * node.rho**2 / 2.0, dtype=torch.float64)

    reached, _ = OBELM().step(linear, at(3), None, GRID[3], GRID[4], (at(2),), None)
    close(reached, at(4))


@pytest.mark.parametrize("solver", [BDIA(), BDIA(0.5), OBELM()], ids=repr)
def test_the_first_step_of_a_two_step_method_is_ddim(solver) -> None:
    x, z = inputs()
    state = solver.initial_state(x, GRID)
    found, partner = take(solver, 0, x, state[0], z)
    close(found, DDIM().step(DENOISER, x, z, GRID[0], GRID[1], (), None)[0])
    assert torch.equal(partner, x)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "kutta3", "rk4"])
def test_rex_in_noise_prediction_adds_a_runge_kutta_step(method: str) -> None:
    (x, z), partner = inputs(), normal(BATCH, DIM, seed=8)
    s, t, zeta = GRID[3], GRID[4], 0.8
    ratio = t.alpha / s.alpha
    base = RungeKutta(method).step(DENOISER, partner, z, s, t, (), None)[0]
    expected = ratio * zeta * (x - partner) + base
    found = take(Rex(method, "noise", zeta=zeta), 3, x, partner, z)
    close(found[0], expected)
    # The partner follows by the step from t back to s at the new x.
    undone = RungeKutta(method).step(DENOISER, expected, z, t, s, (), None)[0]
    close(found[1], ratio * partner - (ratio * undone - expected))


def test_rex_with_euler_in_data_prediction_is_first_order_dpm_solver_pp() -> None:
    (x, z), partner = inputs(), normal(BATCH, DIM, seed=8)
    s, t, zeta = GRID[3], GRID[4], 0.8
    ratio = t.sigma / s.sigma
    base = DPMSolverPP(1).step(DENOISER, partner, z, s, t, (), None)[0]
    expected = ratio * zeta * (x - partner) + base
    found = take(Rex(zeta=zeta), 3, x, partner, z)
    close(found[0], expected)
    x0 = (expected - t.sigma * DENOISER(expected, t.t, z)) / t.alpha
    close(found[1], ratio * partner + t.sigma * (t.alpha / t.sigma - s.alpha / s.sigma) * x0)


def test_rex_with_midpoint_in_data_prediction_evaluates_at_half_the_gamma() -> None:
    x, z = inputs()
    s, t, schedule = GRID[3], GRID[4], VPLinear()
    gamma = [node.alpha / node.sigma for node in (s, t)]
    middle = schedule.t_of(math.log(sum(gamma) / 2.0))
    alpha, sigma = float(schedule.alpha(middle)), float(schedule.sigma(middle))

    def x0_hat(x, time, alpha, sigma):
        return (x - sigma * DENOISER(x, time, z)) / alpha

    width = gamma[1] - gamma[0]
    half = sigma * (x / s.sigma + 0.5 * width * x0_hat(x, s.t, s.alpha, s.sigma))
    expected = t.sigma * (x / s.sigma + width * x0_hat(half, middle, alpha, sigma))
    close(take(Rex("midpoint"), 3, x, x, z)[0], expected)


def test_rex_for_the_sde_is_the_first_order_solver_of_its_prediction() -> None:
    (x, z), noise = inputs(), normal(BATCH, DIM, seed=9)
    s, t = GRID[3], GRID[4]
    expected = SDEDPMSolver().step(DENOISER, x, z, s, t, (), noise)[0]
    close(take(Rex("euler", "noise", "sde"), 3, x, x, z, noise)[0], expected)
    # SDE-DPM-Solver++(1): sigma' e^-h / sigma, alpha' (1 - e^-2h), sigma' sqrt(1 - e^-2h).
    h = t.lmbda - s.lmbda
    x0 = (x - s.sigma * DENOISER(x, s.t, z)) / s.alpha
    expected = (
        t.sigma / s.sigma * math.exp(-h) * x
        - t.alpha * math.expm1(-2 * h) * x0
        + t.sigma * math.sqrt(-math.expm1(-2 * h)) * noise
    )
    close(take(Rex("euler", "data", "sde"), 3, x, x, z, noise)[0], expected)


def middle_of(lmbda: float):
    """Time and levels at a log-SNR."""
    schedule = VPLinear()
    t = schedule.t_of(lmbda)
    return t, float(schedule.alpha(t)), float(schedule.sigma(t))


def test_a_midpoint_of_the_sde_in_noise_prediction_lies_on_the_path() -> None:
    """Stage at half the rho, with the share of the variance that has gone by there."""
    (x, z), noise = inputs(), normal(BATCH, DIM, seed=9)
    s, t = GRID[3], GRID[4]
    rho = 0.5 * (s.rho + t.rho)
    time, alpha, _ = middle_of(-math.log(rho))
    path = math.sqrt(s.rho**2 - t.rho**2) * noise
    share = (s.rho**2 - rho**2) / (s.rho**2 - t.rho**2)
    y = x / s.alpha + 2.0 * (rho - s.rho) * DENOISER(x, s.t, z) + share * path
    expected = t.alpha * (x / s.alpha + 2.0 * (t.rho - s.rho) * DENOISER(alpha * y, time, z) + path)
    close(take(Rex("midpoint", "noise", "sde"), 3, x, x, z, noise)[0], expected)


def test_a_midpoint_of_the_sde_in_data_prediction_halves_the_squared_gamma() -> None:
    (x, z), noise = inputs(), normal(BATCH, DIM, seed=9)
    s, t = GRID[3], GRID[4]

    def level(alpha, sigma):
        return sigma**2 / alpha

    def x0_hat(x, time, alpha, sigma):
        return (x - sigma * DENOISER(x, time, z)) / alpha

    clock = [(node.alpha / node.sigma) ** 2 for node in (s, t)]
    time, alpha, sigma = middle_of(0.5 * math.log(0.5 * sum(clock)))
    width, path = clock[1] - clock[0], math.sqrt(clock[1] - clock[0]) * noise
    y = x / level(s.alpha, s.sigma)
    half = y + 0.5 * width * x0_hat(x, s.t, s.alpha, s.sigma) + 0.5 * path
    slope = x0_hat(level(alpha, sigma) * half, time, alpha, sigma)
    expected = level(t.alpha, t.sigma) * (y + width * slope + path)
    close(take(Rex("midpoint", "data", "sde"), 3, x, x, z, noise)[0], expected)


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_a_stage_of_the_sde_adds_the_mean_of_the_path_there(prediction: str) -> None:
    """With eps = 0 the partner undoes exactly the noise that x was given."""

    def silent(x, t, z):
        return torch.zeros_like(x) if prediction == "noise" else x / float(VPLinear().sigma(t))

    x, noise = inputs()[0], normal(BATCH, DIM, seed=9)
    s, t = GRID[3], GRID[4]
    solver = Rex("midpoint", prediction, "sde", zeta=1.0)
    found, (partner,) = solver.step(silent, x, None, s, t, (x,), noise)
    close(partner, found)


@pytest.mark.parametrize("calculus", ["ode", "sde"])
def test_the_step_to_sigma_0_is_taken_in_noise_prediction(calculus: str) -> None:
    grid, (x, z) = TimeGrid.ddim_stride(DDPM(), 8), inputs()
    noise = normal(BATCH, DIM, seed=9) if calculus == "sde" else None
    found = [
        Rex("midpoint", p, calculus).step(DENOISER, x, z, grid[-2], grid[-1], (x,), noise)
        for p in ("data", "noise")
    ]
    close(found[0][0], found[1][0])
    close(found[0][1][0], found[1][1][0])
