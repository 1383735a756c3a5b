"""DNO: the penalty sees correlation and nothing else, the gradient has length one."""

import math
from functools import partial

import pytest
import torch
from oracles import agree, normal

from adjointdeis import Rollout
from adjointdeis.guidance.dno import Decorrelation, DirectNoiseOptimisation
from adjointdeis.guidance.per_sample import normalised, per_sample_norm
from adjointdeis.guidance.problem import ADAM, LatentProblem


def test_the_penalty_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, -1.0, 3.0]], dtype=torch.float64)
    # 1 x 3 + 2 x 1 + -1 x 2 + 3 x -1 = 0 ; averaged pairs (1.5, 1): 2 x 1.5 = 3, mean 1.5.
    assert agree(Decorrelation(dims=(-1,))(x), torch.tensor([0.0 + 1.5**2]).double())
    assert agree(Decorrelation(dims=(-1,), smallest=4)(x), torch.tensor([0.0]).double())
    shifted = x + 1  # 2, 3, 0, 4: 8 + 6 + 0 + 0 = 14 ; (2.5, 2): 10
    wanted = torch.tensor([(14 / 4) ** 2 + 5.0**2]).double()
    assert agree(Decorrelation(dims=(-1,))(shifted), wanted)


def test_positive_and_negative_axes_are_the_same() -> None:
    x = normal(2, 3, 8, 8, seed=1)
    assert agree(Decorrelation((2, 3))(x), Decorrelation((-2, -1))(x))


def test_white_noise_has_little_and_a_pattern_has_much() -> None:
    white = normal(4, 3, 16, 16, seed=1)
    smooth = (white + white.roll(1, -1)) / math.sqrt(2)
    coarse = white[..., ::4, ::4].repeat_interleave(4, -1).repeat_interleave(4, -2)
    penalty = Decorrelation()
    assert penalty(white).max() < 0.02
    assert penalty(smooth).min() > 10 * penalty(white).max()
    assert penalty(coarse).min() > 10 * penalty(white).max()


def test_odd_lengths_end_the_pyramid() -> None:
    x = normal(1, 2, 6, 6, seed=1)
    once = (x * x.roll(1, -1)).mean((1, 2, 3)).square() + (x * x.roll(1, -2)).mean(
        (1, 2, 3)
    ).square()
    half = x.unflatten(-1, (3, 2)).mean(-1).unflatten(-2, (3, 2)).mean(-2)
    twice = sum((half * half.roll(1, d)).mean((1, 2, 3)).square() for d in (-1, -2))
    assert agree(Decorrelation()(x), once + twice)


def test_the_penalty_is_of_each_sample() -> None:
    x = normal(3, 2, 8, 8, seed=1)
    whole = Decorrelation()(x)
    assert agree(whole, torch.cat([Decorrelation()(x[k : k + 1]) for k in range(3)]))


TARGET = torch.linspace(-1, 1, 8, dtype=torch.float64)


class Identity(LatentProblem):
    """The sample is the noise."""

    def sample(self, x_T=None, z=None, rows=None, gradient=None) -> Rollout:
        return Rollout(x_T)


def problem(loss, x_T: torch.Tensor, z: torch.Tensor) -> Identity:
    return Identity(None, x_T, z, loss=loss, solver=None, grid=None)


def quadratic(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def test_the_gradient_has_length_one_and_the_penalty_is_in_it() -> None:
    x, z = normal(2, 8, seed=1), torch.zeros(2, 1).double()
    descent = partial(torch.optim.SGD, lr=0.1)
    penalty = Decorrelation(dims=(-1,))
    algorithm = DirectNoiseOptimisation(optimizer=descent, weight=3.0, penalty=penalty)
    dno = algorithm.start(problem(quadratic, x, z))
    dno.step()
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad((quadratic(leaf) + 3.0 * penalty(leaf)).sum(), leaf)
    assert agree(dno.x_T, x - 0.1 * g / g.norm(dim=1, keepdim=True))
    assert torch.equal(dno.z.detach(), z)


def test_a_normalised_zero_is_zero() -> None:
    g = torch.stack([torch.zeros(3), torch.ones(3)])
    assert torch.equal(normalised(g)[0], torch.zeros(3))
    assert float(per_sample_norm(normalised(g))[1]) == pytest.approx(1.0)


def test_the_penalty_keeps_the_noise_whiter() -> None:
    """A loss that wants a constant image writes one into x_T; the penalty trades it off."""
    x, z = normal(1, 1, 16, 16, seed=1), torch.zeros(1, 1).double()

    def bright(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        return (x_0.mean((1, 2, 3)) - 1.0).square()

    ends = []
    for weight in (0.0, 1000.0):
        dno = DirectNoiseOptimisation(60, ADAM, weight=weight, keep="last")
        found = dno.solve(problem(bright, x, z))
        ends.append((float(found.loss), float(Decorrelation()(found.x_T))))
    (loose_loss, loose), (tight_loss, tight) = ends
    assert tight < 0.05 * loose
    assert loose_loss < tight_loss < float(bright(x))


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight=-1"):
        DirectNoiseOptimisation(weight=-1.0)
