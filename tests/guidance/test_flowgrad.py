"""Controls along the trajectory: autograd's gradient, one adjoint per node, nothing else moves."""

from functools import partial

import pytest
import torch
from oracles import DIM, MLPDenoiser, agree, mixture, normal, relative_error

from adjointdeis import PerStep, RectifiedFlow, TimeGrid, sample
from adjointdeis.gradients import Backprop, DiscreteAdjoint, FlowGrad
from adjointdeis.guidance.flowgrad import Controlled, TrajectoryControl
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

SCHEDULE = RectifiedFlow()
GRID = TimeGrid.uniform_time(SCHEDULE, 8)
TARGET = normal(DIM, seed=5)
SGD = partial(torch.optim.SGD, lr=0.1)
X, Z = normal(2, DIM, seed=1), normal(2, 3, seed=2)


def loss(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def problem(denoiser, grid: TimeGrid = GRID) -> LatentProblem:
    return LatentProblem(denoiser, X, Z, loss=loss, solver=DDIM(), grid=grid)


def controls(optimisation) -> torch.Tensor:
    return optimisation.z.detach()


@pytest.mark.parametrize(
    "gradient", [FlowGrad(0.0, "copied"), DiscreteAdjoint(), Backprop()], ids=["fg", "da", "bp"]
)
def test_without_merging_a_step_is_descent_on_the_controlled_chain(gradient) -> None:
    denoiser = MLPDenoiser()
    optimisation = TrajectoryControl(optimizer=SGD, gradient=gradient).start(problem(denoiser))
    optimisation.step()
    us = [torch.zeros_like(X).requires_grad_() for _ in range(8)]
    x = X
    for i, u in enumerate(us):
        s, t = GRID[i], GRID[i + 1]
        x = x + u
        x = t.alpha * (x / s.alpha + (t.rho - s.rho) * denoiser(x, s.t, Z))
    gradients = torch.autograd.grad(loss(x).sum(), us)
    assert agree(controls(optimisation), -0.1 * torch.stack(gradients, 1))
    assert torch.equal(optimisation.x_T, X)


def test_controls_of_zero_are_the_plain_sampler() -> None:
    denoiser = MLPDenoiser()
    step = TrajectoryControl().start(problem(denoiser)).step()
    assert torch.equal(step.x_0, sample(denoiser, X, Z, solver=DDIM(), grid=GRID).x_0)


def test_the_first_control_moves_the_noise() -> None:
    denoiser, bump = MLPDenoiser(), 0.3 * normal(2, DIM, seed=7)
    us = [bump, *[torch.zeros_like(X)] * 7]
    moved = sample(denoiser, X, PerStep(us), solver=Controlled(DDIM(), Z), grid=GRID)
    assert agree(moved.x_0, sample(denoiser, X + bump, Z, solver=DDIM(), grid=GRID).x_0)


def test_merged_nodes_save_products_and_share_their_adjoint() -> None:
    denoiser, grid = mixture(SCHEDULE), TimeGrid.uniform_time(SCHEDULE, 60)
    merged, exact = (
        TrajectoryControl(optimizer=SGD, gradient=gradient).start(problem(denoiser, grid))
        for gradient in (None, DiscreteAdjoint())
    )
    merged.step(), exact.step()
    assert exact.cost.vjps == 60 and merged.cost.vjps < 40
    assert relative_error(controls(merged), controls(exact)) < 0.5
    assert len(torch.unique(controls(merged)[0], dim=0)) == merged.cost.vjps


def test_ten_iterations_lower_the_loss_and_decay_shrinks_the_controls() -> None:
    denoiser = mixture(SCHEDULE)
    ends = []
    for decay in (0.0, 2.0):
        decayed = partial(torch.optim.SGD, lr=0.05, weight_decay=decay)
        found = TrajectoryControl(10, decayed, keep="last").solve(problem(denoiser))
        ends.append((found.loss, found.z.norm()))
        assert found.z.shape == (2, 8, DIM)
        assert (ends[-1][0] < 0.7 * found.history[0]).all()
    assert ends[1][1] < ends[0][1]


def test_histories_and_noise_are_refused() -> None:
    for solver in (DPMSolverPP(), SDEDPMSolver()):
        with pytest.raises(ValueError, match=f"not to {type(solver).__name__}"):
            Controlled(solver)
    with pytest.raises(ValueError, match="take the place of a scheduled condition"):
        TrajectoryControl().solve(problem(mixture(SCHEDULE)).per_step())
    with pytest.raises(ValueError, match="needs a control"):
        sample(mixture(SCHEDULE), X, None, solver=Controlled(DDIM()), grid=GRID)
