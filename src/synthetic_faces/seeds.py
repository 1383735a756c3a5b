"""Named random streams: one independent generator per (seed, name).

Every parameter of a face reads its own stream, so a parameter that is added later leaves all
the others, and therefore every picture made from an old seed, as they were.
"""

from dataclasses import dataclass
from zlib import crc32

import numpy as np


@dataclass(frozen=True)
class Streams:
    """Random generators derived from one integer seed.

    Args:
        seed: non-negative integer.

    Raises:
        ValueError: the seed is negative.
    """

    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; a seed is an integer of 0 or more")

    def __call__(self, name: str) -> np.random.Generator:
        """A fresh generator that depends on the seed and on ``name`` only."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, crc32(name.encode())]))

    def normal(self, name: str, mean: float = 0.0, sigma: float = 1.0) -> float:
        """One draw of N(mean, sigma^2)."""
        return float(self(name).normal(mean, sigma))

    def uniform(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """One draw of U(low, high)."""
        return float(self(name).uniform(low, high))

    def chance(self, name: str, probability: float) -> bool:
        """True with the given probability."""
        return bool(self(name).random() < probability)
