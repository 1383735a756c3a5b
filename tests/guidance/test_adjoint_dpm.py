"""AdjointDPM guidance: Euler is AdjointDEIS-1, rk4 nears the flow, the box holds."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from oracles import DIM, RungeKutta4, agree, mixture, normal, relative_error

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.gradients import AdjointDEIS, AdjointDPM, Backprop
from adjointdeis.guidance.adjoint_dpm import AdjointDPMGuidance
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.per_sample import Box
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.solvers import DDIM

pytest.importorskip("torchdiffeq")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

GRID = TimeGrid.uniform_lmbda(VPLinear(), 16)
TARGET = normal(DIM, seed=5)
X, Z = normal(2, DIM, seed=1), normal(2, 3, seed=2)


def loss(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def problem(solver=None) -> LatentProblem:
    return LatentProblem(mixture(), X, Z, loss=loss, solver=solver or DDIM(), grid=GRID)


def test_euler_moves_as_adjoint_deis_does() -> None:
    dpm = AdjointDPMGuidance(steps=3, radius=None, keep="last").solve(problem())
    adam = partial(torch.optim.Adam, lr=0.01)
    deis = LatentOptimisation(3, adam, AdjointDEIS()).solve(replace(problem(), moves="x_T"))
    assert agree(dpm.x_T, deis.x_T, 1e-10) and not torch.equal(dpm.x_T, X)
    assert torch.equal(dpm.z, Z)


def test_a_better_integrator_has_a_gradient_nearer_to_the_flow() -> None:
    denoiser, leaf = mixture(), X.clone().requires_grad_()
    fine = TimeGrid.uniform_lmbda(VPLinear(), 400)
    flow = sample(denoiser, leaf, Z, solver=RungeKutta4(), grid=fine, gradient=Backprop())
    (truth,) = torch.autograd.grad(loss(flow.x_0).sum(), leaf)
    norms = truth.norm(dim=1)
    errors = []
    for method in ("euler", "rk4"):
        run = AdjointDPMGuidance(gradient=AdjointDPM(method)).start(problem(RungeKutta4()))
        errors.append(relative_error(run.step().gradient_norm, norms))
    assert errors[1] < 0.1 * errors[0]


def test_the_box_holds_and_the_loss_falls() -> None:
    run = AdjointDPMGuidance(radius=0.1, lr=0.05).start(problem())
    first = run.step().loss
    for _ in range(9):
        run.step()
        assert ((run.x_T - X).abs() <= 0.1 + 1e-12).all()
    assert float((run.x_T - X).abs().max()) == pytest.approx(0.1)
    assert run.evaluate()[1].sum() < first.sum()
    with pytest.raises(ValueError, match=r"Box.radius=0"):
        Box(X, 0.0)
    with pytest.raises(ValueError, match=r"radius=-1"):
        AdjointDPMGuidance(radius=-1.0)
