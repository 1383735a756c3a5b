"""Operations on each sample as if it were alone: norms, unit gradients, sphere and box."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion.prediction import wide


def losses_of(x_0: Tensor, losses: Any, count: int | None = None) -> Tensor:
    """The losses of samples, one each.

    A mean over the batch would weigh every sample by its share, and so change the algorithm with
    the batch; a loss that is cut off from x_0 would leave nothing but what else is descended.

    Args:
        x_0: Samples, with shape (R, *).
        losses: What the loss of the problem returned for them.
        count: R, where x_0 holds pairs.

    Raises:
        ValueError: They do not have the shape (R), or x_0 has a graph and they have none.
    """
    count, shape = len(x_0) if count is None else count, getattr(losses, "shape", None)
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (count,):
        found = type(losses).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
        raise ValueError(
            f"the loss returned {found} for {count} samples, expected one number each, shape "
            f"({count},): write ((x_0 - y) ** 2).flatten(1).sum(1), without a mean over the batch"
        )
    if torch.is_grad_enabled() and x_0.requires_grad and not losses.requires_grad:
        raise ValueError(
            "the loss has no gradient by x_0: it goes through detach(), no_grad(), numpy or an "
            "operation without a derivative. Compute it from x_0 by differentiable operations"
        )
    return losses


@dataclass(frozen=True, eq=False)
class Sphere:
    r"""Keeps each sample's noise on the sphere where it started, :math:`\|x\| = \|x_T\|`.

    A standard normal in D dimensions has norm near :math:`\sqrt D`; noise that leaves this shell
    is noise that the network was never trained on.

    Args:
        norm: Radius per sample, with shape (B).
    """

    norm: Tensor

    @classmethod
    def through(cls, x_T: Tensor) -> "Sphere":
        """The spheres that the samples of x_T lie on."""
        return cls(per_sample_norm(x_T.detach()))

    def __call__(self, x_T: Tensor) -> Tensor:
        """The nearest point on the sphere; a sample at the origin stays there."""
        norm = per_sample_norm(x_T)
        factor = torch.where(norm > 0, self.norm / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0)
        return (wide(x_T) * expanded(factor, x_T)).to(x_T.dtype)


@dataclass(frozen=True, eq=False)
class Box:
    """Keeps every entry of the noise within a distance of where it started.

    Args:
        centre: Where it started, with shape (B, *).
        radius: The distance, positive.
    """

    centre: Tensor
    radius: float

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"Box.radius={self.radius}: expected more than 0")

    def __call__(self, x_T: Tensor) -> Tensor:
        """The nearest point of the box."""
        return torch.maximum(
            torch.minimum(x_T, self.centre + self.radius), self.centre - self.radius
        )


def normalised(gradient: Tensor) -> Tensor:
    """The gradient of each sample divided by its Euclidean norm; a zero gradient stays zero."""
    norm = per_sample_norm(gradient)
    factor = torch.where(norm > 0, 1.0 / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0)
    return (wide(gradient) * expanded(factor, gradient)).to(gradient.dtype)


def per_sample_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample, flattened whole, with shape (B); in float32 at the least."""
    return wide(x).flatten(1).square().sum(1).sqrt()


def rms(x: Tensor) -> Tensor:
    """Root mean square of each sample, with shape (B); in float32 at the least."""
    return wide(x).flatten(1).square().mean(1).sqrt()


def expanded(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample, shaped to multiply a tensor (B, *)."""
    return values.reshape(-1, *[1] * (like.ndim - 1))
