r"""Where a method gives the wrong sign, or blows up, on data whose answer is known.

The data are a Gaussian much narrower than the noise, so that :math:`J = I / \sigma` and every
step of width h must shrink p = alpha a_x by :math:`e^{-h}` (:math:`e^{-2h}` for the SDE). With
:math:`\alpha J = \rho / (s^2 + \rho^2)` the whole run has

.. math:: \frac{dx_0}{dx_T} = \frac{\alpha_0}{\alpha_T}
          \left(\frac{s^2 + \rho_0^2}{s^2 + \rho_T^2}\right)^{c/2} I,

c = 1 for the ODE and 2 for the SDE, whose noise is additive and does not enter.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from adjointdeis.diffusion import BrownianPath, GaussianDenoiser, VPLinear
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import NotSupportedError
from adjointdeis.gradients.catalogue import Calculus, Entry
from adjointdeis.rollout import sample


@dataclass(frozen=True)
class Factor:
    """What a method makes of dx_0/dx_T on a grid of equal steps.

    Attributes:
        h: log-SNR width of the steps.
        found: the multiple of the identity, by the method.
        true: by the continuous equations.
    """

    h: float
    found: float
    true: float

    @property
    def ratio(self) -> float:
        """1 is right, 0 loses the gradient, a negative number reverses the descent."""
        return self.found / self.true


def factor(
    one: Entry, calculus: Calculus, h: float, steps: int = 5, scale: float = 1e-3
) -> Factor | None:
    """Measure a method with a few equal steps at high noise; None where it refuses.

    Args:
        one: catalogue entry.
        calculus: which of its samplers.
        h: width of a step.
        steps: number of steps; odd, so that a sign lost in every step is lost in the end. The
            first ones of a multistep method have a lower order.
        scale: standard deviation of the data.
    """
    schedule = VPLinear()
    first = float(schedule.lmbda(1.0))
    lmbda = torch.linspace(first, first + steps * h, steps + 1, dtype=torch.float64)
    t = schedule.t_of(lmbda)
    t[0] = 1.0
    grid = TimeGrid.from_times(schedule, t)
    network = GaussianDenoiser(schedule, torch.zeros(2, dtype=torch.float64), scale)
    network.requires_grad_(False)
    path = BrownianPath((1, 2), seed=0) if calculus == "sde" else None
    solver = one.solver(calculus)
    assert solver is not None
    found = _slope(network, one.method(), solver, grid, path)
    if found is None:
        return None
    c = 1.0 if calculus == "ode" else 2.0
    noisy, clean = grid[0], grid[-1]
    shrunk = (scale**2 + clean.rho**2) / (scale**2 + noisy.rho**2)
    true = clean.alpha / noisy.alpha * shrunk ** (c / 2.0)
    return Factor(h, found, true)


def _slope(
    network: GaussianDenoiser, method: Any, solver: Any, grid: TimeGrid, path: Any
) -> float | None:
    x_T = torch.tensor([[1.0, -0.5]], dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        # The study measures what the warnings warn of.
        warnings.simplefilter("ignore")
        try:
            x_0 = sample(network, x_T, solver=solver, grid=grid, noise=path, gradient=method).x_0
            (gradient,) = torch.autograd.grad(x_0.sum(), x_T)
        except (NotSupportedError, ValueError, ArithmeticError, AssertionError):
            return None
    value = float(gradient[0, 0])
    return value if math.isfinite(value) else math.inf


def first_flip(
    one: Entry, calculus: Calculus, widest: float = 2.0, tolerance: float = 1e-3
) -> float | None:
    """The width of a step from which the gradient has the wrong sign; None up to ``widest``."""
    widths = [0.1 * i for i in range(1, round(widest / 0.1) + 1)]
    found = [factor(one, calculus, h) for h in widths]
    for i, value in enumerate(found):
        if value is None or value.ratio > 0.0:
            continue
        low, high = (widths[i - 1] if i else 0.0), widths[i]
        while high - low > tolerance:
            middle = 0.5 * (low + high)
            at = factor(one, calculus, middle)
            low, high = (low, middle) if at is not None and at.ratio <= 0.0 else (middle, high)
        return high
    return None
