"""A fine-tuning problem small enough to follow by hand, for tests that start processes."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.guidance.problem import Batch, Instance, WeightProblem
from adjointdeis.solvers import DDIM


class Linear(nn.Module):
    """A noise prediction with two weights, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.shift = nn.Parameter(torch.tensor([0.1, -0.2], dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.slope * torch.tanh(x) + self.shift * z


@dataclass(frozen=True)
class Toy:
    """Samples are to have a given mean.

    Args:
        samples: Batch over all processes.

    The environment's ``POISONED`` names an iteration whose noise is not finite for the first
    sample: a fault of the machine, which is no setting of the training.
    """

    samples: int = 4

    def instance(self, seed: int) -> Instance:
        denoiser = Linear()

        def draw(iteration: int) -> Batch:
            generator = torch.Generator().manual_seed(100 * seed + iteration)
            x_T, z = torch.randn(2, self.samples, 2, generator=generator, dtype=torch.float64)
            if os.environ.get("POISONED") == str(iteration):
                x_T[0] = float("nan")
            return Batch(x_T, z)

        def loss(x_0: Tensor) -> Tensor:
            return (x_0 - 1.0).square().sum(1)

        def quality(_) -> dict[str, Tensor]:
            return {"slope": denoiser.slope.detach().reshape(1)}

        grid = TimeGrid.uniform_lmbda(VPLinear(), 5)
        problem = WeightProblem(denoiser, draw, loss=loss, solver=DDIM(), grid=grid)
        return Instance(problem, quality)
