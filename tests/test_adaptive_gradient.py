"""Sampler, steps and memory by a tolerance of the gradient: is the gradient within it?"""

import math

import pytest
import torch
from torch import nn

from adjointdeis import PerStep, TimeGrid, VPLinear, adaptive_gradient, sample
from adjointdeis.gradients import Certified, DiscreteAdjoint
from adjointdeis.problems import LOSSES, drawn
from adjointdeis.solvers import RungeKutta, ToleranceError


def wanted(problem):
    """x_T and z as leaves; the weights are constants."""
    problem.denoiser.requires_grad_(False)
    return problem.x_T.clone().requires_grad_(), problem.z.clone().requires_grad_()


def planned(problem, x_T, z, **settings):
    grid = problem.grid("log-SNR", 20)
    return adaptive_gradient(problem.loss, problem.denoiser, x_T, z, grid=grid, **settings)


def flow_gradient(problem, x_T, z):
    """Of the continuous flow: in closed form for the Gaussian, by 120 rk4 steps for mixtures."""
    if hasattr(problem.denoiser, "flow"):
        x_0 = problem.denoiser.flow(x_T, problem.schedule.t_max, problem.t_min, z)
    else:
        grid = problem.grid("log-SNR", 120)
        x_0 = sample(problem.denoiser, x_T, z, solver=RungeKutta("rk4"), grid=grid).x_0
    return torch.autograd.grad(problem.loss(x_0), (x_T, z))


def missed(family: str, loss: str, seed: int, tolerance: float) -> bool:
    problem = drawn(family, loss, seed)
    x_T, z = wanted(problem)
    plan = planned(problem, x_T, z, gradient_tol=tolerance)
    assert max(plan.error.values()) <= 0.8 * tolerance and plan.error.keys() == {"x_T", "z"}
    rollout = sample(problem.denoiser, x_T, z, **plan.settings)
    found = torch.autograd.grad(problem.loss(rollout.x_0), (x_T, z))
    truth = flow_gradient(problem, x_T, z)
    return any(
        float((g - t).norm()) > tolerance * float(t.norm())
        for g, t in zip(found, truth, strict=True)
    )


def share_missed(seeds, families, tolerances) -> float:
    asked = [
        missed(family, [*LOSSES][seed % 3], seed, tolerance)
        for seed in seeds for family in families for tolerance in tolerances
    ]  # fmt: skip
    return sum(asked) / len(asked)


def test_the_gradient_is_within_the_tolerance() -> None:
    assert share_missed(range(3), ("gaussian", "mixture-16"), (0.1,)) == 0.0


@pytest.mark.slow
@pytest.mark.timeout(3000)  # 120 gradients with their references
def test_the_gradient_is_within_the_tolerance_in_95_percent() -> None:
    families = ("gaussian", "mixture-2", "mixture-16", "mixture-64", "flow-matching")
    assert share_missed(range(200, 212), families, (0.05, 0.01)) <= 0.05


def test_a_smaller_tolerance_takes_more_and_nothing_is_left_behind() -> None:
    problem = drawn("gaussian", "distance", 1)
    x_T, z = wanted(problem)
    rough, fine = (planned(problem, x_T, z, gradient_tol=tol) for tol in (0.1, 0.001))
    prices = [
        plan.grid.steps * (4 if isinstance(plan.solver, RungeKutta) else 1)
        for plan in (rough, fine)
    ]
    assert prices[0] < prices[1]
    assert isinstance(fine.solver, RungeKutta)
    assert rough.cost.nfe < fine.cost.nfe
    assert rough.gradient == DiscreteAdjoint(budget="auto")
    assert x_T.grad is None and z.grad is None
    # The estimate is that of Certified on what was chosen.
    rollout = sample(
        problem.denoiser, x_T, z, **rough.settings | {"gradient": Certified(problem.loss)}
    )
    problem.loss(rollout.x_0).backward()
    assert rough.error == pytest.approx(rollout.gradient_error)


def test_an_estimate_decides_at_eight_tenths_of_the_tolerance() -> None:
    problem = drawn("gaussian", "distance", 3)
    x_T, z = wanted(problem)
    rough = planned(problem, x_T, z, gradient_tol=10.0)
    estimate = max(rough.error.values())
    for share, same in ((0.79, True), (0.81, False)):
        plan = planned(problem, x_T, z, gradient_tol=estimate / share)
        assert (plan.grid.steps == rough.grid.steps and plan.solver == rough.solver) == same


def test_only_what_requires_a_gradient_is_held_to_the_tolerance() -> None:
    problem = drawn("mixture-2", "distance", 1)
    problem.denoiser.requires_grad_()
    plan = planned(problem, problem.x_T, problem.z, gradient_tol=0.5)
    assert plan.error.keys() == {"theta"}
    assert all(weight.grad is None for weight in problem.denoiser.parameters())


class Jagged(nn.Module):
    """A network of steps in t: no sampler converges at its order."""

    def forward(self, x, t, z):
        return torch.tanh(x) * (1.0 + 0.5 * math.sin(1e6 * float(t)))


def test_a_tolerance_out_of_reach_is_named_with_one_that_is_not() -> None:
    x_T = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    settings = {"grid": TimeGrid.uniform_lmbda(VPLinear(), 8), "most_steps": 16}

    def loss(x):
        return x.square().sum()

    with pytest.raises(ToleranceError, match=r"gradient_tol=1e-06 is not reached") as told:
        adaptive_gradient(loss, Jagged(), x_T, gradient_tol=1e-6, **settings)
    reachable = float(str(told.value).split("gradient_tol=")[-1].split(")")[0])
    plan = adaptive_gradient(loss, Jagged(), x_T, gradient_tol=reachable, **settings)
    assert max(plan.error.values()) <= reachable


def test_what_it_cannot_serve_is_named() -> None:
    problem = drawn("gaussian", "distance", 1)
    x_T, z = wanted(problem)
    for tolerance in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected a number above 0, such as"):
            planned(problem, x_T, z, gradient_tol=tolerance)
    with pytest.raises(ValueError, match="nothing requires a gradient"):
        planned(problem, problem.x_T, problem.z)
    with pytest.raises(ValueError, match="no PerStep"):
        planned(problem, x_T, PerStep([z] * 20))
    with pytest.raises(ValueError, match="from noise to data with a finite log-SNR"):
        adaptive_gradient(
            problem.loss, problem.denoiser, x_T, z, grid=problem.grid("time", 4).reversed()
        )
