"""Fine-tuning: the gradient of theta is autograd's, the optimum is the closed-form one."""

from functools import partial

import pytest
import torch
from oracles import DIM, MLPDenoiser, agree, inputs, normal

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.solvers import DDIM, SDEDPMSolver

GRID = TimeGrid.uniform_lmbda(VPLinear(), 6)
TARGET = normal(DIM, seed=5)
SGD = partial(torch.optim.SGD, lr=0.1)


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_one_step_is_gradient_descent_on_the_mean_loss(solver) -> None:
    x_T, z = inputs()
    noise = RecordedNoise.draw(6, x_T.shape, 3, torch.float64) if solver.calculus == "sde" else None
    trained, reference = MLPDenoiser(), MLPDenoiser()
    tuning = FineTuning(trained, loss, SGD, solver=solver, grid=GRID)
    step = tuning.step(x_T, z, noise)
    rollout = sample(reference, x_T, z, solver=solver, grid=GRID, noise=noise, gradient=Backprop())
    loss(rollout.x_0).mean().backward()
    gradient = flat(p.grad for p in reference.parameters())
    assert agree(flat(trained.parameters()), flat(reference.parameters()) - 0.1 * gradient)
    assert step.gradient_norm == pytest.approx(float(gradient.norm()), rel=1e-12)
    assert agree(step.loss, loss(rollout.x_0)) and agree(step.x_0, rollout.x_0)
    assert (tuning.cost.nfe, tuning.cost.vjps) == (12, 6)


def test_the_mean_of_gaussian_data_goes_to_the_closed_form_optimum() -> None:
    """x_0 = A x_T + B m for numbers A and B, so the best m has B m = target - A mean(x_T)."""
    x_T = normal(8, DIM, seed=1)
    denoiser = GaussianDenoiser(VPLinear(), torch.zeros(DIM).double(), 0.7)
    denoiser.log_scale.requires_grad_(False)

    def run(x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        at = GaussianDenoiser(VPLinear(), mean, 0.7)
        return sample(at, x, solver=DDIM(), grid=GRID).x_0.detach()

    one, zero = torch.ones(1, DIM).double(), torch.zeros(1, DIM).double()
    a, b = run(one, zero[0]), run(zero, one[0])
    tuning = FineTuning(denoiser, loss, partial(torch.optim.SGD, lr=0.5), solver=DDIM(), grid=GRID)
    for _ in range(200):
        tuning.step(x_T)
    assert agree(denoiser.mean, ((TARGET - a * x_T.mean(0)) / b)[0], 1e-8)


def test_the_gradient_method_is_a_choice() -> None:
    x_T, z = inputs()
    ends = []
    for method in (DiscreteAdjoint(), DiscreteAdjoint(snapshots=2), Backprop(), AdjointDEIS()):
        denoiser = MLPDenoiser()
        FineTuning(denoiser, loss, SGD, solver=DDIM(), grid=GRID, gradient=method).step(x_T, z)
        ends.append(flat(denoiser.parameters()))
    assert agree(ends[1], ends[0]) and agree(ends[2], ends[0])
    assert not agree(ends[3], ends[0], 1e-4)


def test_frozen_weights_stay() -> None:
    x_T, z = inputs()
    denoiser = MLPDenoiser()
    denoiser.first.requires_grad_(False)
    before = denoiser.first.clone(), denoiser.second.detach().clone()
    FineTuning(denoiser, loss, SGD, solver=DDIM(), grid=GRID).step(x_T, z)
    assert torch.equal(denoiser.first, before[0])
    assert not torch.equal(denoiser.second, before[1])


def test_clipping_keeps_the_direction() -> None:
    x_T, z = inputs()
    free, held, start = MLPDenoiser(), MLPDenoiser(), flat(MLPDenoiser().parameters())
    norm = FineTuning(free, loss, SGD, solver=DDIM(), grid=GRID).step(x_T, z).gradient_norm
    FineTuning(held, loss, SGD, solver=DDIM(), grid=GRID, clip_norm=norm / 4).step(x_T, z)
    assert agree(flat(held.parameters()) - start, (flat(free.parameters()) - start) / 4, 1e-10)


def test_what_cannot_be_learned_is_refused() -> None:
    x_T, z = inputs()
    with pytest.raises(ValueError, match="no weight of the denoiser requires a gradient"):
        FineTuning(MLPDenoiser().requires_grad_(False), loss, SGD, solver=DDIM(), grid=GRID)
    with pytest.raises(ValueError, match="clip_norm=0"):
        FineTuning(MLPDenoiser(), loss, SGD, solver=DDIM(), grid=GRID, clip_norm=0)
    denoiser = MLPDenoiser()
    tuning = FineTuning(
        denoiser, lambda x_0: x_0.sum(1) * float("nan"), SGD, solver=DDIM(), grid=GRID
    )
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        tuning.step(x_T, z)
    assert torch.equal(flat(denoiser.parameters()), flat(MLPDenoiser().parameters()))
