"""FreeDoM: plain sampler at scale 0, analytic corrections, time travel, independent samples."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import COND, MLPDenoiser, agree, gaussian, inputs, mixture, normal

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import MixtureDenoiser
from adjointdeis.guidance.freedom import FreeDoM, Known, renoised
from adjointdeis.guidance.lookahead import Lookahead
from adjointdeis.guidance.problem import LatentProblem, Outcome
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

GRID = TimeGrid.uniform_lmbda(VPLinear(), 6)
TARGET = normal(4, seed=5)


def loss(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def guided_sample(
    freedom: FreeDoM, denoiser, x, z=None, *, loss, solver, grid, noise=None, scheduled=False
) -> Outcome:
    problem = LatentProblem(
        denoiser, x, z, loss=loss, solver=solver, grid=grid, noise=noise, scheduled=scheduled
    )
    return freedom.solve(problem)


def draws(count: int, like: torch.Tensor, seed: int = 1) -> list[torch.Tensor]:
    return [normal(*like.shape, seed=seed + i) for i in range(count)]


@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP(), SDEDPMSolver()], ids=["ddim", "2m", "sde"]
)
def test_scale_zero_is_the_sampler_bit_for_bit(solver) -> None:
    denoiser, (x, z) = mixture(), inputs()
    noise = draws(6, x) if solver.calculus == "sde" else None
    guided = guided_sample(
        FreeDoM(scale=0.0), denoiser, x, z, loss=loss, solver=solver, grid=GRID, noise=noise
    )
    plain = sample(denoiser, x, z, solver=solver, grid=GRID, noise=noise)
    assert torch.equal(guided.x_0, plain.x_0)
    assert (guided.cost.nfe, guided.cost.vjps) == (6, 0)
    assert guided.history == []


@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
@pytest.mark.parametrize("rule", ["alpha", "rms"])
def test_one_step_on_gaussian_data_is_analytic(rule: str, solver) -> None:
    """x0h = m + alpha s^2 / v (x - alpha m), so g = alpha s^2 / v (x0h - target)."""
    denoiser, (x, z) = gaussian(scale=0.7), inputs()
    grid = TimeGrid.from_times(VPLinear(), [0.6, 0.0])
    s, t = grid[0], grid[1]
    noise = draws(1, x) if solver.calculus == "sde" else None
    guided = guided_sample(
        FreeDoM(scale=0.3, rule=rule),
        denoiser,
        x,
        z,
        loss=loss,
        solver=solver,
        grid=grid,
        noise=noise,
    )
    plain = sample(denoiser, x, z, solver=solver, grid=grid, noise=noise).x_0
    m, v = denoiser.centre(z), s.alpha**2 * 0.49 + s.sigma**2
    estimate = m + s.alpha * 0.49 / v * (x - s.alpha * m)
    g = s.alpha * 0.49 / v * (estimate - TARGET)
    if rule == "alpha":
        rho = torch.full((2, 1), 0.3 * s.alpha, dtype=torch.float64)
    else:
        eps = s.sigma * (x - s.alpha * m) / v
        factor = 2.0 if solver.calculus == "sde" else 1.0
        weight = factor * t.alpha * (s.rho - t.rho)
        rho = 0.3 * weight * (eps.norm(dim=1) / g.norm(dim=1)).unsqueeze(1)
    assert agree(guided.x_0, plain - rho * g)
    assert agree(guided.history[0], loss(estimate))


def test_the_rms_rule_forgets_the_scale_of_the_loss() -> None:
    denoiser, (x, z) = mixture(), inputs()
    results = [
        guided_sample(
            FreeDoM(scale=0.4, rule="rms"),
            denoiser,
            x,
            z,
            loss=lambda x_0, rows, c=c: c * loss(x_0),
            solver=DDIM(),
            grid=GRID,
        )
        for c in (1.0, 1e-6, 1e4)
    ]
    for other in results[1:]:
        assert agree(other.x_0, results[0].x_0, 1e-10)
    by_alpha = [
        guided_sample(
            FreeDoM(scale=0.4, rule="alpha"),
            denoiser,
            x,
            z,
            loss=lambda x_0, rows, c=c: c * loss(x_0),
            solver=DDIM(),
            grid=GRID,
        )
        for c in (1.0, 2.0)
    ]
    assert not agree(by_alpha[0].x_0, by_alpha[1].x_0, 1e-3)


@pytest.mark.parametrize("rule", ["alpha", "rms"])
def test_a_batch_is_its_samples_one_by_one(rule: str) -> None:
    denoiser, (x, z) = mixture(), inputs()
    travel = draws(6, x)
    settings = FreeDoM(scale=0.3, rule=rule, repeats=2, travel_noise=travel)
    whole = guided_sample(settings, denoiser, x, z, loss=loss, solver=DDIM(), grid=GRID)
    for k in range(2):
        part = slice(k, k + 1)
        own = replace(settings, travel_noise=[n[part] for n in travel])
        alone = guided_sample(own, denoiser, x[part], z[part], loss=loss, solver=DDIM(), grid=GRID)
        assert agree(alone.x_0, whole.x_0[part])


def test_an_optimum_gets_no_correction() -> None:
    denoiser, (x, z) = mixture(), inputs()
    flat = guided_sample(
        FreeDoM(scale=1.0),
        denoiser,
        x,
        z,
        loss=lambda x_0, rows: 0.0 * x_0.sum(1),
        solver=DDIM(),
        grid=GRID,
    )
    plain = sample(denoiser, x, z, solver=DDIM(), grid=GRID)
    assert agree(flat.x_0, plain.x_0)


def test_guidance_lowers_the_loss_and_more_of_it_lowers_it_more() -> None:
    denoiser, x, z = mixture(), normal(16, 4, seed=2), normal(16, COND, seed=3)
    grid = TimeGrid.uniform_lmbda(VPLinear(), 20)
    common = {"loss": loss, "solver": DDIM(), "grid": grid}
    means = [
        float(guided_sample(FreeDoM(scale=scale), denoiser, x, z, **common).loss.mean())
        for scale in (0.0, 0.1, 0.4)
    ]
    assert means[2] < 0.6 * means[0] and means[2] < means[1] < means[0]


def test_the_window_says_which_steps_are_guided() -> None:
    denoiser, (x, z) = mixture(), inputs()
    low, high = float(GRID.t[4]), float(GRID.t[2])
    guided = guided_sample(
        FreeDoM(scale=0.2, window=(low, high)), denoiser, x, z, loss=loss, solver=DDIM(), grid=GRID
    )
    assert [len(seen) for seen in guided.history] == [2, 2, 2]
    assert (guided.cost.nfe, guided.cost.vjps) == (6, 3)


def test_a_guided_step_costs_one_evaluation_and_one_product() -> None:
    denoiser, (x, z) = mixture(), inputs()
    common = {"loss": loss, "solver": DDIM(), "grid": GRID}
    cost = guided_sample(FreeDoM(scale=0.2), denoiser, x, z, **common).cost
    assert (cost.nfe, cost.vjps, cost.peak_graphs) == (6, 6, 1)
    cost = guided_sample(FreeDoM(scale=0.2, repeats=3), denoiser, x, z, **common).cost
    assert (cost.nfe, cost.vjps) == (18, 18)
    ahead = guided_sample(
        FreeDoM(scale=0.2, lookahead=Lookahead("all")),
        denoiser,
        x,
        z,
        loss=loss,
        solver=DDIM(),
        grid=GRID,
    )
    assert ahead.cost.vjps == 21 and ahead.cost.nfe == 6 + 2 * 15


def test_time_travel_returns_to_the_forward_process() -> None:
    """Noise one step of x_t = alpha_t x_0 + sigma_t e: mean alpha_s x_0, variance sigma_s^2."""
    s, t = GRID[2], GRID[3]
    x_0 = normal(1, 4, seed=1).expand(200_000, 4)
    x_t = t.alpha * x_0 + t.sigma * normal(200_000, 4, seed=2)
    back = renoised(x_t, s, t, normal(200_000, 4, seed=3))
    torch.testing.assert_close(back.mean(0), s.alpha * x_0[0], rtol=0, atol=0.02)
    torch.testing.assert_close(
        back.std(0), torch.full((4,), s.sigma, dtype=torch.float64), rtol=0.01, atol=0
    )


def test_time_travel_of_an_unguided_step_is_what_the_formulas_say() -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 1, t_min=0.2, t_max=0.7)
    (n,) = draws(1, x)
    freedom = FreeDoM(scale=0.0, repeats=2, travel_noise=[n])
    twice = guided_sample(freedom, denoiser, x, z, loss=loss, solver=DDIM(), grid=grid)
    s, t = grid[0], grid[1]
    once = sample(denoiser, x, z, solver=DDIM(), grid=grid).x_0
    ratio = s.alpha / t.alpha
    back = ratio * once + math.sqrt(s.sigma**2 - ratio**2 * t.sigma**2) * n
    assert agree(twice.x_0, sample(denoiser, back, z, solver=DDIM(), grid=grid).x_0)


def test_the_travel_window_says_which_steps_are_repeated() -> None:
    low, high = float(GRID.t[4]), float(GRID.t[2])
    assert FreeDoM(repeats=3, travel=(low, high)).visits(GRID) == [1, 1, 3, 3, 3, 1]


def test_a_scheduled_condition_is_followed() -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs(steps=6)
    guided = guided_sample(
        FreeDoM(scale=0.0), denoiser, x, torch.stack(z, 1), loss=loss, solver=DDIM(), grid=GRID,
        scheduled=True,
    )  # fmt: skip
    assert torch.equal(guided.x_0, sample(denoiser, x, PerStep(z), solver=DDIM(), grid=GRID).x_0)


def test_the_known_prediction_serves_one_state_only() -> None:
    x, eps = normal(1, 4, seed=1), normal(1, 4, seed=2)
    known = Known(lambda x, t, z: x + 1, x, torch.tensor(0.5), eps)
    assert known(x, torch.tensor(0.5), None) is eps
    assert torch.equal(known(x, torch.tensor(0.4), None), x + 1)
    assert torch.equal(known(x.clone(), torch.tensor(0.5), None), x + 1)


def test_noises_are_counted() -> None:
    denoiser, (x, z) = mixture(), inputs()
    common = {"loss": loss, "grid": GRID}
    with pytest.raises(ValueError, match="6 tensors of noise are needed here, got 0"):
        guided_sample(FreeDoM(), denoiser, x, z, solver=SDEDPMSolver(), **common)
    with pytest.raises(ValueError, match="6 tensors of noise are needed here, got 5"):
        guided_sample(
            FreeDoM(repeats=2, travel_noise=draws(5, x)), denoiser, x, z, solver=DDIM(), **common
        )
    with pytest.raises(ValueError, match="later noises"):
        guided_sample(
            FreeDoM(lookahead=Lookahead("all")),
            denoiser,
            x,
            z,
            solver=SDEDPMSolver(),
            noise=draws(6, x),
            **common,
        )
    with pytest.raises(ValueError, match="this one encodes"):
        guided_sample(FreeDoM(), denoiser, x, z, loss=loss, solver=DDIM(), grid=GRID.reversed())


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": -1.0},
        {"scale": math.nan},
        {"rule": "norm"},
        {"repeats": 0},
        {"window": (0.5, 0.2)},
        {"travel": (0.0, 2.0)},
    ],
)
def test_wrong_settings(wrong) -> None:
    with pytest.raises(ValueError, match=f"FreeDoM.{next(iter(wrong))}="):
        FreeDoM(**wrong)


def test_an_unconditional_denoiser_needs_no_z() -> None:
    denoiser = MixtureDenoiser(VPLinear(), normal(3, 4, seed=1), torch.ones(3).double())
    x, grid = normal(2, 4, seed=4), TimeGrid.uniform_lmbda(VPLinear(), 20)
    guided = guided_sample(FreeDoM(scale=0.2), denoiser, x, loss=loss, solver=DDIM(), grid=grid)
    plain = sample(denoiser, x, solver=DDIM(), grid=grid)
    assert (loss(guided.x_0) < loss(plain.x_0)).all()
    assert not guided.x_0.requires_grad
