"""DRaFT-K: fine-tuning of the weights to a reward through the last K sampling steps.

``FineTuning`` with the gradient of the last K steps: what comes before counts as a constant. K =
1 costs one product a sample; K = N is the full gradient.

References:
    Directly fine-tuning diffusion models on differentiable rewards,
    https://arxiv.org/abs/2309.17400
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients.truncated import Truncated
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.solvers.base import Solver


def draft(
    denoiser: nn.Module,
    objective: Callable[[Tensor], Tensor],
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
    *,
    last: int = 1,
    solver: Solver,
    grid: TimeGrid,
    clip_norm: float | None = None,
) -> FineTuning:
    """Fine-tuning with DRaFT's truncated gradient.

    Optimises theta. Cost of a step: N evaluations, K more with a graph and K products.

    Args:
        denoiser, objective, optimizer, solver, grid, clip_norm: As for :class:`FineTuning`.
        last: K, 1 or more.

    Raises:
        ValueError: K below 1, or no weight requires a gradient.

    When not to use: for what early steps decide (layout, pose); the last steps mend texture.
    """
    return FineTuning(
        denoiser,
        objective,
        optimizer,
        solver=solver,
        grid=grid,
        gradient=Truncated(last=last),
        clip_norm=clip_norm,
    )
