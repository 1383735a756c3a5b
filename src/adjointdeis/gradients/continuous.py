"""How a method solves the continuous adjoint equations: what the paper's Table 3 compares."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ContinuousAdjoint:
    """The choices behind a discretisation of the adjoint equations.

    Attributes:
        clock: the variable that is stepped: "t", "rho" or "lambda".
        integrator: what steps: "custom solver", "black-box ODE solver" or "black-box SDE
            solver".
        exponential: whether the linear term is integrated exactly, in the equation or by a
            change of variables that removes it.
        sde_coefficients: whether the coefficients of an SDE step are in closed form.
        any_sampler: whether the sampling run may be made by any solver.
        own_steps: whether the adjoint may take another number of steps than the sampler.
    """

    clock: Literal["t", "rho", "lambda"]
    integrator: Literal["custom solver", "black-box ODE solver", "black-box SDE solver"]
    exponential: bool = True
    sde_coefficients: bool = False
    any_sampler: bool = True
    own_steps: bool = False
