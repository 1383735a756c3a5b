"""The covariance estimator against closed forms, and the single loop against its fixed point."""

from functools import partial

import pytest
import torch
from oracles import agree, generator, normal
from torch import nn

from adjointdeis.guidance.implicit_langevin import (
    ImplicitLangevin,
    PotentialProblem,
    covariance_gradient,
)

SCALE = 0.8


class Quadratic(nn.Module):
    """V = |x - mu|^2 / 2 s^2: the density N(mu, s^2)."""

    def __init__(self, mu: torch.Tensor) -> None:
        super().__init__()
        self.mu = nn.Parameter(mu.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (x - self.mu).square().sum(1) / SCALE**2


class Mixture(nn.Module):
    """V = -log sum_k w_k N(x; m_k, s^2), softmax weights."""

    def __init__(self, means: torch.Tensor, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("means", means)
        self.logits = nn.Parameter(logits.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        distance = (x[:, None] - self.means).square().sum(-1)
        return -(self.logits.log_softmax(0) - 0.5 * distance / SCALE**2).logsumexp(1)


def test_the_estimator_by_hand() -> None:
    """x = 0, 2, mu = 1, s = 0.8: grad V = -(x - 1) / s^2, losses 3 and 7."""
    x, values = torch.tensor([[0.0], [2.0]]).double(), torch.tensor([3.0, 7.0]).double()
    potential = Quadratic(torch.ones(1).double())
    (found,) = covariance_gradient(potential, x, values, [potential.mu])
    # Cov = ((3 - 5)(1) + (7 - 5)(-1)) / s^2 = -4 / s^2
    assert agree(found, torch.tensor([4.0 / SCALE**2]).double())


def test_the_mean_of_a_gaussian() -> None:
    """E x = mu, so the gradient of a linear loss c x is c; of a quadratic one 2 mu."""
    mu, c = torch.tensor([0.5, -1.0]).double(), torch.tensor([2.0, -3.0]).double()
    potential = Quadratic(mu)
    x = mu + SCALE * normal(400_000, 2, seed=1)
    (linear,) = covariance_gradient(potential, x, x @ c, [potential.mu])
    torch.testing.assert_close(linear, c, rtol=0.02, atol=0.02)
    (square,) = covariance_gradient(potential, x, x.square().sum(1), [potential.mu])
    torch.testing.assert_close(square, 2 * mu, rtol=0.02, atol=0.02)


def test_softmax_weights_of_a_mixture() -> None:
    """dE[L]/dlogit_k = w_k (E_k[L] - E[L]) with E_k the mean over component k."""
    means = torch.tensor([[-3.0, 0.0], [2.0, 1.0], [0.0, 4.0]]).double()
    potential = Mixture(means, torch.tensor([0.3, -0.2, 0.1]).double())
    weights = potential.logits.detach().softmax(0)
    count = 400_000
    component = torch.multinomial(weights, count, replacement=True, generator=generator(1))
    x = means[component] + SCALE * normal(count, 2, seed=2)
    c = torch.tensor([1.0, 0.5]).double()
    (found,) = covariance_gradient(potential, x, x @ c, [potential.logits])
    each = means @ c
    wanted = weights * (each - weights @ each)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.01)


def test_one_iteration_is_what_the_formulas_say() -> None:
    potential = Quadratic(torch.tensor([0.5, -1.0]).double())
    mu, x, n = potential.mu.detach().clone(), normal(6, 2, seed=1), normal(6, 2, seed=2)
    problem = PotentialProblem(potential, x, loss=lambda y: y.sum(1), draw=lambda k: [n])
    loop = ImplicitLangevin(partial(torch.optim.SGD, lr=0.1), gamma=0.05).start(problem)
    step = loop.step()
    moved = x - 0.05 * (x - mu) / SCALE**2 + 0.1**0.5 * n
    assert agree(loop.x, moved) and agree(step.loss, moved.sum(1))
    centred = moved.sum(1) - moved.sum(1).mean()
    gradient = (centred[:, None] * (moved - mu)).sum(0) / SCALE**2 / 5
    assert agree(potential.mu, mu - 0.1 * gradient)
    assert (step.cost.nfe, step.cost.vjps) == (2, 2)


def test_the_particles_follow_the_density() -> None:
    """Stationary variance of the unadjusted chain: s^2 / (1 - gamma / 2 s^2)."""
    mu = torch.tensor([0.5]).double()
    problem = PotentialProblem(
        Quadratic(mu), torch.zeros(50_000, 1).double(), loss=lambda y: y.sum(1),
        draw=lambda k: [normal(50_000, 1, seed=10 * k + i) for i in range(10)],
    )  # fmt: skip
    still = partial(torch.optim.SGD, lr=0.0)
    x = ImplicitLangevin(still, gamma=0.2, steps=4, samples_per_update=10).solve(problem).x_0
    assert float(x.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(x.var()) == pytest.approx(SCALE**2 / (1 - 0.2 / (2 * SCALE**2)), rel=0.03)


@pytest.mark.parametrize("rate", [0.2, 0.05])
def test_the_single_loop_ends_at_the_optimum(rate: float) -> None:
    """min E|x - target|^2 over mu is mu = target; a slower theta ends closer."""
    target = torch.tensor([1.5, -0.5]).double()
    potential = Quadratic(torch.zeros(2).double())
    problem = PotentialProblem(
        potential, torch.zeros(2000, 2).double(), draw=lambda k: [normal(2000, 2, seed=k)],
        loss=lambda y: 0.5 * (y - target).square().sum(1),
    )  # fmt: skip
    ImplicitLangevin(partial(torch.optim.SGD, lr=rate), gamma=0.1, steps=300).solve(problem)
    torch.testing.assert_close(potential.mu.detach(), target, rtol=0, atol=0.08)


def test_what_cannot_run_is_refused() -> None:
    potential, x = Quadratic(torch.zeros(1).double()), normal(4, 1, seed=1)
    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="gamma=0"):
        ImplicitLangevin(sgd, gamma=0)
    with pytest.raises(ValueError, match="1 noises are needed, got 0"):
        problem = PotentialProblem(potential, x, loss=lambda y: y.sum(1), draw=lambda k: [])
        ImplicitLangevin(sgd, gamma=0.1).solve(problem)
    with pytest.raises(ValueError, match="at least two particles"):
        covariance_gradient(potential, x[:1], x[:1, 0], [potential.mu])
    with pytest.raises(ValueError, match="no weight of the potential"):
        frozen = Quadratic(torch.zeros(1).double()).requires_grad_(False)
        PotentialProblem(frozen, x, loss=lambda y: y.sum(1), draw=lambda k: [])
