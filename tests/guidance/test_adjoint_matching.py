"""Adjoint matching: the control problem's own gradient, and the tilted law of Gaussians."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, agree, normal
from torch import Tensor, nn

from adjointdeis import RectifiedFlow, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import EpsFromFlow, GaussianDenoiser, RecordedNoise
from adjointdeis.gradients import NotSupportedError
from adjointdeis.guidance import AdjointMatching, Batch, FineTuning, WeightProblem
from adjointdeis.solvers import DDIM, DPMSolverPP, Rex, SDEDPMSolver, SDEDPMSolverPP
from experiments.adjoint_matching.run import study

N = 6
GRID = TimeGrid.uniform_lmbda(VPLinear(), N)
TARGET = normal(DIM, seed=5)
STILL = partial(torch.optim.SGD, lr=0.0)
SOLVERS = [SDEDPMSolver(), SDEDPMSolverPP(order=1), DDIM()]
NAMES = ["noise-form", "data-form", "ode"]


def loss(x_0: Tensor) -> Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1) + x_0.sum(1).tanh()


def draw(step: int, solver, steps: int = N) -> Batch:
    x_T, z = normal(BATCH, DIM, seed=100 + step), normal(BATCH, COND, seed=200 + step)
    noise = RecordedNoise.draw(steps, x_T.shape, 300 + step, torch.float64)
    return Batch(x_T, z, noise if solver.calculus == "sde" else None)


def problem(denoiser, solver, grid=GRID, loss=loss) -> WeightProblem:
    return WeightProblem(
        denoiser, partial(draw, solver=solver, steps=grid.steps), loss=loss, solver=solver,
        grid=grid,
    )  # fmt: skip


def flat(tensors) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Controlled(nn.Module):
    """A frozen network and a control of each step that does not depend on the state."""

    def __init__(self, base: nn.Module, grid: TimeGrid) -> None:
        super().__init__()
        self.base, self.grid = base.requires_grad_(False), grid
        self.control = nn.Parameter(torch.zeros(grid.steps, DIM, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return self.base(x, t, z) + self.control[int((self.grid.t - t).abs().argmin())]


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_without_feedback_it_is_the_gradient_of_the_control_problem(solver, strength) -> None:
    r"""For a control that ignores the state, autograd through sum |delta|^2/2v + w L agrees.

    A wrong sign, a shifted index, a lost factor of 2 or a wrong weight of a step does not.
    """
    network = Controlled(MLPDenoiser(), GRID)
    network.control.data = 0.1 * normal(N, DIM, seed=7)
    run = AdjointMatching(STILL, strength=strength).start(problem(network, solver))
    run.base.control.data.zero_()
    run.step()
    batch = draw(0, solver)
    x, cost = batch.x_T, 0.0
    control = network.control.detach().clone().requires_grad_()
    for i in range(N):
        s, t = GRID[i], GRID[i + 1]
        noise = batch.noise.values[i] if batch.noise else None
        own = network.base(x, s.t, batch.z)
        moved, _ = solver.step(lambda *_, e=own + control[i]: e, x, batch.z, s, t, (), noise)
        still, _ = solver.step(lambda *_, e=own: e, x, batch.z, s, t, (), noise)
        variance = s.t - t.t if noise is None else solver.noise_weight(s, t) ** 2
        cost = cost + ((moved - still).square().sum(1) / (2 * variance)).mean()
        x = moved
    (cost + strength * loss(x).mean()).backward()
    assert agree(network.control.grad, control.grad, 1e-10)


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_at_the_base_it_is_the_gradient_of_the_mean_loss(solver) -> None:
    matched, tuned = MLPDenoiser(), MLPDenoiser()
    step = AdjointMatching(STILL).start(problem(matched, solver)).step()
    other = FineTuning(STILL).start(problem(tuned, solver)).step()
    assert agree(
        flat(p.grad for p in matched.parameters()), flat(p.grad for p in tuned.parameters())
    )
    assert agree(step.x_0, other.x_0) and agree(step.loss, other.loss)


@pytest.mark.parametrize("last", [1, 3])
def test_truncated_is_the_last_steps_and_nothing_of_the_others(last: int) -> None:
    whole, part = (Controlled(MLPDenoiser(), GRID) for _ in range(2))
    AdjointMatching(STILL).start(problem(whole, DDIM())).step()
    step = AdjointMatching(STILL, last=last).start(problem(part, DDIM())).step()
    assert agree(part.control.grad[-last:], whole.control.grad[-last:])
    assert part.control.grad[:-last].abs().max() == 0 < whole.control.grad[:-last].abs().min()
    assert (step.cost.nfe, step.cost.vjps) == (N + 2 * last, 2 * last - 1)


def test_the_base_and_what_is_frozen_stay_as_they_are() -> None:
    network = MLPDenoiser()
    network.second.requires_grad_(False)
    kept = network.second.detach().clone()
    run = AdjointMatching(partial(torch.optim.SGD, lr=1e-3), steps=3).start(
        problem(network, SDEDPMSolver())
    )
    before = [p.detach().clone() for p in run.base.parameters()]
    while not run.finished:
        run.step()
    assert all(torch.equal(a, b) for a, b in zip(before, run.base.parameters(), strict=True))
    assert torch.equal(network.second, kept)
    assert len(run.outcome().history) == 3
    assert not agree(flat(network.parameters()), flat(run.base.parameters()))


W = 0.4 * normal(DIM, seed=9)


@pytest.mark.parametrize("schedule", [VPLinear(), RectifiedFlow()], ids=["diffusion", "flow"])
@pytest.mark.parametrize(
    ("solver", "sizes"),
    [(SDEDPMSolver(), (24, 48, 96, 192)), (SDEDPMSolverPP(order=1), (48, 96, 192, 384))],
    ids=NAMES[:2],
)
def test_what_is_left_at_the_tilted_law_halves_with_n(schedule, solver, sizes) -> None:
    """exp(w.x) shifts a Gaussian's mean by s^2 w: the regression's gradient there goes as 1/N."""
    found = []
    for steps in sizes:
        grid = TimeGrid.uniform_lmbda(schedule, steps)
        base, tilted = (gaussian(schedule, shift) for shift in (0.0, 0.7**2 * W))
        gradients = []
        for end in (base, tilted):
            network = Controlled(base, grid)
            zero = torch.zeros(1, DIM, dtype=torch.float64)
            network.control.data = torch.cat(
                [end(zero, node.t, None) - base(zero, node.t, None) for node in list(grid)[:-1]]
            ).detach()
            tuning = problem(network, solver, grid, lambda x_0: -x_0 @ W)
            run = AdjointMatching(STILL, base=base).start(tuning)
            run.step()
            gradients.append(network.control.grad.clone())
        found.append(float(gradients[1].norm() / gradients[0].norm()))
    assert found[-1] < 0.05
    assert all(1.85 < a / b < 2.2 for a, b in pairwise(found))


def gaussian(schedule, shift) -> GaussianDenoiser:
    return GaussianDenoiser(schedule, normal(DIM, seed=8) + shift, 0.7)


def test_learning_reaches_the_tilted_gaussian_where_descent_runs_away() -> None:
    """Divergence of what N steps draw from the tilted law, 1.7 nats before."""
    matched, descended = (
        study(name, 40, 60, seed=0) for name in ("adjoint matching", "exact fine-tuning")
    )
    assert matched["before"] > 1.5
    assert matched["end"] < 0.02
    assert descended["end"] > 1.0 and descended["loss"] < matched["loss"]


def test_a_network_of_velocities_is_the_same_problem() -> None:
    grid = TimeGrid.uniform_time(RectifiedFlow(), N)
    noise, velocity = MLPDenoiser(), MLPDenoiser()

    class Velocity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = velocity

        def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
            return (self.inner(x, t, z) - x) / (1.0 - float(t))

    adapted = EpsFromFlow(Velocity(), RectifiedFlow())
    solver = SDEDPMSolverPP(order=1)
    for network in (noise, adapted):
        AdjointMatching(STILL).start(problem(network, solver, grid)).step()
    assert agree(
        flat(p.grad for p in noise.parameters()), flat(p.grad for p in velocity.parameters()), 1e-10
    )


def test_what_cannot_be_served_is_refused() -> None:
    for value, message in (
        ({"strength": 0.0}, "strength=0.0"),
        ({"last": 0}, "last=0"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            AdjointMatching(STILL, **value)
    for solver in (DPMSolverPP(), SDEDPMSolverPP(), Rex(calculus="sde")):
        with pytest.raises(NotSupportedError, match=r"use solver=SDEDPMSolverPP\(order=1\)"):
            AdjointMatching(STILL).start(problem(MLPDenoiser(), solver))
    with pytest.raises(NotSupportedError, match="remembers x_T"):
        AdjointMatching(STILL).start(problem(MLPDenoiser(), SDEDPMSolverPP(order=1, eta=0.5)))
    with pytest.raises(ValueError, match="this one encodes"):
        AdjointMatching(STILL).start(problem(MLPDenoiser(), DDIM(), GRID.reversed()))


def test_sampling_is_that_of_sample() -> None:
    network, solver = MLPDenoiser(), SDEDPMSolver()
    step = AdjointMatching(STILL).start(problem(network, solver)).step()
    batch = draw(0, solver)
    wanted = sample(network, batch.x_T, batch.z, solver=solver, grid=GRID, noise=batch.noise)
    assert agree(step.x_0, wanted.x_0)
