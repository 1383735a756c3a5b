"""Denoisers: callables ``denoiser(x, t, z) -> eps``, and adapters that make one.

x has shape (B, *), t is a 0-d float64 tensor in [0, 1], z is a tensor, usually (B, d), or
None. A denoiser that is an ``nn.Module`` exposes its weights to the gradient methods by
``parameters()``; every adapter here is one.
"""

import math
from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from adjointdeis.diffusion.prediction import eps_from_flow, eps_from_v, eps_from_x0
from adjointdeis.diffusion.schedule import DDPM, Schedule


class Denoiser(Protocol):
    """What the package asks of a noise-prediction network."""

    def __call__(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """The noise in x at time t under the condition z, with the shape of x."""
        ...


class _Converted(nn.Module):
    """A network of another parametrisation, seen as a noise prediction.

    Args:
        network: callable of (x, t, z) with its own output convention.
        schedule: gives alpha and sigma at t.
    """

    def __init__(self, network: Callable[..., Tensor], schedule: Schedule) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule

    def levels(self, t: Tensor) -> tuple[float, float]:
        """alpha and sigma at t, as floats."""
        return float(self.schedule.alpha(t)), float(self.schedule.sigma(t))


class EpsFromX0(_Converted):
    r"""Noise prediction of a network that predicts the data, exactly or up to a white residual.

    With a spread s the network predicts m in :math:`x_0 = m + s\,n`, n standard normal, and

    .. math:: \epsilon = \sigma (x - \alpha m) / (\sigma^2 + \alpha^2 s^2)

    (:func:`~adjointdeis.diffusion.prediction.eps_from_x0`). Use the spread that the network was
    trained with: another one changes what the same weights draw.

    Args:
        network: callable of (x, t, z) that returns x0, or m.
        schedule: gives alpha and sigma at t.
        spread: s >= 0, in the units of the data. At 0 nothing is defined where sigma = 0.

    Raises:
        ValueError: a negative or infinite spread; or sigma = 0 with a spread of 0.
    """

    def __init__(
        self, network: Callable[..., Tensor], schedule: Schedule, spread: float = 0.0
    ) -> None:
        super().__init__(network, schedule)
        if not 0.0 <= spread < math.inf:
            raise ValueError(f"spread={spread}: a standard deviation is 0 or more, and finite")
        self.spread = spread

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        alpha, sigma = self.levels(t)
        if sigma == 0.0 and self.spread == 0.0:
            raise ValueError("a data prediction gives no noise prediction where sigma = 0 (t = 0)")
        return eps_from_x0(x, self.network(x, t, z), alpha, sigma, self.spread)


class EpsFromV(_Converted):
    """Noise prediction of a network that predicts v = alpha eps - sigma x0.

    References:
        Progressive distillation, https://arxiv.org/abs/2202.00512
    """

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return eps_from_v(x, self.network(x, t, z), *self.levels(t))


class EpsFromFlow(_Converted):
    """Noise prediction of a rectified-flow network that predicts eps - x0."""

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return eps_from_flow(x, self.network(x, t, z), *self.levels(t))


class FromTimesteps(nn.Module):
    """A network that takes a batch of integer timesteps, seen as one of continuous time.

    Args:
        network: callable of (x, timesteps, z), timesteps of shape (B,).
        schedule: maps t to timesteps (:meth:`DDPM.timestep_of_t`).
        rounded: pass int64 timesteps rounded to the nearest; otherwise fractional ones in
            the dtype of x, for networks whose time embedding is continuous.
    """

    def __init__(
        self, network: Callable[..., Tensor], schedule: DDPM, rounded: bool = True
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.rounded = rounded

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        timestep = self.schedule.timestep_of_t(t)
        value = timestep.round().long() if self.rounded else timestep.to(x.dtype)
        return self.network(x, value.to(x.device).expand(x.shape[0]), z)
