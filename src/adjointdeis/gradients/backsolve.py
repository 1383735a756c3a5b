"""Backsolve: the probability-flow ODE and its adjoint in time, solved back from x_0."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients.augmented import Augmented, Coefficients, OdeAdjoint, OdeMethod
from adjointdeis.gradients.base import ContinuousAdjoint
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.trace import Trace


@dataclass(frozen=True)
class Backsolve(OdeAdjoint):
    r"""The continuous adjoint in time, solved back from x_0 by an integrator of torchdiffeq.

    The backward pass of ``torchdiffeq.odeint_adjoint`` for the flow
    :math:`\dot x = \dot{\log\alpha}\,x - \sigma\dot\lambda\,\epsilon`: x, a_x, a_z and a_theta
    are integrated together from the clean end to the noisy one,

    .. math:: \dot a_x = -\dot{\log\alpha}\,a_x + \sigma\dot\lambda\, a_x J_x, \qquad
              \dot a_z = \sigma\dot\lambda\, a_x J_z, \qquad
              \dot a_\theta = \sigma\dot\lambda\, a_x J_\theta,

    and nothing of the sampling run is kept but x_0. The sampling run itself is the solver's, as
    with every other method: the result is the gradient of the exact flow at the x_0 that was
    reached, and agrees with the gradient of the sampler as far as that follows the flow.

    Args:
        method: an adaptive method of torchdiffeq, or a fixed-step one, which steps over the
            sampling nodes.
        rtol, atol: tolerances of an adaptive method on (x, a_x, a_z, a_theta) together.
        check: as for ``StepwiseMethod``.

    Raises:
        ValueError: unknown method; a grid that ends at sigma = 0 or alpha = 0, where the
            equation in t is singular.
        MissingPackageError: torchdiffeq is not installed.
        NotSupportedError: an SDE sampler, or a scheduled z.

    When not to use: with a coarse sampler, whose gradient this is not; where x_0 sits in a
    narrow mode, since the flow back from it amplifies errors; on a ``DDPM`` schedule with
    tight tolerances, whose levels have a kink at every timestep.

    References:
        Neural ordinary differential equations, https://arxiv.org/abs/1806.07366
        torchdiffeq, https://github.com/rtqichen/torchdiffeq
    """

    method: OdeMethod = "dopri5"
    rtol: float = 1e-5
    atol: float = 1e-5
    memory: ClassVar[str] = "O(1) latents"
    adjoint: ClassVar[ContinuousAdjoint] = ContinuousAdjoint(
        clock="t", integrator="black-box ODE solver", exponential=False, own_steps=True
    )

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Trace]:
        ends = (chain.grid[0], chain.grid[-1])
        if any(node.sigma == 0.0 or node.alpha == 0.0 for node in ends):
            raise ValueError(
                "Backsolve integrates over t, where the equation is singular at sigma = 0 and "
                "alpha = 0: end the grid at t_min > 0 and t_max < 1 where these vanish, or use "
                "AdjointDPM, which integrates over rho"
            )
        return self.traced(chain, by)

    def backward_pass(
        self, chain: Chain, record: Trace, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        check = record.reevaluations(chain, by)
        # It evaluates the network between the sampler's nodes, where nothing can be compared.
        check.finish()
        augmented = Augmented(chain, by, check, record.contexts[-1])
        chain.cost.holds(1, graphs=1)
        clock, start = chain.grid.t.flip(0).tolist(), augmented.start(x_0, a_x)
        state = self.integrate(augmented, _Time(chain.grid), clock, start)
        return augmented.finish(state)


@dataclass(frozen=True, eq=False)
class _Time:
    """The equation at a time between the ends of a grid."""

    grid: TimeGrid

    def __call__(self, t: float) -> Coefficients:
        low, high = sorted((float(self.grid.t[0]), float(self.grid.t[-1])))
        if not low - 1e-6 <= t <= high + 1e-6:
            raise ValueError(
                f"the integrator asked for the network at t = {t}, outside [{low}, {high}]"
            )
        # Within rounding of float32, in which the integrator may hold its clock.
        time = torch.tensor(min(max(t, low), high), dtype=torch.float64)
        schedule = self.grid.schedule
        weight = -float(schedule.sigma(time)) * float(schedule.dlmbda(time))
        return Coefficients(time, 1.0, float(schedule.dlog_alpha(time)), weight)
