"""D-Flow: Euler along a flow, L-BFGS to the closed-form optimum, samples kept apart."""

import math

import pytest
import torch
from oracles import DIM, MLPDenoiser, agree, normal
from torch import nn

from adjointdeis import RectifiedFlow, TimeGrid, sample
from adjointdeis.diffusion import EpsFromFlow, GaussianDenoiser
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint, NotSupportedError
from adjointdeis.guidance.dflow import DFlow, radius_penalty
from adjointdeis.guidance.problem import LatentProblem, Outcome
from adjointdeis.solvers import DDIM, RungeKutta

SCHEDULE = RectifiedFlow()
GRID = TimeGrid.uniform_time(SCHEDULE, 6, t_min=0.0)
TARGETS = normal(3, DIM, seed=5)
CURVATURE = torch.tensor([0.2, 1.0, 3.0, 9.0], dtype=torch.float64)


class Velocity(nn.Module):
    """A small flow-matching network, velocity eps - x0."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLPDenoiser()

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.network(x, t, z) - x


def loss(x_0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return 0.5 * (CURVATURE * (x_0 - TARGETS[rows]).square()).sum(1)


def optimised(flow: DFlow, denoiser, x_T, z=None, *, loss, solver, grid) -> Outcome:
    return flow.solve(LatentProblem(denoiser, x_T, z, loss=loss, solver=solver, grid=grid))


def starts() -> tuple[torch.Tensor, torch.Tensor]:
    return normal(3, DIM, seed=1), normal(3, 3, seed=2)


def test_ddim_on_a_rectified_flow_is_euler() -> None:
    velocity, (x_T, z) = Velocity(), starts()
    rollout = sample(EpsFromFlow(velocity, SCHEDULE), x_T, z, solver=DDIM(), grid=GRID)
    x = x_T
    for i in range(GRID.steps):
        x = x + (GRID.t[i + 1] - GRID.t[i]) * velocity(x, GRID.t[i], z)
    assert agree(rollout.x_0, x)


@pytest.mark.parametrize("gradient", [DiscreteAdjoint(), Backprop(), DiscreteAdjoint(snapshots=2)])
def test_gaussian_data_have_a_closed_form_optimum(gradient) -> None:
    """x_0 = A x_T + b is invertible, so the optimum reaches the target exactly."""
    denoiser = GaussianDenoiser(SCHEDULE, normal(DIM, seed=3), 0.7)
    x_T, _ = starts()

    def run(x: torch.Tensor) -> torch.Tensor:
        return sample(denoiser, x, solver=DDIM(), grid=GRID).x_0.detach()

    offset = run(torch.zeros(1, DIM).double())
    scale = run(torch.ones(1, DIM).double()) - offset
    found = optimised(
        DFlow(iterations=40, gradient=gradient), denoiser, x_T, loss=loss, solver=DDIM(), grid=GRID
    )
    torch.testing.assert_close(found.x_T, (TARGETS - offset) / scale, rtol=0, atol=1e-4)
    assert (found.loss < 1e-8).all()
    assert agree(found.x_0, run(found.x_T))


def test_quasi_newton_beats_plain_descent_at_the_same_evaluations() -> None:
    velocity, (x_T, z) = Velocity(), starts()
    denoiser = EpsFromFlow(velocity, SCHEDULE)
    flow = optimised(DFlow(iterations=12), denoiser, x_T, z, loss=loss, solver=DDIM(), grid=GRID)
    x = x_T.clone()
    for _ in range(max(len(curve) for curve in flow.history)):
        leaf = x.requires_grad_()
        value = loss(sample(denoiser, leaf, z, solver=DDIM(), grid=GRID).x_0, torch.arange(3))
        (g,) = torch.autograd.grad(value.sum(), leaf)
        x = (leaf - 0.1 * g).detach()
    plain = loss(sample(denoiser, x, z, solver=DDIM(), grid=GRID).x_0, torch.arange(3))
    assert (flow.loss < 0.1 * plain).all()


def test_a_batch_is_its_samples_one_by_one() -> None:
    velocity, (x_T, z) = Velocity(), starts()
    denoiser = EpsFromFlow(velocity, SCHEDULE)
    common = {"solver": DDIM(), "grid": GRID}
    whole = optimised(DFlow(iterations=5), denoiser, x_T, z, loss=loss, **common)
    for k in range(3):
        alone = optimised(DFlow(iterations=5),
            denoiser, x_T[k : k + 1], z[k : k + 1], loss=lambda x, rows, k=k: loss(x, rows + k),
            **common,
        )  # fmt: skip
        assert torch.equal(alone.x_T[0], whole.x_T[k])


def test_the_best_iterate_is_returned_and_the_cost_is_counted() -> None:
    velocity, (x_T, z) = Velocity(), starts()
    found = optimised(
        DFlow(iterations=4, evaluations=5),
        EpsFromFlow(velocity, SCHEDULE),
        x_T,
        z,
        loss=loss,
        solver=DDIM(),
        grid=GRID,
    )
    for k, curve in enumerate(found.history):
        assert float(found.loss[k]) == pytest.approx(float(min(curve)), rel=1e-12)
    # As if the batch had been sampled at once: the mean of a sample.
    mean = sum(len(curve) for curve in found.history) / 3
    assert found.cost.vjps == round(6 * mean)
    assert found.cost.nfe_forward == found.cost.nfe_backward == round(6 * mean)


def test_midpoint_steps_work_too() -> None:
    denoiser = GaussianDenoiser(SCHEDULE, normal(DIM, seed=3), 0.7)
    found = optimised(
        DFlow(iterations=30),
        denoiser,
        starts()[0],
        loss=loss,
        solver=RungeKutta("midpoint"),
        grid=GRID,
    )
    assert (found.loss < 1e-8).all()


def test_the_radius_penalty_is_least_on_the_shell() -> None:
    direction = normal(1, 9, seed=4)
    direction = direction / direction.norm()
    radii = torch.linspace(0.5, 6.0, 1101, dtype=torch.float64)
    values = radius_penalty(radii[:, None] * direction)
    assert float(radii[values.argmin()]) == pytest.approx(math.sqrt(8), abs=0.01)
    leaf = (2.0 * direction).requires_grad_()
    (g,) = torch.autograd.grad(radius_penalty(leaf).sum(), leaf)
    assert agree(g, (2.0 - 8 / 2.0) * direction)


def test_the_penalty_is_traded_against_the_loss() -> None:
    denoiser = GaussianDenoiser(SCHEDULE, normal(DIM, seed=3), 0.7)
    x_T, _ = starts()

    def far(x_0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x_0 - 10.0).square().sum(1)

    free, held = (
        optimised(
            DFlow(iterations=30, penalty=penalty), denoiser, x_T, loss=far, solver=DDIM(), grid=GRID
        )
        for penalty in (None, lambda x: 100.0 * radius_penalty(x))
    )
    assert (held.x_T.norm(dim=1) < 0.5 * free.x_T.norm(dim=1)).all()


def test_inexact_gradients_and_hopeless_starts_are_refused() -> None:
    with pytest.raises(NotSupportedError, match="AdjointDEIS is not exact"):
        DFlow(gradient=AdjointDEIS())
    with pytest.raises(ValueError, match=r"DFlow.iterations=0"):
        DFlow(iterations=0)
    denoiser = GaussianDenoiser(SCHEDULE, normal(DIM, seed=3), 0.7)
    with pytest.raises(RuntimeError, match="sample 0: the objective starts at nan"):
        optimised(DFlow(),
            denoiser, starts()[0], loss=lambda x, rows: x.sum(1) * float("nan"), solver=DDIM(),
            grid=GRID,
        )  # fmt: skip
