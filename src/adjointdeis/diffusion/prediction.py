r"""Conversions between what networks predict, all through the noise prediction eps.

====  ==============================================  ========================================
name  definition                                      eps from it
====  ==============================================  ========================================
eps   the noise in x                                  itself
x0    the data in x                                   (x - alpha x0) / sigma
v     alpha eps - sigma x0 (variance preserving)      (alpha v + sigma x) / (alpha^2 + sigma^2)
flow  dx/dt of a straight path, eps - x0              x + (1 - t) flow
====  ==============================================  ========================================
"""

from torch import Tensor


def x0_from_eps(x: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    """Data prediction; needs alpha > 0."""
    return (x - sigma * eps) / alpha


def eps_from_x0(x: Tensor, x0: Tensor, alpha: float, sigma: float) -> Tensor:
    """Noise prediction from a data prediction; needs sigma > 0."""
    return (x - alpha * x0) / sigma


def eps_from_v(x: Tensor, v: Tensor, alpha: float, sigma: float) -> Tensor:
    """Noise prediction from a velocity v = alpha eps - sigma x0."""
    return (alpha * v + sigma * x) / (alpha**2 + sigma**2)


def v_from_eps(x: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    """Velocity v = alpha eps - sigma x0 from a noise prediction; needs alpha > 0."""
    return ((alpha**2 + sigma**2) * eps - sigma * x) / alpha


def eps_from_flow(x: Tensor, flow: Tensor, alpha: float, sigma: float) -> Tensor:
    """Noise prediction from a rectified-flow velocity eps - x0, for any alpha + sigma > 0."""
    return (x + alpha * flow) / (alpha + sigma)
