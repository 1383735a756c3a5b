"""The problems of the coverage study are mixtures, and its estimates are those of ``Certified``."""

import pytest
import torch

from adjointdeis import TimeGrid, sample
from adjointdeis.diffusion import MixtureDenoiser
from adjointdeis.gradients import Certified, extrapolated_error
from adjointdeis.problems import PARTS
from adjointdeis.solvers import DPMSolverPP
from experiments.certified.limit import learned, richardson
from experiments.certified.run import gradients, normal, random_mixtures


def square(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum()


def test_problems_of_a_block_are_estimated_as_each_alone() -> None:
    draw = torch.Generator().manual_seed(0)
    mixtures, _ = random_mixtures(2, 3, 4, draw)
    x_T, z = normal(draw, 2, 2, 4), normal(draw, 2, 2, 3)
    grid = TimeGrid.uniform_lmbda(mixtures.schedule, 8)
    runs = [
        gradients(mixtures, x_T, z, square, DPMSolverPP(), grid.at(range(0, 9, k)))
        for k in (1, 2, 4)
    ]
    for row in range(2):
        alone = MixtureDenoiser(
            mixtures.schedule,
            mixtures.means[row].detach(),
            mixtures.log_scales[row].detach().exp(),
            mixtures.weight[row].detach(),
            mixtures.logits[row].detach(),
        )
        rollout = sample(
            alone, x_T[row].clone().requires_grad_(), z[row].clone().requires_grad_(),
            solver=DPMSolverPP(), grid=grid, gradient=Certified(square),
        )  # fmt: skip
        square(rollout.x_0).backward()
        for part in PARTS:
            found = extrapolated_error(*([run[part][row]] for run in runs), order=2)
            assert rollout.gradient_error[part] == pytest.approx(found, rel=1e-6)


def test_the_regression_finds_what_the_moves_of_a_gradient_tell() -> None:
    """Errors of twice Richardson's: whatever else differs, it learns to say them."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for seed in range(60):
        for problem in range(10):
            a, b, size = (1.0 + torch.rand(3, generator=draw)).tolist()
            given = {"a": a, "b": b, "size": size, "ab": 0.5 * a * b, "ga": 0.0, "gb": 0.0}
            rows += [
                {"seed": seed, "problem": problem, "solver": "DPM-Solver++ 2M", "steps": 10}
                | given | {"error": 2.0 * a / 3.0 / size}
                for _ in PARTS
            ]  # fmt: skip
    error = torch.tensor([row["error"] for row in rows], dtype=torch.float64)
    assert torch.allclose(torch.from_numpy(learned(rows)), error, rtol=0.01)
    assert torch.allclose(torch.tensor([2.0 * richardson(row) for row in rows]).double(), error)
