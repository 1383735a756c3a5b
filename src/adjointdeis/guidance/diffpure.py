r"""DiffPure: purification of images by a diffusion model, and the attack through it.

An image is noised to an intermediate time and brought back by the sampler,

.. math:: x_{t^*} = \alpha_{t^*} x + \sigma_{t^*} e,\qquad
          \hat x = \Phi_{t^* \to 0}(x_{t^*}),

which washes small perturbations out. What the defence is worth is decided by an attacker who
differentiates through it: :math:`\nabla_x L(\hat x) = \alpha_{t^*} a_{x_{t^*}}` by any gradient
method of this package. A method that is not exact makes a weaker attack, and the defence look
better than it is.

References:
    Diffusion models for adversarial purification, https://arxiv.org/abs/2205.07460
    DiffBreak, https://arxiv.org/abs/2411.16598
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise
from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.per_sample import losses_of
from adjointdeis.guidance.problem import Algorithm, AlgorithmRun, Outcome, Step
from adjointdeis.rollout import Rollout, sample
from adjointdeis.solvers.base import Solver


@dataclass(frozen=True, eq=False)
class Draw:
    """The randomness of one purification.

    Attributes:
        start: standard normal e that noises the image, shaped like it.
        path: noise of the sampler's steps; None for an ODE solver.
    """

    start: Tensor
    path: Noise | Sequence[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class DiffPure:
    """A purifier.

    No algorithm but what :class:`ProjectedAscent` differentiates: it optimises nothing, and gives
    gradients with respect to the image and the condition. Cost: N evaluations, and the gradient
    method's. N is the number of steps of ``grid``.

    Args:
        denoiser: noise prediction.
        solver: the paper's is the reverse SDE.
        grid: from t* to (almost) clean, for example
            ``TimeGrid.uniform_time(schedule, steps, t_max=0.1)``.

    Raises:
        ValueError: an encoding grid.

    When not to use: as a defence whose strength was measured with an inexact gradient.
    """

    denoiser: Callable[..., Tensor]
    solver: Solver
    grid: TimeGrid

    def __post_init__(self) -> None:
        if not self.grid.sampling:
            raise ValueError("DiffPure needs a grid from t* to clean; this one encodes")

    def purify(
        self,
        images: Tensor,
        draw: Draw,
        gradient: GradientMethod | None = None,
        z: Tensor | None = None,
    ) -> Rollout:
        """Purified images, with a graph to images and z.

        Args:
            images: shape (B, *), in the range that the network was trained on.
            draw: randomness.
            gradient: any gradient method; ``DiscreteAdjoint()`` by default.
            z: condition, or None.
        """
        first = self.grid[0]
        return sample(
            self.denoiser,
            first.alpha * images + first.sigma * draw.start,
            z,
            solver=self.solver,
            grid=self.grid,
            noise=draw.path,
            gradient=gradient,
        )


@dataclass(frozen=True, eq=False)
class DefenceProblem:
    """Find images near given ones for which a defence fails.

    Args:
        images: Clean images, with shape (B, *); not modified.
        defence: ``(images, draw, gradient) -> Rollout``, differentiable by that method, for example
            ``DiffPure.purify``.
        loss: ``defended images -> losses`` with shape (B), to be made large.
        draw: ``number -> Draw`` of the defence's randomness.
        low, high: Range of the images.

    Raises:
        ValueError: An empty range.
    """

    images: Tensor
    defence: Callable[[Tensor, Draw, GradientMethod | None], Rollout]
    loss: Callable[[Tensor], Tensor] = field(kw_only=True)
    draw: Callable[[int], Draw] = field(kw_only=True)
    low: float = field(default=-1.0, kw_only=True)
    high: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the images' range [{self.low}, {self.high}] is empty")

    def losses(self, x_0: Tensor) -> Tensor:
        """The losses of defended images, with shape (B); :func:`losses_of` checks."""
        return losses_of(x_0, self.loss(x_0))


@dataclass(frozen=True, eq=False)
class AttackOutcome(Outcome):
    """What an attack found: ``x_0`` are the images, within the radius and the range.

    Attributes:
        first_gradient: Gradient at the clean images under the first draw; None without steps.
    """

    first_gradient: Tensor | None = None


@dataclass(frozen=True)
class ProjectedAscent(Algorithm):
    r"""Projected gradient ascent in the maximum norm, through a defence.

    :math:`x \gets \mathrm{clip}\big(x + \eta\,\mathrm{sign}\,\textstyle\sum_d \nabla L_d\big)` with
    the gradient summed over draws of the defence's randomness (expectation over transformation).

    Optimises the image. Cost: ``steps`` times the draws of a step, each a purification with its
    gradient.

    Args:
        radius: largest change of a pixel, in the units of the images.
        steps: number of steps, 0 or more.
        step_size: change per step; None for 2.5 radius / steps.
        draws: draws of the defence's randomness per step; step k takes the numbers from k draws on.
        gradient: any gradient method; ``DiscreteAdjoint()`` by default.
        through: False attacks what is behind the defence as if there were none.

    The outcome's ``history`` has the losses before each step, averaged over the draws.

    Raises:
        ValueError: sizes that are not positive.

    When not to use: to certify robustness; it bounds it from above only.

    References:
        Towards deep learning models resistant to adversarial attacks,
        https://arxiv.org/abs/1706.06083
        Obfuscated gradients give a false sense of security, https://arxiv.org/abs/1802.00420
    """

    radius: float
    steps: int = 10
    step_size: float | None = None
    draws: int = 1
    gradient: GradientMethod | None = None
    through: bool = True
    solves: ClassVar[type] = DefenceProblem

    def __post_init__(self) -> None:
        if not self.radius > 0 or not (self.step_size is None or self.step_size > 0):
            raise ValueError("radius and step_size must be positive")
        if self.steps < 0 or self.draws < 1:
            raise ValueError(
                f"steps={self.steps}, draws={self.draws}: expected 0 or more, and 1 or more"
            )

    def _start(self, problem: DefenceProblem) -> "_Ascent":
        return _Ascent(self, problem)


class _Ascent(AlgorithmRun):
    """Images on their way up."""

    def __init__(self, ascent: ProjectedAscent, problem: DefenceProblem) -> None:
        super().__init__()
        self.ascent, self.problem, self.done = ascent, problem, 0
        self.x = problem.images.detach().clone()
        self.first_gradient: Tensor | None = None
        self.size = ascent.step_size or 2.5 * ascent.radius / max(ascent.steps, 1)

    @property
    def finished(self) -> bool:
        return self.done >= self.ascent.steps

    def step(self) -> Step:
        """One gradient over all draws, one update."""
        ascent, problem, cost = self.ascent, self.problem, Cost()
        total, value = torch.zeros_like(self.x), self.x.new_zeros(len(self.x))
        for k in range(ascent.draws):
            with torch.enable_grad():
                leaf = self.x.detach().requires_grad_()
                rollout = self._defended(leaf, problem.draw(ascent.draws * self.done + k))
                found = problem.losses(rollout.x_0)
                (gradient,) = torch.autograd.grad(found.sum(), leaf)
            cost.add(rollout.cost)
            total, value = total + gradient, value + found.detach()
            if self.first_gradient is None:
                self.first_gradient = gradient
        self.cost.add(cost)
        self.history.append(value / ascent.draws)
        before, self.x = self.x, self._projected(self.x + self.size * total.sign())
        self.done += 1
        norm = wide(total).flatten(1).norm(dim=1)
        return Step(self.history[-1], cost, norm, before)

    def outcome(self) -> AttackOutcome:
        with torch.no_grad():
            x_0 = self._defended(self.x, self.problem.draw(0)).x_0
            loss = self.problem.losses(x_0)
        return AttackOutcome(
            self.x, loss, self.cost, history=self.history, first_gradient=self.first_gradient
        )

    def _defended(self, images: Tensor, draw: Draw) -> Rollout:
        if not self.ascent.through:
            return Rollout(images)
        return self.problem.defence(images, draw, self.ascent.gradient)

    def _projected(self, x: Tensor) -> Tensor:
        """The nearest allowed image: inside the radius around the clean one and the range."""
        images, radius = self.problem.images, self.ascent.radius
        inside = torch.maximum(torch.minimum(x, images + radius), images - radius)
        return inside.clamp(self.problem.low, self.problem.high)
