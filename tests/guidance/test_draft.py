"""DRaFT-K: the last K steps by autograd, the full gradient at K = N, K products."""

from functools import partial

import pytest
import torch
from oracles import DIM, MLPDenoiser, agree, inputs, normal

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.guidance.draft import DRaFT
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.guidance.problem import Batch, WeightProblem
from adjointdeis.solvers import DDIM

GRID = TimeGrid.uniform_time(VPLinear(), 6)
TARGET = normal(DIM, seed=5)
SGD = partial(torch.optim.SGD, lr=0.1)


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x_0 - TARGET).square().sum(1)


def problem(denoiser) -> WeightProblem:
    return WeightProblem(
        denoiser, lambda step: Batch(*inputs()), loss=loss, solver=DDIM(), grid=GRID
    )


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


@pytest.mark.parametrize("last", [1, 2, 4])
def test_the_gradient_is_that_of_the_last_steps(last: int) -> None:
    x_T, z = inputs()
    tuned, reference = MLPDenoiser(), MLPDenoiser()
    step = DRaFT(SGD, last=last).start(problem(tuned)).step()
    with torch.no_grad():
        before = sample(
            reference, x_T, z, solver=DDIM(), grid=GRID.at(range(7 - last))
        ).x_0  # fmt: skip
    y = before / GRID[6 - last].alpha
    for i in range(6 - last, 6):
        s, t = GRID[i], GRID[i + 1]
        y = y + (t.rho - s.rho) * reference(s.alpha * y, s.t, z)
    loss(GRID[-1].alpha * y).mean().backward()
    wanted = flat(p.grad for p in reference.parameters())
    assert agree(flat(tuned.parameters()), flat(reference.parameters()) - 0.1 * wanted)
    assert (step.cost.nfe, step.cost.vjps) == (6 + last, last)


def test_all_steps_are_the_full_gradient() -> None:
    whole, full = MLPDenoiser(), MLPDenoiser()
    DRaFT(SGD, steps=2, last=6).solve(problem(whole))
    FineTuning(SGD, steps=2).solve(problem(full))
    assert agree(flat(whole.parameters()), flat(full.parameters()))


def test_no_step_is_refused() -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        DRaFT(SGD, last=0)
