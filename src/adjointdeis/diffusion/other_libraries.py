"""Models of azula, k-diffusion, flow_matching and the official DiffAE, as denoisers.

Nothing of theirs is imported: a model is what it is called with and what it returns.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.denoiser import EpsFromX0, FromNoiseLevels, FromTimesteps
from adjointdeis.diffusion.schedule import DDPM, Schedule, Time, VarianceExploding, as_float64

Levels = Callable[[Tensor], tuple[Tensor | float, Tensor | float]]


@dataclass(frozen=True, eq=False)
class Adapted:
    """A model of another library.

    Attributes:
        denoiser: noise prediction ``(x, t, z) -> eps``, for every solver and gradient method.
        schedule: its noise levels, for ``TimeGrid``.
    """

    denoiser: nn.Module
    schedule: Schedule


@dataclass(frozen=True, eq=False)
class FunctionSchedule(Schedule):
    r"""Noise levels given as a function of time; derivatives by autograd, inverse by bisection.

    Args:
        levels: t in [0, 1] to (alpha, sigma), float64 in and out, t = 1 the noise; alpha/sigma
            decreases in t. Written with functions of torch; a constant level may be a number.

    Raises:
        ValueError: a derivative is asked for, and a level that changes was computed without torch.
    """

    levels: Levels

    def log_alpha(self, t: Time) -> Tensor:
        return self.alpha(t).log()

    def alpha(self, t: Time) -> Tensor:
        return self._levels(as_float64(t))[0].detach()

    def sigma(self, t: Time) -> Tensor:
        return self._levels(as_float64(t))[1].detach()

    def dlog_alpha(self, t: Time) -> Tensor:
        return self._slope(lambda alpha, sigma: alpha.log(), t)

    def dlmbda(self, t: Time) -> Tensor:
        return self._slope(lambda alpha, sigma: alpha.log() - sigma.log(), t)

    def t_of(self, lmbda: Time) -> Tensor:
        lmbda = as_float64(lmbda)
        low, high = torch.zeros_like(lmbda), torch.ones_like(lmbda)
        for _ in range(60):  # float64 has 53 bits
            middle = 0.5 * (low + high)
            noisier = self.lmbda(middle) < lmbda
            low, high = torch.where(noisier, low, middle), torch.where(noisier, middle, high)
        return 0.5 * (low + high)

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.levels(t)
        alpha = alpha if isinstance(alpha, Tensor) else torch.full_like(t, alpha)
        return alpha, sigma if isinstance(sigma, Tensor) else torch.full_like(t, sigma)

    def _slope(self, function: Callable[[Tensor, Tensor], Tensor], t: Time) -> Tensor:
        with torch.enable_grad():
            leaf = as_float64(t).clone().requires_grad_()
            value = function(*self._levels(leaf))
            if not value.requires_grad:  # a constant level
                early, late = (function(*self._levels(as_float64(end))) for end in (0.25, 0.75))
                if not torch.equal(early, late):
                    raise ValueError(
                        "the levels of FunctionSchedule have no derivative by t: compute them "
                        "with functions of torch, without float(), numpy or detach()"
                    )
                return torch.zeros_like(leaf).detach()
            return torch.autograd.grad(value.sum(), leaf)[0]


def from_azula(
    model: nn.Module, condition: str = "label", schedule: Schedule | None = None, **bound: Any
) -> Adapted:
    """A denoiser of azula, whose posterior mean is the data prediction.

    Args:
        model: ``model(x, t, **kwargs).mean``, with ``model.schedule(t) -> (alpha, sigma)`` and
            t = 1 the noise.
        condition: name of the argument that a tensor z is given as; a dictionary z has its own.
        schedule: another one than the model's own.
        bound: arguments of every call.

    Azula's sigma at t = 0 is small and not 0: a grid ends there, ``TimeGrid.uniform_time(schedule,
    steps, t_min=0.0, t_max=1.0)``.

    References:
        Azula, https://azula.readthedocs.io
    """

    def mean(x: Tensor, t: Tensor, z: Any) -> Tensor:
        return model(x, t.to(x), **_arguments(z, condition, bound)).mean

    own: Any = model.schedule
    schedule = FunctionSchedule(lambda t: own(t)) if schedule is None else schedule
    return Adapted(EpsFromX0(_With(model, mean), schedule), schedule)


def from_k_diffusion(
    model: nn.Module,
    condition: str = "class_cond",
    sigma_max: float | None = None,
    **bound: Any,
) -> Adapted:
    """A denoiser of k-diffusion, or of EDM: ``model(x, sigma, **kwargs)`` predicts the data.

    Args:
        model: with its preconditioning inside, such as ``k_diffusion.layers.Denoiser``,
            ``CompVisDenoiser``, ``VDenoiser`` or NVIDIA's ``EDMPrecond``.
        condition: name of the argument that a tensor z is given as; "cond" for CompVisDenoiser,
            "class_labels" for EDMPrecond.
        sigma_max: noise level at t = 1; the model's own where it has one, otherwise 80.
        bound: arguments of every call.

    Grids are ``TimeGrid.from_sigmas(schedule, sigmas)`` with what ``get_sigmas_karras`` returns;
    x_T is ``sigmas[0] * noise``.

    References:
        k-diffusion, https://github.com/crowsonkb/k-diffusion
        Elucidating the design space of diffusion models, https://arxiv.org/abs/2206.00364
    """
    if sigma_max is None:
        largest = float(getattr(model, "sigma_max", 80.0))
        sigma_max = largest if largest < float("inf") else 80.0
    schedule = VarianceExploding(sigma_max)

    def data(x: Tensor, sigma: Tensor, z: Any) -> Tensor:
        return model(x, sigma, **_arguments(z, condition, bound))

    levels = FromNoiseLevels(_With(model, data), schedule)
    return Adapted(EpsFromX0(levels, schedule), schedule)


def from_flow_matching(
    model: nn.Module, scheduler: Any = None, condition: str = "label", **bound: Any
) -> Adapted:
    r"""A velocity model of flow_matching or torchcfm, for any affine path.

    Their time runs from noise at 0 to data at 1, and the velocity is
    :math:`u = \dot\alpha\,x_1 + \dot\sigma\,\epsilon`. Sampling starts at pure noise, t = 1 here,
    with ``DDIM`` or ``DPMSolverPP``: for the straight path DDIM is Euler's method in u.

    Args:
        model: ``model(x=x, t=t, **kwargs)``, t of shape (B,).
        scheduler: of the path, ``scheduler(t)`` with alpha_t, sigma_t and their derivatives; the
            straight path, CondOT, by default.
        condition: name of the argument that a tensor z is given as; a dictionary z has its own.
        bound: arguments of every call.

    References:
        Flow matching guide and code, https://arxiv.org/abs/2412.06264
    """

    def rates(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if scheduler is None:
            one = torch.ones_like(t)
            return t, 1.0 - t, one, -one
        at = scheduler(t)
        return at.alpha_t, at.sigma_t, at.d_alpha_t, at.d_sigma_t

    def velocity(x: Tensor, t: Tensor, z: Any) -> Tensor:
        return model(x=x, t=t.to(x).expand(x.shape[0]), **_arguments(z, condition, bound))

    schedule = FunctionSchedule(lambda t: rates(1.0 - t)[:2])
    return Adapted(_EpsFromPath(_With(model, velocity), rates), schedule)


def from_diffae(model: nn.Module) -> Adapted:
    """The official diffusion autoencoder: gradients through what its ``render`` does.

    ``render(noise, cond, T)`` is ``sample(denoiser, noise, cond, solver=DDIM(clip_x0=True),
    grid=TimeGrid.ddim_stride(schedule, T)).x_0``, brought to [0, 1] by (x + 1) / 2; the way back,
    ``encode_stochastic``, is ``encode`` with the grid of ``encode=True``.

    Args:
        model: the official ``LitModel``, whose averaged weights are used as ``render`` does, or
            its network ``BeatGANsAutoencModel``; called as ``(x, t, cond=z)``, with ``.pred``.

    References:
        Diffusion autoencoders, https://github.com/phizaz/diffae
    """
    network = getattr(model, "ema_model", model)
    schedule = DDPM()

    def eps(x: Tensor, timesteps: Tensor, z: Any) -> Tensor:
        if z is None:
            raise ValueError("DiffAE needs its semantic code as z: z = model.encode(image)")
        return network(x, timesteps, cond=z).pred

    return Adapted(FromTimesteps(_With(network, eps), schedule), schedule)


class _With(nn.Module):
    """A function that calls a model, as a module that owns the model's weights."""

    def __init__(self, model: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x: Tensor, time: Tensor, z: Any) -> Tensor:
        return self.function(x, time, z)


class _EpsFromPath(nn.Module):
    r"""Noise prediction of a velocity along :math:`\alpha_t x_1 + \sigma_t \epsilon`, t = 1 data.

    From x and u together, :math:`\epsilon = (\alpha u - \dot\alpha x) / (\alpha\dot\sigma -
    \dot\alpha\sigma)` and :math:`x_1 = (\sigma u - \dot\sigma x) / (\dot\alpha\sigma -
    \alpha\dot\sigma)`.
    """

    def __init__(self, network: nn.Module, rates: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.network, self.rates = network, rates

    def forward(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = map(float, self.rates(1.0 - t))
        u = self.network(x, 1.0 - t, z)
        return (alpha * u - d_alpha * x) / (alpha * d_sigma - d_alpha * sigma)

    def data(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        """The data expected in x, at pure noise too."""
        alpha, sigma, d_alpha, d_sigma = map(float, self.rates(1.0 - t))
        u = self.network(x, 1.0 - t, z)
        return (sigma * u - d_sigma * x) / (d_alpha * sigma - alpha * d_sigma)


def _arguments(z: Any, condition: str, bound: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a model: those of z, and those that were bound."""
    given = {} if z is None else dict(z) if isinstance(z, Mapping) else {condition: z}
    both = sorted(given.keys() & bound.keys())
    if both:
        raise ValueError(f"{', '.join(both)} is both in z and bound")
    return {**bound, **given}
