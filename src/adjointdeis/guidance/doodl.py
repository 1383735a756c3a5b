r"""DOODL: end-to-end optimisation of x_T through a reversible sampler, in the memory of one step.

A tied pair :math:`x_T = y_T` is sampled by EDICT to two images; the loss of both moves the pair:

.. math:: g = \tfrac12 \cdot \tfrac12 \big(\nabla_{x_T} + \nabla_{y_T}\big)
              \big[L(x_0) + L(y_0)\big],\qquad
          m \gets 0.9\, m + \mathrm{clip}(g, \pm c),

.. math:: x_T \gets \|x_T^{(0)}\|\; \frac{x_T - \eta\, m + 10^{-4}\, n}
                                         {\|x_T - \eta\, m + 10^{-4}\, n\|} .

The states are rebuilt by the inverse of the sampler (``Reversible``). The published program keeps
every input instead and inverts nothing; ``gradient=DiscreteAdjoint()`` is what it does.

References:
    End-to-end diffusion latent optimization improves classifier guidance,
    https://arxiv.org/abs/2303.13703
    EDICT, https://arxiv.org/abs/2211.12446
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.reversible import Reversible
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.per_sample import Sphere
from adjointdeis.guidance.sampler import sampler_of
from adjointdeis.solvers.edict import EDICT
from adjointdeis.solvers.pair import Pair
from adjointdeis.solvers.reversible import ReversibleSolver


@dataclass(eq=False)
class Perturbed:
    """The constraint of DOODL: a small random push, then back to the norm of the start.

    Attributes:
        sphere: where samples live.
        scale: standard deviation of the push.
        draw: ``step -> standard normal`` shaped like x_T; None for no push.
        step: how many updates were made.
    """

    sphere: Sphere
    scale: float
    draw: Callable[[int], Tensor] | None
    step: int = 0

    def __call__(self, x_T: Tensor) -> Tensor:
        if self.draw is not None:
            x_T = x_T + self.scale * self.draw(self.step).to(x_T)
        self.step += 1
        return self.sphere(x_T)


def doodl(
    denoiser: Callable[..., Tensor],
    objective: Callable[[Tensor], Tensor],
    x_T: Tensor,
    z: Tensor,
    *,
    grid: TimeGrid,
    lr: float,
    momentum: float = 0.9,
    clip: float = 1e-3,
    perturb: float = 1e-4,
    draw: Callable[[int], Tensor] | None = None,
    solver: ReversibleSolver | None = None,
    gradient: GradientMethod | None = None,
    keep: Literal["last", "best"] = "best",
) -> LatentOptimisation:
    """DOODL on a tied pair.

    Optimises x_T; z stays. Cost of a step with EDICT: 2N evaluations, 2N more with a graph and 2N
    products; two latents and the activations of one evaluation. The sample of the result is the
    pair of images, with shape (2, B, *); :meth:`LatentOptimisation.result` is the tied x_T.

    Args:
        denoiser: Noise prediction.
        objective: ``x_0 -> losses`` with shape (B), asked once for each image of the pair.
        x_T: Initial noise, with shape (B, *); not modified.
        z: Condition, with shape (B, *); for a network without one, anything it ignores.
        grid: Sampling grid that ends at t > 0, where a step can be undone.
        lr, momentum: Of SGD, without Nesterov's correction.
        clip: Largest entry of the gradient.
        perturb: Standard deviation of the push after every update.
        draw: ``step -> standard normal`` of that push, shaped like x_T; None for no push.
        solver: Reversible sampler; ``EDICT()`` by default.
        gradient: ``Reversible()`` by default.
        keep: As for :class:`LatentOptimisation`, by the mean loss of the pair.

    Raises:
        ValueError: a clip that is not positive, or a negative perturbation.

    When not to use: with few steps, where EDICT's two chains drift apart and neither is a good
    sample; in half precision. ``LatentOptimisation`` with DDIM and ``DiscreteAdjoint`` takes half
    the evaluations, for N latents.
    """
    if not clip > 0 or perturb < 0:
        raise ValueError(f"clip={clip}, perturb={perturb}: expected more than 0, and 0 or more")
    tied = Pair(EDICT() if solver is None else solver, tied=True)

    def both(x_0: Tensor) -> Tensor:
        return 0.5 * (objective(x_0[0]) + objective(x_0[1]))

    return LatentOptimisation(
        sampler_of(denoiser, tied, grid, Reversible() if gradient is None else gradient),
        both,
        x_T,
        z,
        partial(torch.optim.SGD, lr=lr, momentum=momentum),
        keep=keep,
        optimise="x_T",
        # The derivative by the tied latent is the sum over the pair; DOODL takes the mean.
        gradient_rule=lambda g: (0.5 * g).clamp(-clip, clip),
        constraint=Perturbed(Sphere.through(x_T), perturb, draw),
    )
