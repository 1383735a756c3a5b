"""Implicit Diffusion: exact without learning, stale for exactly N iterations with it."""

from functools import partial

import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, agree, normal, relative_error

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise
from adjointdeis.gradients import Backprop
from adjointdeis.guidance.implicit_diffusion import ImplicitDiffusion
from adjointdeis.guidance.problem import Batch, WeightProblem
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

STEPS = 5
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS)
TARGET = normal(DIM, seed=5)
STILL = partial(torch.optim.SGD, lr=0.0)


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def draw(iteration: int, stochastic: bool = False) -> Batch:
    x_T = normal(BATCH, DIM, seed=100 + iteration)
    z = normal(BATCH, COND, seed=200 + iteration)
    noise = RecordedNoise.draw(STEPS, x_T.shape, 300 + iteration, torch.float64)
    return Batch(x_T, z, noise if stochastic else None)


def looped(denoiser, optimizer=STILL, draw=draw, solver=None, grid=GRID, steps=15):
    problem = WeightProblem(denoiser, draw, loss=loss, solver=solver or DDIM(), grid=grid)
    return ImplicitDiffusion(optimizer, steps).start(problem)


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP(), SDEDPMSolver()], ids=["ddim", "2m", "sde"]
)
def test_without_learning_it_is_the_exact_adjoint(solver) -> None:
    denoiser, stochastic = MLPDenoiser(), solver.calculus == "sde"
    loop = looped(denoiser, draw=lambda k: draw(k, stochastic), solver=solver)
    for iteration in range(STEPS + 3):
        step = loop.step()
        if iteration < STEPS - 1:
            assert step is None
            continue
        assert step is not None
        entered = draw(iteration - STEPS + 1, stochastic)
        reference = MLPDenoiser()
        rollout = sample(
            reference, entered.x_T, entered.z, solver=solver, grid=GRID, noise=entered.noise,
            gradient=Backprop(),
        )  # fmt: skip
        loss(rollout.x_0).mean().backward()
        assert agree(step.x_0, rollout.x_0)
        assert agree(step.loss, loss(rollout.x_0))
        assert agree(
            flat(p.grad for p in denoiser.parameters()),
            flat(p.grad for p in reference.parameters()),
        )


def outputs(jumps: range, iterations: int) -> list[torch.Tensor]:
    """Samples when the second weight matrix is doubled in the iterations of ``jumps``."""
    denoiser = MLPDenoiser()
    usual = denoiser.second.detach().clone()
    loop = looped(denoiser)
    found = []
    for iteration in range(iterations):
        denoiser.second.data = 2.0 * usual if iteration in jumps else usual.clone()
        step = loop.step()
        if step is not None:
            found.append(step.x_0)
    return found


def test_a_jump_of_the_weights_is_gone_after_exactly_n_iterations() -> None:
    """Iteration j's weights make one step of each batch that leaves at j, ..., j + N - 1."""
    iterations, at = 3 * STEPS, STEPS + 1
    calm, jolted = outputs(range(0), iterations), outputs(range(at, at + 1), iterations)
    changed = [
        STEPS - 1 + k for k, (a, b) in enumerate(zip(calm, jolted, strict=True))
        if not torch.equal(a, b)
    ]  # fmt: skip
    assert changed == list(range(at, at + STEPS))


def test_a_lasting_jump_has_arrived_after_exactly_n_iterations() -> None:
    iterations, at = 3 * STEPS, STEPS + 1
    jumped = outputs(range(at, iterations), iterations)
    after = MLPDenoiser()
    after.second.data *= 2.0
    arrived = []
    for k, x_0 in enumerate(jumped):
        entered = draw(k)
        fresh = sample(after, entered.x_T, entered.z, solver=DDIM(), grid=GRID).x_0
        arrived.append(agree(x_0, fresh))
    first = STEPS - 1 + arrived.index(True)
    assert first == at + STEPS - 1
    assert all(arrived[arrived.index(True) :])


def test_learning_approaches_the_optimum_of_gaussian_data() -> None:
    """x_0 = A x_T + B m, and E x_T = 0: the best mean is target / B."""
    denoiser = GaussianDenoiser(VPLinear(), torch.zeros(DIM).double(), 0.7)
    denoiser.log_scale.requires_grad_(False)
    unit = GaussianDenoiser(VPLinear(), torch.ones(DIM).double(), 0.7)
    b = sample(unit, torch.zeros(1, DIM).double(), solver=DDIM(), grid=GRID).x_0.detach()[0]
    # Antithetic noise, so that the batch has the mean of its distribution.
    half = [normal(4, DIM, seed=k) for k in range(120)]
    problem = WeightProblem(
        denoiser, lambda k: Batch(torch.cat([half[k], -half[k]])), loss=loss, solver=DDIM(),
        grid=GRID,
    )  # fmt: skip
    updates = 120 - (STEPS - 1)
    found = ImplicitDiffusion(partial(torch.optim.SGD, lr=0.1), updates).solve(problem)
    assert len(found.history) == updates
    assert relative_error(denoiser.mean, TARGET / b) < 1e-3


def test_the_bias_is_of_the_order_of_the_learning_rate() -> None:
    """Gradient after some learning, against the exact one of the weights at that moment."""
    errors = []
    for rate in (4e-8, 2e-8, 1e-8):
        denoiser = MLPDenoiser()
        loop = looped(denoiser, partial(torch.optim.SGD, lr=rate))
        for _ in range(STEPS + 3):
            loop.step()
        before = [p.detach().clone() for p in denoiser.parameters()]
        loop.step()
        reference = MLPDenoiser()
        for p, value in zip(reference.parameters(), before, strict=True):
            p.data = value
        entered = draw(4)
        rollout = sample(
            reference, entered.x_T, entered.z, solver=DDIM(), grid=GRID, gradient=Backprop()
        )
        loss(rollout.x_0).mean().backward()
        errors.append(
            relative_error(
                flat(p.grad for p in denoiser.parameters()),
                flat(p.grad for p in reference.parameters()),
            )
        )
    assert errors[0] > 1e-4
    assert 1.6 < errors[0] / errors[1] < 2.4 and 1.6 < errors[1] / errors[2] < 2.4


def test_the_cost_of_an_update() -> None:
    loop = looped(MLPDenoiser())
    steps = [loop.step() for _ in range(STEPS + 1)]
    assert steps[-1] is not None
    spent = steps[-1].cost
    assert (spent.nfe_forward, spent.nfe_backward, spent.vjps) == (STEPS, STEPS, STEPS)
    filling = STEPS * (STEPS - 1) // 2
    assert loop.cost.nfe_forward == filling + 2 * STEPS
    assert loop.cost.peak_latents == STEPS * (STEPS + 3) // 2


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match="no weight of the denoiser requires a gradient"):
        looped(MLPDenoiser().requires_grad_(False))
    with pytest.raises(ValueError, match="this one encodes"):
        looped(MLPDenoiser(), grid=GRID.reversed())
    loop = looped(MLPDenoiser(), solver=SDEDPMSolver())
    with pytest.raises(ValueError, match="needs its noise from outside"):
        loop.step()
