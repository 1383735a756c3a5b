r"""One discretisation of the adjoint equations, shared by every method built on them.

With p = alpha a_x the adjoint of the probability-flow ODE (c = 1) or of the reverse SDE
(c = 2) is, on the clock rho,

.. math:: \frac{dp}{d\rho} = -c\, p\, \alpha J_x, \qquad
          \frac{da_z}{d\rho} = -c\, p J_z, \qquad \frac{da_\theta}{d\rho} = -c\, p J_\theta,

so one interval from the clean node t to the noisy node s, :math:`r = \rho_s - \rho_t > 0`, is
:math:`p_s = p_t - c\, r\, D_x` and :math:`a_s = a_t - c\, r\, D_z` with D an estimate of the
velocity :math:`V = (p\,\alpha J_x,\; p J_z,\; p J_\theta)`:

* order 1, V at the clean end: AdjointDEIS-1, the Euler adjoint over rho of AdjointDPM;
* order 1, V at the noisy end: the exact discrete adjoint of DDIM and of SDE-DPM-Solver-1;
* order 2, :math:`D_i = (1 + \frac{1}{2 r_i}) V_i - \frac{1}{2 r_i} V_{i-1}`,
  :math:`r_i = h_{i-1} / h_i`: AdjointDEIS-2M.

In the paper's form, multiply out p = alpha a_x:
:math:`a_s = \frac{\alpha_t}{\alpha_s} a_t + \frac{\sigma_s}{\alpha_s^2}(e^{H} - 1) D`,
:math:`H = \lambda_s - \lambda_t < 0`, since :math:`\rho_s (e^H - 1) = -r`.
Paper: eq. 2.8 to 2.10, 2.14, 2.15, Algorithm 1, Prop. 3.1.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import log_snr_width, rho_gap

Velocity = Sequence[Tensor | None]
End = Literal["clean", "noisy"]


def extrapolated(
    current: Velocity, previous: Velocity | None, h: float, h_previous: float
) -> Velocity:
    """The 2M estimate D of the velocity; the current one when there is none before it.

    A first interval that starts at sigma = 0 has infinite width: the correction of the next
    one vanishes, which is its limit.
    """
    if previous is None:
        return current
    weight = h / (2.0 * h_previous)
    return [
        now if now is None or before is None else now + weight * (now - before)
        for now, before in zip(current, previous, strict=True)
    ]


def solve_adjoint(
    grid: TimeGrid,
    p: Tensor | None,
    velocity: Callable[[int, Node, Tensor | None], Velocity],
    integrate: Callable[[int, float, Velocity], None],
    *,
    factor: float,
    order: int = 1,
    end: End = "clean",
) -> Tensor | None:
    """Carry p from the last node of a sampling grid to its first.

    Args:
        grid: nodes of the adjoint solve, noise to data; intervals are visited from the last.
        p: alpha a_x at the last node.
        velocity: called as (interval, node, p) at the chosen end; returns V, x first.
        integrate: called as (interval, weight, D) with weight = -c r, to add
            ``weight * D[1:]`` to the sums of z and theta.
        factor: c, 1 for the ODE and 2 for the SDE.
        order: 1, or 2 for 2M.
        end: which end of the interval the velocity is taken at.

    Returns:
        p at the first node.
    """
    previous: Velocity | None = None
    h_previous = math.inf
    for interval in reversed(range(grid.steps)):
        s, t = grid[interval], grid[interval + 1]
        current = velocity(interval, t if end == "clean" else s, p)
        h = log_snr_width(s, t)
        estimate = current
        if order == 2:
            estimate = extrapolated(current, previous, h, h_previous)
            previous, h_previous = current, h
        weight = -factor * rho_gap(s, t)
        if p is not None and estimate[0] is not None:
            p = p + weight * estimate[0]
        integrate(interval, weight, estimate)
    return p
