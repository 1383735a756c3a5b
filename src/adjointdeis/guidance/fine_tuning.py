r"""Fine-tuning of a diffusion model's weights to a loss on what it samples.

.. math:: \theta \gets \theta - \eta\,\nabla_\theta \frac1B \sum_b
          L\big(x_0^{(b)}(x_T^{(b)}, z^{(b)}; \theta)\big)

with any gradient method that gives theta, and any torch optimiser.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients import GradientMethod
from adjointdeis.guidance.problem import (
    Algorithm,
    AlgorithmRun,
    OptimizerFactory,
    Outcome,
    Step,
    WeightProblem,
)


@dataclass(frozen=True, eq=False)
class FineTuning(Algorithm):
    """Descent of the mean loss over the weights of a denoiser.

    Optimises theta. Cost of a step: one rollout and its gradient.

    Args:
        optimizer: Factory called with the list of weights that require a gradient.
        steps: Updates of the weights.
        gradient: Any gradient method with ``theta``; ``DiscreteAdjoint()`` by default.
        clip_norm: Largest norm of the gradient over all weights; None leaves it.

    Raises:
        ValueError: ``clip_norm`` is not positive.
        NotSupportedError: While it runs, of a method without theta.
        FloatingPointError: While it runs, if the gradient is not finite; the weights are as they
            were before the step.

    When not to use: to change one sample; optimise its latents (``LatentOptimisation``).
    """

    optimizer: OptimizerFactory
    steps: int = 15
    gradient: GradientMethod | None = None
    clip_norm: float | None = None
    solves: ClassVar[type] = WeightProblem

    def __post_init__(self) -> None:
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm}: expected more than 0, or None")

    def _start(self, problem: WeightProblem) -> "_WeightDescent":
        return _WeightDescent(self, problem)


class UpdatingWeights(AlgorithmRun):
    """The part of a run that every algorithm over weights has: counting its updates."""

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.wanted, self.updates = updates, 0
        self.last: Step | None = None

    @property
    def finished(self) -> bool:
        return self.updates >= self.wanted

    def noted(self, step: Step) -> Step:
        """Counts an update."""
        self.updates += 1
        self.last = step
        self.history.append(step.loss)
        return step

    def outcome(self) -> Outcome:
        """What the last update was computed from; no samples where none was made."""
        if self.last is None or self.last.x_0 is None:
            return Outcome(torch.empty(0), torch.empty(0), self.cost)
        return Outcome(self.last.x_0, self.last.loss, self.cost, history=self.history)


class _WeightDescent(UpdatingWeights):
    """Fine-tuning under way."""

    def __init__(self, tuning: FineTuning, problem: WeightProblem) -> None:
        super().__init__(tuning.steps)
        self.tuning, self.problem, self.parameters = tuning, problem, problem.parameters
        self.optimizer = tuning.optimizer(self.parameters)

    def step(self) -> Step:
        """One rollout, one gradient, one update."""
        tuning, batch = self.tuning, self.problem.draw(self.updates)
        with torch.enable_grad():
            rollout, loss = self.problem.evaluate(batch, tuning.gradient)
            gradients = torch.autograd.grad(loss.mean(), self.parameters)
        self.cost.add(rollout.cost)
        norm = update(self.optimizer, self.parameters, gradients, tuning.clip_norm)
        return self.noted(Step(loss.detach(), rollout.cost, norm, rollout.x_0.detach()))


def update(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    clip_norm: float | None = None,
) -> float:
    """One update of the weights; returns the norm of the gradient before clipping.

    Args:
        optimizer: Of the parameters.
        parameters: The weights.
        gradients: One each, of the same shape.
        clip_norm: Largest norm of all gradients together; None does not clip.

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
    norm = float(torch.stack([wide(g).square().sum() for g in gradients]).sum().sqrt())
    if not norm < float("inf"):
        raise FloatingPointError(
            f"{where}the gradient of the weights has norm {norm}; nothing was updated. Use fewer "
            "or exact steps, a smaller learning rate, or clip_norm"
        )
    if clip_norm is not None and norm > clip_norm:
        for gradient in gradients:
            gradient.mul_(clip_norm / norm)
    return norm
