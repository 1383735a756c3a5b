"""DOODL: the gradient of the tied pair is autograd's, and every choice of the update is made."""

import pytest
import torch
from oracles import DIM, MLPDenoiser, agree, mixture, normal

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.gradients import DiscreteAdjoint, Reversible
from adjointdeis.guidance.doodl import DOODL
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.solvers import DDIM

# Finely enough for two chains that agree: EDICT on the whole time range would take N = 80.
GRID = TimeGrid.uniform_time(VPLinear(), 12, t_min=0.05, t_max=0.4)
TARGET = normal(DIM, seed=5)
X, Z = normal(2, DIM, seed=1), normal(2, 3, seed=2)


def loss(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def problem(denoiser) -> LatentProblem:
    return LatentProblem(denoiser, X, Z, loss=loss, solver=DDIM(), grid=GRID)


def edict(denoiser, x, y, p: float = 0.93) -> tuple[torch.Tensor, torch.Tensor]:
    """The published step written out, which goes first alternating with the step."""
    for i in range(GRID.steps):
        s, t = GRID[i], GRID[i + 1]
        a, b = t.alpha / s.alpha, t.sigma - t.alpha / s.alpha * s.sigma
        if i % 2 == 0:
            x = a * x + b * denoiser(y, s.t, Z)
            y = a * y + b * denoiser(x, s.t, Z)
        else:
            y = a * y + b * denoiser(x, s.t, Z)
            x = a * x + b * denoiser(y, s.t, Z)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return x, y


def by_hand(denoiser, x_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean gradient over the tied pair, and the loss of both images."""
    x, y = x_T.clone().requires_grad_(), x_T.clone().requires_grad_()
    x_0, y_0 = edict(denoiser, x, y)
    value = 0.5 * (loss(x_0) + loss(y_0))
    g_x, g_y = torch.autograd.grad(value.sum(), (x, y))
    return 0.5 * (g_x + g_y), value.detach()


@pytest.mark.parametrize("gradient", [None, DiscreteAdjoint()], ids=["reversible", "stored"])
def test_two_steps_are_the_published_update(gradient) -> None:
    denoiser, clip, lr = MLPDenoiser(), 0.05, 0.4
    pushes = [normal(2, DIM, seed=40 + step) for step in range(2)]
    algorithm = DOODL(lr, 2, clip=clip, gradient=gradient, perturb=1e-2, noise=pushes)
    run = algorithm.start(problem(denoiser))
    x, momentum, radius = X.clone(), torch.zeros_like(X), X.norm(dim=1, keepdim=True)
    for k in range(2):
        step = run.step()
        g, value = by_hand(denoiser, x)
        assert bool((g.abs() > clip).any()) and bool((g.abs() < clip).any())
        momentum = 0.9 * momentum + g.clamp(-clip, clip)
        x = x - lr * momentum + 1e-2 * normal(2, DIM, seed=40 + k)
        x = x * radius / x.norm(dim=1, keepdim=True)
        assert agree(step.loss, value, 1e-10)
        assert agree(run.x_T, x, 1e-10)
    assert torch.equal(run.z.detach(), Z)


def test_the_memory_is_two_latents_and_the_cost_twice_n() -> None:
    reversed_, stored = (
        DOODL(0.1, gradient=gradient).start(problem(MLPDenoiser()))
        for gradient in (Reversible(), DiscreteAdjoint())
    )
    for run in (reversed_, stored):
        run.step()
        assert (run.cost.nfe, run.cost.vjps) == (48, 24)
    assert reversed_.cost.peak_latents == 2 and stored.cost.peak_latents > 12


def test_it_descends_on_the_shell() -> None:
    run = DOODL(1.0, 21, clip=0.1).start(problem(mixture()))
    first = run.step().loss
    for _ in range(20):
        run.step()
        torch.testing.assert_close(run.x_T.detach().norm(dim=1), X.norm(dim=1))
    assert run.finished
    found = run.outcome()
    assert (found.loss < 0.8 * first).all()
    # The first image of the pair; its twin is near, as both come from one noise.
    assert found.x_0.shape == (2, DIM)
    assert agree(loss(found.x_0), found.loss, 0.2)
    fine = DOODL(1.0, 1, clip=0.1, sampling_steps=30).solve(problem(mixture()))
    assert fine.cost.nfe_forward == 3 * 2 * 30


def test_wrong_settings() -> None:
    with pytest.raises(ValueError, match="clip=0"):
        DOODL(0.1, clip=0)
    with pytest.raises(ValueError, match="perturb=-1"):
        DOODL(0.1, perturb=-1)
    with pytest.raises(ValueError, match="20 tensors of noise are needed here, got 1"):
        DOODL(0.1, noise=[X]).solve(problem(mixture()))
