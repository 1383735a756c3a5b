"""Greedy guidance: the gradient's formula, the network's price, plain sampling as its limit."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, normal

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion.noise import RecordedNoise
from adjointdeis.guidance.greedy import Greedy, GreedySampling, OptimiseEps, SearchBlend
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.morphing.blend import slerp
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

STEPS = 6
TARGET = torch.linspace(-1, 1, DIM, dtype=torch.float64)
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS, t_min=1e-3, t_max=0.5)
SGD = partial(torch.optim.SGD, lr=0.1)


def quartic(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return (x_0 - TARGET).pow(4).sum(1) + 0.5 * (x_0[:, 0] * x_0[:, 1])


class Watched(MLPDenoiser):
    """Counts calls, and whether any could leave a graph behind."""

    def __init__(self) -> None:
        super().__init__(seed=4)
        self.calls, self.graphs = 0, 0

    def forward(self, x, t, z):
        self.calls += 1
        eps = super().forward(x, t, z)
        self.graphs += eps.requires_grad
        return eps


def latents(batch: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(batch, DIM, seed=1), normal(batch, COND, seed=2)


def run(
    denoiser, strategy, solver=None, batch: int = BATCH, noise=None, z=None, grid=GRID
) -> GreedySampling:
    x_T, z_ab = latents(batch)
    problem = LatentProblem(
        denoiser, x_T, z_ab if z is None else z, loss=quartic, solver=solver or DDIM(), grid=grid,
        noise=noise,
    )  # fmt: skip
    return Greedy(strategy).start(problem)


def sample_greedily(greedy: GreedySampling) -> tuple[torch.Tensor, torch.Tensor]:
    while not greedy.finished:
        greedy.step()
    found = greedy.outcome()
    assert torch.equal(found.loss, quartic(found.x_0))
    return found.x_0, torch.stack(found.history)


def first_choice(greedy: GreedySampling):
    """What the strategy takes at the first step."""
    x, s = greedy.x, greedy.problem.grid[0]

    def predict(z) -> torch.Tensor:
        return greedy.denoiser(x, s.t, z).detach()

    with torch.no_grad():
        return greedy.strategy.choose(predict, x, s, greedy.problem.z, quartic)


def test_one_inner_step_is_the_published_gradient() -> None:
    denoiser = MLPDenoiser(seed=4)
    x_T, z = latents()
    # The first step down the loss must win over the start, whatever its length: a short one.
    choice = first_choice(run(denoiser, OptimiseEps(1, partial(torch.optim.SGD, lr=1e-6))))
    s = GRID[0]
    eps = denoiser(x_T, s.t, z).detach()
    x_0 = ((x_T - s.sigma * eps) / s.alpha).requires_grad_()
    (slope,) = torch.autograd.grad(quartic(x_0).sum(), x_0)
    expected = eps + 1e-6 * s.sigma / s.alpha * slope
    torch.testing.assert_close(choice.eps - eps, expected - eps, rtol=1e-8, atol=0)
    assert (choice.loss < choice.initial).all()


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP("2M"), SDEDPMSolver()], ids=repr)
def test_without_inner_steps_it_is_plain_sampling(solver) -> None:
    denoiser = MLPDenoiser(seed=4)
    x_T, z = latents()
    noise = RecordedNoise.draw(STEPS, x_T.shape, 9, torch.float64)
    noise = noise if solver.calculus == "sde" else None
    x_0, losses = sample_greedily(run(denoiser, OptimiseEps(0), solver, noise=noise))
    plain = sample(denoiser, x_T, z, solver=solver, grid=GRID, noise=noise).x_0
    torch.testing.assert_close(x_0, plain, rtol=1e-13, atol=1e-13)
    assert losses.shape == (STEPS, BATCH)


@pytest.mark.parametrize("inner", [0, 1, 7])
def test_the_network_is_asked_once_a_step_and_never_with_a_graph(inner: int) -> None:
    denoiser = Watched()
    greedy = run(denoiser, OptimiseEps(inner, SGD))
    with torch.enable_grad():
        x_0, _ = sample_greedily(greedy)
    assert denoiser.calls == greedy.cost.nfe_forward == STEPS
    assert denoiser.graphs == 0 and greedy.cost.vjps == 0
    assert greedy.loss_gradients == inner * STEPS
    assert not x_0.requires_grad


def test_the_best_loss_falls_with_every_inner_step() -> None:
    denoiser = MLPDenoiser(seed=4)
    losses = [run(denoiser, OptimiseEps(n)).step().loss for n in range(12)]
    for shorter, longer in pairwise(losses):
        assert (longer <= shorter).all()
    assert (losses[-1] < losses[0]).all()


def test_a_diverging_optimiser_costs_nothing() -> None:
    choice = first_choice(
        run(MLPDenoiser(seed=4), OptimiseEps(5, partial(torch.optim.SGD, lr=1e9)))
    )
    assert torch.equal(choice.loss, choice.initial)
    assert choice.eps.isfinite().all()


def test_guidance_lowers_the_loss_of_the_sample() -> None:
    denoiser = MLPDenoiser(seed=4)
    plain, _ = sample_greedily(run(denoiser, OptimiseEps(0)))
    guided, _ = sample_greedily(run(denoiser, OptimiseEps(50)))
    assert (quartic(guided) < quartic(plain)).all()


def test_a_batch_is_its_samples_one_by_one() -> None:
    denoiser = MLPDenoiser(seed=4)
    x_T, z = latents(3)
    together, losses = sample_greedily(run(denoiser, OptimiseEps(5), batch=3))
    for k in range(3):
        one = LatentProblem(
            denoiser, x_T[k : k + 1], z[k : k + 1], loss=quartic, solver=DDIM(), grid=GRID
        )
        alone, loss = sample_greedily(Greedy(OptimiseEps(5)).start(one))
        torch.testing.assert_close(alone[0], together[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(loss[:, 0], losses[:, k], rtol=1e-12, atol=1e-12)


# Searching a blend


def blends(count: int) -> SearchBlend:
    return SearchBlend(tuple(k / (count - 1) for k in range(count)), slerp)


def test_the_search_takes_the_best_of_its_candidates() -> None:
    denoiser = Watched()
    x_T, _ = latents()
    z_a, z_b = normal(2, BATCH, COND, seed=3)
    greedy = run(denoiser, blends(21), z=(z_a, z_b))
    choice = first_choice(greedy)
    assert denoiser.calls == 2 and denoiser.graphs == 0
    s = GRID[0]
    eps_a, eps_b = (MLPDenoiser.forward(denoiser, x_T, s.t, z).detach() for z in (z_a, z_b))
    tried = torch.stack([slerp(eps_a, eps_b, k / 20) for k in range(21)])
    losses = torch.stack([quartic((x_T - s.sigma * eps) / s.alpha) for eps in tried])
    torch.testing.assert_close(choice.loss, losses.min(0).values)
    for k in range(BATCH):
        torch.testing.assert_close(choice.eps[k], tried[losses[:, k].argmin(), k])


def test_equal_conditions_leave_nothing_to_search() -> None:
    denoiser = MLPDenoiser(seed=4)
    x_T, z = latents()
    x_0, _ = sample_greedily(run(denoiser, blends(5), z=(z, z)))
    plain = sample(denoiser, x_T, z, solver=DDIM(), grid=GRID).x_0
    torch.testing.assert_close(x_0, plain, rtol=1e-12, atol=1e-12)


# What is refused


class TwoStages(DDIM):
    def step(self, denoiser, x, z, s, t, state, noise):
        half, state = super().step(denoiser, x, z, s, t, state, noise)
        denoiser(half, t.t, z)
        return half, state


def test_a_solver_that_asks_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"TwoStages asks for another one.*DDIM"):
        run(MLPDenoiser(seed=4), OptimiseEps(0), TwoStages()).step()


def test_errors() -> None:
    denoiser = MLPDenoiser(seed=4)
    with pytest.raises(ValueError, match=r"OptimiseEps.steps=-1"):
        OptimiseEps(-1)
    with pytest.raises(ValueError, match=r"shares in \[0, 1\]"):
        SearchBlend((0.5, 1.5), slerp)
    with pytest.raises(ValueError, match=r"SDEDPMSolver is an SDE solver and needs noise"):
        run(denoiser, OptimiseEps(0), SDEDPMSolver())
    with pytest.raises(ValueError, match=r"DDIM is an ODE solver and takes no noise"):
        run(denoiser, OptimiseEps(0), noise=RecordedNoise.draw(STEPS, (BATCH, DIM), 1))
    with pytest.raises(ValueError, match=r"this one encodes"):
        run(denoiser, OptimiseEps(0), grid=GRID.reversed())
    with pytest.raises(ValueError, match=r"give the problem z=\(z_a, z_b\)"):
        run(denoiser, blends(3)).step()
