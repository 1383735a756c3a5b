"""Orders of convergence of AdjointDEIS to the gradient of the continuous flow."""

from functools import cache

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    Gradients,
    RungeKutta4,
    continuous_gradient,
    differentiate,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.diffusion.transition import path_scale
from adjointdeis.gradients import AdjointDEIS, DiscreteAdjoint
from adjointdeis.gradients.adjoint_kernel import solve_adjoint
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning"
)
STEPS = [40, 80, 160]


@cache
def reference() -> Gradients:
    x_T, z = inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 2)
    return continuous_gradient(mixture(), x_T, z, grid, steps=300)


def errors_of(method_for, solver, oversampling: int = 1) -> dict[str, list[float]]:
    denoiser, (x_T, z) = mixture(), inputs()
    errors: dict[str, list[float]] = {"x_T": [], "z": [], "theta": []}
    for n in STEPS:
        grid = TimeGrid.uniform_lmbda(VPLinear(), oversampling * n)
        found = differentiate(denoiser, x_T, z, method_for(n), solver=solver, grid=grid)
        for part, value in reference().parts().items():
            errors[part].append(relative_error(found.parts()[part], value))
    return errors


CASES = {
    "1-exact-states": (lambda n: AdjointDEIS(1), RungeKutta4(), 1),
    "1-ddim-states": (lambda n: AdjointDEIS(1), DDIM(), 1),
    "1-twice-the-sampling-steps": (lambda n: AdjointDEIS(1, steps=n), DPMSolverPP(2), 1),
    "2M-exact-states": (lambda n: AdjointDEIS("2M"), RungeKutta4(), 2),
    "2M-second-order-states": (lambda n: AdjointDEIS("2M"), DPMSolverPP(2), 2),
    "2M-twice-the-sampling-steps": (lambda n: AdjointDEIS("2M", steps=n), DPMSolverPP(2), 2),
    "2M-resolved": (lambda n: AdjointDEIS("2M", states="resolved"), DPMSolverPP(2), 2),
    "2M-interpolated": (
        lambda n: AdjointDEIS("2M", steps=n * 5 // 4, states="interpolated"),
        DPMSolverPP(2),
        2,
    ),
    "discrete-ddim": (lambda n: DiscreteAdjoint(), DDIM(), 1),
    "discrete-2m": (lambda n: DiscreteAdjoint(), DPMSolverPP(2), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_order_of_the_gradient(case: str) -> None:
    method_for, solver, order = CASES[case]
    oversampling = 2 if "twice" in case else 1
    for part, errors in errors_of(method_for, solver, oversampling).items():
        assert observed_order(STEPS, errors) == pytest.approx(order, abs=0.25), (part, errors)


def test_second_order_needs_second_order_states() -> None:
    """On first-order states 2M falls back towards first order."""
    errors = errors_of(lambda n: AdjointDEIS("2M"), DDIM())["z"]
    assert observed_order(STEPS, errors) < 1.5


FINE = TimeGrid.uniform_lmbda(VPLinear(), 160)


def sde_setting(steps: int) -> tuple[TimeGrid, RecordedNoise]:
    """A grid and its noises; every grid sees the same Wiener path."""
    like = torch.zeros(BATCH, DIM, dtype=torch.float64)
    path = RecordedNoise.draw(160, (BATCH, DIM), seed=6, dtype=torch.float64)
    kept = range(0, 161, 160 // steps)
    grid = FINE.at(kept)
    normals = [
        path.increment(FINE, kept[i], kept[i + 1], like) / path_scale(grid[i], grid[i + 1])
        for i in range(steps)
    ]
    return grid, RecordedNoise(normals)


def sde_adjoint(denoiser, grid, noise, x_T, z, factor: float) -> torch.Tensor:
    """dL/dx_T by the shared kernel on the states of one SDE path, with a chosen factor."""
    states = [x_T]
    with torch.no_grad():
        for i in range(grid.steps):
            s, t = grid[i], grid[i + 1]
            n = noise.normal(s, t, x_T)
            states.append(SDEDPMSolver().step(denoiser, states[-1], z, s, t, (), n)[0])

    def velocity(interval, node, p):
        x = states[interval + 1].clone().requires_grad_()
        return [node.alpha * torch.autograd.grad(denoiser(x, node.t, z), x, p)[0]]

    p = grid[-1].alpha * normal(BATCH, DIM, seed=99)
    return solve_adjoint(grid, p, velocity, lambda *_: None, factor=factor) / grid[0].alpha


def test_the_factor_of_the_sde_is_two() -> None:
    """With 2 the adjoint converges to the gradient of its path; with 1 or 3 it does not."""
    denoiser, (x_T, z) = mixture(), inputs()
    steps = [40, 80, 160]
    errors: dict[float, list[float]] = {1.0: [], 2.0: [], 3.0: []}
    for n in steps:
        grid, noise = sde_setting(n)
        sde = {"solver": SDEDPMSolver(), "grid": grid, "noise": noise}
        exact = differentiate(denoiser, x_T, z, DiscreteAdjoint(), **sde)
        for factor, found in errors.items():
            value = sde_adjoint(denoiser, grid, noise, x_T, z, factor)
            found.append(relative_error(value, exact.x_T))
        public = differentiate(denoiser, x_T, z, AdjointDEIS(), **sde)
        twice = sde_adjoint(denoiser, grid, noise, x_T, z, 2.0)
        assert relative_error(public.x_T, twice) < 1e-12
    assert errors[2.0][0] > errors[2.0][1] > errors[2.0][2]
    assert errors[2.0][-1] < 0.7 * errors[2.0][0]
    assert errors[1.0][-1] > 10.0
    assert errors[3.0][-1] > 0.9


@pytest.mark.parametrize("states", ["recorded", "resolved"])
def test_the_sde_adjoint_converges_for_the_condition_and_the_weights(states: str) -> None:
    denoiser, (x_T, z) = mixture(), inputs()
    steps, errors = [80, 160], {"z": [], "theta": []}
    for n in steps:
        grid, noise = sde_setting(n)
        sde = {"solver": SDEDPMSolver(), "grid": grid, "noise": noise}
        exact = differentiate(denoiser, x_T, z, DiscreteAdjoint(), **sde)
        found = differentiate(denoiser, x_T, z, AdjointDEIS(states=states), **sde)
        for part, values in errors.items():
            values.append(relative_error(found.parts()[part], exact.parts()[part]))
    for part, values in errors.items():
        assert observed_order(steps, values) == pytest.approx(1.0, abs=0.25), (part, values)
