r"""Descent of a loss on generated samples over their initial noise and condition.

.. math::
    (x_T, z) \gets (x_T, z)
        - \eta\,\nabla_{(x_T, z)} \sum_b \Big[ L\big(x_0^{(b)}(x_T^{(b)}, z^{(b)})\big)
        + P(x_T^{(b)}) \Big]

The loss is summed over the batch, so every sample descends as if it were alone and the learning
rate means the same at every batch size.  Paper: section 5 (the published program divides by the
batch size).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.problem import (
    ADAM,
    Algorithm,
    AlgorithmRun,
    LatentProblem,
    OptimizerFactory,
    Outcome,
    Step,
)
from adjointdeis.rollout import Rollout


@dataclass(frozen=True, eq=False)
class LatentOptimisation(Algorithm):
    """Gradient descent on a batch of latents, every sample with an optimiser of its own.

    Optimises x_T and z, or the one of them that the problem lets move. Cost of a step: one
    rollout and its gradient.

    A sample whose loss or gradient is not finite is frozen at its last good latents and reported
    in ``failed``; the others go on. A sample that ``stop`` accepts keeps the latents that were
    accepted, and costs nothing from then on.

    Args:
        steps: Gradient steps, 0 or more; with 0 and ``keep="last"`` the sampler alone is run.
        optimizer: Factory called with the parameter groups of one sample.
            ``torch.optim.LBFGS`` needs ``max_iter=1`` and no line search: a step is one gradient.
        gradient: Any gradient method; ``DiscreteAdjoint()`` by default.
        z_learning_rate: Learning rate of z when it differs from that of x_T.
        keep: Which iterate is returned: the "last", as the paper does, or the "best" by the
            loss. A stopped sample returns the one that was accepted.
        stop: ``(x_0, rows) -> accepted`` with shape (R), asked before every update; None makes
            every step.
        scheduled: One condition per step instead of one for all.
        penalty: ``x_T -> penalties`` with shape (B), added to the loss in the gradient. It does
            not decide which iterate is best.
        gradient_rule: Applied to the batch's gradient of each moving tensor before the
            optimisers, sample by sample, for example ``per_sample.normalised``.
        constraint: Called with the problem's x_T; what it returns is applied to x_T after every
            update, sample by sample, for example ``per_sample.Sphere.through``.

    Raises:
        ValueError: Unknown ``keep``, negative ``steps``, or an L-BFGS that evaluates more than
            once a step.
    """

    steps: int = 20
    optimizer: OptimizerFactory = ADAM
    gradient: GradientMethod | None = None
    z_learning_rate: float | None = None
    keep: Literal["last", "best"] = "last"
    stop: Callable[[Tensor, Tensor], Tensor] | None = None
    scheduled: bool = False
    penalty: Callable[[Tensor], Tensor] | None = None
    gradient_rule: Callable[[Tensor], Tensor] | None = None
    constraint: Callable[[Tensor], Callable[[Tensor], Tensor]] | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("last", "best"):
            raise ValueError(f"keep={self.keep!r} must be 'last' or 'best'")
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: expected 0 or more")
        rate = self.z_learning_rate
        if rate is not None and not rate >= 0:
            raise ValueError(f"z_learning_rate={rate}: expected 0 or more, or None")

    def _start(self, problem: LatentProblem) -> "LatentDescent":
        return LatentDescent(self, problem.per_step() if self.scheduled else problem)


class LatentDescent(AlgorithmRun):
    """A batch of latents under optimisation.

    Attributes:
        x_T, z: Latents as they are now; z is None where the problem has none.
        rows: Numbers of the samples that have not stopped.
        steps: Gradient steps made.
        failed, stopped: See :class:`Outcome`.
    """

    def __init__(self, algorithm: LatentOptimisation, problem: LatentProblem) -> None:
        super().__init__()
        self.algorithm, self.problem = algorithm, problem
        self.x_T = problem.x_T.detach().clone().requires_grad_(problem.moves != "z")
        leaves, self._structure = tree_flatten(problem.z)
        self._z = [
            leaf.detach().clone().requires_grad_(problem.moves != "x_T")
            if isinstance(leaf, Tensor) and leaf.is_floating_point()
            else leaf
            for leaf in leaves
        ]
        latents = [self.x_T, *self._z]
        self._moving = [t for t in latents if isinstance(t, Tensor) and t.requires_grad]
        # Views of one sample each: an optimiser moves its rows of the batch in place.
        self._samples = [
            tuple(tensor.detach()[index].requires_grad_() for tensor in self._moving)
            for index in range(len(self.x_T))
        ]
        of_z = len(self._moving) - int(self.x_T.requires_grad)
        rate = algorithm.z_learning_rate if of_z else None
        self.optimizers = [
            algorithm.optimizer(_groups(sample, rate, of_z)) for sample in self._samples
        ]
        for made in self.optimizers[:1]:
            _refuse_inner_iterations(made)
        make = algorithm.constraint
        self._constraint = None if make is None else make(problem.x_T)
        self.failed: dict[int, str] = {}
        self.stopped: dict[int, int] = {}
        self.steps = 0
        self._accepted: dict[int, Tensor] = {}
        self._best = torch.full((len(self.x_T),), float("inf"), device=self.x_T.device)
        self._best_moving = [latent.detach().clone() for latent in self._moving]

    @property
    def z(self) -> Any:
        """The condition as it is now, with the structure of the problem's."""
        return tree_unflatten(self._z, self._structure)

    @property
    def rows(self) -> Tensor:
        """Numbers of the samples that have not stopped."""
        under_way = [index for index in range(len(self.x_T)) if index not in self.stopped]
        return torch.tensor(under_way, dtype=torch.long, device=self.x_T.device)

    @property
    def finished(self) -> bool:
        """Whether all steps are made, or every sample has stopped or failed."""
        over = len(self.stopped.keys() | self.failed.keys()) == len(self.x_T)
        return over or self.steps >= self.algorithm.steps

    def step(self) -> Step:
        """One rollout, one gradient, one update.

        Raises:
            RuntimeError: Every sample has stopped.
        """
        rows = self.rows
        if not len(rows):
            raise RuntimeError("every sample has stopped; ask `finished` before another step")
        rule, penalty = self.algorithm.gradient_rule, self.algorithm.penalty
        with torch.enable_grad():
            rollout, loss = self._sampled(self.x_T, self.z, rows)
            held = self._accept(rollout.x_0, rows)
            total = loss.sum()
            if penalty is not None:
                total = total + penalty(self.x_T[rows]).sum()
            gradients = torch.autograd.grad(total, self._moving)
        self.cost.add(rollout.cost)
        loss = loss.detach()
        norm = (
            torch.stack([wide(g).flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()[rows]
        )
        self._note(loss, rows)
        self._reject(loss, norm, rows)
        if rule is not None:
            gradients = [rule(gradient) for gradient in gradients]
        updated = []
        for index, value in zip(rows.tolist(), loss, strict=True):
            if index in self.failed or index in held:
                continue
            for parameter, gradient in zip(self._samples[index], gradients, strict=True):
                parameter.grad = gradient[index].contiguous()
            self.optimizers[index].step(lambda value=value: value)
            updated.append(index)
        if self._constraint is not None and self.x_T.requires_grad:
            self.x_T.data[updated] = self._constraint(self.x_T.data)[updated]
        self.steps += 1
        self.history.append(loss)
        return Step(loss, rollout.cost, norm, rollout.x_0.detach(), rows)

    def result(self) -> tuple[Tensor, Any]:
        """The chosen x_T and z, detached."""
        if self.algorithm.keep == "last":
            return self._latents(self._moving)
        chosen = [kept.clone() for kept in self._best_moving]
        for index in self.stopped:
            for kept, current in zip(chosen, self._moving, strict=True):
                kept[index] = current.detach()[index]
        return self._latents(chosen)

    def outcome(self) -> Outcome:
        """Samples and losses of the chosen latents."""
        rollout, loss = self.evaluate()
        x_T, z = self.result()
        return Outcome(
            rollout.x_0, loss, self.cost, x_T, z, self.history, self.failed, self.stopped
        )

    def evaluate(self) -> tuple[Rollout, Tensor]:
        """Samples and losses of the result, without gradients; stopped samples are not repeated.

        With ``keep="best"`` the last iterate, which no step has seen, competes first: this costs
        a second sampling run.
        """
        rows = self.rows
        with torch.no_grad():
            if self.algorithm.keep == "best" and len(rows):
                rollout, loss = self._sampled(*self._latents(self._moving), rows)
                self.cost.add(rollout.cost)
                self._note(loss, rows)
            x_0, cost = torch.empty_like(self.x_T), Cost()
            if len(rows):
                rollout, loss = self._sampled(*self.result(), rows)
                self.cost.add(rollout.cost)
                if not self.stopped:
                    return rollout, loss
                x_0[rows], cost = rollout.x_0, rollout.cost
            for index, accepted in self._accepted.items():
                x_0[index] = accepted
            return Rollout(x_0, cost), self.problem.losses(x_0, self.problem.rows)

    def _latents(self, moving: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """x_T and z, detached, with these values of what moves."""
        values = iter(moving)
        x_T, *z = (
            next(values).detach() if isinstance(latent, Tensor) and latent.requires_grad else latent
            for latent in (self.x_T, *self._z)
        )
        return x_T, tree_unflatten(z, self._structure)

    def _sampled(self, x_T: Tensor, z: Any, rows: Tensor) -> tuple[Rollout, Tensor]:
        if len(rows) < len(x_T):
            x_T, z = x_T[rows], tree_map_only(Tensor, lambda t: t[rows], z)
        rollout = self.problem.sample(x_T, z, rows, self.algorithm.gradient)
        return rollout, self.problem.losses(rollout.x_0, rows)

    def _accept(self, x_0: Tensor, rows: Tensor) -> set[int]:
        """Numbers of the samples that stop here; they keep their latents and their x_0."""
        if self.algorithm.stop is None:
            return set()
        x_0 = x_0.detach()
        accepted = self.algorithm.stop(x_0, rows)
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
        for kept, current in zip(self._best_moving, self._moving, strict=True):
            kept[better] = current.detach()[better]

    def _reject(self, loss: Tensor, norm: Tensor, rows: Tensor) -> None:
        for position in torch.nonzero(~(loss.isfinite() & norm.isfinite())).flatten().tolist():
            self.failed.setdefault(
                int(rows[position]),
                f"step {self.steps}: loss {loss[position]:g}, gradient norm {norm[position]:g}",
            )


def _groups(sample: tuple[Tensor, ...], z_learning_rate: float | None, of_z: int) -> list[dict]:
    # One group where one learning rate serves: L-BFGS takes no more.
    if z_learning_rate is None:
        return [{"params": list(sample)}]
    first = len(sample) - of_z
    groups: list[dict] = [{"params": list(sample[:first])}] if first else []
    return [*groups, {"params": list(sample[first:]), "lr": z_learning_rate}]


def _refuse_inner_iterations(optimizer: torch.optim.Optimizer) -> None:
    if not isinstance(optimizer, torch.optim.LBFGS):
        return
    group = optimizer.param_groups[0]
    if group["max_iter"] != 1 or group["line_search_fn"] is not None:
        raise ValueError(
            f"L-BFGS with max_iter={group['max_iter']}, line_search_fn={group['line_search_fn']!r} "
            "samples several times a step; use max_iter=1 without a line search"
        )
