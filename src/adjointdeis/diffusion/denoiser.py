"""Denoisers: callables ``denoiser(x, t, z) -> eps``, and adapters that make one.

x has shape (B, *), t is a 0-d float64 tensor in [0, 1], z is a tensor, usually (B, d), or
None. A denoiser that is an ``nn.Module`` exposes its weights to the gradient methods by
``parameters()``; every adapter here is one.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from adjointdeis.diffusion.prediction import (
    eps_from_flow,
    eps_from_v,
    eps_from_x0,
    x0_from_flow,
    x0_from_v,
)
from adjointdeis.diffusion.schedule import DDPM, Schedule


class Denoiser(Protocol):
    """What the package asks of a noise-prediction network."""

    def __call__(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """The noise in x at time t under the condition z, with the shape of x."""
        ...


def is_wider(output: Any, x: Tensor) -> bool:
    """Whether an output has more channels than x, which a solver may take as a variance.

    Raises:
        ValueError: it has another shape than x otherwise, and would be broadcast; or is an object
            around a tensor.
    """
    if isinstance(output, Tensor):
        if output.shape == x.shape:
            return False
        if output.ndim == x.ndim > 1:
            same = output.shape[:1] == x.shape[:1] and output.shape[2:] == x.shape[2:]
            if same and output.shape[1] > x.shape[1]:
                return True
        what, then = f"a tensor of shape {tuple(output.shape)}", "it would be broadcast"
        if output.shape[1:] == x.shape[1:] and len(output) > len(x):
            then = f"it holds a tensor of the whole batch of {len(output)}; pass it in z"
    else:
        what, then = f"a {type(output).__name__}", "write network(...)[0], or .sample"
    raise ValueError(
        f"the denoiser returned {what}, expected a tensor of x's shape {tuple(x.shape)}: {then}"
    )


class _Converted(nn.Module):
    """A network of another parametrisation, seen as a noise prediction.

    ``data(x, t, z)`` is its data prediction, which exists where alpha = 0 too: there x is noise,
    eps = x whatever the network says, and only the data are left to step with.

    Args:
        network: callable of (x, t, z) with its own output convention.
        schedule: gives alpha and sigma at t.
    """

    predicts = "eps"

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
            raise ValueError(
                "a data prediction gives no noise prediction where sigma = 0 (t = 0), and this "
                "solver asks for one there: use DDIM(), DPMSolverPP() or RungeKutta('heun'), which "
                "do not; or end the grid before, at sigmas[:-1] or t_min=1e-3, and take the last "
                "step by sample(denoiser, rollout.x_0, z, solver=DDIM(), "
                "grid=TimeGrid.from_sigmas(schedule, sigmas[-2:]))"
            )
        return eps_from_x0(x, self.network(x, t, z), alpha, sigma, self.spread)

    def data(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """The data expected in x.

        Args:
            x: Latents (B, ...).
            t: Time, in (0, 1].
            z: Condition, or None.
        """
        alpha, sigma = self.levels(t)
        m = self.network(x, t, z)
        if self.spread == 0.0:
            return m
        kept = self.spread**2 / (sigma**2 + (alpha * self.spread) ** 2)
        return m + alpha * kept * (x - alpha * m)


class EpsFromV(_Converted):
    """Noise prediction of a network that predicts v = alpha eps - sigma x0.

    Args:
        network: callable of (x, t, z).
        schedule: gives alpha and sigma at t.

    References:
        Progressive distillation, https://arxiv.org/abs/2202.00512
    """

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return eps_from_v(x, self.network(x, t, z), *self.levels(t))

    def data(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """The data expected in x; -v where alpha = 0.

        Args:
            x: Latents (B, ...).
            t: Time, in (0, 1].
            z: Condition, or None.
        """
        return x0_from_v(x, self.network(x, t, z), *self.levels(t))


class EpsFromFlow(_Converted):
    """Noise prediction of a rectified-flow network that predicts eps - x0.

    Args:
        network: callable of (x, t, z).
        schedule: gives alpha and sigma at t.
    """

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return eps_from_flow(x, self.network(x, t, z), *self.levels(t))

    def data(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """The data expected in x.

        Args:
            x: Latents (B, ...).
            t: Time, in (0, 1].
            z: Condition, or None.
        """
        return x0_from_flow(x, self.network(x, t, z), *self.levels(t))


class FromNoiseLevels(nn.Module):
    r"""A network of EDM's arguments (:math:`x/\alpha`, :math:`\rho`, z), seen as one of time.

    Data x_0 plus noise of standard deviation :math:`\rho = \sigma/\alpha` are what EDM, k-diffusion
    and smalldiffusion call x and sigma, whatever the schedule.

    Args:
        network: callable of (y, rho, z), y shaped like x, rho of shape (B,) in the dtype of x.
        schedule: gives alpha and rho at t.

    Raises:
        ValueError: alpha = 0, where x holds no data to divide for.
    """

    def __init__(self, network: Callable[..., Tensor], schedule: Schedule) -> None:
        super().__init__()
        self.network, self.schedule = network, schedule

    def forward(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        alpha = float(self.schedule.alpha(t))
        if alpha == 0.0:
            raise ValueError("a network of noise levels cannot be asked where alpha = 0")
        rho = self.schedule.rho(t).to(x).expand(x.shape[0])
        return self.network(x if alpha == 1.0 else x / alpha, rho, z)


class EDM(nn.Module):
    r"""Noise prediction of a network F trained in EDM's preconditioning.

    .. math:: D(y; \rho) = \frac{\sigma_d^2}{\rho^2 + \sigma_d^2}\, y
        + \frac{\rho\,\sigma_d}{\sqrt{\rho^2 + \sigma_d^2}}\,
        F\Big(\frac{y}{\sqrt{\rho^2 + \sigma_d^2}},\ \frac{\log\rho}{4},\ z\Big), \qquad
        \epsilon = \frac{y - D}{\rho},

    with :math:`y = x/\alpha` and :math:`\rho = \sigma/\alpha`. The difference is taken before it
    is rounded: eps keeps its digits at small noise.

    Args:
        network: callable of (scaled y, c_noise of shape (B,), z).
        schedule: ``VarianceExploding(80.0)`` is EDM's own.
        sigma_data: standard deviation of the data.

    Raises:
        ValueError: sigma_data not positive; a call at sigma = 0, which has no c_noise.

    When not to use: for a network that has the preconditioning inside, as NVIDIA's ``EDMPrecond``;
    that one is ``EpsFromX0(FromNoiseLevels(network, schedule), schedule)``.

    References:
        Elucidating the design space of diffusion models, table 1, https://arxiv.org/abs/2206.00364
    """

    predicts = "eps"

    def __init__(
        self, network: Callable[..., Tensor], schedule: Schedule, sigma_data: float = 0.5
    ) -> None:
        super().__init__()
        if not sigma_data > 0.0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.network, self.schedule, self.sigma_data = network, schedule, sigma_data

    def forward(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        alpha, rho = float(self.schedule.alpha(t)), float(self.schedule.rho(t))
        if not 0.0 < rho < math.inf:
            raise ValueError(f"EDM's network takes log(sigma) and has none at sigma = {rho:g}")
        y, width = x / alpha, math.hypot(rho, self.sigma_data)
        c_noise = x.new_full((x.shape[0],), math.log(rho) / 4.0)
        output = self.network(y / width, c_noise, z)
        return rho / width**2 * y - self.sigma_data / width * output


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
