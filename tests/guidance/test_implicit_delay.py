r"""The delay of Implicit Diffusion's single loop, on Gaussian data, where all of it is known.

There a step is affine, :math:`x_{m+1} = c_m x_m + d_m \mu + g_m n_m`, so a batch made by weights
:math:`\mu_0, \dots, \mu_{N-1}` leaves with mean :math:`\sum_m b_m \mu_m`, with
:math:`b_m = d_m \prod_{j>m} c_j`; its loss :math:`\frac12 |x_0 - \tau|^2` has the gradient
:math:`B (\bar x_0 - \tau)`, :math:`B = \sum_m b_m`. Descent of rate eta in the queue is thus

.. math:: \mu_{k+1} = \mu_k - \eta B \Big( \sum_m b_m \mu_{k-(N-1-m)} - \tau \Big),

which decays, oscillates or grows as the roots of its characteristic polynomial say.
"""

import cmath
import math
from functools import partial

import pytest
import torch
from oracles import DIM, agree, normal, relative_error

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.guidance.implicit_diffusion import ImplicitDiffusion
from adjointdeis.guidance.problem import Batch, WeightProblem
from adjointdeis.solvers import DDIM, SDEDPMSolver

STEPS, SCALE = 6, 0.7
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS, t_min=0.05, t_max=0.6)
TARGET, START = normal(DIM, seed=5), normal(DIM, seed=6)
SOLVERS = [DDIM(), SDEDPMSolver()]
each_solver = pytest.mark.parametrize("solver", SOLVERS, ids=["ode", "sde"])


def influences(solver) -> list[float]:
    """b_m of every step."""
    factor, carried, shifts = (1.0 if solver.calculus == "ode" else 2.0), [], []
    for i in range(STEPS):
        s, t = GRID[i], GRID[i + 1]
        variance = s.alpha**2 * SCALE**2 + s.sigma**2
        slope = factor * t.sigma * (math.exp(t.lmbda - s.lmbda) - 1.0) * s.sigma / variance
        carried.append(t.alpha / s.alpha - slope)
        shifts.append(slope * s.alpha)
    return [shift * math.prod(carried[m + 1 :]) for m, shift in enumerate(shifts)]


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def denoiser() -> GaussianDenoiser:
    network = GaussianDenoiser(VPLinear(), START, SCALE)
    network.log_scale.requires_grad_(False)
    return network


def draw(iteration: int, solver, half: int = 2) -> Batch:
    """Antithetic noise, so that the batch has the mean of its distribution."""
    x_T = normal(half, DIM, seed=100 + iteration)
    noises = [normal(half, DIM, seed=1000 * (i + 1) + iteration) for i in range(STEPS)]
    both = [torch.cat([value, -value]) for value in (x_T, *noises)]
    return Batch(both[0], None, RecordedNoise(both[1:]) if solver.calculus == "sde" else None)


def loop(network: GaussianDenoiser, solver, rate: float):
    return ImplicitDiffusion(partial(torch.optim.SGD, lr=rate)).start(problem(network, solver))


def problem(network: GaussianDenoiser, solver, batch: Batch | None = None) -> WeightProblem:
    return WeightProblem(
        network, lambda k: batch or draw(k, solver), loss=loss, solver=solver, grid=GRID
    )


def learned(solver, rate: float, updates: int) -> list[torch.Tensor]:
    """The mean before every update, and after the last."""
    network = denoiser()
    run, means = loop(network, solver, rate), [START]
    while len(means) <= updates:
        if run.step() is not None:
            means.append(network.mean.detach().clone())
    return means


def roots(gains: list[float]) -> torch.Tensor:
    """Roots of lambda^N - lambda^(N-1) + sum_m g_m lambda^m, g_m = eta B b_m."""
    companion = torch.zeros(len(gains), len(gains), dtype=torch.float64)
    companion[0, 0] = 1.0
    companion[0] -= torch.tensor(gains[::-1], dtype=torch.float64)
    companion[1:, :-1] += torch.eye(len(gains) - 1, dtype=torch.float64)
    return torch.linalg.eigvals(companion)


def radius(gains: list[float]) -> float:
    return float(roots(gains).abs().max())


def largest_gain(shares: list[float]) -> float:
    """The sum of the gains, in these proportions, beyond which the loop grows."""
    low, high = 0.0, 2.5
    for _ in range(60):
        middle = 0.5 * (low + high)
        grows = radius([middle * share for share in shares]) > 1.0
        low, high = (low, middle) if grows else (middle, high)
    return low


@each_solver
def test_at_fixed_weights_the_gradient_is_the_closed_form(solver) -> None:
    total, network = sum(influences(solver)), denoiser()
    run = loop(network, solver, 0.0)
    steps = [run.step() for _ in range(STEPS + 2)]
    assert [step is None for step in steps] == [True] * (STEPS - 1) + [False] * 3
    assert agree(network.mean.grad, total * (total * START - TARGET))


def test_a_stochastic_batch_has_the_gradient_in_the_mean() -> None:
    """Without antithetic noise: 4000 samples, five standard deviations."""
    solver, count, network = SDEDPMSolver(), 4000, denoiser()
    batch = Batch(
        normal(count, DIM, seed=1),
        None,
        RecordedNoise([normal(count, DIM, seed=2 + i) for i in range(STEPS)]),
    )
    still = partial(torch.optim.SGD, lr=0.0)
    run = ImplicitDiffusion(still).start(problem(network, solver, batch))
    steps = [run.step() for _ in range(STEPS)]
    assert steps[-1] is not None
    total = sum(influences(solver))
    # x_0 has mean B mu only if x_T has mean zero, as here.
    wanted = total * (total * START - TARGET)
    spread = 5.0 * total * float(steps[-1].x_0.std(0).max()) / count**0.5
    assert float((network.mean.grad - wanted).abs().max()) < spread
    assert spread < 0.2 * float(wanted.abs().max())


@each_solver
@pytest.mark.parametrize("rate", [0.05, 0.4])
def test_learning_is_the_delay_equation(solver, rate: float) -> None:
    b = influences(solver)
    total, means = sum(b), [START] * STEPS
    for _ in range(40):
        seen = sum(b[m] * means[-(STEPS - m)] for m in range(STEPS))
        means.append(means[-1] - rate * total * (seen - TARGET))
    found = learned(solver, rate, 40)
    for mean, wanted in zip(found, means[STEPS - 1 :], strict=True):
        assert agree(mean, wanted)


@each_solver
def test_below_the_limit_it_converges_and_above_it_oscillates_and_grows(solver) -> None:
    b = influences(solver)
    total = sum(b)
    limit = largest_gain([value / total for value in b])
    optimum = TARGET / total
    for share in (0.6, 1.2):
        rate = share * limit / total**2
        gains = [rate * total * value for value in b]
        means = torch.stack(learned(solver, rate, 90)) - optimum
        growth = float(means[-30:].norm() / means[-60:-30].norm()) ** (1 / 30)
        assert growth == pytest.approx(radius(gains), rel=0.01)
        assert (growth > 1.0) == (share > 1.0)
        if share < 1.0:
            assert relative_error(means[-1] + optimum, optimum) < 1e-3
        leading = max(roots(gains).tolist(), key=abs)
        crossings = int((means[31:, 0] * means[30:-1, 0] < 0).sum())
        assert crossings == pytest.approx(60 * abs(cmath.phase(leading)) / math.pi, abs=1.0)
        # A loop that waits for its samples is far from its own limit, gain 2.
        waiting = denoiser()
        FineTuning(partial(torch.optim.SGD, lr=rate), 60).solve(problem(waiting, solver))
        assert relative_error(waiting.mean, optimum) < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_two_sine_of_pi_over_four_n_minus_two_is_always_small_enough(steps: int) -> None:
    """Reached when the first step alone matters; any other non-negative influences allow more."""
    bound = 2.0 * math.sin(math.pi / (4 * steps - 2))
    first = [1.0] + [0.0] * (steps - 1)
    assert largest_gain(first) == pytest.approx(bound, rel=1e-6)
    for seed in range(20):
        shares = normal(steps, seed=seed).square()
        shares = (shares / shares.sum()).tolist()
        assert largest_gain(shares) > bound - 1e-9
