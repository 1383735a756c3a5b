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
from dataclasses import dataclass

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.sampler import weights_of
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

    Optimises nothing; gives gradients with respect to the image and the condition. Cost: N
    evaluations, and the gradient method's. N is the number of steps of ``grid``.

    Args:
        denoiser: noise prediction.
        solver: the paper's is the reverse SDE.
        grid: from t* to (almost) clean, for example
            ``TimeGrid.uniform_time(schedule, steps, t_max=0.1)``.
        gradient: any gradient method; ``DiscreteAdjoint()`` by default.

    Raises:
        ValueError: an encoding grid.

    When not to use: as a defence whose strength was measured with an inexact gradient.
    """

    denoiser: Callable[..., Tensor]
    solver: Solver
    grid: TimeGrid
    gradient: GradientMethod | None = None

    def __post_init__(self) -> None:
        if not self.grid.sampling:
            raise ValueError("DiffPure needs a grid from t* to clean; this one encodes")

    def purify(self, images: Tensor, draw: Draw, z: Tensor | None = None) -> Rollout:
        """Purified images, with a graph to images and z.

        Args:
            images: shape (B, *), in the range that the network was trained on.
            draw: randomness.
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
            gradient=self.gradient,
            parameters=weights_of(self.denoiser),
        )


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What an attack found.

    Attributes:
        images: adversarial images, within the radius and the range.
        loss: per-sample loss before each step, averaged over the draws, with shape (steps, B).
        cost: counters of every purification and its gradient.
    """

    images: Tensor
    loss: Tensor
    cost: Cost


@dataclass(frozen=True)
class ProjectedAscent:
    r"""Projected gradient ascent in the maximum norm, through a defence.

    :math:`x \gets \mathrm{clip}\big(x + \eta\,\mathrm{sign}\,\textstyle\sum_d \nabla L_d\big)` with
    the gradient summed over draws of the defence's randomness (expectation over transformation).

    Optimises the image. Cost: ``steps`` times the draws of a step, each a purification with its
    gradient.

    Args:
        radius: largest change of a pixel, in the units of the images.
        step_size: change per step.
        steps: number of steps.
        low, high: range of the images.

    Raises:
        ValueError: sizes that are not positive, or an empty range.

    When not to use: to certify robustness; it bounds it from above only.

    References:
        Towards deep learning models resistant to adversarial attacks,
        https://arxiv.org/abs/1706.06083
        Obfuscated gradients give a false sense of security, https://arxiv.org/abs/1802.00420
    """

    radius: float
    step_size: float
    steps: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.step_size > 0 and self.steps >= 1):
            raise ValueError("radius and step_size must be positive, steps 1 or more")
        if not self.low < self.high:
            raise ValueError(f"the images' range [{self.low}, {self.high}] is empty")

    def attack(
        self,
        defence: Callable[[Tensor, Draw], Rollout],
        images: Tensor,
        loss: Callable[[Tensor], Tensor],
        draws: Callable[[int], Sequence[Draw]],
    ) -> AttackResult:
        """Images near the given ones with a larger loss behind the defence.

        Args:
            defence: differentiable, for example ``DiffPure.purify``.
            images: clean images, shape (B, *); not modified.
            loss: ``purified -> losses`` with shape (B), to be made large.
            draws: ``step -> draws`` of the defence's randomness at that step.
        """
        x, cost, losses = images.detach().clone(), Cost(), []
        for step in range(self.steps):
            drawn = draws(step)
            if not drawn:
                raise ValueError(f"step {step}: no draw of the defence's randomness")
            total, value = torch.zeros_like(x), x.new_zeros(len(x))
            for draw in drawn:
                with torch.enable_grad():
                    leaf = x.detach().requires_grad_()
                    rollout = defence(leaf, draw)
                    found = loss(rollout.x_0)
                    (gradient,) = torch.autograd.grad(found.sum(), leaf)
                cost.add(rollout.cost)
                total, value = total + gradient, value + found.detach()
            losses.append(value / len(drawn))
            x = self.project(x + self.step_size * total.sign(), images)
        return AttackResult(x, torch.stack(losses), cost)

    def project(self, x: Tensor, images: Tensor) -> Tensor:
        """The nearest allowed image: inside the radius around ``images`` and inside the range."""
        inside = torch.maximum(torch.minimum(x, images + self.radius), images - self.radius)
        return inside.clamp(self.low, self.high)
