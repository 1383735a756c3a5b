r"""Where the noise form of the adjoint flips the sign of a gradient, and the warning that says so.

In every direction in which the data vary less than the noise, :math:`J \approx I / \sigma`, so
the velocity of the adjoint is :math:`V = p / \rho` and the exact solution shrinks by
:math:`e^{-ch}` per step. On steps of equal width h a method of order k makes of this the
recurrence

.. math:: p_{n+1} = p_n - c\,(e^h - 1) \sum_{j<k} w_j\, e^{jh}\, p_{n-j},

whose largest root is what a long run multiplies p by: :math:`1 - c(e^h - 1)` for k = 1. The
root nearest :math:`e^{-ch}` is the method's answer; the others are parasitic. Once the largest
one is negative the gradient changes sign from step to step: beyond
:math:`\ln(1 + 1/c)` for k = 1, that is ln 2 and ln 1.5, beyond :math:`\ln(1 + 2/(3c))` for 2M,
where the two roots sum to :math:`1 - \frac{3c}{2}(e^h - 1)` and have a negative product, and
earlier still for higher orders.

The data form has the exact factor there. Its risk is the other end, from order 3 on: where the
data vary more than the noise, :math:`\alpha K \approx 1`, the velocity
:math:`V = q\,\rho^c` grows like :math:`e^{2ch}` towards the noise, and a polynomial through
values that differ so much undershoots zero between them. Orders 1 and 2 only add positive terms.
"""

import math
import warnings

import torch

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.gradients.adjoint_kernel import Velocity, solve_adjoint
from adjointdeis.gradients.multistep import interpolation_weights


class LargeAdjointStepWarning(UserWarning):
    """A step so wide that the adjoint may flip the sign of the gradient."""


def largest_root(order: int, factor: float, h: float) -> complex:
    """What equal steps of width h multiply p by in the long run, where J = I / sigma."""
    if order == 1:
        weights = [1.0]
    elif order == 2:
        weights = [1.5, -0.5]
    else:
        weights = interpolation_weights([(1 + j) * h for j in range(order)], h)
    growth = factor * math.expm1(h)
    companion = torch.zeros(order, order, dtype=torch.float64)
    companion[1:, :-1] = torch.eye(order - 1)
    companion[0] = torch.tensor(
        [(j == 0) - growth * w * math.exp(j * h) for j, w in enumerate(weights)],
        dtype=torch.float64,
    )
    roots = torch.linalg.eigvals(companion)
    return complex(roots[roots.abs().argmax()])


def sign_limit(order: int, factor: float) -> float:
    """The step width beyond which the largest root is not positive."""
    if order <= 2:
        return math.log1p((1.0 if order == 1 else 2.0 / 3.0) / factor)
    low, high = 0.0, math.log1p(1.0 / factor)
    for _ in range(40):
        h = 0.5 * (low + high)
        root = largest_root(order, factor, h)
        low, high = (h, high) if root.real > 1e-9 * abs(root) else (low, h)
    return low


def flipped_step(grid: TimeGrid, factor: float, order: int) -> int | None:
    """First interval, from the clean end, after which q is negative where alpha K = 1.

    The solve itself is run on a scalar, with the widths of this grid.
    """
    q, flips = torch.ones((), dtype=torch.float64), []

    def velocity(interval: int, node: Node, q: torch.Tensor | None) -> Velocity:
        del interval
        return [None if q is None else q * node.rho**factor]

    def integrate(interval: int, weight: float, estimate: Velocity) -> None:
        nonlocal q
        slope = estimate[0]
        assert slope is not None
        q = q + weight * slope
        if float(q) < 0.0:
            flips.append(interval)

    solve_adjoint(grid, q, velocity, integrate, factor=factor, order=order, prediction="data")
    return flips[0] if flips else None


def warn_of_large_steps(
    grid: TimeGrid,
    factor: float,
    order: int = 1,
    prediction: str = "noise",
    owner: str = "AdjointDEIS",
    substeps: int = 1,
) -> None:
    """Warn once if a step can flip the sign of the adjoint.

    The noise form is judged by its widest finite step, the data form by ``flipped_step``. Where an
    interval is divided into equal ``substeps`` of rho, the one at the clean end is the widest in
    lmbda.
    """
    if prediction == "data":
        _warn_of_undershooting(grid, factor, order, owner)
        return
    h = torch.where(grid.h.isfinite(), grid.h, 0.0)
    h = torch.log1p(torch.expm1(h) / substeps)
    widest, step = float(h.max()), int(h.argmax())
    limit = sign_limit(order, factor)
    if widest <= limit:
        return
    ode = factor == 1.0
    if order == 1:
        name = "ln 2" if ode else "ln 1.5"
        form, value = ("2 - e^h" if ode else "3 - 2e^h"), 1.0 - factor * math.expm1(widest)
    else:
        exact = {(2, 1.0): " = ln 5/3", (2, 2.0): " = ln 4/3"}.get((order, factor), "")
        name = f"{limit:.3g}{exact}, the limit of order {order}"
        root = largest_root(order, factor, widest)
        form = "on steps of this width the largest root of its recurrence"
        value = root.real if abs(root.imag) < 1e-9 else root
    instead = "prediction='data', or more steps" if owner == "AdjointDEIS" else "or more steps"
    warnings.warn(
        f"{owner}: adjoint step {step} of {grid.steps} (t = {float(grid.t[step]):.4g} to "
        f"{float(grid.t[step + 1]):.4g}) has h = {widest:.3g} > {name}. Where the data vary less "
        f"than the noise it multiplies the adjoint by {form} = {value:.3g}, whose sign is wrong; "
        f"the true factor is {math.exp(-factor * widest):.3g}. Use DiscreteAdjoint, which is exact "
        f"at the same cost, {instead} on TimeGrid.uniform_lmbda",
        LargeAdjointStepWarning,
        stacklevel=2,
    )


def _warn_of_undershooting(grid: TimeGrid, factor: float, order: int, owner: str) -> None:
    step = flipped_step(grid, factor, order) if order > 2 else None
    if step is None:
        return
    warnings.warn(
        f"{owner}: adjoint step {step} of {grid.steps} (t = {float(grid.t[step]):.4g} to "
        f"{float(grid.t[step + 1]):.4g}) has h = {float(grid.h[step]):.3g}, too wide for order "
        f"{order} in data prediction. Where the data vary more than the noise the velocity grows "
        f"like e^{2.0 * factor:g}h, the polynomial through it undershoots, and the adjoint changes "
        "sign. Use DiscreteAdjoint, which is exact at the same cost, order 2, or more steps on "
        "TimeGrid.uniform_lmbda",
        LargeAdjointStepWarning,
        stacklevel=3,
    )
