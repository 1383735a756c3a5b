r"""D-Flow: the initial noise of a flow-matching model by quasi-Newton descent.

.. math:: \min_{x_T} L\big(x_0(x_T)\big) + P(x_T)

by L-BFGS with a strong-Wolfe line search, differentiating through every step of the solver. A
flow-matching network enters as ``EpsFromFlow`` on ``RectifiedFlow``, where DDIM is Euler's method
along the straight path, :math:`x_t = x_s + (t - s)\, v(x_s, s)`.

References:
    D-Flow, https://arxiv.org/abs/2402.14017
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import GradientMethod, NotSupportedError
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.guidance.per_sample import per_sample_norm
from adjointdeis.rollout import sample
from adjointdeis.solvers.base import Solver


def radius_penalty(x_T: Tensor) -> Tensor:
    r"""Minus the log-density of the norm of a standard normal, with shape (B), up to a constant.

    :math:`\tfrac12\|x\|^2 - (D - 1)\log\|x\|`, least at :math:`\|x\| = \sqrt{D - 1}`: holds the
    noise near its shell without forbidding any direction.
    """
    norm = per_sample_norm(x_T)
    return 0.5 * norm.square() - (x_T[0].numel() - 1) * norm.log()


@dataclass(frozen=True, eq=False)
class FlowOptimum:
    """The result of :meth:`DFlow.optimise`.

    Attributes:
        x_T: best noise found, with shape (B, *).
        x_0: its samples.
        loss: their losses without the penalty, with shape (B).
        curves: objective with penalty at every evaluation, one list per sample.
        cost: counters of every rollout.
    """

    x_T: Tensor
    x_0: Tensor
    loss: Tensor
    curves: list[list[float]]
    cost: Cost


@dataclass(frozen=True)
class DFlow:
    """L-BFGS on x_T; every sample has its own, so a batch is its samples one by one.

    Optimises x_T. Cost: every evaluation of the objective is a rollout and its gradient, N
    evaluations and N products of the network besides what the gradient method recomputes. The
    line search takes one to a few evaluations an iteration.

    Args:
        iterations: L-BFGS iterations of a sample.
        evaluations: most evaluations of the objective of a sample; None is 5/4 of iterations.
        history: curvature pairs kept.
        penalty: per-sample penalty of x_T, such as :func:`radius_penalty`, or None.
        gradient: an exact gradient method; a line search compares values with slopes, and
            another function's slope sends it astray.

    Raises:
        ValueError: counts below 1.
        NotSupportedError: a gradient method that is not exact.

    When not to use: with a noisy objective (random crops, dropout), whose curvature pairs mean
    nothing: take ``LatentOptimisation`` with Adam.
    """

    iterations: int = 20
    evaluations: int | None = None
    history: int = 10
    penalty: Callable[[Tensor], Tensor] | None = None
    gradient: GradientMethod = field(default_factory=DiscreteAdjoint)

    def __post_init__(self) -> None:
        for name in ("iterations", "evaluations", "history"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"DFlow.{name}={value}: expected 1 or more")
        if not self.gradient.exact:
            raise NotSupportedError(
                f"DFlow's line search needs the gradient of the sampler that runs, and "
                f"{type(self.gradient).__name__} is not exact; use gradient=DiscreteAdjoint()"
            )

    def optimise(
        self,
        denoiser: Callable[..., Tensor],
        x_T: Tensor,
        z: Tensor | None = None,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        solver: Solver,
        grid: TimeGrid,
    ) -> FlowOptimum:
        """Descend from x_T.

        Args:
            denoiser, solver, grid: as for :func:`adjointdeis.sample`; an ODE solver.
            x_T: initial noise, shape (B, *); not modified.
            z: condition, shape (B, *), or None.
            loss: ``(x_0, rows) -> losses`` for the samples of these numbers.

        Raises:
            RuntimeError: the objective of some sample is not finite at its start.
        """
        found = [
            self._one(denoiser, x_T[k : k + 1], None if z is None else z[k : k + 1], k, loss,
                      solver, grid)
            for k in range(len(x_T))
        ]  # fmt: skip
        total = Cost()
        for single in found:
            total.add(single.cost)
        return FlowOptimum(
            torch.cat([single.x_T for single in found]),
            torch.cat([single.x_0 for single in found]),
            torch.cat([single.loss for single in found]),
            [curve for single in found for curve in single.curves],
            total,
        )

    def _one(
        self,
        denoiser: Callable[..., Tensor],
        x_T: Tensor,
        z: Tensor | None,
        row: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        solver: Solver,
        grid: TimeGrid,
    ) -> FlowOptimum:
        x = x_T.detach().clone().requires_grad_()
        rows = torch.tensor([row], device=x.device)
        optimizer = torch.optim.LBFGS(
            [x],
            lr=1.0,
            max_iter=self.iterations,
            max_eval=self.evaluations,
            history_size=self.history,
            line_search_fn="strong_wolfe",
        )
        cost, curve = Cost(), []
        best: list[Tensor] = []

        def evaluate() -> Tensor:
            with torch.enable_grad():
                rollout = sample(denoiser, x, z, solver=solver, grid=grid, gradient=self.gradient)
                value = loss(rollout.x_0, rows)
                total = value if self.penalty is None else value + self.penalty(x)
                (x.grad,) = torch.autograd.grad(total.sum(), x)
            total = total.detach()
            cost.add(rollout.cost)
            if not curve and not bool(total.isfinite()):
                raise RuntimeError(f"sample {row}: the objective starts at {float(total):g}")
            if not curve or float(total) < min(curve):
                best[:] = [x.detach().clone(), rollout.x_0.detach(), value.detach()]
            curve.append(float(total))
            return total.sum()

        optimizer.step(evaluate)
        return FlowOptimum(best[0], best[1], best[2], [curve], cost)
