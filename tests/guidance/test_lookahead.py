"""Lookahead: k = 1 is the gradient of the posterior mean, k = all that of the sampler."""

from itertools import pairwise

import pytest
import torch
from oracles import MLPDenoiser, RungeKutta4, agree, inputs, mixture, normal, relative_error

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.guidance.lookahead import Lookahead
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

TO_CLEAN = TimeGrid.from_times(VPLinear(), [1.0, 0.8, 0.55, 0.3, 0.1, 0.0])
TARGET = normal(4, seed=5)


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1) + x_0.pow(3).sum(1) / 6


def by_autograd(x: torch.Tensor, z, grid: TimeGrid, step: int, denoiser) -> torch.Tensor:
    """Gradient of the loss through the remaining steps of DDIM, written out in y and rho."""
    leaf = x.clone().requires_grad_()
    y = leaf / grid[step].alpha
    for i in range(step, grid.steps):
        s, t = grid[i], grid[i + 1]
        z_i = z if isinstance(z, torch.Tensor) else z[i]
        y = y + (t.rho - s.rho) * denoiser(s.alpha * y, s.t, z_i)
    (gradient,) = torch.autograd.grad(loss(grid[-1].alpha * y).sum(), leaf)
    return gradient


@pytest.mark.parametrize("step", range(5))
def test_one_step_is_the_gradient_of_the_posterior_mean(step: int) -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs()
    node = TO_CLEAN[step]
    found = Lookahead(1).look(denoiser, x, z, loss, solver=DDIM(), grid=TO_CLEAN, step=step)
    leaf = x.clone().requires_grad_()
    eps = denoiser(leaf, node.t, z)
    estimate = (leaf - node.sigma * eps) / node.alpha
    (wanted,) = torch.autograd.grad(loss(estimate).sum(), leaf)
    assert agree(found.gradient, wanted)
    assert agree(found.x_0, estimate) and agree(found.loss, loss(estimate))
    assert torch.equal(found.eps, eps.detach())
    assert (found.cost.nfe, found.cost.vjps) == (1, 1)


@pytest.mark.parametrize("step", range(5))
@pytest.mark.parametrize("k", ["all", 5, 99])
def test_all_is_the_gradient_of_the_sampler(step: int, k) -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs(steps=5)
    found = Lookahead(k).look(
        denoiser, x, PerStep(z), loss, solver=DDIM(), grid=TO_CLEAN, step=step
    )
    assert agree(found.gradient, by_autograd(x, z, TO_CLEAN, step, denoiser))
    remaining = 5 - step
    assert (found.cost.nfe, found.cost.vjps) == (2 * remaining - 1, remaining)


def test_all_at_the_first_node_is_the_gradient_of_a_rollout() -> None:
    denoiser, (x, z) = mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 6)
    found = Lookahead("all").look(denoiser, x, z, loss, solver=DDIM(), grid=grid, step=0)
    leaf = x.clone().requires_grad_()
    loss(
        sample(denoiser, leaf, z, solver=DDIM(), grid=grid, gradient=Backprop()).x_0
    ).sum().backward()
    assert agree(found.gradient, leaf.grad)


def test_steps_between_visit_nodes_of_the_grid_and_end_where_it_ends() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 10)
    assert Lookahead(1).nodes(grid, 3) == [3, 10]
    assert Lookahead(2).nodes(grid, 2) == [2, 6, 10]
    assert Lookahead(3).nodes(grid, 0) == [0, 3, 6, 10]
    assert Lookahead("all").nodes(grid, 7) == [7, 8, 9, 10]
    denoiser, (x, z) = MLPDenoiser(), inputs()
    found = Lookahead(2).look(denoiser, x, z, loss, solver=DDIM(), grid=grid, step=2)
    assert agree(found.gradient, by_autograd(x, z, grid.at([2, 6, 10]), 0, denoiser))
    assert (found.cost.nfe, found.cost.vjps) == (3, 2)


def test_a_wide_step_takes_the_condition_of_its_noisy_end() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 10)
    denoiser, (x, z) = MLPDenoiser(), inputs(steps=10)
    found = Lookahead(2).look(denoiser, x, PerStep(z), loss, solver=DDIM(), grid=grid, step=2)
    assert agree(found.gradient, by_autograd(x, [z[2], z[6]], grid.at([2, 6, 10]), 0, denoiser))


def test_looking_further_comes_closer_to_the_flow() -> None:
    denoiser, (x, z) = mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 32)
    leaf = x.clone().requires_grad_()
    fine = TimeGrid.uniform_lmbda(VPLinear(), 400)
    flow = sample(denoiser, leaf, z, solver=RungeKutta4(), grid=fine, gradient=Backprop())
    (truth,) = torch.autograd.grad(loss(flow.x_0).sum(), leaf)
    errors = [
        relative_error(
            Lookahead(k).look(denoiser, x, z, loss, solver=DDIM(), grid=grid, step=0).gradient,
            truth,
        )
        for k in (1, 4, 8, 16, 32)
    ]
    assert all(late < early for early, late in pairwise(errors))
    assert errors[0] > 0.9 and errors[-1] < 0.2


def test_all_through_an_sde_follows_its_noises() -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs()
    noise = RecordedNoise.draw(5, x.shape, seed=3, dtype=torch.float64).values
    grid = TimeGrid.uniform_time(VPLinear(), 5)
    found = Lookahead("all").look(
        denoiser, x, z, loss, solver=SDEDPMSolver(), grid=grid, step=2, noise=noise[2:]
    )
    leaf = x.clone().requires_grad_()
    tail = grid.at([2, 3, 4, 5])
    end = sample(
        denoiser, leaf, z, solver=SDEDPMSolver(), grid=tail, noise=noise[2:], gradient=Backprop()
    )
    (wanted,) = torch.autograd.grad(loss(end.x_0).sum(), leaf)
    assert agree(found.gradient, wanted)
    with pytest.raises(ValueError, match="needs noise= of its steps"):
        Lookahead("all").look(denoiser, x, z, loss, solver=SDEDPMSolver(), grid=grid, step=2)


def test_an_sde_is_looked_ahead_along_its_probability_flow() -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs()
    by_sde, by_ode = (
        Lookahead(2).look(denoiser, x, z, loss, solver=solver, grid=TO_CLEAN, step=1)
        for solver in (SDEDPMSolver(), DDIM())
    )
    assert torch.equal(by_sde.gradient, by_ode.gradient)


def test_any_gradient_method_can_look() -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 6)
    exact, stored, adjoint = (
        Lookahead("all", method).look(denoiser, x, z, loss, solver=DDIM(), grid=grid, step=0)
        for method in (Backprop(), DiscreteAdjoint(snapshots=2), AdjointDEIS())
    )
    assert agree(stored.gradient, exact.gradient)
    assert relative_error(adjoint.gradient, exact.gradient) > 1e-3


def test_a_multistep_sampler_is_refused_beyond_one_step() -> None:
    denoiser, (x, z) = MLPDenoiser(), inputs()
    one = Lookahead(1).look(denoiser, x, z, loss, solver=DPMSolverPP(), grid=TO_CLEAN, step=1)
    ddim = Lookahead(1).look(denoiser, x, z, loss, solver=DDIM(), grid=TO_CLEAN, step=1)
    assert agree(one.gradient, ddim.gradient)
    with pytest.raises(ValueError, match="DPMSolverPP carries a history"):
        Lookahead(2).look(denoiser, x, z, loss, solver=DPMSolverPP(), grid=TO_CLEAN, step=1)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "every"])
def test_a_wrong_number_of_steps(steps) -> None:
    with pytest.raises(ValueError, match=r"Lookahead.steps=.*expected 1 or more, or 'all'"):
        Lookahead(steps)


def test_nothing_is_ahead_of_the_last_node() -> None:
    with pytest.raises(ValueError, match="node 5 is the last one"):
        Lookahead(1).nodes(TO_CLEAN, 5)
