"""Fine-tuning: the gradient of theta is autograd's, the optimum is the closed-form one."""

from functools import partial

import pytest
import torch
from oracles import DIM, MLPDenoiser, agree, inputs, normal
from torch import nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.guidance import (
    DOODL,
    AdjointDPMGuidance,
    AdjointMatching,
    DFlow,
    DirectNoiseOptimisation,
    DRaFT,
    FineTuning,
    FreeDoM,
    Greedy,
    ImplicitDiffusion,
    LatentOptimisation,
    TrajectoryControl,
)
from adjointdeis.guidance.diffpure import DefenceProblem, DiffPure, Draw, ProjectedAscent
from adjointdeis.guidance.implicit_langevin import ImplicitLangevin, PotentialProblem
from adjointdeis.guidance.problem import Batch, LatentProblem, WeightProblem
from adjointdeis.solvers import DDIM, SDEDPMSolver

GRID = TimeGrid.uniform_lmbda(VPLinear(), 6)
TARGET = normal(DIM, seed=5)
SGD = partial(torch.optim.SGD, lr=0.1)


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def problem(denoiser, batch: Batch | None = None, solver=None, loss=loss) -> WeightProblem:
    batch = Batch(*inputs()) if batch is None else batch
    return WeightProblem(
        denoiser, lambda step: batch, loss=loss, solver=solver or DDIM(), grid=GRID
    )


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_one_step_is_gradient_descent_on_the_mean_loss(solver) -> None:
    x_T, z = inputs()
    noise = RecordedNoise.draw(6, x_T.shape, 3, torch.float64) if solver.calculus == "sde" else None
    trained, reference = MLPDenoiser(), MLPDenoiser()
    tuning = FineTuning(SGD).start(problem(trained, Batch(x_T, z, noise), solver))
    step = tuning.step()
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
    found = FineTuning(partial(torch.optim.SGD, lr=0.5), 200).solve(problem(denoiser, Batch(x_T)))
    assert len(found.history) == 200 and found.cost.vjps == 200 * 6
    assert agree(found.loss, loss(found.x_0))
    assert agree(denoiser.mean, ((TARGET - a * x_T.mean(0)) / b)[0], 1e-8)


def test_the_gradient_method_is_a_choice() -> None:
    ends = []
    for method in (DiscreteAdjoint(), DiscreteAdjoint(snapshots=2), Backprop(), AdjointDEIS()):
        denoiser = MLPDenoiser()
        FineTuning(SGD, 1, method).solve(problem(denoiser))
        ends.append(flat(denoiser.parameters()))
    assert agree(ends[1], ends[0]) and agree(ends[2], ends[0])
    assert not agree(ends[3], ends[0], 1e-4)


def test_frozen_weights_stay() -> None:
    denoiser = MLPDenoiser()
    denoiser.first.requires_grad_(False)
    before = denoiser.first.clone(), denoiser.second.detach().clone()
    FineTuning(SGD, 1).solve(problem(denoiser))
    assert torch.equal(denoiser.first, before[0])
    assert not torch.equal(denoiser.second, before[1])


def test_clipping_keeps_the_direction() -> None:
    free, held, start = MLPDenoiser(), MLPDenoiser(), flat(MLPDenoiser().parameters())
    norm = FineTuning(SGD).start(problem(free)).step().gradient_norm
    FineTuning(SGD, 1, clip_norm=norm / 4).solve(problem(held))
    assert agree(flat(held.parameters()) - start, (flat(free.parameters()) - start) / 4, 1e-10)


def test_what_cannot_be_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight of the denoiser requires a gradient"):
        problem(MLPDenoiser().requires_grad_(False))
    with pytest.raises(ValueError, match="clip_norm=0"):
        FineTuning(SGD, clip_norm=0)
    with pytest.raises(TypeError, match="FineTuning solves a WeightProblem"):
        FineTuning(SGD).solve(MLPDenoiser())
    denoiser = MLPDenoiser()
    poisoned = problem(denoiser, loss=lambda x_0: x_0.sum(1) * float("nan"))
    with pytest.raises(FloatingPointError, match="nothing was updated"):
        FineTuning(SGD).solve(poisoned)
    assert torch.equal(flat(denoiser.parameters()), flat(MLPDenoiser().parameters()))


def test_without_updates_nothing_is_sampled() -> None:
    found = FineTuning(SGD, 0).solve(problem(MLPDenoiser()))
    assert found.cost.nfe == 0 and len(found.x_0) == len(found.loss) == len(found.history) == 0


OF_LATENTS = [
    LatentOptimisation(2), DirectNoiseOptimisation(), AdjointDPMGuidance(), DFlow(), FreeDoM(),
    DOODL(0.1, steps=2), Greedy(), TrajectoryControl(),
]  # fmt: skip
OF_WEIGHTS = [
    FineTuning(SGD, 2), DRaFT(optimizer=SGD, steps=2), AdjointMatching(SGD, 2),
    ImplicitDiffusion(SGD, 2),
]  # fmt: skip
OF_OTHERS = [ProjectedAscent(0.1, steps=2), ImplicitLangevin(SGD, gamma=0.1, steps=2)]
NO_LOSSES = {
    "mean": (lambda x_0, *rows: loss(x_0).mean(), r"shape \(\).*without a mean"),
    "column": (lambda x_0, *rows: loss(x_0)[:, None], r"one number each"),
    "entries": (lambda x_0, *rows: x_0**2, r"one number each"),
    "number": (lambda x_0, *rows: 1.0, "returned float"),
    "detached": (lambda x_0, *rows: loss(x_0.detach()), "no gradient by x_0"),
}


class Potential(nn.Module):
    """Of a Gaussian whose mean is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(DIM, dtype=torch.float64))

    def forward(self, x):
        return 0.5 * (x - self.mean).square().sum(1)


@pytest.mark.parametrize("kind", NO_LOSSES)
@pytest.mark.parametrize(
    "algorithm", [*OF_LATENTS, *OF_WEIGHTS, *OF_OTHERS], ids=lambda a: type(a).__name__
)
def test_no_algorithm_takes_another_loss_than_one_number_a_sample(algorithm, kind) -> None:
    """A mean over the batch would be divided once more, and by another number for every batch."""
    (wrong, message), denoiser = NO_LOSSES[kind], MLPDenoiser()
    if isinstance(algorithm, ImplicitLangevin) and kind == "detached":
        pytest.skip("its estimate takes no gradient of the loss")
    x_T, z = (torch.cat([value, value[:1]]) for value in inputs())  # no pair, as DOODL's x_0 is

    def posed(wanted):
        if algorithm in OF_WEIGHTS:
            return problem(denoiser, loss=wanted)
        if isinstance(algorithm, ImplicitLangevin):
            potential = Potential()
            return PotentialProblem(potential, x_T, loss=wanted, draw=lambda step: [x_T])
        if isinstance(algorithm, ProjectedAscent):
            pure = DiffPure(denoiser, DDIM(), GRID)
            purify = partial(pure.purify, z=z)
            return DefenceProblem(x_T, purify, loss=wanted, draw=lambda k: Draw(x_T, None))
        fixed = denoiser.requires_grad_(False)
        return LatentProblem(fixed, x_T, z, loss=wanted, solver=DDIM(), grid=GRID)

    algorithm.start(posed(lambda x_0, *rows: loss(x_0))).step()
    with pytest.raises(ValueError, match=message):
        algorithm.solve(posed(wrong))
