"""Time grids: published spacings, exact ends, refusals, coefficients of a step."""

import math

import pytest
import torch

from adjointdeis import DDPM, RectifiedFlow, TimeGrid, VPCosine, VPLinear
from adjointdeis.diffusion.transition import (
    eps_weight,
    noise_weight,
    path_scale,
    rho_gap,
    signal_ratio,
    x0_weight,
)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), RectifiedFlow(), DDPM()])
def test_uniform_spacings_are_uniform_and_keep_their_ends(schedule) -> None:
    lmbda = TimeGrid.uniform_lmbda(schedule, 12)
    torch.testing.assert_close(lmbda.h, lmbda.h.mean().expand(12), rtol=1e-9, atol=0.0)
    time = TimeGrid.uniform_time(schedule, 12)
    torch.testing.assert_close(time.t.diff(), time.t.diff().mean().expand(12))
    karras = TimeGrid.karras(schedule, 12)
    root = karras.rho ** (1.0 / 7.0)
    torch.testing.assert_close(root.diff(), root.diff().mean().expand(12))
    for grid in (lmbda, time, karras):
        assert grid.steps == 12 and len(grid) == 13 and grid.sampling
        assert float(grid.t[0]) == schedule.t_max and float(grid.t[-1]) == 1e-3
        assert grid.t.dtype == grid.lmbda.dtype == torch.float64


@pytest.mark.parametrize(("steps", "stride"), [(20, 50), (50, 20), (100, 10), (250, 4)])
def test_ddim_stride_visits_the_timesteps_of_diffae(steps: int, stride: int) -> None:
    schedule = DDPM()
    decode = TimeGrid.ddim_stride(schedule, steps)
    visited = schedule.timestep_of_t(decode.t[:-1]).round().long().tolist()
    assert visited == list(range(0, 1000, stride))[::-1]
    assert (decode[-1].alpha, decode[-1].sigma, decode[-1].rho) == (1.0, 0.0, 0.0)
    encode = TimeGrid.ddim_stride(schedule, steps, encode=True)
    assert schedule.timestep_of_t(encode.t[:-1]).round().long().tolist() == visited[::-1]
    assert (encode[-1].alpha, encode[-1].sigma, encode[-1].lmbda) == (0.0, 1.0, -math.inf)
    assert not encode.sampling


def test_greedy_dim_rounds_and_ends_at_timestep_zero() -> None:
    schedule = DDPM()
    grid = TimeGrid.greedy_dim(schedule, 20)
    expected = [999, 949, 899, 849, 799, 749, 699, 649, 599, 549]
    expected += [500, 450, 400, 350, 300, 250, 200, 150, 100, 50, 0]
    assert schedule.timestep_of_t(grid.t).round().long().tolist() == expected
    assert grid[-1].sigma == pytest.approx(0.01, rel=1e-6)


def test_reversing_twice_is_the_identity() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 7)
    back = grid.reversed().reversed()
    assert not grid.reversed().sampling
    assert torch.equal(back.t, grid.t) and torch.equal(back.lmbda, grid.lmbda)


def test_nodes_know_the_one_before_them() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 3)
    assert grid[0].previous is None
    assert grid[2].previous.t == grid.t[1]
    assert [node.index for node in grid] == [0, 1, 2, 3]
    assert grid[-1].index == 3
    with pytest.raises(IndexError):
        grid[4]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TimeGrid.ddim_stride(DDPM(), 600), r"no integer stride.*334, 500"),
        (lambda: TimeGrid.ddim_stride(DDPM(), 45), "42, 44, 46, 48"),
        (lambda: TimeGrid.from_times(DDPM(), [999, 0]), r"timestep k of T is \(k \+ 1\) / T"),
        (lambda: TimeGrid.ddim_stride(VPLinear(), 20), "needs a DDPM schedule"),
        (lambda: TimeGrid.greedy_dim(VPLinear(), 20), "needs a DDPM schedule"),
        (lambda: TimeGrid.uniform_lmbda(VPLinear(), 0), "at least 1"),
        (lambda: TimeGrid.uniform_lmbda(VPLinear(), 5, t_min=0.0), "finite log-SNR"),
        (lambda: TimeGrid.uniform_lmbda(RectifiedFlow(), 5, t_max=1.0), "finite log-SNR"),
        (lambda: TimeGrid.uniform_time(VPLinear(), 5, t_max=1.5), "t_max <= 1"),
        (lambda: TimeGrid.from_times(VPLinear(), [1.2, 0.5]), r"\[0, 1\]"),
        (lambda: TimeGrid.from_times(VPLinear(), [0.9, 0.2, 0.5]), "monotone"),
        (lambda: TimeGrid.from_times(VPLinear(), [0.5]), "two nodes"),
    ],
)
def test_impossible_grids_are_refused(build, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_the_coefficients_of_a_step_are_the_formulas_of_the_paper() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 5)
    s, t = grid[2], grid[3]
    h = t.lmbda - s.lmbda
    assert signal_ratio(s, t) == pytest.approx(t.alpha / s.alpha, rel=1e-14)
    assert eps_weight(s, t) == pytest.approx(-t.sigma * (math.exp(h) - 1.0), rel=1e-12)
    assert eps_weight(t, s) == pytest.approx(-s.sigma * (math.exp(-h) - 1.0), rel=1e-12)
    assert x0_weight(s, t) == pytest.approx(t.alpha * (1.0 - math.exp(-h)), rel=1e-12)
    assert x0_weight(t, s) == pytest.approx(s.alpha * (1.0 - math.exp(h)), rel=1e-12)
    assert rho_gap(s, t) == pytest.approx(s.rho - t.rho, rel=1e-12)
    assert path_scale(s, t) == pytest.approx(math.sqrt(s.rho**2 - t.rho**2), rel=1e-12)
    expected = t.sigma * math.sqrt(math.exp(2.0 * h) - 1.0)
    assert noise_weight(s, t) == pytest.approx(expected, rel=1e-12)


def test_the_coefficients_keep_their_limits_at_exact_ends() -> None:
    decode = TimeGrid.ddim_stride(DDPM(), 20)
    s, clean = decode[-2], decode[-1]
    assert eps_weight(s, clean) == pytest.approx(-s.rho, rel=1e-14)
    assert x0_weight(s, clean) == 1.0
    assert rho_gap(s, clean) == pytest.approx(s.rho, rel=1e-14)
    assert noise_weight(s, clean) == pytest.approx(s.rho, rel=1e-14)
    encode = TimeGrid.ddim_stride(DDPM(), 20, encode=True)
    last, noise = encode[-2], encode[-1]
    assert signal_ratio(last, noise) == 0.0
    assert eps_weight(last, noise) == 1.0
    with pytest.raises(ValueError, match="alpha = 0"):
        signal_ratio(noise, last)
