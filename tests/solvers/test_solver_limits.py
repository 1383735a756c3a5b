"""Exact ends, clipping, history, dtype, and refusals of the samplers."""

import math

import pytest
import torch
from oracles import MLPDenoiser, inputs, mixture, normal

from adjointdeis import DDPM, PerStep, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import GaussianDenoiser
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver


def test_the_last_step_to_clean_data_returns_the_data_prediction() -> None:
    denoiser, (x, z) = mixture(DDPM()), inputs()
    grid = TimeGrid.ddim_stride(DDPM(), 20)
    s, t = grid[-2], grid[-1]
    with torch.no_grad():
        x0 = (x - s.sigma * denoiser(x, s.t, z)) / s.alpha
        for solver in (DDIM(), DPMSolverPP(1), DPMSolverPP(2)):
            state = (normal(*x.shape, seed=3),) if getattr(solver, "order", 1) == 2 else ()
            reached, _ = solver.step(denoiser, x, z, s, t, state, None)
            torch.testing.assert_close(reached, x0, rtol=1e-12, atol=1e-12)


def test_the_last_encoding_step_returns_the_noise_prediction() -> None:
    denoiser, (x, z) = mixture(DDPM()), inputs()
    grid = TimeGrid.ddim_stride(DDPM(), 20, encode=True)
    with torch.no_grad():
        eps = denoiser(x, grid[-2].t, z)
        reached, _ = DDIM().step(denoiser, x, z, grid[-2], grid[-1], (), None)
    torch.testing.assert_close(reached, eps)


def test_clipping_clamps_the_data_prediction_and_keeps_the_state_consistent() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 4)
    s, t = grid[1], grid[2]
    x = torch.tensor([[0.1, 5.0]], dtype=torch.float64)

    def silent(x, time, z):
        return torch.zeros_like(x)

    clipped, _ = DDIM(clip_x0=True).step(silent, x, None, s, t, (), None)
    x0 = (x / s.alpha).clamp(-1.0, 1.0)
    eps = (x - s.alpha * x0) / s.sigma
    torch.testing.assert_close(clipped, t.alpha * x0 + t.sigma * eps)
    inside = x / 1000.0
    torch.testing.assert_close(
        DDIM(clip_x0=True).step(silent, inside, None, s, t, (), None)[0],
        DDIM().step(silent, inside, None, s, t, (), None)[0],
    )


def test_2m_extrapolates_with_the_ratio_of_the_steps() -> None:
    """One step written out, on a grid whose steps differ."""
    grid, (x, z) = TimeGrid.uniform_time(VPLinear(), 6), inputs()
    denoiser, before = mixture(), normal(2, 4, seed=1)
    p, s, t = grid[2], grid[3], grid[4]
    h, h_before = t.lmbda - s.lmbda, s.lmbda - p.lmbda
    with torch.no_grad():
        x0 = (x - s.sigma * denoiser(x, s.t, z)) / s.alpha
        estimate = x0 + h / (2.0 * h_before) * (x0 - before)
        expected = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * estimate
        reached, state = DPMSolverPP("2M").step(denoiser, x, z, s, t, (before,), None)
    torch.testing.assert_close(reached, expected)
    torch.testing.assert_close(state[0], x0)


def test_the_last_step_of_a_short_2m_run_can_be_first_order() -> None:
    grid, (x, z) = TimeGrid.uniform_time(VPLinear(), 5), inputs()
    lowered, plain, state = DPMSolverPP(2, lower_order_final=True), DPMSolverPP(2), (x,)
    first, denoiser = DPMSolverPP(1), mixture()

    def last(solver, state):
        return solver.step(denoiser, x, z, grid[4], grid[5], state, None)[0]

    assert torch.equal(last(lowered, state), last(first, ()))
    assert not torch.allclose(last(plain, state), last(first, ()))
    middle = [s.step(denoiser, x, z, grid[2], grid[3], state, None)[0] for s in (lowered, plain)]
    assert torch.equal(*middle)
    long = TimeGrid.uniform_time(VPLinear(), 15)
    end = [s.step(denoiser, x, z, long[14], long[15], state, None)[0] for s in (lowered, plain)]
    assert torch.equal(*end)


def test_a_float32_network_keeps_float32_states_and_float64_coefficients() -> None:
    schedule = VPLinear()
    single = GaussianDenoiser(schedule, torch.tensor([0.3, -0.2]), 0.7)
    double = GaussianDenoiser(schedule, torch.tensor([0.3, -0.2]).double(), 0.7)
    double.load_state_dict({k: v.double() for k, v in single.state_dict().items()})
    x = normal(3, 2, seed=5).float()
    times = []

    def watched(x, t, z):
        times.append(t)
        return single(x, t, z)

    grid = TimeGrid.uniform_lmbda(schedule, 30)
    for solver in (DDIM(), DPMSolverPP(2)):
        with torch.no_grad():
            a = sample(watched, x, solver=solver, grid=grid).x_0
            b = sample(double, x.double(), solver=solver, grid=grid).x_0
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)
    assert all(t.dtype == torch.float64 and t.ndim == 0 for t in times)


def test_the_network_is_evaluated_at_the_nodes_and_never_outside_the_unit_interval() -> None:
    times = []

    def watched(x, t, z):
        times.append(float(t))
        return 0.1 * x

    x = normal(1, 2, seed=1)
    for grid in (
        TimeGrid.uniform_time(VPLinear(), 7, t_min=0.0),
        TimeGrid.ddim_stride(DDPM(), 10),
    ):
        for solver in (DDIM(), DPMSolverPP(2)):
            times.clear()
            sample(watched, x, solver=solver, grid=grid)
            assert times == grid.t[:-1].tolist()
    times.clear()
    grid = TimeGrid.ddim_stride(DDPM(), 10, encode=True)
    encode(watched, x, solver=DDIM(), grid=grid)
    assert times == grid.t[:-1].tolist()
    assert all(0.0 <= t <= 1.0 for t in times)


def test_wrong_uses_are_refused() -> None:
    grid, (x, z) = TimeGrid.uniform_time(VPLinear(), 3), inputs()
    denoiser = MLPDenoiser()
    with pytest.raises(ValueError, match="orders 1 and 2"):
        DPMSolverPP(3)
    with pytest.raises(ValueError, match="noise to data"):
        sample(denoiser, x, z, solver=DDIM(), grid=grid.reversed())
    with pytest.raises(ValueError, match=r"reversed\(\)"):
        encode(denoiser, x, z, solver=DDIM(), grid=grid)
    with pytest.raises(ValueError, match=r"CycleSDE\.encode"):
        encode(denoiser, x, z, solver=SDEDPMSolver(), grid=grid.reversed())
    with pytest.raises(ValueError, match="one condition per step: 3, got 2"):
        sample(denoiser, x, PerStep([z, z]), solver=DDIM(), grid=grid)
    with pytest.raises(ValueError, match=r"write z=PerStep\(\[z_0, ..., z_2\]\)"):
        sample(denoiser, x, [z, z, z], solver=DDIM(), grid=grid)
    clean = TimeGrid.ddim_stride(DDPM(), 10).reversed()
    with pytest.raises(ValueError, match="sigma = 0"):
        encode(denoiser, x, z, solver=DPMSolverPP(1), grid=clean)
    with pytest.raises(ValueError, match="needs the noise"):
        SDEDPMSolver().step(denoiser, x, z, grid[0], grid[1], (), None)
