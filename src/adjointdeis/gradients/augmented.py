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
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from adjointdeis.extras import load
from adjointdeis.gradients.base import StepwiseMethod, refuse_other
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.step_context import StepContext
from adjointdeis.gradients.trace import Reevaluations

# Without torchdiffeq's Adams methods: their coefficients hold for equal steps only.
FixedMethod = Literal["euler", "midpoint", "heun2", "heun3", "rk4"]
AdaptiveMethod = Literal["adaptive_heun", "fehlberg2", "bosh3", "dopri5", "dopri8"]
OdeMethod = Literal[FixedMethod, AdaptiveMethod]


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The equation at one instant of the clock: time, 0-d float64, and s, l and w."""

    t: Tensor
    scale: float
    linear: float
    weight: float


@dataclass(eq=False)
class Augmented:
    """The right-hand side of (u, a_u, a_z, a_theta), evaluated in one context and compared."""

    chain: Chain
    by: Inputs
    check: Reevaluations
    context: StepContext

    def start(self, u: Tensor, a_u: Tensor) -> list[Tensor]:
        """The state from which the backward solve starts.

        Raises:
            NotSupportedError: complex numbers beside real ones, in a state of one kind.
        """
        sums = [*self.by.z[0], *self.by.theta]
        if any(value.is_complex() for value in sums) and not u.is_complex():
            raise NotSupportedError(
                "z or a weight is complex and x is not, which an integrator of one state cannot "
                "carry: use gradient=DiscreteAdjoint(), or pass torch.view_as_real(z)"
            )
        return [u, a_u, *(torch.zeros_like(value, dtype=u.dtype) for value in sums)]

    def slopes(self, at: Coefficients, state: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Time derivative of the state on the clock."""
        u, a_u, *sums = state

        def predicted(x: Tensor, z: Any) -> Tensor:
            eps = self.chain.denoiser(x, at.t, z)
            self.check.compare(x, at.t, 0, eps)
            return eps

        pulled_x, rest, eps = self.by.product(predicted, at.scale * u, 0, a_u, self.context)
        a_x, *gradients = [
            torch.zeros_like(like) if found is None else _dense(found).to(like.dtype)
            for found, like in zip([pulled_x, *rest], [u, *sums], strict=True)
        ]
        return (
            at.linear * u + at.weight * eps,
            -at.linear * a_u - (at.weight * at.scale) * a_x,
            *(-at.weight * gradient for gradient in gradients),
        )

    def finish(self, state: Sequence[Tensor]) -> Tensor:
        """a_u at the end of the solve; the gradients of z and theta are added up."""
        self.check.finish()
        inputs = [*self.by.z[0], *self.by.theta]
        self.by.add([sums.to(t.dtype) for sums, t in zip(state[2:], inputs, strict=True)])
        return state[1]


def _dense(gradient: Tensor) -> Tensor:
    """A gradient that an integrator can take: that of ``nn.Embedding(sparse=True)`` is sparse."""
    return gradient.to_dense() if gradient.is_sparse else gradient


class OdeAdjoint(StepwiseMethod):
    """A method that carries the augmented state by torchdiffeq.

    Raises:
        ValueError: a method that torchdiffeq does not have, or tolerances that are not positive.
    """

    method: OdeMethod
    rtol: float
    atol: float
    sde: ClassVar[bool] = False
    z_t: ClassVar[bool] = False

    def __post_init__(self) -> None:
        refuse_other(self, method=(self.method, get_args(OdeMethod)))
        if not (self.rtol > 0.0 and self.atol > 0.0):  # nan is neither
            raise ValueError(
                f"{type(self).__name__} needs positive tolerances, got rtol={self.rtol} and "
                f"atol={self.atol}"
            )

    def integrate(
        self,
        augmented: Augmented,
        coefficients: Callable[[float], Coefficients],
        clock: Sequence[float],
        state: Sequence[Tensor],
    ) -> list[Tensor]:
        """Carry the state along the clock.

        A fixed method steps from reading to reading. An adaptive one is told to step exactly onto
        the last (``step_t``), where it would otherwise step beyond and interpolate, and to begin
        with the first gap instead of a trial evaluation at a place of its own.

        Args:
            coefficients: the equation at a reading of the clock.
            clock: readings, monotone; the state is given at the first and wanted at the last.
        """
        torchdiffeq = load("torchdiffeq", f"gradients by {type(self).__name__}")
        u = state[0]
        # Times on an accelerator without float64 are read in float32.
        dtype = torch.float32 if u.device.type == "mps" else torch.float64
        readings = torch.tensor(clock, dtype=dtype, device=u.device)
        options: dict[str, Any] = {}
        if self.method in get_args(AdaptiveMethod):
            options = {
                "step_t": readings[-1:],
                "first_step": (readings[1] - readings[0]).abs(),
                "dtype": dtype,
            }
            readings = readings[[0, -1]]

        def right_hand_side(reading: Tensor, values: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return augmented.slopes(coefficients(float(reading)), values)

        solution = torchdiffeq.odeint(
            right_hand_side, tuple(state), readings, method=self.method, rtol=self.rtol,
            atol=self.atol, options=options,
        )  # fmt: skip
        return [values[-1] for values in solution]
