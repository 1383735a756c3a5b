"""AdjointDPM guidance: Euler is AdjointDEIS-1, rk4 nears the flow, the box holds."""

from functools import partial

import pytest
import torch
from oracles import DIM, RungeKutta4, agree, mixture, normal, relative_error

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.gradients import AdjointDEIS, AdjointDPM, Backprop
from adjointdeis.guidance.adjoint_dpm import adjoint_dpm_guidance
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.per_sample import Box
from adjointdeis.solvers import DDIM

pytest.importorskip("torchdiffeq")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

GRID = TimeGrid.uniform_lmbda(VPLinear(), 16)
TARGET = normal(DIM, seed=5)
X, Z = normal(2, DIM, seed=1), normal(2, 3, seed=2)


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


@pytest.mark.parametrize("optimise", ["x_T", "z", "both"])
def test_euler_moves_as_adjoint_deis_does(optimise) -> None:
    denoiser = mixture()
    dpm = adjoint_dpm_guidance(
        denoiser, loss, X, Z, solver=DDIM(), grid=GRID, radius=None, optimise=optimise
    )
    deis = LatentOptimisation(
        lambda x, z: sample(denoiser, x, z, solver=DDIM(), grid=GRID, gradient=AdjointDEIS()),
        loss, X, Z, partial(torch.optim.Adam, lr=0.01), optimise=optimise,
    )  # fmt: skip
    for _ in range(3):
        dpm.step(), deis.step()
    assert agree(dpm.x_T, deis.x_T, 1e-10) and agree(dpm.z, deis.z, 1e-10)
    assert torch.equal(dpm.x_T.detach(), X) == (optimise == "z")


def test_a_better_integrator_has_a_gradient_nearer_to_the_flow() -> None:
    denoiser, leaf = mixture(), X.clone().requires_grad_()
    fine = TimeGrid.uniform_lmbda(VPLinear(), 400)
    flow = sample(denoiser, leaf, Z, solver=RungeKutta4(), grid=fine, gradient=Backprop())
    (truth,) = torch.autograd.grad(loss(flow.x_0).sum(), leaf)
    norms = truth.norm(dim=1)
    errors = []
    for method in ("euler", "rk4"):
        run = adjoint_dpm_guidance(
            denoiser, loss, X, Z, solver=RungeKutta4(), grid=GRID, gradient=AdjointDPM(method)
        )
        errors.append(relative_error(run.step().gradient_norm, norms))
    assert errors[1] < 0.1 * errors[0]


def test_the_box_holds_and_the_loss_falls() -> None:
    run = adjoint_dpm_guidance(mixture(), loss, X, Z, solver=DDIM(), grid=GRID, radius=0.1, lr=0.05)
    first = run.step().loss
    for _ in range(9):
        run.step()
        assert ((run.x_T - X).abs() <= 0.1 + 1e-12).all()
    assert float((run.x_T - X).abs().max()) == pytest.approx(0.1)
    assert run.evaluate()[1].sum() < first.sum()
    with pytest.raises(ValueError, match=r"Box.radius=0"):
        Box(X, 0.0)
