r"""Noise schedules: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon` for :math:`t \in [0, 1]`.

The notation of the whole package is fixed here.

================  =================================================  ==========================
name              meaning                                            range
================  =================================================  ==========================
``t``             time; 0 is data, 1 is noise                        ``[0, 1]``
``alpha``         signal level                                       1 (data) to about 0 (noise)
``sigma``         noise level                                        about 0 (data) to 1 (noise)
``lmbda``         ``log(alpha / sigma)``, strictly decreasing in t   ``inf`` where sigma = 0
``rho``           ``sigma / alpha = exp(-lmbda)``                    0 where sigma = 0
``s -> t``        one sampling step, ``s`` the noisier end           ``h = lmbda_t - lmbda_s > 0``
================  =================================================  ==========================

Everything is float64, whatever dtype the network has.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

Time = Tensor | float


def as_float64(value: Time) -> Tensor:
    """The value as a float64 tensor on the CPU, outside any autograd graph."""
    # The dtype goes into as_tensor: a Python float would otherwise pass through float32.
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").detach()


def log_alpha_of_lmbda(lmbda: Tensor) -> Tensor:
    r"""Signal level of a variance-preserving schedule from its log-SNR.

    :math:`\alpha^2 = 1 / (1 + e^{-2\lambda})`, hence
    :math:`\log\alpha = -\frac12 \mathrm{softplus}(-2\lambda)`.
    """
    return -0.5 * torch.nn.functional.softplus(-2.0 * lmbda, threshold=1e9)


class Schedule(ABC):
    r"""A noise schedule: levels, their time derivatives, and the inverse of lmbda.

    The probability-flow ODE in these terms is
    :math:`\dot x = \frac{d\log\alpha}{dt} x - \sigma \frac{d\lambda}{dt} \epsilon(x, z, t)`,
    because :math:`g^2 = -2 \sigma^2 \, d\lambda/dt`.  Paper: section 2, eq. 2.3.

    Attributes:
        t_max: the noisiest time from which sampling can start (alpha > 0 there).
    """

    t_max: ClassVar[float] = 1.0

    @abstractmethod
    def log_alpha(self, t: Time) -> Tensor:
        """Logarithm of the signal level at ``t`` in [0, 1]."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Noise level at ``t`` in [0, 1]."""

    @abstractmethod
    def dlog_alpha(self, t: Time) -> Tensor:
        """Time derivative of ``log_alpha``: the drift coefficient f(t)."""

    @abstractmethod
    def dlmbda(self, t: Time) -> Tensor:
        r"""Time derivative of the log-SNR, :math:`\dot{\log\alpha} - \dot{\log\sigma}`."""

    @abstractmethod
    def t_of(self, lmbda: Time) -> Tensor:
        """The time at which the log-SNR is ``lmbda``; inverse of :meth:`lmbda`."""

    def alpha(self, t: Time) -> Tensor:
        """Signal level at ``t`` in [0, 1]."""
        return self.log_alpha(t).exp()

    def lmbda(self, t: Time) -> Tensor:
        """Half the log signal-to-noise ratio; ``inf`` where sigma = 0."""
        return self.log_alpha(t) - self.sigma(t).log()

    def rho(self, t: Time) -> Tensor:
        """Noise-to-signal ratio, the clock of the ODE ``dy/drho = eps`` for ``y = x/alpha``."""
        return self.sigma(t) / self.alpha(t)


class VariancePreserving(Schedule):
    r"""Schedules with :math:`\alpha^2 + \sigma^2 = 1`, given by ``log_alpha`` alone."""

    def sigma(self, t: Time) -> Tensor:
        # 1 - alpha^2 by expm1: at t = 1e-3 the plain difference loses digits. abs() turns the -0.0
        # of t = 0 into 0.0.
        return (-torch.expm1(2.0 * self.log_alpha(t))).sqrt().abs()

    def dlmbda(self, t: Time) -> Tensor:
        r"""Time derivative of the log-SNR.

        With :math:`\alpha^2 + \sigma^2 = 1`,
        :math:`\dot\lambda = \dot{\log\alpha} \, (1 + \alpha^2/\sigma^2)
        = \dot{\log\alpha} / \sigma^2`.
        """
        return self.dlog_alpha(t) / self.sigma(t) ** 2


@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    r"""Linear variance-preserving schedule in continuous time.

    :math:`\log\alpha_t = -(\beta_1 - \beta_0) t^2 / 4 - \beta_0 t / 2`.
    Paper: eq. I.1 (its eq. I.3 misprints the exponent of :math:`d\sigma^2/dt`, which must
    end in :math:`-\beta_0 t`, so that :math:`g^2 = \beta(t)`).

    Args:
        beta_0: rate of the noise at t = 0, positive.
        beta_1: rate of the noise at t = 1, larger than ``beta_0``.

    References:
        Score-based generative modeling through SDEs, https://arxiv.org/abs/2011.13456
    """

    beta_0: float = 0.1
    beta_1: float = 20.0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_0 < self.beta_1:
            raise ValueError(
                f"VPLinear needs 0 < beta_0 < beta_1, got {self.beta_0} and {self.beta_1}"
            )

    def log_alpha(self, t: Time) -> Tensor:
        t = as_float64(t)
        return -(self.beta_1 - self.beta_0) * t**2 / 4.0 - self.beta_0 * t / 2.0

    def dlog_alpha(self, t: Time) -> Tensor:
        return -0.5 * (self.beta_0 + (self.beta_1 - self.beta_0) * as_float64(t))

    def t_of(self, lmbda: Time) -> Tensor:
        log_alpha = log_alpha_of_lmbda(as_float64(lmbda))
        half = 0.5 * self.beta_0
        # The root written without the difference of two nearly equal numbers.
        root = (half**2 - (self.beta_1 - self.beta_0) * log_alpha).sqrt()
        return -2.0 * log_alpha / (half + root)


@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    r"""Cosine schedule, :math:`\alpha_t = \cos\varphi_t / \cos\varphi_0`,
    :math:`\varphi_t = \frac{\pi}{2} \frac{t + \delta}{1 + \delta}`.

    alpha vanishes at t = 1, where the noise prediction says nothing about x_0; sampling
    therefore starts at ``t_max`` = 0.9946, as DPM-Solver does.

    Args:
        offset: the shift delta that keeps beta small near the data, positive.

    References:
        Improved denoising diffusion probabilistic models, https://arxiv.org/abs/2102.09672
        DPM-Solver, https://arxiv.org/abs/2206.00927
    """

    offset: float = 0.008
    t_max: ClassVar[float] = 0.9946

    def __post_init__(self) -> None:
        if not self.offset > 0.0:
            raise ValueError(f"VPCosine needs a positive offset, got {self.offset}")

    @property
    def _phase_0(self) -> float:
        return 0.5 * math.pi * self.offset / (1.0 + self.offset)

    def _phase(self, t: Time) -> Tensor:
        return 0.5 * math.pi * (as_float64(t) + self.offset) / (1.0 + self.offset)

    def log_alpha(self, t: Time) -> Tensor:
        # cos(pi/2) is 6e-17 in floating point; at t = 1 the level is 0.
        return self._phase(t).cos().log() - math.log(math.cos(self._phase_0))

    def sigma(self, t: Time) -> Tensor:
        # cos^2 a - cos^2 b = sin(b - a) sin(b + a): exact zero at t = 0, no cancellation.
        phase = self._phase(t)
        product = (phase - self._phase_0).sin() * (phase + self._phase_0).sin()
        return product.sqrt() / math.cos(self._phase_0)

    def dlog_alpha(self, t: Time) -> Tensor:
        return -0.5 * math.pi / (1.0 + self.offset) * self._phase(t).tan()

    def t_of(self, lmbda: Time) -> Tensor:
        lmbda = as_float64(lmbda)
        cos_0, sin_0 = math.cos(self._phase_0), math.sin(self._phase_0)
        alpha_2, sigma_2 = torch.sigmoid(2.0 * lmbda), torch.sigmoid(-2.0 * lmbda)
        phase = torch.atan2((sin_0**2 + sigma_2 * cos_0**2).sqrt(), alpha_2.sqrt() * cos_0)
        return phase * (1.0 + self.offset) / (0.5 * math.pi) - self.offset


@dataclass(frozen=True, eq=False)
class DDPM(VariancePreserving):
    r"""Schedule of a checkpoint trained at T integer timesteps.

    This is the one place where integer timesteps meet continuous time: timestep ``k`` in
    0..T-1 is ``t = (k + 1) / T``, so that t = 0 is clean data (sigma = 0, which no timestep
    is) and t = 1 the noisiest timestep. Between timesteps ``log_alpha`` is linear in t.

    Args:
        betas: the T variances of the forward chain, each in (0, 1); by default the 1000
            values linspace(1e-4, 0.02) of DDPM, DiffAE and the paper. The last may be 1: zero
            terminal signal, alpha = 0 at t = 1, linear in t from the timestep before; there only
            networks that predict v, a flow or the data have something to say.

    Attributes:
        t_max: 1, or with zero terminal signal the timestep before.

    References:
        Denoising diffusion probabilistic models, https://arxiv.org/abs/2006.11239
    """

    betas: Tensor | None = None
    _table: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        betas = (
            torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
            if self.betas is None
            else as_float64(self.betas)
        )
        right = betas.ndim == 1 and betas.numel() >= 2
        if not right or not ((betas > 0) & (betas <= 1)).all() or not (betas[:-1] < 1).all():
            raise ValueError(
                "DDPM needs a 1-d tensor of at least two betas, each in (0, 1); the last may be 1"
            )
        if betas[0] > max(0.5, float(betas[-1])):
            raise ValueError(
                f"these betas fall from {betas[0]:.4g} to {betas[-1]:.4g}, as alphas and their "
                "products do: write DDPM(1 - alphas), or with a = alphas_cumprod "
                "DDPM(torch.cat((1 - a[:1], 1 - a[1:] / a[:-1])))"
            )
        table = 0.5 * torch.cat((betas.new_zeros(1), torch.log1p(-betas).cumsum(0)))
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "_table", table)

    def __repr__(self) -> str:
        first, last = -torch.expm1(2.0 * self._table.diff()[[0, -1]])
        return f"DDPM({self.timesteps} betas from {first:.4g} to {last:.4g})"

    @property
    def t_max(self) -> float:  # type: ignore[override]
        return 1.0 - 1.0 / self.timesteps if self._ends_in_noise else 1.0

    @property
    def _ends_in_noise(self) -> bool:
        return bool(self._table[-1] == -math.inf)

    @property
    def timesteps(self) -> int:
        """Number T of integer timesteps."""
        return self._table.numel() - 1

    def t_of_timestep(self, timestep: Tensor | int) -> Tensor:
        """Continuous time of integer timesteps in 0..T-1."""
        timestep = torch.as_tensor(timestep).to(torch.float64)
        if ((timestep < 0) | (timestep > self.timesteps - 1)).any():
            raise ValueError(f"timesteps must lie in 0..{self.timesteps - 1}")
        return (timestep + 1.0) / self.timesteps

    def timestep_of_t(self, t: Time) -> Tensor:
        """Timestep (fractional, float64) of a time; times before the first one map to 0."""
        return (as_float64(t) * self.timesteps - 1.0).clamp(0.0, self.timesteps - 1.0)

    def _cell(self, t: Time) -> tuple[Tensor, Tensor]:
        position = as_float64(t) * self.timesteps
        cell = position.floor().clamp(0, self.timesteps - 1)
        return cell.long(), position - cell

    def log_alpha(self, t: Time) -> Tensor:
        cell, fraction = self._cell(t)
        low, high = self._table[cell], self._table[cell + 1]
        # alpha itself is linear where its logarithm has no end.
        straight = low + torch.log1p(-fraction)
        return torch.where(high == -math.inf, straight, torch.lerp(low, high, fraction))

    def dlog_alpha(self, t: Time) -> Tensor:
        cell, fraction = self._cell(t)
        low, high = self._table[cell], self._table[cell + 1]
        return torch.where(high == -math.inf, -1.0 / (1.0 - fraction), high - low) * self.timesteps

    def t_of(self, lmbda: Time) -> Tensor:
        log_alpha = log_alpha_of_lmbda(as_float64(lmbda))
        cell = (torch.searchsorted(-self._table, -log_alpha) - 1).clamp(0, self.timesteps - 1)
        low, high = self._table[cell], self._table[cell + 1]
        straight = -torch.expm1(log_alpha - low)
        fraction = torch.where(high == -math.inf, straight, (log_alpha - low) / (high - low))
        return (cell + fraction) / self.timesteps


@dataclass(frozen=True)
class VarianceExploding(Schedule):
    r"""Data plus noise, :math:`\alpha_t = 1`, :math:`\sigma_t = \sigma_{max}\, t`.

    The levels of EDM, k-diffusion and score-SDE's VE, which differ in where they step only: give
    those as ``TimeGrid.from_sigmas``. alpha never vanishes; x_T has the standard deviation
    :math:`\sigma_{max}` and not 1.

    Args:
        sigma_max: noise level at t = 1, positive: 80 for EDM, 50 for score-SDE's CIFAR-10.

    References:
        Elucidating the design space of diffusion models, https://arxiv.org/abs/2206.00364
        Score-based generative modeling through SDEs, https://arxiv.org/abs/2011.13456
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_max < math.inf:
            raise ValueError(f"VarianceExploding needs a positive sigma_max, got {self.sigma_max}")

    def log_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_float64(t))

    def sigma(self, t: Time) -> Tensor:
        return self.sigma_max * as_float64(t)

    def dlog_alpha(self, t: Time) -> Tensor:
        return torch.zeros_like(as_float64(t))

    def dlmbda(self, t: Time) -> Tensor:
        return -1.0 / as_float64(t)

    def t_of(self, lmbda: Time) -> Tensor:
        return torch.exp(-as_float64(lmbda)) / self.sigma_max


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    r"""Straight path between data and noise, :math:`\alpha_t = 1 - t`, :math:`\sigma_t = t`.

    alpha vanishes at t = 1; sampling starts at ``t_max`` = 0.999.

    References:
        Flow straight and fast, https://arxiv.org/abs/2209.03003
    """

    t_max: ClassVar[float] = 0.999

    def log_alpha(self, t: Time) -> Tensor:
        return torch.log1p(-as_float64(t))

    def alpha(self, t: Time) -> Tensor:
        return 1.0 - as_float64(t)

    def sigma(self, t: Time) -> Tensor:
        return as_float64(t)

    def dlog_alpha(self, t: Time) -> Tensor:
        return -1.0 / (1.0 - as_float64(t))

    def dlmbda(self, t: Time) -> Tensor:
        t = as_float64(t)
        return -1.0 / (t * (1.0 - t))

    def t_of(self, lmbda: Time) -> Tensor:
        return torch.sigmoid(-as_float64(lmbda))
