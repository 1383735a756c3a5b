r"""Fine-tuning of a diffusion model's weights to a loss on what it samples.

.. math:: \theta \gets \theta - \eta\,\nabla_\theta \frac1B \sum_b
          L\big(x_0^{(b)}(x_T^{(b)}, z^{(b)}; \theta)\big)

with any gradient method that gives theta, and any torch optimiser.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.rollout import Condition, Rollout, sample
from adjointdeis.solvers.base import Solver


@dataclass(frozen=True, eq=False)
class ThetaStep:
    """What one update of the weights saw, before it moved them.

    Attributes:
        loss: Per-sample loss, with shape (B).
        gradient_norm: Euclidean norm of the gradient over all trained weights, before clipping.
        x_0: The samples, detached.
        cost: Counters of the rollout and its gradient.
    """

    loss: Tensor
    gradient_norm: float
    x_0: Tensor
    cost: Cost


class FineTuning:
    """Descent of the mean loss over the weights of a denoiser.

    Optimises theta. Cost of a step: one rollout and its gradient. Weights that do not require a
    gradient stay as they are and cost nothing.

    Args:
        denoiser: Network; changed in place.
        objective: ``x_0 -> losses`` with shape (B).
        optimizer: Factory called with the list of weights that require a gradient.
        solver, grid: Sampler.
        gradient: Any gradient method with ``theta``; ``DiscreteAdjoint()`` by default.
        clip_norm: Largest norm of the gradient over all weights; None leaves it.

    Raises:
        ValueError: No weight requires a gradient, or ``clip_norm`` is not positive.
        NotSupportedError: From the first step, of a method without theta.

    When not to use: to change one sample; optimise its latents (``LatentOptimisation``).
    """

    def __init__(
        self,
        denoiser: nn.Module,
        objective: Callable[[Tensor], Tensor],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        *,
        solver: Solver,
        grid: TimeGrid,
        gradient: GradientMethod | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.parameters: list[Tensor] = [p for p in denoiser.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError(
                "no weight of the denoiser requires a gradient; call requires_grad_() on those to "
                "fine-tune"
            )
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: expected more than 0, or None")
        self.denoiser, self.objective, self.gradient = denoiser, objective, gradient
        self.solver, self.grid, self.clip_norm = solver, grid, clip_norm
        self.optimizer = optimizer(self.parameters)
        self.cost = Cost()

    def step(
        self, x_T: Tensor, z: Condition = None, noise: Noise | Sequence[Tensor] | None = None
    ) -> ThetaStep:
        """One rollout, one gradient, one update.

        Args:
            x_T, z, noise: As for :func:`adjointdeis.sample`; fresh ones every step, or the
                weights fit these samples only.

        Raises:
            FloatingPointError: The loss or the gradient is not finite; the weights are unchanged.
        """
        with torch.enable_grad():
            rollout, loss = self.evaluate(x_T, z, noise)
            gradients = torch.autograd.grad(loss.mean(), self.parameters)
        self.cost.add(rollout.cost)
        norm = update(self.optimizer, self.parameters, gradients, self.clip_norm)
        return ThetaStep(loss.detach(), norm, rollout.x_0.detach(), rollout.cost)

    def evaluate(
        self, x_T: Tensor, z: Condition = None, noise: Noise | Sequence[Tensor] | None = None
    ) -> tuple[Rollout, Tensor]:
        """Samples and their losses (B), differentiable in the weights; nothing is updated."""
        rollout = sample(
            self.denoiser,
            x_T.detach(),
            z,
            solver=self.solver,
            grid=self.grid,
            noise=noise,
            gradient=self.gradient,
            parameters=self.parameters,
        )
        return rollout, self.objective(rollout.x_0)


def update(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    clip_norm: float | None = None,
) -> float:
    """One update of the weights; returns the norm of the gradient before clipping.

    Raises:
        FloatingPointError: the gradient is not finite.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.detach().clone()
    norm = clip(parameters, clip_norm)
    optimizer.step()
    return norm


def clip(parameters: Sequence[Tensor], clip_norm: float | None = None, where: str = "") -> float:
    """Shortens the gradient in ``grad`` of the weights; returns its norm before that.

    Args:
        parameters: Weights that have a gradient.
        clip_norm: Largest norm over all of them; None leaves it.
        where: Opens the message of an error.

    Raises:
        FloatingPointError: The gradient is not finite.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = float(torch.stack([g.square().sum() for g in gradients]).sum().sqrt())
    if not norm < float("inf"):
        raise FloatingPointError(
            f"{where}the gradient of the weights has norm {norm}; nothing was updated. Use fewer "
            "or exact steps, a smaller learning rate, or clip_norm"
        )
    if clip_norm is not None and norm > clip_norm:
        for gradient in gradients:
            gradient.mul_(clip_norm / norm)
    return norm
