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
from torch.utils._pytree import tree_map_only

from adjointdeis.gradients import DiscreteAdjoint, GradientMethod, NotSupportedError
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.per_sample import per_sample_norm
from adjointdeis.guidance.problem import Algorithm, AlgorithmRun, LatentProblem, Outcome, Step


def radius_penalty(x_T: Tensor) -> Tensor:
    r"""Minus the log-density of the norm of a standard normal, with shape (B), up to a constant.

    :math:`\tfrac12\|x\|^2 - (D - 1)\log\|x\|`, least at :math:`\|x\| = \sqrt{D - 1}`: holds the
    noise near its shell without forbidding any direction.
    """
    norm = per_sample_norm(x_T)
    return 0.5 * norm.square() - (x_T[0].numel() - 1) * norm.log()


@dataclass(frozen=True, eq=False)
class DFlow(Algorithm):
    """L-BFGS on x_T; every sample has its own, so a batch is its samples one by one.

    Optimises x_T. Cost: every evaluation of the objective is a rollout and its gradient, N
    evaluations and N products of the network besides what the gradient method recomputes. The
    line search takes one to a few evaluations an iteration. A step of a run is a sample; the
    outcome's ``history`` has the objective with its penalty at every evaluation of each sample,
    and its ``cost`` is the mean of a sample, rounded: what an algorithm that samples the batch
    at once would count.

    Args:
        iterations: L-BFGS iterations of a sample.
        evaluations: most evaluations of the objective of a sample; None is 5/4 of iterations.
        history: curvature pairs kept.
        penalty: per-sample penalty of x_T, such as :func:`radius_penalty`, or None.
        gradient: an exact gradient method; a line search compares values with slopes, and
            another function's slope sends it astray.

    Raises:
        ValueError: Counts below 1.
        NotSupportedError: A gradient method that is not exact.
        RuntimeError: While it runs, if the objective of some sample is not finite at its start.

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

    def _start(self, problem: LatentProblem) -> "_QuasiNewton":
        return _QuasiNewton(self, problem)


class _QuasiNewton(AlgorithmRun):
    """The samples of a batch, one after the other."""

    def __init__(self, flow: DFlow, problem: LatentProblem) -> None:
        super().__init__()
        self.flow, self.problem = flow, problem
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def finished(self) -> bool:
        return len(self.found) == len(self.problem.x_T)

    def step(self) -> Step:
        """Descends one sample to its end."""
        flow, problem, cost, number = self.flow, self.problem, Cost(), len(self.found)
        row = problem.rows[number : number + 1]
        x = problem.x_T[row].detach().clone().requires_grad_()
        z = tree_map_only(Tensor, lambda t: t[row], problem.z)
        optimizer = torch.optim.LBFGS(
            [x],
            lr=1.0,
            max_iter=flow.iterations,
            max_eval=flow.evaluations,
            history_size=flow.history,
            line_search_fn="strong_wolfe",
        )
        curve: list[float] = []
        best: list[Tensor] = []

        def evaluate() -> Tensor:
            with torch.enable_grad():
                rollout = problem.sample(x, z, row, flow.gradient)
                value = problem.losses(rollout.x_0, row)
                total = value if flow.penalty is None else value + flow.penalty(x)
                (x.grad,) = torch.autograd.grad(total.sum(), x)
            total = total.detach()
            cost.add(rollout.cost)
            if not curve and not bool(total.isfinite()):
                raise RuntimeError(f"sample {number}: the objective starts at {float(total):g}")
            if not curve or float(total) < min(curve):
                best[:] = [x.detach().clone(), rollout.x_0.detach(), value.detach()]
            curve.append(float(total))
            return total.sum()

        optimizer.step(evaluate)
        self.found.append((best[0], best[1], best[2]))
        self.cost.add(cost)
        self.history.append(torch.tensor(curve, dtype=best[2].dtype))
        return Step(best[2], cost, x_0=best[1], rows=row)

    def outcome(self) -> Outcome:
        x_T, x_0, loss = (torch.cat(parts) for parts in zip(*self.found, strict=True))
        count = len(self.found)
        cost = Cost(
            nfe_forward=round(self.cost.nfe_forward / count),
            nfe_backward=round(self.cost.nfe_backward / count),
            vjps=round(self.cost.vjps / count),
        )
        cost.holds(self.cost.peak_latents, self.cost.peak_graphs)
        return Outcome(x_0, loss, cost, x_T, self.problem.z, self.history)
