r"""Exponential Adams-Bashforth weights: exact integrals of an interpolated velocity.

On an interval of log-SNR width h the integrals of the adjoint equations have the form

.. math:: \int V(\lambda)\, e^{-\kappa u(\lambda)}\, d\lambda \Big/ \int e^{-\kappa u} d\lambda,

u being the distance in lmbda from the heavy end of the interval: the noisy end with rate
:math:`\kappa = 1` for the clock :math:`\rho = e^{-\lambda}`, the clean end with rate
:math:`\kappa = c` for the clock :math:`e^{c\lambda}`. Replacing V by the polynomial through
its values at k nodes leaves the moments

.. math:: m_i = \frac{\int_0^h (\kappa u)^i e^{-\kappa u} du}{\int_0^h e^{-\kappa u} du}
              = i!\, \frac{P(i + 1, \kappa h)}{1 - e^{-\kappa h}},

P being the regularised incomplete gamma function. They are combinations of the phi functions:
:math:`P(i+1, x) = e^{-x} x^{i+1} \varphi_{i+1}(x)`. The error of an interval is
:math:`O(h^{k+1})`.

References:
    DEIS (fast sampling with exponential integrators), https://arxiv.org/abs/2204.13902
    Exponential integrators, section 2.3, https://doi.org/10.1017/S0962492910000048
"""

import math
from collections.abc import Sequence

import torch


def moments(count: int, x: float) -> list[float]:
    """m_0 .. m_{count-1} for kappa h = x > 0, without cancellation for small x."""
    orders = torch.arange(1, count + 1, dtype=torch.float64)
    shares = torch.special.gammainc(orders, torch.full_like(orders, x))
    return [math.factorial(i) * float(share) / -math.expm1(-x) for i, share in enumerate(shares)]


def interpolation_weights(places: Sequence[float], x: float) -> list[float]:
    r"""Weights w_j with which :math:`\sum_j w_j V_j` is the mean of V over an interval.

    Args:
        places: :math:`\kappa u` of the nodes at which V is known, all different; between 0
            and x inside the interval, outside of it where V is extrapolated.
        x: :math:`\kappa h` of the interval, finite and positive.

    Returns:
        One weight per place; they sum to 1.
    """
    # In units of x the coefficients of the Lagrange polynomials stay of order one.
    scaled = [place / x for place in places]
    means = [moment / x**i for i, moment in enumerate(moments(len(places), x))]
    polynomials = (lagrange(scaled, j) for j in range(len(scaled)))
    return [sum(c * m for c, m in zip(each, means, strict=True)) for each in polynomials]


def lagrange(places: Sequence[float], j: int) -> list[float]:
    """Coefficients, lowest first, of the polynomial that is 1 at place j and 0 at the others."""
    polynomial = [1.0]
    for other in (*places[:j], *places[j + 1 :]):
        shifted, kept, gap = [0.0, *polynomial], [*polynomial, 0.0], places[j] - other
        polynomial = [(a - other * b) / gap for a, b in zip(shifted, kept, strict=True)]
    return polynomial
