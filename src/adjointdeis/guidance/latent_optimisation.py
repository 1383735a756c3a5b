r"""Descent of a loss on generated samples over their initial noise and condition.

.. math::
    (x_T, z) \gets (x_T, z)
        - \eta\,\nabla_{(x_T, z)} \sum_b L\big(x_0^{(b)}(x_T^{(b)}, z^{(b)})\big)

The loss is summed over the batch, so every sample descends as if it were alone and the learning
rate means the same at every batch size.  Paper: section 5 (the published program divides by the
batch size).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.rollout import Rollout

Sampler = Callable[[Tensor, Tensor], Rollout]
Objective = Callable[[Tensor], Tensor]
OptimizerFactory = Callable[[list[dict]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class LatentStep:
    """What one gradient step saw, before it moved the latents.

    Attributes:
        loss: Per-sample loss, with shape (B).
        gradient_norm: Euclidean norm of each sample's gradient over x_T and z, with shape (B).
        rollout: The sampling run, with its cost.
    """

    loss: Tensor
    gradient_norm: Tensor
    rollout: Rollout


class LatentOptimisation:
    """A batch of latents under optimisation.

    A sample whose loss or gradient is not finite is frozen at its last good latents and reported
    in ``failed``; the others go on.

    Arguments:
        sampler: ``(x_T, z) -> Rollout``, differentiable by whatever method it carries.
        objective: ``x_0 -> losses`` with shape (B).
        x_T: Initial noise, with shape (B, *); not modified.
        z: Condition, with shape (B, D); not modified.
        optimizer: Factory called with parameter groups; elementwise optimisers (SGD, Adam) keep
            the samples independent, L-BFGS would couple them.
        z_learning_rate: Learning rate of z when it differs from that of x_T.
        keep: Which iterate :meth:`result` returns: the "last", as the paper does, or the "best"
            by the objective.
    """

    def __init__(
        self,
        sampler: Sampler,
        objective: Objective,
        x_T: Tensor,
        z: Tensor,
        optimizer: OptimizerFactory,
        z_learning_rate: float | None = None,
        keep: Literal["last", "best"] = "last",
    ) -> None:
        if keep not in ("last", "best"):
            raise ValueError(f"keep={keep!r} must be 'last' or 'best'")
        self.sampler, self.objective, self.keep = sampler, objective, keep
        self.x_T = x_T.detach().clone().requires_grad_()
        self.z = z.detach().clone().requires_grad_()
        groups: list[dict] = [{"params": [self.x_T]}, {"params": [self.z]}]
        if z_learning_rate is not None:
            groups[1]["lr"] = z_learning_rate
        self.optimizer = optimizer(groups)
        self.failed: dict[int, str] = {}
        self.steps = 0
        self._best = torch.full((len(x_T),), float("inf"), device=x_T.device)
        self._best_latents = (self.x_T.detach().clone(), self.z.detach().clone())

    def step(self) -> LatentStep:
        """One rollout, one gradient, one update."""
        with torch.enable_grad():
            rollout = self.sampler(self.x_T, self.z)
            loss = self.objective(rollout.x_0)
            g_x, g_z = torch.autograd.grad(loss.sum(), (self.x_T, self.z))
        loss = loss.detach()
        norm = (g_x.flatten(1).square().sum(1) + g_z.flatten(1).square().sum(1)).sqrt()
        self._note(loss)
        self._reject(loss, norm)
        held = (self.x_T.detach().clone(), self.z.detach().clone()) if self.failed else None
        for index in self.failed:
            g_x[index] = 0
            g_z[index] = 0
        self.x_T.grad, self.z.grad = g_x, g_z
        self.optimizer.step()
        if held is not None:
            # An optimiser with momentum or weight decay moves even where the gradient is zero.
            for index in self.failed:
                self.x_T.data[index], self.z.data[index] = held[0][index], held[1][index]
        self.steps += 1
        return LatentStep(loss, norm, rollout)

    def result(self) -> tuple[Tensor, Tensor]:
        """The chosen x_T and z, detached."""
        if self.keep == "best":
            return self._best_latents
        return self.x_T.detach(), self.z.detach()

    def evaluate(self) -> tuple[Rollout, Tensor]:
        """Samples and losses of the result, without gradients.

        With ``keep="best"`` the last iterate, which no step has seen, competes first: this costs
        a second sampling run.
        """
        with torch.no_grad():
            if self.keep == "best":
                rollout = self.sampler(self.x_T.detach(), self.z.detach())
                self._note(self.objective(rollout.x_0))
            rollout = self.sampler(*self.result())
            return rollout, self.objective(rollout.x_0)

    def _note(self, loss: Tensor) -> None:
        better = loss < self._best
        self._best = torch.where(better, loss, self._best)
        for kept, current in zip(self._best_latents, (self.x_T, self.z), strict=True):
            kept[better] = current.detach()[better]

    def _reject(self, loss: Tensor, norm: Tensor) -> None:
        for index in torch.nonzero(~(loss.isfinite() & norm.isfinite())).flatten().tolist():
            self.failed.setdefault(
                index,
                f"step {self.steps}: loss {loss[index]:g}, gradient norm {norm[index]:g}",
            )
