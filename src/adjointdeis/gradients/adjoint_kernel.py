r"""One discretisation of the adjoint equations, shared by every method built on them.

**Noise prediction.** With p = alpha a_x the adjoint of the probability-flow ODE (c = 1) or of
the reverse SDE (c = 2) is, on the clock rho,

.. math:: \frac{dp}{d\rho} = -c\, p\, \alpha J_x, \qquad
          \frac{da_z}{d\rho} = -c\, p J_z, \qquad \frac{da_\theta}{d\rho} = -c\, p J_\theta,

so one interval from the clean node t to the noisy node s, :math:`r = \rho_s - \rho_t > 0`, is
:math:`p_s = p_t - c\, r\, D_x` and :math:`a_s = a_t - c\, r\, D_z` with D an estimate of the
mean velocity :math:`V = (p\,\alpha J_x,\; p J_z,\; p J_\theta)`:

* order 1, V at the clean end: AdjointDEIS-1, the Euler adjoint over rho of AdjointDPM;
* order 1, V at the noisy end: the exact discrete adjoint of DDIM and of SDE-DPM-Solver-1;
* order 2, :math:`D_i = (1 + \frac{1}{2 r_i}) V_i - \frac{1}{2 r_i} V_{i-1}`,
  :math:`r_i = h_{i-1} / h_i`: AdjointDEIS-2M;
* order k >= 3, the exact integral of the polynomial in lmbda through the last k velocities
  (see ``multistep``).

In the paper's form, multiply out p = alpha a_x:
:math:`a_s = \frac{\alpha_t}{\alpha_s} a_t + \frac{\sigma_s}{\alpha_s^2}(e^{H} - 1) D`,
:math:`H = \lambda_s - \lambda_t < 0`, since :math:`\rho_s (e^H - 1) = -r`.
Paper: eq. 2.8 to 2.10, 2.14, 2.15, Algorithm 1, Prop. 3.1.

**Data prediction.** With y = x / alpha the sampler solves :math:`dy = c\,\epsilon\,d\rho + dB`
(B only for the SDE), and :math:`\epsilon = (y - \hat x_0) / \rho`. The linear part has the
solution :math:`\rho^c`, so :math:`w = y / \rho^c` obeys, on the clock
:math:`\Gamma = \rho^{-c} = e^{c\lambda}`, :math:`d\Gamma = -c \rho^{-c-1} d\rho`,

.. math:: dw = \hat x_0(\alpha\rho^c w, z, t)\, d\Gamma + \rho^{-c} dB.

Its step :math:`w_t = w_s + (\Gamma_t - \Gamma_s)\hat x_0` is DPM-Solver++ for c = 1. For c = 2 it
is SDE-DPM-Solver++,
:math:`x_t = \frac{\sigma_t}{\sigma_s} e^{-h} x_s + \alpha_t (1 - e^{-2h}) \hat x_0` and noise: one
factor :math:`e^{-h}` more in the linear term, and 2h in the other. The noise is additive, so the
adjoint :math:`q = \alpha \rho^c a_x` of w has no noise term,

.. math:: \frac{dq}{d\Gamma} = -q\,\alpha\rho^c K_x, \qquad
          \frac{da_z}{d\Gamma} = -q K_z, \qquad \frac{da_\theta}{d\Gamma} = -q K_\theta,
          \qquad K = \partial \hat x_0,

and an interval is :math:`q_s = q_t + (\Gamma_t - \Gamma_s) D_x`, likewise for z and theta. Where
the data vary less than the noise, :math:`K \approx 0` and a step multiplies a_x by
:math:`\frac{\alpha_t}{\alpha_s} e^{-ch}`, the exact factor, however wide it is; the noise form
multiplies by :math:`\frac{\alpha_t}{\alpha_s}(1 - c(e^h - 1))`. For an exact denoiser K is
:math:`\alpha/\sigma^2` times a posterior covariance, hence positive, and so is the factor of a
first-order step in every direction: :math:`1 + (1 - e^{-ch})\,\alpha_t K` relative to it, with
:math:`0 \le \alpha K \le 1` where the data are Gaussian.

References:
    AdjointDEIS, https://arxiv.org/abs/2405.15020
    DPM-Solver++, sections 4 and 5, https://arxiv.org/abs/2211.01095
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import log_snr_width, rho_gap
from adjointdeis.gradients.multistep import interpolation_weights

Velocity = Sequence[Tensor | None]
End = Literal["clean", "noisy"]
Prediction = Literal["noise", "data"]


@dataclass(frozen=True)
class Form:
    """Which multiple of a_x is integrated, and over which clock: p over rho, or q over Gamma."""

    prediction: Prediction
    factor: float

    def scale(self, node: Node) -> float:
        r"""p / a_x or q / a_x: alpha, or :math:`\alpha\rho^c`."""
        return node.alpha if self.prediction == "noise" else node.alpha * node.rho**self.factor

    def weight(self, s: Node, t: Node) -> float:
        r"""Factor of the mean velocity over an interval: -c r, or Gamma_t - Gamma_s."""
        if self.prediction == "noise":
            return -self.factor * rho_gap(s, t)
        return -math.expm1(-self.factor * log_snr_width(s, t)) * t.rho**-self.factor

    def weights(self, s: Node, t: Node, nodes: Sequence[Node]) -> list[float]:
        """Weights of the velocities at some nodes in the mean over an interval."""
        if self.prediction == "noise":
            return interpolation_weights([n.lmbda - s.lmbda for n in nodes], log_snr_width(s, t))
        places = [self.factor * (t.lmbda - n.lmbda) for n in nodes]
        return interpolation_weights(places, self.factor * log_snr_width(s, t))


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
    prediction: Prediction = "noise",
    refine: bool = False,
) -> Tensor | None:
    r"""Carry p (or q) from the last node of a sampling grid to its first.

    Orders above 2 need values that are right to their own order before they can start: an
    Euler step taken once has an error of :math:`O(h^2)` that no later step removes. The first
    k - 1 intervals are therefore predicted with rising orders and then corrected: the integral
    of the polynomial through all k velocities replaces the prediction, which raises the order
    of its values by one. Order 3 needs one correction, from the velocities that are evaluated
    anyway; each order beyond that evaluates k - 1 velocities once more. The value after the
    start is then of order k; the share of each interval in it is one order less, unless the
    start is refined.

    Args:
        grid: nodes of the adjoint solve, noise to data; intervals are visited from the last.
        p: alpha a_x (q for data prediction) at the last node.
        velocity: called as (interval, node, p) at the chosen end; returns V, x first.
        integrate: called as (interval, weight, D), to add ``weight * D[1:]`` to the sums of z
            and theta; once for each interval, in order.
        factor: c, 1 for the ODE and 2 for the SDE.
        order: 1, 2 for 2M, or k >= 3; a grid of fewer than k intervals lowers it.
        end: which end of the interval the velocity is taken at; "noisy" has order 1 only.
        prediction: "noise", or "data", where sigma must be positive at the last node.
        refine: correct the start of an order k >= 3 once more, at k - 1 evaluations, so that
            every increment is of order k by itself: needed where they are told apart.

    Returns:
        p (or q) at the first node.
    """
    form = Form(prediction, factor)
    history: list[tuple[Node, Velocity]] = []
    interval = grid.steps - 1
    while interval >= 0:
        s, t = grid[interval], grid[interval + 1]
        if order > 2 and not history and math.isfinite(t.lmbda) and interval > 0:
            order = min(order, interval + 1)
            p, history = _start_up(grid, form, p, velocity, integrate, interval, order, refine)
            interval -= order - 1
            continue
        if not history or history[0][0].index != t.index or end == "noisy":
            node = t if end == "clean" else s
            history = [(node, velocity(interval, node, p)), *history][:order]
        estimate = _estimate(form, s, t, history, order)
        weight = form.weight(s, t)
        p = _moved(p, weight, estimate)
        integrate(interval, weight, estimate)
        if not math.isfinite(t.lmbda) and order > 2:
            history = []  # a velocity infinitely far away has weight 0 in the next interval
        interval -= 1
    return p


def _estimate(
    form: Form, s: Node, t: Node, history: Sequence[tuple[Node, Velocity]], order: int
) -> Velocity:
    """Mean velocity over an interval from the velocities at t and at cleaner nodes."""
    (_, current), *earlier = history
    if not earlier or order == 1:
        return current
    if order == 2:
        node, previous = earlier[0]
        return extrapolated(current, previous, log_snr_width(s, t), node.lmbda - t.lmbda)
    nodes, velocities = zip(*history, strict=True)
    return _combination(form.weights(s, t, nodes), velocities)


def _start_up(
    grid: TimeGrid,
    form: Form,
    p: Tensor | None,
    velocity: Callable[[int, Node, Tensor | None], Velocity],
    integrate: Callable[[int, float, Velocity], None],
    first: int,
    order: int,
    refine: bool,
) -> tuple[Tensor | None, list[tuple[Node, Velocity]]]:
    """The first order - 1 intervals, and the velocities at all their nodes, newest first."""
    intervals = [first - j for j in range(order)]
    nodes = [grid[i + 1] for i in intervals]
    ps, velocities = [p], [velocity(first, nodes[0], p)]
    for j in range(1, order):
        s, t = nodes[j], nodes[j - 1]
        known = list(zip(nodes[:j], velocities, strict=True))[::-1]
        estimate = _combination(form.weights(s, t, [n for n, _ in known]), [v for _, v in known])
        ps.append(_moved(ps[-1], form.weight(s, t), estimate))
        velocities.append(velocity(intervals[j], nodes[j], ps[j]))
    estimates: list[Velocity] = []
    for sweep in range(max(1, order - 2) + int(refine)):
        if sweep > 0:
            for j in range(1, order):
                velocities[j] = velocity(intervals[j], nodes[j], ps[j])
        estimates = [
            _combination(form.weights(nodes[j], nodes[j - 1], nodes), velocities)
            for j in range(1, order)
        ]
        for j, estimate in enumerate(estimates, start=1):
            ps[j] = _moved(ps[j - 1], form.weight(nodes[j], nodes[j - 1]), estimate)
    for j, estimate in enumerate(estimates, start=1):
        integrate(intervals[j - 1], form.weight(nodes[j], nodes[j - 1]), estimate)
    return ps[-1], list(zip(nodes, velocities, strict=True))[::-1]


def _moved(p: Tensor | None, weight: float, estimate: Velocity) -> Tensor | None:
    slope = estimate[0]
    return p if p is None or slope is None else p + weight * slope


def _combination(weights: Sequence[float], velocities: Sequence[Velocity]) -> Velocity:
    """Weighted sum of velocities, component by component; a missing component stays missing."""
    total: list[Tensor | None] = []
    for parts in zip(*velocities, strict=True):
        known = [(w, part) for w, part in zip(weights, parts, strict=True) if part is not None]
        total.append(None)
        for weight, part in known:
            total[-1] = weight * part if total[-1] is None else total[-1] + weight * part
    return total
