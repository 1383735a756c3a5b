r"""Descent of a loss on generated samples over their initial noise and condition.

.. math::
    (x_T, z) \gets (x_T, z)
        - \eta\,\nabla_{(x_T, z)} \sum_b \Big[ L\big(x_0^{(b)}(x_T^{(b)}, z^{(b)})\big)
        + P(x_T^{(b)}) \Big]

The loss is summed over the batch, so every sample descends as if it were alone and the learning
rate means the same at every batch size.  Paper: section 5 (the published program divides by the
batch size).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.gradients.cost import Cost
from adjointdeis.rollout import Rollout

Sampler = Callable[..., Rollout]
Objective = Callable[..., Tensor]
OptimizerFactory = Callable[[list[dict]], torch.optim.Optimizer]


@dataclass(frozen=True, eq=False)
class LatentStep:
    """What one gradient step saw, before it moved the latents.

    Attributes:
        loss: Per-sample loss without the penalty, with shape (R).
        gradient_norm: Euclidean norm of each sample's gradient over x_T and z, with shape (R).
        rollout: The sampling run of those samples, with its cost.
        rows: Numbers of the R samples that took part: all, but those that stopped before.
    """

    loss: Tensor
    gradient_norm: Tensor
    rollout: Rollout
    rows: Tensor


class LatentOptimisation:
    """A batch of latents under optimisation, every sample with an optimiser of its own.

    A sample whose loss or gradient is not finite is frozen at its last good latents and reported
    in ``failed``; the others go on. A sample that ``stop`` accepts keeps the latents that were
    accepted, and costs nothing from then on.

    Optimises x_T and z, or one of them. Cost of a step: one rollout and its gradient; ``cost`` is
    the sum of all.

    Args:
        sampler: ``(x_T, z) -> Rollout``, differentiable by whatever method it carries; with
            ``stop``, ``(x_T, z, rows) -> Rollout`` for the samples of these numbers.
        objective: ``x_0 -> losses`` with shape (B); with ``stop``, ``(x_0, rows) -> losses``.
        x_T: Initial noise, with shape (B, *); not modified.
        z: Condition, with shape (B, *); not modified. A scheduled condition is one tensor
            (B, N, D) that the sampler unbinds into its N steps.
        optimizer: Factory called with the parameter groups of one sample.
            ``torch.optim.LBFGS`` needs ``max_iter=1`` and no line search: a step is one gradient.
        z_learning_rate: Learning rate of z when it differs from that of x_T.
        keep: Which iterate :meth:`result` returns: the "last", as the paper does, or the "best"
            by the objective. A stopped sample returns the one that was accepted.
        stop: ``(x_0, rows) -> accepted`` with shape (R), asked before every update; None makes
            every step.
        optimise: What moves: "both", or only "x_T" or only "z".
        penalty: ``x_T -> penalties`` with shape (B), added to the objective in the gradient. It
            does not decide which iterate is best.
        gradient_rule: Applied to the batch's gradient of each moving tensor before the
            optimisers, sample by sample, for example ``per_sample.normalised``.
        constraint: Applied to x_T after every update, sample by sample, for example
            ``per_sample.Sphere.through(x_T)``.

    Raises:
        ValueError: Unknown ``keep`` or ``optimise``, or an L-BFGS that evaluates more than once
            a step.
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
        stop: Callable[[Tensor, Tensor], Tensor] | None = None,
        optimise: Literal["both", "x_T", "z"] = "both",
        penalty: Callable[[Tensor], Tensor] | None = None,
        gradient_rule: Callable[[Tensor], Tensor] | None = None,
        constraint: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if keep not in ("last", "best"):
            raise ValueError(f"keep={keep!r} must be 'last' or 'best'")
        if optimise not in ("both", "x_T", "z"):
            raise ValueError(f"optimise={optimise!r} must be 'both', 'x_T' or 'z'")
        self.sampler, self.objective, self.keep, self.stop = sampler, objective, keep, stop
        self.penalty, self.gradient_rule, self.constraint = penalty, gradient_rule, constraint
        self.x_T = x_T.detach().clone().requires_grad_(optimise != "z")
        self.z = z.detach().clone().requires_grad_(optimise != "x_T")
        self._costs: list[Cost] = []
        self._moving = [latent for latent in (self.x_T, self.z) if latent.requires_grad]
        # Views of one sample each: an optimiser moves its rows of the batch in place.
        self._samples = [
            tuple(tensor.detach()[index].requires_grad_() for tensor in self._moving)
            for index in range(len(x_T))
        ]
        self.optimizers = [
            optimizer(_groups(sample, z_learning_rate, self.z.requires_grad))
            for sample in self._samples
        ]
        for made in self.optimizers[:1]:
            _refuse_inner_iterations(made)
        self.failed: dict[int, str] = {}
        self.stopped: dict[int, int] = {}
        self.steps = 0
        self._accepted: dict[int, Tensor] = {}
        self._best = torch.full((len(x_T),), float("inf"), device=x_T.device)
        self._best_latents = (self.x_T.detach().clone(), self.z.detach().clone())

    @property
    def cost(self) -> Cost:
        """Counters of every rollout so far, gradients included."""
        total = Cost()
        for cost in self._costs:
            total.add(cost)
        return total

    @property
    def rows(self) -> Tensor:
        """Numbers of the samples that have not stopped."""
        under_way = [index for index in range(len(self.x_T)) if index not in self.stopped]
        return torch.tensor(under_way, dtype=torch.long, device=self.x_T.device)

    @property
    def finished(self) -> bool:
        """Whether every sample has stopped or failed: further steps would change nothing."""
        return len(self.stopped.keys() | self.failed.keys()) == len(self.x_T)

    def step(self) -> LatentStep:
        """One rollout, one gradient, one update.

        Raises:
            RuntimeError: Every sample has stopped.
        """
        rows = self.rows
        if not len(rows):
            raise RuntimeError("every sample has stopped; ask `finished` before another step")
        with torch.enable_grad():
            rollout, loss = self._evaluated(self.x_T, self.z, rows)
            held = self._accept(rollout.x_0, rows)
            total = loss.sum()
            if self.penalty is not None:
                total = total + self.penalty(self.x_T[rows]).sum()
            gradients = torch.autograd.grad(total, self._moving)
        loss = loss.detach()
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()[rows]
        self._note(loss, rows)
        self._reject(loss, norm, rows)
        if self.gradient_rule is not None:
            gradients = [self.gradient_rule(gradient) for gradient in gradients]
        updated = []
        for index, value in zip(rows.tolist(), loss, strict=True):
            if index in self.failed or index in held:
                continue
            for parameter, gradient in zip(self._samples[index], gradients, strict=True):
                parameter.grad = gradient[index].contiguous()
            self.optimizers[index].step(lambda value=value: value)
            updated.append(index)
        if self.constraint is not None and self.x_T.requires_grad:
            self.x_T.data[updated] = self.constraint(self.x_T.data)[updated]
        self.steps += 1
        return LatentStep(loss, norm, rollout, rows)

    def result(self) -> tuple[Tensor, Tensor]:
        """The chosen x_T and z, detached."""
        if self.keep == "last":
            return self.x_T.detach(), self.z.detach()
        chosen = tuple(kept.clone() for kept in self._best_latents)
        for index in self.stopped:
            for kept, current in zip(chosen, (self.x_T, self.z), strict=True):
                kept[index] = current.detach()[index]
        return chosen[0], chosen[1]

    def evaluate(self) -> tuple[Rollout, Tensor]:
        """Samples and losses of the result, without gradients; stopped samples are not repeated.

        With ``keep="best"`` the last iterate, which no step has seen, competes first: this costs
        a second sampling run.
        """
        rows = self.rows
        with torch.no_grad():
            if self.keep == "best" and len(rows):
                _, loss = self._evaluated(self.x_T.detach(), self.z.detach(), rows)
                self._note(loss, rows)
            if not self.stopped:
                return self._evaluated(*self.result(), rows)
            x_0 = torch.empty_like(self.x_T)
            cost = Cost()
            if len(rows):
                rollout, _ = self._evaluated(*self.result(), rows)
                x_0[rows], cost = rollout.x_0, rollout.cost
            for index, accepted in self._accepted.items():
                x_0[index] = accepted
            every = torch.arange(len(self.x_T), device=self.x_T.device)
            return Rollout(x_0, cost), self.objective(x_0, every)

    def _evaluated(self, x_T: Tensor, z: Tensor, rows: Tensor) -> tuple[Rollout, Tensor]:
        if self.stop is None:
            rollout = self.sampler(x_T, z)
            loss = self.objective(rollout.x_0)
        else:
            rollout = self.sampler(x_T[rows], z[rows], rows)
            loss = self.objective(rollout.x_0, rows)
        # The same object that the gradient adds to later.
        self._costs.append(rollout.cost)
        return rollout, loss

    def _accept(self, x_0: Tensor, rows: Tensor) -> set[int]:
        """Numbers of the samples that stop here; they keep their latents and their x_0."""
        if self.stop is None:
            return set()
        x_0 = x_0.detach()
        accepted = self.stop(x_0, rows)
        for position in torch.nonzero(accepted).flatten().tolist():
            index = int(rows[position])
            if index not in self.failed:
                self.stopped[index] = self.steps
                self._accepted[index] = x_0[position].clone()
        return set(self.stopped)

    def _note(self, loss: Tensor, rows: Tensor) -> None:
        self._best = self._best.to(loss.dtype)
        improved = loss < self._best[rows]
        better = rows[improved]
        self._best[better] = loss[improved]
        for kept, current in zip(self._best_latents, (self.x_T, self.z), strict=True):
            kept[better] = current.detach()[better]

    def _reject(self, loss: Tensor, norm: Tensor, rows: Tensor) -> None:
        for position in torch.nonzero(~(loss.isfinite() & norm.isfinite())).flatten().tolist():
            self.failed.setdefault(
                int(rows[position]),
                f"step {self.steps}: loss {loss[position]:g}, gradient norm {norm[position]:g}",
            )


def _groups(sample: tuple[Tensor, ...], z_learning_rate: float | None, z_moves: bool) -> list[dict]:
    # One group where one learning rate serves: L-BFGS takes no more.
    if z_learning_rate is None or not z_moves:
        return [{"params": list(sample)}]
    *others, z = sample
    groups: list[dict] = [{"params": [x_T]} for x_T in others]
    return [*groups, {"params": [z], "lr": z_learning_rate}]


def _refuse_inner_iterations(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.LBFGS):
        return
    group = optimizer.param_groups[0]
    if group["max_iter"] != 1 or group["line_search_fn"] is not None:
        raise ValueError(
            f"L-BFGS with max_iter={group['max_iter']}, line_search_fn={group['line_search_fn']!r} "
            "samples several times a step; use max_iter=1 without a line search"
        )
