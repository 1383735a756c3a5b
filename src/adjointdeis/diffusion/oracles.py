"""Data distributions whose exact noise prediction is known: the oracles of every test.

Both have learnable parameters (theta) and a condition z, so that all gradients exist, and
live in whatever dtype they are built in. Parameters with leading dimensions, the same for all, are
as many distributions evaluated at once: x has them too, before (B, D), and so has z.
"""

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.schedule import Schedule


class GaussianDenoiser(nn.Module):
    r"""Exact noise prediction for data N(m, s^2 I), :math:`m = \mu + W z`.

    :math:`\epsilon(x, t, z) = \sigma_t (x - \alpha_t m) / v_t`,
    :math:`v_t = \alpha_t^2 s^2 + \sigma_t^2`. The probability-flow ODE is solved by
    :meth:`flow`, hence dx_0/dx_T is :math:`\sqrt{v_0 / v_T}` times the identity.

    Args:
        schedule: forward process.
        mean: mu, shape (\*, D).
        scale: standard deviation s > 0 of the data, shape (\*).
        weight: W, shape (\*, D, d); None for data that ignore z.
    """

    def __init__(
        self, schedule: Schedule, mean: Tensor, scale: float | Tensor, weight: Tensor | None = None
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.mean = nn.Parameter(mean.clone())
        self.log_scale = nn.Parameter(torch.as_tensor(scale, dtype=mean.dtype).log())
        self.weight = None if weight is None else nn.Parameter(weight.clone())

    def centre(self, z: Tensor | None) -> Tensor:
        """Mean of the data under z: (D,) or (\\*, B, D)."""
        mean = self.mean if self.mean.ndim == 1 else self.mean.unsqueeze(-2)
        if self.weight is None or z is None:
            return mean
        return mean + z @ self.weight.mT

    def variance(self, t: Tensor | float) -> Tensor:
        """Variance v_t of x_t per coordinate, 0-d or (\\*, 1, 1)."""
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        found = alpha**2 * (2.0 * self.log_scale).exp() + sigma**2
        return found[..., None, None] if found.ndim else found

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        return sigma * (x - alpha * self.centre(z)) / self.variance(t)

    def flow(self, x: Tensor, s: Tensor | float, t: Tensor | float, z: Tensor | None) -> Tensor:
        """Exact solution of the probability-flow ODE from x at time s to time t.

        Args:
            x: States (B, ...) at time s.
            s, t: Times, in (0, 1].
            z: Condition, as the denoiser takes it.
        """
        alpha_s, alpha_t = float(self.schedule.alpha(s)), float(self.schedule.alpha(t))
        ratio = (self.variance(t) / self.variance(s)).sqrt()
        centre = self.centre(z)
        return alpha_t * centre + ratio * (x - alpha_s * centre)


class MixtureDenoiser(nn.Module):
    r"""Exact noise prediction for a Gaussian mixture with conditional means mu_k + W_k z.

    :math:`\epsilon = \sigma \sum_k w_k(x) (x - \alpha m_k) / v_k` with the responsibilities
    :math:`w_k \propto \pi_k v_k^{-D/2} \exp(-|x - \alpha m_k|^2 / 2 v_k)` and
    :math:`v_k = \alpha^2 s_k^2 + \sigma^2`. Nonlinear in x, z and every parameter.

    Args:
        schedule: forward process.
        means: mu, shape (\*, K, D).
        scales: s_k > 0, shape (\*, K).
        weight: W, shape (\*, K, D, d); None for data that ignore z.
        logits: log pi up to a constant, shape (\*, K); equal weights by default.
    """

    def __init__(
        self,
        schedule: Schedule,
        means: Tensor,
        scales: Tensor,
        weight: Tensor | None = None,
        logits: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.means = nn.Parameter(means.clone())
        self.log_scales = nn.Parameter(scales.log())
        self.weight = None if weight is None else nn.Parameter(weight.clone())
        self.logits = nn.Parameter(torch.zeros_like(scales) if logits is None else logits.clone())

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        centres = self.means.unsqueeze(-3)
        if self.weight is not None and z is not None:
            centres = centres + torch.einsum("...kij,...bj->...bki", self.weight, z)
        variance = (alpha**2 * (2.0 * self.log_scales).exp() + sigma**2).unsqueeze(-2)
        offset = x.unsqueeze(-2) - alpha * centres
        log_density = (
            self.logits.log_softmax(-1).unsqueeze(-2)
            - 0.5 * x.shape[-1] * variance.log()
            - 0.5 * offset.square().sum(-1) / variance
        )
        responsibility = log_density.softmax(-1) / variance
        return sigma * (responsibility.unsqueeze(-1) * offset).sum(-2)
