r"""What every algebraically reversible sampler is made of: couplings of a pair of latents.

A coupling changes one latent of the pair by a function of the other,
:math:`u \leftarrow \mathrm{scale}\,u + \mathrm{mix}\,v + F(v)`, and is undone by
:math:`u \leftarrow (u - \mathrm{mix}\,v - F(v)) / \mathrm{scale}`: the network is evaluated at
the same v in both directions. EDICT, BDIA, O-BELM and Rex are sequences of such couplings and
differ only in the numbers and in F, so a step, its inverse, and its gradient (one evaluation of
F with a graph, for the value and for the product) are written once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node

Increment = Callable[[Denoiser, Tensor, Tensor | None], Tensor]
Latents = tuple[Tensor, Tensor]


class GridEndError(ValueError):
    """A step that cannot be inverted because of an exact end of the grid."""


@dataclass(frozen=True)
class Coupling:
    r"""One invertible move, :math:`u \leftarrow \mathrm{scale}\,u + \mathrm{mix}\,v + F(v)`.

    Args:
        updated: which of the pair is u, 0 or 1; v is the other.
        scale: factor of u, not 0.
        mix: factor of v.
        increment: F, called as ``increment(denoiser, v, z)``; None for a move without network.

    Raises:
        GridEndError: scale is 0 or not finite.
    """

    updated: Literal[0, 1]
    scale: float
    mix: float = 0.0
    increment: Increment | None = None

    def __post_init__(self) -> None:
        if self.scale == 0.0 or not math.isfinite(self.scale):
            raise GridEndError(
                f"a coupling with factor {self.scale:g} cannot be inverted: it occurs where alpha "
                "or sigma is exactly 0. End the grid at a t_min > 0 and start it at the "
                "schedule's t_max"
            )

    def split(self, pair: Latents) -> tuple[Tensor, Tensor]:
        """u and v of a pair."""
        return pair[self.updated], pair[1 - self.updated]

    def joined(self, u: Tensor, v: Tensor) -> Latents:
        """The pair of a u and a v."""
        return (u, v) if self.updated == 0 else (v, u)

    def moved(self, u: Tensor, v: Tensor, change: Tensor | None) -> Tensor:
        """u after the move, ``change`` being F(v)."""
        u = self.scale * u
        if self.mix != 0.0:
            u = u + self.mix * v
        return u if change is None else u + change

    def restored(self, u: Tensor, v: Tensor, change: Tensor | None) -> Tensor:
        """u before the move, ``change`` being F(v)."""
        if change is not None:
            u = u - change
        if self.mix != 0.0:
            u = u - self.mix * v
        return u / self.scale

    def apply(self, denoiser: Denoiser, pair: Latents, z: Tensor | None) -> Latents:
        """The pair after the move."""
        u, v = self.split(pair)
        change = None if self.increment is None else self.increment(denoiser, v, z)
        return self.joined(self.moved(u, v, change), v)

    def inverse(self) -> "Coupling":
        """The move that undoes this one; a coupling as well."""
        forward, factor = self.increment, -1.0 / self.scale

        def backward(denoiser: Denoiser, v: Tensor, z: Tensor | None) -> Tensor:
            assert forward is not None
            return factor * forward(denoiser, v, z)

        return Coupling(
            self.updated,
            1.0 / self.scale,
            factor * self.mix,
            None if forward is None else backward,
        )


def weighted_eps(weight: float, s: Node) -> Increment:
    """The increment ``weight * eps(v, s.t, z)``."""

    def increment(denoiser: Denoiser, v: Tensor, z: Tensor | None) -> Tensor:
        return weight * denoiser(v, s.t, z)

    return increment
