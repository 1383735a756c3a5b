r"""Coefficients of one first-order step s -> t, each finite at both exact ends.

With :math:`y = x/\alpha` the ODE is :math:`dy/d\rho = \epsilon`, so one step is
:math:`y_t = y_s + (\rho_t - \rho_s)\,\epsilon_s`; in x it reads
:math:`x_t = \frac{\alpha_t}{\alpha_s} x_s - \sigma_t (e^h - 1) \epsilon_s`.
Only ``expm1`` of non-positive numbers is taken: sigma_t = 0 gives h = inf, alpha_t = 0 gives
h = -inf, and both coefficients keep their limits.
"""

import math

from adjointdeis.diffusion.grid import Node


def log_snr_width(s: Node, t: Node) -> float:
    """h = lmbda_t - lmbda_s; positive when sampling, negative when encoding."""
    return t.lmbda - s.lmbda


def signal_ratio(s: Node, t: Node) -> float:
    """alpha_t / alpha_s, the factor of x_s.

    Raises:
        ValueError: alpha_s = 0; from there no step towards data is defined.
    """
    if s.alpha == 0.0:
        raise ValueError(
            "a step cannot start where alpha = 0: the noise prediction does not determine x_0 "
            "there. Start the grid at the schedule's t_max, or use DDIM or DPMSolverPP with a "
            "network that predicts v, a flow or the data (EpsFromV, EpsFromFlow, EpsFromX0)"
        )
    return t.alpha / s.alpha


def eps_weight(s: Node, t: Node) -> float:
    r"""Factor of the noise prediction, :math:`-\sigma_t (e^h - 1)`.

    Equal to :math:`\alpha_t (\rho_t - \rho_s)`; negative when sampling.
    """
    h = log_snr_width(s, t)
    if h >= 0.0:
        return t.alpha * s.rho * math.expm1(-h)
    return -t.sigma * math.expm1(h)


def x0_weight(s: Node, t: Node) -> float:
    r"""Factor of the data prediction in DPM-Solver++, :math:`\alpha_t (1 - e^{-h})`."""
    h = log_snr_width(s, t)
    if h >= 0.0:
        return -t.alpha * math.expm1(-h)
    return t.sigma / s.rho * math.expm1(h)


def rho_gap(s: Node, t: Node) -> float:
    r"""r = rho_s - rho_t > 0 for s noisier than t, as :math:`\rho_s (1 - e^{-h})`."""
    return -s.rho * math.expm1(-log_snr_width(s, t))


def path_scale(s: Node, t: Node) -> float:
    r"""Standard deviation :math:`\sqrt{\rho_s^2 - \rho_t^2}` of the Wiener increment in y.

    The reverse SDE in y is :math:`dy = 2\epsilon\,d\rho + dB` with B a Wiener process on the
    clock :math:`\rho^2`; s is the noisier node.
    """
    return s.rho * math.sqrt(-math.expm1(-2.0 * log_snr_width(s, t)))


def noise_weight(s: Node, t: Node) -> float:
    r"""Factor of the standard normal in a reverse SDE step, :math:`\sigma_t\sqrt{e^{2h}-1}`."""
    return t.alpha * path_scale(s, t)
