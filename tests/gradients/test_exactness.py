"""Exact methods against autograd through the discrete chain, and what they must preserve."""

from dataclasses import dataclass

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    AffineDenoiser,
    Autocast,
    Dropout,
    MLPDenoiser,
    RungeKutta4,
    agree,
    differentiate,
    inputs,
    normal,
    relative_error,
)
from torch import nn

from adjointdeis import DDPM, PerStep, TimeGrid, VPCosine, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath, FromTimesteps, GaussianDenoiser, RecordedNoise
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.gradients.adjoint_kernel import solve_adjoint
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning"
)
SOLVERS = {
    "ddim": DDIM(),
    "ddim-clipped": DDIM(clip_x0=True),
    "dpmpp1": DPMSolverPP(1),
    "dpmpp2m": DPMSolverPP(2),
    "sde-recorded": SDEDPMSolver(),
    "sde-brownian": SDEDPMSolver(),
    "outside": RungeKutta4(),
}
GRIDS = {
    "lmbda": TimeGrid.uniform_lmbda(VPLinear(), 7, t_max=0.7),
    "time": TimeGrid.uniform_time(VPCosine(), 8, t_min=0.01),
    "sigma0": TimeGrid.ddim_stride(DDPM(), 8),
    "greedy": TimeGrid.greedy_dim(DDPM(), 6),
}


def noise_for(name: str, grid: TimeGrid):
    if name == "sde-recorded":
        return RecordedNoise.draw(grid.steps, (BATCH, DIM), seed=3, dtype=torch.float64)
    return BrownianPath((BATCH, DIM), seed=4) if name == "sde-brownian" else None


def square(x: torch.Tensor) -> torch.Tensor:
    return (x * x.sin()).sum()


@pytest.mark.parametrize("scheduled", [False, True], ids=["z", "z_t"])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_discrete_adjoint_is_autograd(name: str, spacing: str, scheduled: bool) -> None:
    if name == "outside" and spacing == "sigma0":
        pytest.skip("this reference solver has no limit at sigma = 0")
    grid, network = GRIDS[spacing], MLPDenoiser()
    x_T, z = inputs(grid.steps if scheduled else 0)
    if name == "ddim-clipped":
        x_T = 0.05 * x_T  # some coordinates clip, others do not
    results = [
        differentiate(network, x_T, z, method, solver=SOLVERS[name], grid=grid,
                      noise=noise_for(name, grid), loss=square)
        for method in (Backprop(), DiscreteAdjoint())
    ]  # fmt: skip
    exact, found = results
    assert torch.equal(exact.rollout.x_0, found.rollout.x_0)
    for part, value in exact.parts().items():
        assert relative_error(found.parts()[part], value) < 1e-12, part
    if scheduled:
        for step in range(grid.steps):
            assert agree(found.z[step], exact.z[step]), step
        assert (exact.z.flatten(1).norm(dim=1) > 0).sum() >= grid.steps - 3


def test_gradients_are_correct_by_finite_differences() -> None:
    grid, network = TimeGrid.uniform_time(VPLinear(), 3), MLPDenoiser()
    noise = [normal(BATCH, DIM, seed=i) for i in range(3)]
    x_T, zs = inputs(3)
    leaves = [value.requires_grad_() for value in (x_T, *zs)]
    for solver in (DPMSolverPP(2), SDEDPMSolver()):

        def chain(x, *conditions, solver=solver):
            return sample(
                network,
                x,
                PerStep(conditions),
                solver=solver,
                grid=grid,
                noise=noise if solver.calculus == "sde" else None,
                gradient=DiscreteAdjoint(),
            ).x_0

        assert torch.autograd.gradcheck(chain, leaves, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("calculus", ["ode", "sde"])
def test_the_shared_kernel_at_the_noisy_end_is_the_discrete_adjoint(calculus: str) -> None:
    """p_s = p_t - c r p_t alpha_s J(x_s, s), against autograd through the sampler."""
    grid, network = GRIDS["lmbda"], MLPDenoiser()
    x_T, z = inputs()
    solver = DDIM() if calculus == "ode" else SDEDPMSolver()
    noise = None if calculus == "ode" else noise_for("sde-recorded", grid)
    exact = differentiate(network, x_T, z, Backprop(), solver=solver, grid=grid, noise=noise)
    states = [x_T]
    with torch.no_grad():
        for i in range(grid.steps):
            n = None if noise is None else noise.values[i]
            states.append(solver.step(network, states[-1], z, grid[i], grid[i + 1], (), n)[0])
    weights, a_z, a_theta = list(network.parameters()), 0.0, 0.0

    def velocity(interval, node, p):
        x = states[interval].clone().requires_grad_()
        condition = z.clone().requires_grad_()
        eps = network(x, node.t, condition)
        pJ, *rest = torch.autograd.grad(eps, (x, condition, *weights), p)
        return [node.alpha * pJ, rest[0], torch.cat([g.flatten() for g in rest[1:]])]

    def integrate(interval, weight, D):
        nonlocal a_z, a_theta
        a_z, a_theta = a_z + weight * D[1], a_theta + weight * D[2]

    p = grid[-1].alpha * normal(BATCH, DIM, seed=99)
    factor = 1.0 if calculus == "ode" else 2.0
    p = solve_adjoint(grid, p, velocity, integrate, factor=factor, end="noisy")
    assert relative_error(p / grid[0].alpha, exact.x_T) < 1e-12
    assert relative_error(a_z, exact.z) < 1e-12
    assert relative_error(a_theta, exact.theta) < 1e-12


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(2)], ids=["ddim", "2m"])
def test_without_a_jacobian_every_method_gives_the_exact_answer(solver) -> None:
    """eps = B z + c: a_x = alpha_0 / alpha_T a_0, and AdjointDEIS has no error either."""
    grid = TimeGrid.uniform_time(VPLinear(), 6)
    network, (x_T, z) = AffineDenoiser(VPLinear()), inputs()
    network.a.requires_grad_(False)
    exact = differentiate(network, x_T, z, Backprop(), solver=DDIM(), grid=grid)
    a_0 = normal(BATCH, DIM, seed=99)
    torch.testing.assert_close(exact.x_T, grid[-1].alpha / grid[0].alpha * a_0)
    # y_0 = y_T - (rho_T - rho_0)(B z + c)
    closed = -grid[-1].alpha * (grid[0].rho - grid[-1].rho) * a_0 @ network.b.detach()
    torch.testing.assert_close(exact.z, closed)
    for method in (
        DiscreteAdjoint(),
        AdjointDEIS(1),
        AdjointDEIS("2M"),
        AdjointDEIS(1, steps=3),
        AdjointDEIS(1, steps=5, states="interpolated"),
        AdjointDEIS("2M", states="resolved"),
    ):
        found = differentiate(network, x_T, z, method, solver=solver, grid=grid)
        for part, value in exact.parts().items():
            assert relative_error(found.parts()[part], value) < 1e-11, (method, part)


@pytest.mark.parametrize("spacing", ["lmbda", "time"])
def test_a_constant_scaled_jacobian_leaves_no_difference_between_the_ends(spacing: str) -> None:
    """eps = A x / alpha_t + B z: the Jacobian is the same at both ends of a step."""
    schedule = VPLinear()
    build = {"lmbda": TimeGrid.uniform_lmbda, "time": TimeGrid.uniform_time}[spacing]
    grid = build(schedule, 9, t_max=0.6)
    network, (x_T, z) = AffineDenoiser(schedule, slope=0.3), inputs()
    for name in ("ddim", "sde-recorded"):
        noise = noise_for(name, grid)
        found = [
            differentiate(network, x_T, z, m, solver=SOLVERS[name], grid=grid, noise=noise)
            for m in (DiscreteAdjoint(), AdjointDEIS())
        ]
        assert relative_error(found[1].x_T, found[0].x_T) < 1e-12
        assert relative_error(found[1].z, found[0].z) < 1e-12


def test_the_gradient_of_gaussian_data_is_the_closed_form() -> None:
    """dx_0/dx_T = sqrt(v_0 / v_T), dx_0/dm = alpha_0 - sqrt(v_0 / v_T) alpha_T."""
    schedule = VPLinear()
    denoiser = GaussianDenoiser(schedule, normal(DIM, seed=1), 0.7, normal(DIM, 3, seed=2))
    x_T, z = inputs()
    grid = TimeGrid.uniform_lmbda(schedule, 160)
    ratio = (denoiser.variance(grid.t[-1]) / denoiser.variance(grid.t[0])).sqrt().detach()
    a_0 = normal(BATCH, DIM, seed=99)
    shift = grid[-1].alpha - ratio * grid[0].alpha
    for method, tolerance in ((DiscreteAdjoint(), 2e-3), (AdjointDEIS("2M"), 3e-2)):
        found = differentiate(denoiser, x_T, z, method, solver=DPMSolverPP(2), grid=grid)
        assert relative_error(found.x_T, ratio * a_0) < tolerance
        assert relative_error(found.z, shift * a_0 @ denoiser.weight.detach()) < tolerance


def test_the_gradient_of_an_encoding_is_autograd() -> None:
    network, (x_0, z) = MLPDenoiser(), inputs()
    grid = TimeGrid.ddim_stride(DDPM(), 8, encode=True)
    found = []
    for method in (Backprop(), DiscreteAdjoint()):
        x, condition = x_0.clone().requires_grad_(), z.clone().requires_grad_()
        code = encode(network, x, condition, solver=DDIM(), grid=grid, gradient=method)
        found.append(torch.autograd.grad(square(code.x_T), (x, condition)))
    assert all(relative_error(b, a) < 1e-12 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("method", [DiscreteAdjoint()], ids=["discrete"])
def test_random_layers_draw_the_same_masks_again(method) -> None:
    grid, network, (x_T, z) = GRIDS["time"], Dropout(), inputs()
    found, after = [], []
    for one in (Backprop(), method):
        torch.manual_seed(5)
        found.append(differentiate(network, x_T, z, one, solver=DDIM(), grid=grid))
        after.append(torch.rand(2))
    assert relative_error(found[1].z, found[0].z) < 1e-12
    assert relative_error(found[1].theta, found[0].theta) < 1e-12
    assert torch.equal(*after)


def test_recomputation_repeats_the_callers_autocast() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 4)
    x_T = normal(BATCH, DIM, seed=1).float()
    network, found = Autocast(), []
    for method in (Backprop(), DiscreteAdjoint(), AdjointDEIS()):
        x = x_T.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_0 = sample(network, x, solver=DDIM(), grid=grid, gradient=method).x_0
        x_0.sum().backward()
        found.append(x.grad)
    assert set(network.seen) == {torch.bfloat16}
    assert relative_error(found[1], found[0]) < 1e-6


@dataclass(frozen=True)
class Pair:
    """A solver whose initial state is made from x_T, as coupled samplers do."""

    calculus: str = "ode"

    def initial_state(self, x_T, grid):
        return (2.0 * x_T.sin(),)

    def step(self, denoiser, x, z, s, t, state, noise):
        (other,) = state
        x = x + 0.1 * denoiser(other, s.t, z)
        return x, (other + 0.1 * denoiser(x, s.t, z),)


def test_a_state_made_from_the_noise_carries_its_gradient_back() -> None:
    grid, network, (x_T, z) = GRIDS["time"], MLPDenoiser(), inputs()
    exact, found = (
        differentiate(network, x_T, z, m, solver=Pair(), grid=grid)
        for m in (Backprop(), DiscreteAdjoint())
    )
    for part, value in exact.parts().items():
        assert relative_error(found.parts()[part], value) < 1e-12
    assert found.rollout.cost.peak_latents == 2 * grid.steps + 1


def test_an_integer_timestep_network_learns_through_the_chain() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Parameter(0.1 * normal(1000, DIM, seed=1))

        def forward(self, x, timesteps, z):
            return torch.tanh(x + self.rows[timesteps])

    schedule = DDPM()
    denoiser, x_T = FromTimesteps(Table(), schedule), inputs()[0]
    grid = TimeGrid.ddim_stride(schedule, 10)
    exact, found = (theta_gradient(denoiser, x_T, grid, m) for m in (Backprop(), DiscreteAdjoint()))
    assert relative_error(found, exact) < 1e-12
    visited = exact.reshape(1000, DIM).abs().sum(1).nonzero().flatten().tolist()
    assert visited == list(range(0, 1000, 100))


def theta_gradient(denoiser, x_T, grid, method) -> torch.Tensor:
    denoiser.zero_grad()
    rollout = sample(denoiser, x_T, solver=DDIM(), grid=grid, gradient=method)
    rollout.x_0.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in denoiser.parameters()])
