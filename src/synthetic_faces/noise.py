"""Smooth 3-D value noise on a fixed periodic lattice: the grain of skin, hair and cloth."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

_PERIOD = 32
_CHANNELS = 4
_OFFSET = torch.tensor([0.0, 11.3, 5.7])


@lru_cache(maxsize=1)
def _lattice() -> tuple[Tensor, ...]:
    values = np.random.default_rng(7).standard_normal((_CHANNELS, _PERIOD, _PERIOD, _PERIOD))
    wrapped = np.pad(values, [(0, 0)] + [(0, 1)] * 3, mode="wrap").astype(np.float32)
    return tuple(torch.from_numpy(channel)[None, None] for channel in wrapped)


def value_noise(points: Tensor, frequency: float, channel: int = 0, offset: float = 0.0) -> Tensor:
    """Noise with unit variance at the lattice points.

    Args:
        points: (n, 3) decimetres.
        frequency: lattice cells per decimetre.
        channel: 0..3, independent patterns.
        offset: moves the pattern; an identity's ``grain``.

    Returns:
        (n,) values.
    """
    cell = (points * frequency + (offset * 7.31 + _OFFSET)) % _PERIOD
    at = cell.flip(1) * (2 / _PERIOD) - 1
    lattice = _lattice()[channel]
    return grid_sample(lattice, at[None, None, None], mode="bilinear", align_corners=True).view(-1)


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """Cubic ramp from 0 at ``low`` to 1 at ``high``; falls when high < low."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def bump(x: Tensor, centre: float, width: float) -> Tensor:
    """Gaussian exp(-((x - centre) / width)^2)."""
    return torch.exp(-(((x - centre) / width) ** 2))


def mix(base: Tensor, over: Tensor, alpha: Tensor) -> Tensor:
    """Paints ``over`` on (n, 3) colours with per-row opacity (n,)."""
    return base + (over - base) * alpha[:, None]
