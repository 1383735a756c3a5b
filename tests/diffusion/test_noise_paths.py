"""Path noise: replay, consistency under refinement, Cycle-SDE, refusals."""

import math

import pytest
import torch
from oracles import (
    BATCH,
    COND,
    DIM,
    MLPDenoiser,
    gaussian,
    inputs,
    mixture,
    normal,
    relative_error,
)

from adjointdeis import DDPM, PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, CycleSDE, RecordedNoise, as_noise
from adjointdeis.diffusion.transition import path_scale
from adjointdeis.solvers import DDIM, Rex, SDEDPMSolver, SDEDPMSolverPP

LIKE = torch.zeros(BATCH, DIM, dtype=torch.float64)


def increments(path: BrownianPath, grid: TimeGrid) -> torch.Tensor:
    return torch.stack(
        [path_scale(grid[i], grid[i + 1]) * path.normal(grid[i], grid[i + 1], LIKE)
         for i in range(grid.steps)]
    )  # fmt: skip


def test_a_coarse_increment_is_the_sum_of_the_fine_ones() -> None:
    path = BrownianPath((BATCH, DIM), seed=7)
    fine = TimeGrid.uniform_time(VPLinear(), 12)
    coarse = fine.at([0, 3, 6, 9, 12])
    summed = increments(path, fine).reshape(4, 3, BATCH, DIM).sum(1)
    torch.testing.assert_close(increments(path, coarse), summed, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(path.increment(fine, 3, 9, LIKE), summed[1] + summed[2])


def test_recorded_noise_sums_to_the_increment_of_its_path() -> None:
    path, grid = BrownianPath((BATCH, DIM), seed=7), TimeGrid.uniform_time(VPLinear(), 6)
    noise = RecordedNoise([path.normal(grid[i], grid[i + 1], LIKE) for i in range(6)])
    torch.testing.assert_close(noise.increment(grid, 1, 5, LIKE), path.increment(grid, 1, 5, LIKE))


def test_a_path_is_replayed_in_any_order_and_differs_between_seeds() -> None:
    path = BrownianPath((BATCH, DIM), seed=7)
    there = [path.value(rho) for rho in (0.01, 0.5, 3.0, 140.0)]
    back = [BrownianPath((BATCH, DIM), seed=7).value(rho) for rho in (140.0, 3.0, 0.5, 0.01)]
    assert all(torch.equal(a, b) for a, b in zip(there, reversed(back), strict=True))
    assert not torch.equal(there[1], BrownianPath((BATCH, DIM), seed=8).value(0.5))
    assert torch.equal(path.value(0.0), LIKE)
    with pytest.raises(ValueError, match="ends at"):
        path.value(math.inf)


@pytest.mark.parametrize("low_high", [(0.0, 1e-6), (0.001, 0.003), (0.3, 0.31), (5.0, 150.0)])
def test_increments_are_standard_normal(low_high: tuple[float, float]) -> None:
    low, high = low_high
    path = BrownianPath((20_000,), seed=3)
    scaled = (path.value(high) - path.value(low)) / math.sqrt(high**2 - low**2)
    assert abs(float(scaled.mean())) < 4.0 / math.sqrt(20_000)
    assert float(scaled.var()) == pytest.approx(1.0, abs=4.0 * math.sqrt(2.0 / 20_000))


def test_disjoint_increments_are_uncorrelated() -> None:
    path = BrownianPath((20_000,), seed=4)
    a = path.value(0.4) - path.value(0.2)
    b = path.value(0.6) - path.value(0.4)
    assert abs(float(torch.corrcoef(torch.stack((a, b)))[0, 1])) < 4.0 / math.sqrt(20_000)


def test_the_whole_path_is_one_of_independent_increments() -> None:
    """From e^-9.5 to e^18.5: where two places of the path shared a draw, they would correlate."""
    count, clocks = 4000, [math.exp(k + 0.5) for k in range(-10, 19)]
    path = BrownianPath((count,), seed=3)
    values = torch.stack([path.value(rho) for rho in clocks])
    squares = torch.tensor(clocks, dtype=torch.float64).square()
    steps = values.diff(dim=0) / squares.diff().sqrt().unsqueeze(1)
    products = steps @ steps.mT / count
    # Of 378 correlations and 28 variances none is off by five standard deviations.
    assert (products - torch.eye(28)).abs().amax() < 5.0 * (2.0 / count) ** 0.5


def test_drawn_noise_depends_on_the_seed_alone() -> None:
    one = RecordedNoise.draw(3, (2, 2), seed=1)
    again = RecordedNoise.draw(3, (2, 2), seed=1)
    assert torch.equal(torch.stack(one.values), torch.stack(again.values))
    double = RecordedNoise.draw(3, (2, 2), seed=1, dtype=torch.float64)
    torch.testing.assert_close(torch.stack(double.values).float(), torch.stack(one.values))


SAMPLERS = {"noise": SDEDPMSolver(), "data": SDEDPMSolverPP(1), "data-2m": SDEDPMSolverPP(2)}
each_sampler = pytest.mark.parametrize("solver", SAMPLERS.values(), ids=SAMPLERS)


@each_sampler
@pytest.mark.parametrize(
    "grid",
    [
        TimeGrid.uniform_lmbda(VPLinear(), 20),
        TimeGrid.ddim_stride(DDPM(), 20),
        TimeGrid.greedy_dim(DDPM(), 10),
    ],
    ids=["lmbda", "sigma0", "greedy"],
)
def test_cycle_sde_reconstructs(grid: TimeGrid, solver) -> None:
    denoiser, (x_0, z) = mixture(), inputs()
    if isinstance(solver, SDEDPMSolverPP) and grid[-1].sigma == 0.0:
        with pytest.raises(ValueError, match="adds no noise to step 19 of 20"):
            CycleSDE.encode(denoiser, x_0, z, grid, seed=5, solver=solver)
        return
    with torch.no_grad():
        code = CycleSDE.encode(denoiser, x_0, z, grid, seed=5, solver=solver)
        back = sample(denoiser, code.x_T, z, solver=solver, grid=grid, noise=code.noise)
    assert relative_error(back.x_0, x_0) < 1e-12
    assert code.nfe == grid.steps == back.cost.nfe
    assert torch.equal(code.path[-1], x_0) and torch.equal(code.path[0], code.x_T)


def test_the_noises_belong_to_the_sampler_they_were_made_for() -> None:
    grid, (x_0, z) = TimeGrid.uniform_lmbda(VPLinear(), 20), inputs()
    with torch.no_grad():
        code = CycleSDE.encode(mixture(), x_0, z, grid, seed=5, solver=SDEDPMSolverPP(2))
        back = sample(
            mixture(), code.x_T, z, solver=SDEDPMSolver(), grid=grid, noise=code.noise
        )  # fmt: skip
    assert relative_error(back.x_0, x_0) > 0.01


def test_noises_of_encoded_data_are_independent_and_of_bayes_variance() -> None:
    """The data form has the mean of q(x_t | x_s); its noises carry all the rest of the variance."""
    grid, count, oracle = (
        TimeGrid.uniform_lmbda(VPLinear(), 12),
        4000,
        gaussian(scale=0.5).requires_grad_(False),
    )
    z = torch.zeros(1, COND, dtype=torch.float64).expand(count, COND)
    solver, v = SDEDPMSolverPP(1), [float(oracle.variance(node.t)) for node in grid]
    with torch.no_grad():
        centre = grid[-1].alpha * oracle.centre(z)
        x_0 = centre + v[-1] ** 0.5 * normal(count, DIM, seed=1)
        code = CycleSDE.encode(oracle, x_0, z, grid, seed=2, solver=solver)
    noises = torch.stack(code.noise.values)[..., 0]
    wanted = []
    for i in range(grid.steps):
        s, t = grid[i], grid[i + 1]
        bayes = v[i + 1] - (s.alpha / t.alpha * v[i + 1]) ** 2 / v[i]
        wanted.append(bayes / solver.noise_weight(s, t) ** 2)
    wanted = torch.tensor(wanted, dtype=torch.float64)
    assert float((noises.mean(1) / wanted.sqrt()).abs().max()) < 5.0 / count**0.5
    scaled = torch.cov(noises / wanted.sqrt().unsqueeze(1))
    torch.testing.assert_close(
        scaled, torch.eye(grid.steps).double(), rtol=0.0, atol=5.0 * (2.0 / count) ** 0.5
    )
    assert float(wanted[0]) < 1.05 and float(wanted[-1]) > 2.0


def test_the_states_of_cycle_sde_are_one_wiener_path() -> None:
    """Increments of y over disjoint steps are independent; independent draws of x_s are not."""
    grid = TimeGrid.uniform_lmbda(VPLinear(), 4)
    x_0 = torch.zeros(20_000, 1, dtype=torch.float64)
    code = CycleSDE.encode(
        lambda x, t, z: torch.zeros_like(x), x_0, None, grid, seed=2, solver=SDEDPMSolver()
    )
    y = [state / node.alpha for state, node in zip(code.path, grid, strict=True)]
    steps = torch.stack(
        [(y[i] - y[i + 1]).flatten() / path_scale(grid[i], grid[i + 1]) for i in range(4)]
    )
    bound = 4.0 / math.sqrt(20_000)
    torch.testing.assert_close(torch.cov(steps), torch.eye(4).double(), rtol=0.0, atol=1.5 * bound)


@each_sampler
def test_cycle_sde_takes_a_condition_for_each_step(solver) -> None:
    grid = TimeGrid.uniform_lmbda(VPLinear(), 5)
    x_0, zs = inputs(5)
    denoiser = MLPDenoiser()
    with torch.no_grad():
        z = PerStep(zs)
        code = CycleSDE.encode(denoiser, x_0, z, grid, seed=1, solver=solver)
        back = sample(denoiser, code.x_T, z, solver=solver, grid=grid, noise=code.noise)
    assert relative_error(back.x_0, x_0) < 1e-12


def test_unusable_noise_is_refused() -> None:
    grid, (x, z) = TimeGrid.uniform_time(VPLinear(), 3), inputs()
    with pytest.raises(ValueError, match="2 recorded noises for a grid of 3"):
        as_noise([LIKE, LIKE], grid, x)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        as_noise([torch.zeros(2, 2)] * 3, grid, x)
    with pytest.raises(ValueError, match="BrownianPath has shape"):
        as_noise(BrownianPath((1, DIM), 0), grid, x)
    with pytest.raises(ValueError, match="needs its noise from outside"):
        sample(mixture(), x, z, solver=SDEDPMSolver(), grid=grid)
    with pytest.raises(ValueError, match="takes no noise"):
        sample(mixture(), x, z, solver=DDIM(), grid=grid, noise=[LIKE] * 3)
    with pytest.raises(ValueError, match="sampling grid"):
        CycleSDE.encode(mixture(), x, z, grid.reversed(), seed=0, solver=SDEDPMSolver())
    with pytest.raises(ValueError, match="3 states"):
        CycleSDE.from_path(mixture(), (x, x, x), z, grid, solver=SDEDPMSolver())
    with pytest.raises(TypeError, match="Rex does not add with a known weight"):
        CycleSDE.encode(mixture(), x, z, grid, seed=0, solver=Rex(calculus="sde"))
    with pytest.raises(ValueError, match=r"eta=0.*adds no noise to step 0 of 3"):
        CycleSDE.encode(mixture(), x, z, grid, seed=0, solver=SDEDPMSolverPP(eta=0.0))
