r"""The adjoint equations as one ordinary differential equation, for black-box integrators.

A state u with :math:`x = s\,u` for a level s of the schedule follows
:math:`\dot u = l\,u + w\,\epsilon(s u, z, t)` on some clock. Its adjoint :math:`a_u = s\,a_x`
and the gradients of z and theta are carried along:

.. math:: \dot a_u = -l\,a_u - w\,s\,a_u J_x, \qquad \dot a_z = -w\,a_u J_z, \qquad
          \dot a_\theta = -w\,a_u J_\theta.

The clock :math:`\rho` has u = y, s = alpha, l = 0, w = 1; time itself has u = x, s = 1,
:math:`l = \dot{\log\alpha}`, :math:`w = -\sigma\dot\lambda`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from adjointdeis.extras import load
from adjointdeis.gradients.base import Needs
from adjointdeis.gradients.chain import Chain, Conditions, Surroundings, detached, pull_back

# Without torchdiffeq's Adams methods: their coefficients hold for equal steps only.
FixedMethod = Literal["euler", "midpoint", "heun2", "heun3", "rk4"]
AdaptiveMethod = Literal["adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8"]
OdeMethod = Literal[FixedMethod, AdaptiveMethod]
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8")


def check_integrator(owner: str, method: str, rtol: float, atol: float) -> None:
    """Refuse a method that torchdiffeq does not have, or tolerances that are not positive."""
    if method not in (*FIXED, *ADAPTIVE):
        raise ValueError(
            f"{owner}.method must be one of {', '.join((*FIXED, *ADAPTIVE))}, got {method!r}"
        )
    if rtol <= 0.0 or atol <= 0.0:
        raise ValueError(f"{owner} needs positive tolerances, got rtol={rtol} and atol={atol}")


@dataclass(frozen=True, eq=False)
class Place:
    """The equation at one instant of the clock.

    Attributes:
        t: time, 0-d float64.
        scale, linear, weight: s, l and w.
    """

    t: Tensor
    scale: float
    linear: float
    weight: float


@dataclass(frozen=True, eq=False)
class Augmented:
    """The right-hand side of (u, a_u, a_z, a_theta), counted and replayed.

    Attributes:
        chain: counts evaluations and products.
        zs: the condition, if any; one for all steps.
        parameters: weights that receive a gradient.
        needs: what is wanted.
        surroundings: random state and autocast setting of every evaluation.
    """

    chain: Chain
    zs: Conditions
    parameters: Sequence[Tensor]
    needs: Needs
    surroundings: Surroundings

    def start(self, u: Tensor, a_u: Tensor) -> list[Tensor]:
        """The state from which the backward solve starts."""
        sums = [
            *(z for z, need in zip(self.zs, self.needs.zs, strict=True) if need),
            *self.parameters,
        ]
        return [u, a_u, *(torch.zeros_like(value, dtype=u.dtype) for value in sums)]

    def slopes(self, place: Place, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Time derivative of the state on the clock."""
        u, a_u, *sums = state
        before = self.chain.cost.nfe
        with torch.enable_grad(), self.surroundings.replayed():
            x = detached(place.scale * u)
            z = detached(self.zs[0], self.needs.zs[0]) if self.zs else None
            eps = self.chain.denoiser(x, place.t, z)
        wanted = [x, *([z] if z is not None and z.requires_grad else []), *self.parameters]
        pulled = pull_back(self.chain, (eps,), (a_u,), wanted, self.chain.cost.nfe - before)
        a_x, *gradients = [
            torch.zeros_like(like) if found is None else found.to(like.dtype)
            for found, like in zip(pulled, [u, *sums], strict=True)
        ]
        return (
            place.linear * u + place.weight * eps.detach(),
            -place.linear * a_u - (place.weight * place.scale) * a_x,
            *(-place.weight * gradient for gradient in gradients),
        )

    def split(
        self, state: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
        """a_u, the gradients of the conditions and those of the parameters."""
        sums = iter(state[2:])
        a_z = [
            next(sums).to(z.dtype) if need else None
            for z, need in zip(self.zs, self.needs.zs, strict=True)
        ]
        return state[1], a_z, [next(sums).to(p.dtype) for p in self.parameters]


def integrate(
    augmented: Augmented,
    place: Callable[[float], Place],
    clock: Sequence[float],
    state: Sequence[Tensor],
    *,
    owner: str,
    method: str,
    rtol: float,
    atol: float,
) -> list[Tensor]:
    """Carry the state along the clock with torchdiffeq.

    A fixed method steps from reading to reading. An adaptive one is told to step exactly onto
    the last (``step_t``), where it would otherwise step beyond and interpolate, and to begin
    with the first gap instead of a trial evaluation at a place of its own.

    Args:
        place: the equation at a reading of the clock.
        clock: readings, monotone; the state is given at the first and wanted at the last.
    """
    torchdiffeq = load("torchdiffeq", f"gradients by {owner}")
    u = state[0]
    readings = torch.tensor(clock, dtype=torch.float64, device=u.device)
    options: dict[str, Any] = {}
    if method in ADAPTIVE:
        options = {
            "step_t": readings[-1:],
            "first_step": (readings[1] - readings[0]).abs(),
            "dtype": torch.float64,
        }
        readings = readings[[0, -1]]

    def right_hand_side(reading: Tensor, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return augmented.slopes(place(float(reading)), values)

    solution = torchdiffeq.odeint(
        right_hand_side, tuple(state), readings, method=method, rtol=rtol, atol=atol,
        options=options,
    )  # fmt: skip
    return [values[-1] for values in solution]
