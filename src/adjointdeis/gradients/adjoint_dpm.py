"""AdjointDPM: the continuous adjoint over rho, by any integrator of torchdiffeq."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients.augmented import (
    AdaptiveMethod,
    Augmented,
    Coefficients,
    OdeAdjoint,
    OdeMethod,
)
from adjointdeis.gradients.base import ContinuousAdjoint, refuse_other
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.large_steps import warn_of_large_steps
from adjointdeis.gradients.trace import Trace


@dataclass(frozen=True)
class AdjointDPM(OdeAdjoint):
    r"""Backward solve of :math:`dp/d\rho = -p\,\alpha J`, p = alpha a_x, in a black box.

    On the clock :math:`\rho` the sampler is :math:`dy/d\rho = \epsilon(\alpha y, z, t(\rho))`,
    without a linear term; y, p, a_z and a_theta are integrated together from the clean end.
    The time of every evaluation is the exact inverse :math:`t(\rho)`. The published code takes
    the nearest grid node instead, which costs every method with inner stages its order.
    Paper: appendix A.

    "euler" on recorded states is ``AdjointDEIS`` of order 1.

    Args:
        method: a fixed-step method of torchdiffeq, which steps over the sampling nodes, or an
            adaptive one.
        states: where y comes from.

            * "recorded": y is set to the sampled state at every sampling node and integrated
              within an interval only. N latents.
            * "resolved": y is integrated back from x_0 throughout. O(1) latents; errors grow
              where the flow contracts.
        rtol, atol: tolerances of an adaptive method on (y, p, a_z, a_theta).
        check: as for ``StepwiseMethod``.

    Warns:
        LargeAdjointStepWarning: with "euler", where a step passes h = ln 2; it then flips the
            sign of the gradient in directions where the data vary less than the noise.

    Raises:
        ValueError: unknown method or states; an encoding grid.
        MissingPackageError: torchdiffeq is not installed.
        NotSupportedError: an SDE sampler, or a scheduled z.

    When not to use: where the gradient of the sampler that ran is wanted: ``DiscreteAdjoint``
    costs as much as "euler" and is exact.

    References:
        AdjointDPM, https://arxiv.org/abs/2307.10711
        torchdiffeq, https://github.com/rtqichen/torchdiffeq
    """

    method: OdeMethod = "euler"
    states: Literal["recorded", "resolved"] = "recorded"
    rtol: float = 1e-5
    atol: float = 1e-5
    memory: ClassVar[str] = "N latents; O(1) latents with re-solved states"
    adjoint: ClassVar[ContinuousAdjoint] = ContinuousAdjoint(
        clock="rho", integrator="black-box ODE solver"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_other(self, states=(self.states, ("recorded", "resolved")))

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Trace]:
        if not chain.grid.sampling:
            raise ValueError("AdjointDPM differentiates sampling grids (noise to data)")
        if self.method == "euler":
            warn_of_large_steps(chain.grid, chain.factor, owner="AdjointDPM")
        kept = range(chain.steps) if self.states == "recorded" else ()
        return self.traced(chain, by, kept)

    def backward_pass(
        self, chain: Chain, record: Trace, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        grid, coefficients = chain.grid, _Clock(chain.grid)
        check = record.reevaluations(chain, by)
        if self.states == "resolved" or self.method in get_args(AdaptiveMethod):
            check.finish()
        augmented = Augmented(chain, by, check, record.contexts[-1])
        state = augmented.start(x_0 / grid[-1].alpha, grid[-1].alpha * a_x)
        chain.cost.holds(1, graphs=1)
        if self.states == "resolved":
            clock = grid.rho.flip(0).tolist()
            state = self.integrate(augmented, coefficients, clock, state)
        else:
            for step in reversed(range(chain.steps)):
                s, t = grid[step], grid[step + 1]
                if step + 1 < chain.steps:
                    state = [record.state(step + 1) / t.alpha, *state[1:]]
                augmented.context = record.contexts[step + 1]
                clock = [t.rho, s.rho]
                state = self.integrate(augmented, coefficients, clock, state)
        return augmented.finish(state) / grid[0].alpha


@dataclass(frozen=True, eq=False)
class _Clock:
    """The equation at a reading of rho, whose time is the exact inverse."""

    grid: TimeGrid

    def __call__(self, rho: float) -> Coefficients:
        last, first = self.grid[-1], self.grid[0]
        if rho <= last.rho or rho >= first.rho:
            # Beyond the ends there is rounding only: the integrator steps onto them.
            node = last if rho <= last.rho else first
            return Coefficients(node.t, node.alpha, 0.0, 1.0)
        t = self.grid.schedule.t_of(-math.log(rho)).clamp(last.t, first.t)
        return Coefficients(t, float(self.grid.schedule.alpha(t)), 0.0, 1.0)
