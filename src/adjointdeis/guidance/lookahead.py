r"""Gradients of a loss on the sample that a state is heading for, seen k steps ahead.

From the state x at node i of the sampling grid, run k steps to its last node,
:math:`\hat x_0 = \Phi_k(x)`, and take :math:`g = \partial L(\hat x_0) / \partial x`. One knob joins
two practices:

* k = 1: one DDIM step, which for a grid that ends at sigma = 0 is the posterior mean
  :math:`\hat x_0 = (x - \sigma\epsilon)/\alpha`. Greedy guidance: FreeDoM, DPS. The direction is
  good at every noise level; the length means nothing at high noise.
* k = "all": the remaining steps of the sampler itself. At the first node this is the exact
  end-to-end gradient of the sampling run.

References:
    FreeDoM, https://arxiv.org/abs/2303.09833
    Greed is Good, https://arxiv.org/abs/2502.08006
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import DiscreteAdjoint, GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.per_sample import losses_of
from adjointdeis.rollout import Condition, Rollout, sample
from adjointdeis.solvers.base import Solver
from adjointdeis.solvers.ddim import DDIM


@dataclass(eq=False)
class FirstPrediction:
    """A denoiser that keeps its first prediction, so that a sampler's step need not repeat it.

    Attributes:
        denoiser: the network.
        eps: its first prediction, detached; None before.
    """

    denoiser: Callable[..., Tensor]
    eps: Tensor | None = None

    @property
    def evaluations(self) -> int:
        """Network evaluations per call."""
        return getattr(self.denoiser, "evaluations", 1)

    def __call__(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        eps = self.denoiser(x, t, z)
        if self.eps is None:
            self.eps = eps.detach()
        return eps


@dataclass(frozen=True, eq=False)
class Ahead:
    """What a lookahead found.

    Attributes:
        gradient: g, with the shape of x.
        loss: per-sample loss of the estimate, with shape (B).
        x_0: the estimate, detached.
        eps: the network's prediction at x, which a sampler's step may use again.
        cost: of the lookahead.
    """

    gradient: Tensor
    loss: Tensor
    x_0: Tensor
    eps: Tensor
    cost: Cost


@dataclass(frozen=True)
class Lookahead:
    """How far ahead of a state its sample is guessed, and how the guess is differentiated.

    Optimises nothing by itself; gives dL/dx_t at any node. Cost: k evaluations and the gradient
    method's k products (with the default, k - 1 evaluations more for k > 1).

    Args:
        steps: k, a whole number or "all". k steps visit nodes of the sampling grid spread evenly
            over those that remain, and end at its last node; k not smaller than their number
            is "all".
        gradient: any gradient method. ``AdjointDEIS`` here is one step of a sampler at a time.

    Raises:
        ValueError: k below 1; a multistep solver with k above 1, whose history a lookahead does
            not have; an SDE solver with k = "all" and no noise.

    When not to use: k = "all" at every step of the sampler costs N(N + 1)/2 evaluations; to
    optimise x_T alone use ``LatentOptimisation``.
    """

    steps: int | Literal["all"] = 1
    gradient: GradientMethod = field(default_factory=lambda: DiscreteAdjoint(keep_activations=1))

    def __post_init__(self) -> None:
        if self.steps != "all" and (not isinstance(self.steps, int) or self.steps < 1):
            raise ValueError(f"Lookahead.steps={self.steps!r}: expected 1 or more, or 'all'")

    def nodes(self, grid: TimeGrid, step: int) -> list[int]:
        """Indices of the grid nodes that a lookahead from node ``step`` visits."""
        remaining = grid.steps - step
        if remaining < 1:
            raise ValueError(f"node {step} is the last one of the grid; nothing is ahead of it")
        k = remaining if self.steps == "all" else min(self.steps, remaining)
        return [step + (j * remaining) // k for j in range(k + 1)]

    def look(
        self,
        denoiser: Callable[..., Tensor],
        x: Tensor,
        z: Condition,
        loss: Callable[[Tensor], Tensor],
        *,
        solver: Solver,
        grid: TimeGrid,
        step: int,
        noise: Sequence[Tensor] | None = None,
    ) -> Ahead:
        """The gradient of a loss on what x, at node ``step``, is heading for.

        Args:
            denoiser: noise prediction.
            x: state, shape (B, *).
            z: condition as for ``sample``; ``PerStep`` is of the whole grid.
            loss: ``x_0 -> losses`` with shape (B).
            solver: the sampler. With a whole number k an SDE is looked ahead along its
                probability flow, by DDIM.
            grid: the sampling grid.
            step: the node that x is at.
            noise: of the sampler's remaining steps, one tensor each; only for an SDE solver
                with k = "all".
        """
        nodes = self.nodes(grid, step)
        whole = len(nodes) - 1 == grid.steps - step
        if getattr(solver, "multistep", False) and len(nodes) > 2:
            raise ValueError(
                f"{type(solver).__name__} carries a history that a lookahead of {len(nodes) - 1} "
                "steps does not have: use Lookahead(1) or a single-step solver such as DDIM()"
            )
        stochastic = solver.calculus == "sde"
        if stochastic and self.steps == "all" and noise is None:
            raise ValueError("Lookahead('all') through an SDE solver needs noise= of its steps")
        exact = stochastic and self.steps == "all"
        ahead = solver if exact or not stochastic else DDIM()
        conditions = z
        if isinstance(z, PerStep):
            conditions = PerStep([z.values[i] for i in nodes[:-1]])
        remembered = FirstPrediction(denoiser)
        weights = list(denoiser.parameters()) if isinstance(denoiser, nn.Module) else []
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            rollout: Rollout = sample(
                remembered,
                leaf,
                conditions,
                solver=ahead,
                grid=grid if whole and step == 0 else grid.at(nodes),
                noise=list(noise) if exact and noise is not None else None,
                gradient=self.gradient,
                parameters=weights,
            )
            losses = losses_of(rollout.x_0, loss(rollout.x_0))
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        assert remembered.eps is not None
        return Ahead(gradient, losses.detach(), rollout.x_0.detach(), remembered.eps, rollout.cost)
