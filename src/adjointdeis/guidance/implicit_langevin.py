r"""Implicit Diffusion through Langevin dynamics: weights of a potential from its own samples.

One step of sampling and one of optimisation at a time, for densities
:math:`\pi_\theta \propto e^{-V(x, \theta)}`:

.. math:: X \gets X - \gamma\,\nabla_x V(X, \theta) + \sqrt{2\gamma}\;n,\qquad
          \nabla_\theta \mathbb{E}_{\pi_\theta}[L] =
          -\mathrm{Cov}_{\pi_\theta}\big(L(X),\; \nabla_\theta V(X, \theta)\big).

No path is differentiated: the covariance over the present particles is the gradient.

References:
    Implicit Diffusion, https://arxiv.org/abs/2402.05468
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.fine_tuning import ThetaStep, update


def covariance_gradient(
    potential: Callable[[Tensor], Tensor],
    x: Tensor,
    loss: Tensor,
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    r"""Minus the sample covariance of the losses and the potential's gradient by theta.

    :math:`-\frac{1}{B - 1}\sum_b (L_b - \bar L)\,\nabla_\theta V(x_b)`, unbiased for samples of
    the density.

    Args:
        potential: ``x -> V`` with shape (B).
        x: samples, shape (B, *), B at least 2.
        loss: their losses, shape (B).
        parameters: theta.
    """
    if len(x) < 2:
        raise ValueError("a covariance needs at least two particles")
    centred = (loss - loss.mean()).detach()
    with torch.enable_grad():
        energy = -(centred * potential(x.detach())).sum() / (len(x) - 1)
        return list(torch.autograd.grad(energy, list(parameters)))


class ImplicitLangevin:
    """The single loop with the unadjusted Langevin algorithm as sampler.

    Optimises theta of a potential. Cost of an iteration: two evaluations of the potential and two
    products, one for the samples and one for the weights.

    Args:
        potential: Module ``x -> V`` with shape (B); changed in place.
        objective: ``x -> losses`` with shape (B); its mean under the density is descended.
        optimizer: Factory called with the list of weights that require a gradient.
        x: Initial particles, with shape (B, *), B at least 2; not modified.
        gamma: Step of the sampler, positive. The particles follow the density up to a bias of
            order gamma.
        samples_per_update: Langevin steps between two updates of the weights.

    Raises:
        ValueError: No weight requires a gradient, or a step or count out of range.

    When not to use: where the density changes faster than the particles follow, or its modes do
    not communicate: the covariance then belongs to where the particles started.
    """

    def __init__(
        self,
        potential: nn.Module,
        objective: Callable[[Tensor], Tensor],
        optimizer: Callable[[list[Tensor]], torch.optim.Optimizer],
        x: Tensor,
        *,
        gamma: float,
        samples_per_update: int = 1,
    ) -> None:
        self.parameters: list[Tensor] = [p for p in potential.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("no weight of the potential requires a gradient")
        if not gamma > 0 or samples_per_update < 1:
            raise ValueError(
                f"gamma={gamma}, samples_per_update={samples_per_update}: expected more than 0 "
                "and 1 or more"
            )
        self.potential, self.objective, self.gamma = potential, objective, gamma
        self.samples_per_update = samples_per_update
        self.x = x.detach().clone()
        self.optimizer = optimizer(self.parameters)
        self.cost = Cost()

    def step(self, noise: Sequence[Tensor]) -> ThetaStep:
        """Move the particles, then the weights.

        Args:
            noise: A standard normal, shaped like the particles, per Langevin step.

        Raises:
            ValueError: The wrong number of noises.
            FloatingPointError: The gradient is not finite; the weights are unchanged.
        """
        if len(noise) != self.samples_per_update:
            raise ValueError(f"{self.samples_per_update} noises are needed, got {len(noise)}")
        spent = Cost(nfe_forward=len(noise), nfe_backward=1, vjps=len(noise) + 1)
        spent.holds(1, graphs=1)
        for draw in noise:
            with torch.enable_grad():
                leaf = self.x.requires_grad_()
                (slope,) = torch.autograd.grad(self.potential(leaf).sum(), leaf)
            self.x = (leaf - self.gamma * slope).detach() + (2 * self.gamma) ** 0.5 * draw
        loss = self.objective(self.x).detach()
        gradients = covariance_gradient(self.potential, self.x, loss, self.parameters)
        norm = update(self.optimizer, self.parameters, gradients)
        self.cost.add(spent)
        return ThetaStep(loss, norm, self.x, spent)
