r"""Noise of a reverse SDE, always given from outside so that a path can be replayed.

In :math:`y = x/\alpha` the reverse SDE is :math:`dy = 2\epsilon\,d\rho + dB` with B a Wiener
process on the clock :math:`\rho^2`. A step s -> t uses the standard normal
:math:`n = (B(\rho_s^2) - B(\rho_t^2)) / \sqrt{\rho_s^2 - \rho_t^2}`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import path_scale


class Noise(Protocol):
    """A source of path noise."""

    def normal(self, s: Node, t: Node, like: Tensor) -> Tensor:
        """The standard normal of one sampling step.

        Args:
            s: Where the step begins.
            t: Where it ends.
            like: Shape, type and device.
        """
        ...

    def increment(self, grid: TimeGrid, first: int, last: int, like: Tensor) -> Tensor:
        r"""Wiener increment :math:`B(\rho_{first}^2) - B(\rho_{last}^2)`.

        Args:
            grid: The sampling grid.
            first: Index of the node of more noise.
            last: Index of the node of less.
            like: Shape, type and device.
        """
        ...


@dataclass(frozen=True, eq=False)
class RecordedNoise:
    """One standard normal per sampling step, as a list.

    Args:
        values: N tensors shaped like x; entry i drives the step from node i to node i + 1.
    """

    values: Sequence[Tensor]

    @classmethod
    def draw(
        cls,
        steps: int,
        shape: Sequence[int],
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "RecordedNoise":
        """Independent standard normals for ``steps`` steps.

        Drawn on the CPU in float64 and cast, so that a seed means the same on every device.

        Args:
            steps: How many to draw.
            shape: Of x, the batch included.
            seed: Of the generator.
            dtype: Of the draws once cast.
            device: Where they are kept.
        """
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(steps, *shape, generator=generator, dtype=torch.float64)
        return cls(tuple(draws.to(device=device, dtype=dtype)))

    def __len__(self) -> int:
        return len(self.values)

    def normal(self, s: Node, t: Node, like: Tensor) -> Tensor:
        return self.values[s.index].to(like)

    def increment(self, grid: TimeGrid, first: int, last: int, like: Tensor) -> Tensor:
        """Sum over the steps of the sampling grid between the two nodes.

        Args:
            grid: The sampling grid.
            first, last: Indices of two nodes, 0 to N.
            like: A tensor of the noise's device and dtype.
        """
        total = torch.zeros_like(like)
        for index in range(first, last):
            scale = path_scale(grid[index], grid[index + 1])
            total = total + scale * self.values[index].to(like)
        return total


@dataclass(frozen=True, eq=False)
class BrownianPath:
    r"""One seeded Wiener path on the clock :math:`\rho^2`, evaluated anywhere and in any order.

    A virtual Brownian tree: values at bisection points in :math:`\log\rho` are drawn from
    Brownian bridges with seeds that depend on the point alone, and nothing is stored. Any
    two grids therefore see the same path: the increment over a coarse step is the sum of the
    increments over a refinement of it.

    Args:
        shape: shape of x.
        seed: integer that determines the path.
        depth: bisections; the path is a Brownian bridge with one free point inside each of
            the 2^depth leaves, which are ``29 / 2^depth`` wide in log rho. An evaluation
            draws ``depth`` tensors.

    References:
        Scalable gradients for SDEs (virtual Brownian tree), https://arxiv.org/abs/2001.01328
    """

    shape: Sequence[int]
    seed: int
    depth: int = 16

    # Beyond these levels nothing is sampled: rho = e^-10 is sigma = 5e-5.
    _low: float = -10.0
    _high: float = 19.0

    def _draw(self, key: int) -> Tensor:
        # SplitMix64 of (seed, key): neighbouring integers must not give related streams.
        mask = (1 << 64) - 1
        state = (self.seed * 0x9E3779B97F4A7C15 + key * 0xD1B54A32D192ED03) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        generator = torch.Generator().manual_seed((state ^ (state >> 31)) >> 1)
        return torch.randn(tuple(self.shape), generator=generator, dtype=torch.float64)

    def _bridge(self, u: float, low: tuple, high: tuple, key: int) -> Tensor:
        (u_low, b_low), (u_high, b_high) = low, high
        weight = (u - u_low) / (u_high - u_low)
        spread = math.sqrt(max(0.0, (u - u_low) * (1.0 - weight)))
        return b_low + weight * (b_high - b_low) + spread * self._draw(key)

    def value(self, rho: float) -> Tensor:
        r"""B at the clock :math:`\rho^2`, float64 on the CPU; B(0) = 0.

        Raises:
            ValueError: rho is infinite (alpha = 0) or beyond e^19.
        """
        u, low, high = rho**2, math.exp(2 * self._low), math.exp(2 * self._high)
        if u > high:
            raise ValueError(f"a BrownianPath ends at rho = e^{self._high:g}, got {rho:g}")
        b_low = math.sqrt(low) * self._draw(0)
        origin = (0.0, torch.zeros_like(b_low))
        if u == 0.0:
            return origin[1]
        if u < low:
            return self._bridge(u, origin, (low, b_low), key=2)
        left = (low, b_low)
        right = (high, b_low + math.sqrt(high - low) * self._draw(1))
        start, width, key = self._low, self._high - self._low, 1
        for _ in range(self.depth):
            width *= 0.5
            middle = math.exp(2 * (start + width))
            centre = (middle, self._bridge(middle, left, right, key=2 * key + 1))
            if u < middle:
                right, key = centre, 2 * key
            else:
                left, key, start = centre, 2 * key + 1, start + width
        return self._bridge(u, left, right, key=2 * key)

    def _between(self, s: Node, t: Node) -> Tensor:
        return self.value(s.rho) - self.value(t.rho)

    def normal(self, s: Node, t: Node, like: Tensor) -> Tensor:
        return (self._between(s, t) / path_scale(s, t)).to(like)

    def increment(self, grid: TimeGrid, first: int, last: int, like: Tensor) -> Tensor:
        return self._between(grid[first], grid[last]).to(like)


@dataclass(frozen=True, eq=False)
class ReversedNoise:
    """The noise of a sampling grid as the steps of its reversal need it, to undo them.

    Args:
        noise: noise of the sampling grid.
        grid: the sampling grid.
    """

    noise: Noise
    grid: TimeGrid

    def normal(self, s: Node, t: Node, like: Tensor) -> Tensor:
        """The normal of the sampling step that s -> t, of the reversed grid, undoes.

        Args:
            s, t: Nodes of a step of the reversed grid.
            like: A tensor of the noise's device and dtype.
        """
        steps = self.grid.steps
        return self.noise.normal(self.grid[steps - t.index], self.grid[steps - s.index], like)

    def increment(self, grid: TimeGrid, first: int, last: int, like: Tensor) -> Tensor:
        """Minus the increment over the same nodes visited in the opposite order.

        Args:
            grid: The reversed grid.
            first, last: Indices of two of its nodes, 0 to N.
            like: A tensor of the noise's device and dtype.
        """
        steps = grid.steps
        return -self.noise.increment(self.grid, steps - last, steps - first, like)


@dataclass(frozen=True, eq=False)
class RowsOfNoise:
    """The noise of some samples of a batch.

    Args:
        noise: of the whole batch.
        rows: which samples.
        batch: how many samples the whole batch has.
    """

    noise: Noise
    rows: slice | Tensor
    batch: int

    def _whole(self, like: Tensor) -> Tensor:
        """Shape, type and device of the whole batch, which is what the noise draws."""
        return like.new_zeros(self.batch, *like.shape[1:])

    def normal(self, s: Node, t: Node, like: Tensor) -> Tensor:
        """Their standard normals of a step."""
        return self.noise.normal(s, t, self._whole(like))[self.rows]

    def increment(self, grid: TimeGrid, first: int, last: int, like: Tensor) -> Tensor:
        """Their Wiener increment over grid nodes."""
        return self.noise.increment(grid, first, last, self._whole(like))[self.rows]


def rows_of_noise(noise: Noise, rows: slice | Tensor, batch: int) -> Noise:
    """The noise of some samples of a batch; recorded normals keep their graph."""
    if isinstance(noise, RecordedNoise):
        return RecordedNoise(tuple(value[rows] for value in noise.values))
    return RowsOfNoise(noise, rows, batch)


def refuse_without_increments(noise: Noise | None, owner: str) -> None:
    """Refuse a noise that cannot be gone back along.

    Raises:
        ValueError: it draws normals alone.
    """
    own = noise.noise if isinstance(noise, RowsOfNoise) else noise
    if own is not None and not callable(getattr(own, "increment", None)):
        raise ValueError(
            f"{owner} goes back along the path, and {type(own).__name__} has no "
            "increment(grid, first, last, like): write it, or pass noise=RecordedNoise([...]) or "
            "BrownianPath(...)"
        )


def as_noise(noise: Noise | Sequence[Tensor] | Tensor | None, grid: TimeGrid, x: Tensor) -> Noise:
    """A noise source for this grid, with a list of tensors taken as recorded noise.

    Args:
        noise: A noise source, recorded noises of shape (B, *), one per step, in a list or in a
            tensor of shape (N, B, *), or None.
        grid: The grid that the noise is for.
        x: The state, whose shape, dtype and device the noises must have.

    Raises:
        TypeError: no noise source, such as a generator or a seed.
        ValueError: none was given, or a recorded one has the wrong length or shapes.
    """
    if noise is None:
        raise ValueError(
            "an SDE solver needs its noise from outside: pass noise=RecordedNoise.draw(...), "
            "noise=BrownianPath(...), or the noise of a CycleSDE encoding"
        )
    if isinstance(noise, Tensor):
        noise = noise.unbind() if noise.ndim else (noise,)
    if isinstance(noise, Sequence):
        noise = RecordedNoise(tuple(noise))
    if isinstance(noise, type) or not callable(getattr(noise, "normal", None)):
        raise TypeError(
            f"noise is {noise!r:.80}: write noise=RecordedNoise.draw(...), "
            "noise=BrownianPath(...), or a list of one standard normal per step"
        )
    if isinstance(noise, RecordedNoise):
        if len(noise) != grid.steps:
            raise ValueError(f"{len(noise)} recorded noises for a grid of {grid.steps} steps")
        wrong = [tuple(n.shape) for n in noise.values if n.shape != x.shape]
        if wrong:
            raise ValueError(f"recorded noise has shape {wrong[0]}, x has {tuple(x.shape)}")
    if isinstance(noise, BrownianPath) and tuple(noise.shape) != tuple(x.shape):
        raise ValueError(f"BrownianPath has shape {tuple(noise.shape)}, x has {tuple(x.shape)}")
    return noise
