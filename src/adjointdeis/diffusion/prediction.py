r"""Conversions between what networks predict, all through the noise prediction eps.

====  ==============================================  ========================================
name  definition                                      eps from it
====  ==============================================  ========================================
eps   the noise in x                                  itself
x0    the data in x                                   (x - alpha x0) / sigma
m     the data in x up to a residual N(0, s^2)        sigma (x - alpha m) / (sigma^2 + alpha^2 s^2)
v     alpha eps - sigma x0 (variance preserving)      (alpha v + sigma x) / (alpha^2 + sigma^2)
flow  dx/dt of a straight path, eps - x0              x + (1 - t) flow
====  ==============================================  ========================================
"""

import torch
from torch import Tensor

Level = float | Tensor  # alpha or sigma: one for all, or one an example, broadcast to x


def x0_from_eps(x: Tensor, eps: Tensor, alpha: float, sigma: float) -> Tensor:
    """Data prediction.

    Args:
        x: Latents (B, ...).
        eps: Noise prediction, of the same shape.
        alpha: Signal level of the schedule at t, in [0, 1].
        sigma: Noise level there, 0 or more.

    Raises:
        ValueError: alpha = 0, where x is noise and eps says nothing about the data.
    """
    if not isinstance(alpha, Tensor) and alpha == 0.0:
        raise ValueError(
            "where alpha = 0 a noise prediction says nothing about the data. Give a network that "
            "predicts v, a flow or the data as it is (EpsFromV, EpsFromFlow, EpsFromX0), with DDIM "
            "or DPMSolverPP; or start the grid at the schedule's t_max"
        )
    return (x - sigma * eps) / alpha


def x0_from_v(x: Tensor, v: Tensor, alpha: float, sigma: float) -> Tensor:
    """Data prediction from a velocity v = alpha eps - sigma x0; at alpha = 0 it is -v / sigma.

    Args:
        x: Latents (B, ...).
        v: Velocity, of the same shape.
        alpha: Signal level of the schedule at t, in [0, 1].
        sigma: Noise level there, 0 or more.
    """
    return (alpha * x - sigma * v) / (alpha**2 + sigma**2)


def x0_from_flow(x: Tensor, flow: Tensor, alpha: float, sigma: float) -> Tensor:
    """Data prediction from a rectified-flow velocity eps - x0, for any alpha + sigma > 0.

    Args:
        x: Latents (B, ...).
        flow: Velocity, of the same shape.
        alpha: Signal level of the schedule at t, in [0, 1].
        sigma: Noise level there, 0 or more.
    """
    return (x - sigma * flow) / (alpha + sigma)


def eps_from_x0(x: Tensor, x0: Tensor, alpha: Level, sigma: Level, spread: float = 0.0) -> Tensor:
    r"""Noise prediction from a data prediction.

    A network too narrow to carry noise predicts :math:`m`, what it can tell of the data, and
    leaves out a residual that is modelled as white: :math:`x_0 = m + s\,n` with normal n. The noise
    expected in :math:`x = \alpha x_0 + \sigma\epsilon` given x and m is then

    .. math:: \epsilon = \frac{\sigma\,(x - \alpha m)}{\sigma^2 + \alpha^2 s^2},

    which for s > 0 goes to 0 with sigma and has a gain :math:`\partial\epsilon/\partial x` of at
    most :math:`1/(2\alpha s)`. The data expected are :math:`m + \frac{s^2}{s^2 + \rho^2}
    (x/\alpha - m)` with :math:`\rho = \sigma/\alpha`. At s = 0 that is the plain data prediction,
    at s = 1 and :math:`\alpha^2 + \sigma^2 = 1` a v-prediction of :math:`v = -\sigma m`.

    Args:
        x: Noisy data.
        x0: The network's output, x0 or m, with the shape of x.
        alpha: Of x.
        sigma: Of x; above 0 where the spread is 0.
        spread: s, standard deviation of what m leaves out, in the units of the data.
    """
    if spread == 0.0:
        return (x - alpha * x0) / sigma
    return (x - alpha * x0) * (sigma / (sigma**2 + (alpha * spread) ** 2))


def eps_from_v(x: Tensor, v: Tensor, alpha: float, sigma: float) -> Tensor:
    """Noise prediction from a velocity v = alpha eps - sigma x0.

    Args:
        x: Latents (B, ...).
        v: Velocity, of the same shape.
        alpha: Signal level of the schedule at t, in [0, 1].
        sigma: Noise level there, 0 or more.
    """
    return (alpha * v + sigma * x) / (alpha**2 + sigma**2)


def v_from_eps(x: Tensor, eps: Tensor, alpha: Level, sigma: Level) -> Tensor:
    """Velocity v = alpha eps - sigma x0 from a noise prediction; needs alpha > 0.

    Args:
        x: Latents (B, ...).
        eps: Noise prediction, of the same shape.
        alpha: Signal level of the schedule at t, in (0, 1].
        sigma: Noise level there, 0 or more.
    """
    return ((alpha**2 + sigma**2) * eps - sigma * x) / alpha


def eps_from_flow(x: Tensor, flow: Tensor, alpha: float, sigma: float) -> Tensor:
    """Noise prediction from a rectified-flow velocity eps - x0, for any alpha + sigma > 0.

    Args:
        x: Latents (B, ...).
        flow: Velocity, of the same shape.
        alpha: Signal level of the schedule at t, in [0, 1].
        sigma: Noise level there, 0 or more.
    """
    return (x + alpha * flow) / (alpha + sigma)


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 where it is in half precision.

    For sums over a sample: the square of 300 is beyond float16, and the sum of a latent's squares
    has three digits in bfloat16.
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
