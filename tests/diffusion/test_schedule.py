"""Schedules: inverse, derivative, monotone log-SNR, exact ends, published values."""

import math

import pytest
import torch

from adjointdeis import DDPM, RectifiedFlow, VarianceExploding, VPCosine, VPLinear
from adjointdeis.diffusion import FunctionSchedule, Schedule


def no_terminal_signal() -> DDPM:
    return DDPM(torch.cat((torch.linspace(1e-4, 0.02, 999, dtype=torch.float64), torch.ones(1))))


SCHEDULES = [VPLinear(), VPLinear(0.2, 12.0), VPCosine(), DDPM(), RectifiedFlow()]
SCHEDULES += [VarianceExploding(80.0), no_terminal_signal()]
IDS = ["vp", "vp-other", "cosine", "ddpm", "flow", "ve", "zero-snr"]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=IDS)


def times(schedule: Schedule, count: int = 401) -> torch.Tensor:
    return torch.linspace(1e-4, schedule.t_max, count, dtype=torch.float64)


@each_schedule
def test_t_of_inverts_lmbda(schedule: Schedule) -> None:
    t = times(schedule)
    torch.testing.assert_close(schedule.t_of(schedule.lmbda(t)), t, rtol=1e-12, atol=0.0)


@each_schedule
def test_derivatives_match_finite_differences(schedule: Schedule) -> None:
    # Off the corners of the piecewise-linear DDPM table: centres of its cells.
    t = (torch.arange(20, 980, 7, dtype=torch.float64) + 0.5) / 1000.0
    step = 1e-5
    for value, derivative in (
        (schedule.lmbda, schedule.dlmbda),
        (schedule.log_alpha, schedule.dlog_alpha),
    ):
        slope = (value(t + step) - value(t - step)) / (2.0 * step)
        torch.testing.assert_close(derivative(t), slope, rtol=1e-5, atol=1e-8)


@each_schedule
def test_the_levels_are_consistent(schedule: Schedule) -> None:
    t = times(schedule)
    alpha, sigma, lmbda = schedule.alpha(t), schedule.sigma(t), schedule.lmbda(t)
    assert (alpha > 0).all() and (sigma > 0).all()
    assert (lmbda.diff() < 0).all()
    torch.testing.assert_close((alpha / sigma).log(), lmbda, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.rho(t), torch.exp(-lmbda), rtol=1e-11, atol=0.0)
    total = alpha + sigma if isinstance(schedule, RectifiedFlow) else alpha**2 + sigma**2
    total = alpha if isinstance(schedule, VarianceExploding) else total
    torch.testing.assert_close(total, torch.ones_like(t), rtol=1e-12, atol=0.0)


@each_schedule
def test_clean_data_has_no_noise_exactly(schedule: Schedule) -> None:
    assert float(schedule.sigma(0.0)) == 0.0
    assert float(schedule.alpha(0.0)) == 1.0
    assert float(schedule.lmbda(0.0)) == math.inf
    assert float(schedule.t_of(math.inf)) == pytest.approx(0.0, abs=1e-15)


@each_schedule
def test_python_floats_do_not_pass_through_float32(schedule: Schedule) -> None:
    tensor = torch.tensor(0.1, dtype=torch.float64)
    assert float(schedule.lmbda(0.1)) == float(schedule.lmbda(tensor))
    assert schedule.alpha(torch.tensor(0.1)).dtype == torch.float64


def test_vp_linear_is_the_formula_of_the_paper() -> None:
    t, beta_0, beta_1 = 0.3, 0.1, 20.0
    log_alpha = -(beta_1 - beta_0) * t * t / 4.0 - beta_0 * t / 2.0
    assert float(VPLinear().log_alpha(t)) == pytest.approx(log_alpha, rel=1e-15)
    # g^2 = -2 sigma^2 dlmbda/dt is the rate beta(t).
    schedule = VPLinear()
    rate = -2.0 * schedule.sigma(t) ** 2 * schedule.dlmbda(t)
    assert float(rate) == pytest.approx(beta_0 + t * (beta_1 - beta_0), rel=1e-13)


def test_the_noise_level_near_the_data_keeps_its_digits() -> None:
    t = 1e-9
    expected = math.sqrt(0.1 * t)  # 1 - alpha^2 = beta_0 t + O(t^2)
    assert float(VPLinear().sigma(t)) == pytest.approx(expected, rel=1e-7)


def test_ddpm_levels_at_the_published_timesteps() -> None:
    schedule = DDPM()
    product = torch.cumprod(1.0 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    t = schedule.t_of_timestep(torch.arange(1000))
    torch.testing.assert_close(schedule.alpha(t) ** 2, product, rtol=1e-11, atol=0.0)
    abar = [float(schedule.alpha(schedule.t_of_timestep(k)) ** 2) for k in (0, 950, 999)]
    assert abar == pytest.approx([0.9999, 1.0604e-4, 4.0358e-5], rel=1e-4)


def test_ddpm_timesteps_meet_time_in_one_place() -> None:
    schedule = DDPM()
    timesteps = torch.arange(1000, dtype=torch.float64)
    t = schedule.t_of_timestep(timesteps)
    assert float(t[0]) == 0.001 and float(t[-1]) == 1.0
    torch.testing.assert_close(schedule.timestep_of_t(t), timesteps, rtol=0.0, atol=1e-9)
    assert float(schedule.timestep_of_t(0.0)) == 0.0
    with pytest.raises(ValueError, match=r"0\.\.999"):
        schedule.t_of_timestep(1000)


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="beta_0 < beta_1"):
        VPLinear(2.0, 1.0)
    with pytest.raises(ValueError, match="offset"):
        VPCosine(0.0)
    with pytest.raises(ValueError, match="betas"):
        DDPM(torch.tensor([0.1, 1.2]))
    with pytest.raises(ValueError, match="betas"):
        DDPM(torch.tensor([1.0, 0.5]))
    with pytest.raises(ValueError, match="positive sigma_max"):
        VarianceExploding(0.0)


def test_alphas_are_no_betas() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    products = (1.0 - betas).cumprod(0)
    for alphas in (1.0 - betas, products):
        with pytest.raises(ValueError, match=r"DDPM\(1 - alphas\).*a\[1:\] / a\[:-1\]"):
            DDPM(alphas)
    a = products
    again = DDPM(torch.cat((1 - a[:1], 1 - a[1:] / a[:-1])))  # what the message says
    torch.testing.assert_close(again.betas, betas, rtol=1e-9, atol=0.0)
    assert repr(again) == "DDPM(1000 betas from 0.0001 to 0.02)"


def test_levels_given_as_a_function_are_a_schedule() -> None:
    t = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64)
    for own, levels in (
        (VPCosine(), lambda t: (VPCosine().alpha(t), VPCosine().sigma(t))),
        (VarianceExploding(9.0), lambda t: (1.0, 9.0 * t)),
        (RectifiedFlow(), lambda t: (1.0 - t, t)),
    ):
        schedule = FunctionSchedule(levels)
        torch.testing.assert_close(schedule.lmbda(t), own.lmbda(t))
        torch.testing.assert_close(schedule.t_of(own.lmbda(t)), t)
        if not isinstance(own, VPCosine):  # whose levels are outside any graph
            torch.testing.assert_close(schedule.dlmbda(t), own.dlmbda(t))
            torch.testing.assert_close(schedule.dlog_alpha(t), own.dlog_alpha(t))
            continue
        with pytest.raises(ValueError, match=r"no derivative by t.*functions of torch"):
            schedule.dlmbda(t)


def test_zero_terminal_signal_is_the_last_timestep_alone() -> None:
    schedule = no_terminal_signal()
    levels = schedule.alpha(schedule.t_of_timestep(torch.arange(1000)))
    assert float(levels[-1]) == 0.0 and float(schedule.sigma(1.0)) == 1.0
    assert float(schedule.rho(1.0)) == math.inf and float(schedule.lmbda(1.0)) == -math.inf
    assert schedule.t_max == 0.999 and float(schedule.alpha(schedule.t_max)) == float(levels[-2])
    # alpha is linear in the last cell.
    assert float(schedule.alpha(0.9995)) == pytest.approx(0.5 * float(levels[-2]), rel=1e-9)
    late = torch.tensor([0.9991, 0.9995, 0.99999], dtype=torch.float64)
    torch.testing.assert_close(schedule.t_of(schedule.lmbda(late)), late, rtol=1e-12, atol=0.0)
    assert float(schedule.t_of(-math.inf)) == 1.0
    step = 1e-7
    slope = (schedule.lmbda(late[:2] + step) - schedule.lmbda(late[:2] - step)) / (2 * step)
    torch.testing.assert_close(schedule.dlmbda(late[:2]), slope, rtol=1e-5, atol=0.0)


def test_the_cosine_schedule_has_the_published_offset() -> None:
    """s = 0.008, and alpha_bar(t) = cos^2(pi/2 (t + s) / (1 + s)) over its value at 0."""
    published = [math.cos(math.pi / 2 * (t + 0.008) / 1.008) ** 2 for t in (0.0, 0.5)]
    squared = float(VPCosine().alpha(0.5)) ** 2
    assert squared == pytest.approx(published[1] / published[0], rel=1e-12)
