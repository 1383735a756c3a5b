"""Time grids: the nodes that a solver steps through, with their levels in float64."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.schedule import DDPM, Schedule, as_float64

Clock = Literal["lmbda", "rho", "gamma"]


@dataclass(frozen=True, eq=False)
class Node:
    """One time of a grid.

    Attributes:
        t: 0-d float64 tensor in [0, 1], what the denoiser receives.
        alpha, sigma, lmbda, rho: levels as Python floats (float64), so that a coefficient
            never promotes the dtype of a network's latents. ``lmbda`` is ``inf`` where
            sigma = 0; ``rho`` is ``inf`` where alpha = 0.
        index: position in ``grid``.
        grid: the grid it belongs to.
    """

    t: Tensor
    alpha: float
    sigma: float
    lmbda: float
    rho: float
    index: int
    grid: "TimeGrid"

    @property
    def previous(self) -> "Node | None":
        """The node visited just before this one; None at the start of the grid."""
        return self.grid[self.index - 1] if self.index > 0 else None

    def on(self, clock: Clock) -> float:
        """Reading of a clock at this node; ``inf`` where it has no finite value.

        Raises:
            ValueError: an unknown clock.
        """
        if clock == "gamma":
            return math.inf if self.sigma == 0.0 else self.alpha / self.sigma
        if clock not in ("lmbda", "rho"):
            raise ValueError(f"a clock is 'lmbda', 'rho' or 'gamma', got {clock!r}")
        return self.lmbda if clock == "lmbda" else self.rho

    def towards(self, other: "Node", fraction: float, clock: Clock = "rho") -> "Node":
        r"""A node between this one and another: a stage of a step, or an interpolated state.

        Its time is the exact inverse of the clock; nothing is rounded to a grid node. It keeps
        the ``index`` and the ``grid`` of this node, and is one of the two at fractions 0 and 1.

        Args:
            other: the node at fraction 1.
            fraction: place between the two, in [0, 1], linear in the clock.
            clock: "rho" (noise prediction), "gamma" = alpha/sigma (data prediction), "lmbda".

        Raises:
            ValueError: a fraction outside [0, 1], or a clock that is infinite at an end.
        """
        if fraction in (0.0, 1.0):
            return other if fraction else self
        first, last = self.on(clock), other.on(clock)
        if not (0.0 < fraction < 1.0 and math.isfinite(first) and math.isfinite(last)):
            raise ValueError(
                f"no node at fraction {fraction:g} between {clock} = {first:g} and {last:g}: a "
                "fraction lies in [0, 1] and the clock must be finite at both ends"
            )
        place = first + fraction * (last - first)
        lmbda = place if clock == "lmbda" else math.log(place) * (1 if clock == "gamma" else -1)
        t = self.grid.schedule.t_of(lmbda)
        return Node(
            t=t,
            alpha=float(self.grid.schedule.alpha(t)),
            sigma=float(self.grid.schedule.sigma(t)),
            lmbda=lmbda,
            rho=math.exp(-lmbda),
            index=self.index,
            grid=self.grid,
        )


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """N + 1 nodes in the order in which a solver visits them.

    A sampling grid runs from noise to data (lmbda increasing); :meth:`reversed` runs from
    data to noise, for encoding. The clean end may have sigma = 0 exactly, and the noisy end
    of an encoding grid alpha = 0 exactly (DiffAE's last encoding step).

    Args:
        schedule: where the levels come from; used to place further nodes.
        t, alpha, sigma, lmbda, rho: 1-d float64 tensors with N + 1 entries.

    Raises:
        ValueError: fewer than two nodes, wrong dtype, times outside [0, 1], negative levels,
            or a log-SNR that is not strictly monotone.
    """

    schedule: Schedule
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    lmbda: Tensor
    rho: Tensor

    def __post_init__(self) -> None:
        for name in ("t", "alpha", "sigma", "lmbda", "rho"):
            value = getattr(self, name)
            if value.dtype != torch.float64 or value.shape != self.t.shape or value.ndim != 1:
                raise ValueError(f"TimeGrid.{name} must be a 1-d float64 tensor like t")
        if len(self) < 2:
            raise ValueError("a TimeGrid needs at least two nodes")
        if not ((self.t >= 0) & (self.t <= 1)).all():
            raise ValueError(
                f"times must lie in [0, 1], got [{self.t.min():.6g}, {self.t.max():.6g}]; timestep "
                "k of T is (k + 1) / T, and clean data 0"
            )
        if not ((self.alpha >= 0) & (self.sigma >= 0)).all():
            raise ValueError("alpha and sigma must not be negative")
        direction = self.lmbda[1:] > self.lmbda[:-1]
        if not (direction.all() or (self.lmbda[1:] < self.lmbda[:-1]).all()):
            raise ValueError("the log-SNR of a TimeGrid must be strictly monotone")

    def __repr__(self) -> str:
        ends = f"{float(self.t[0]):.4g} to {float(self.t[-1]):.4g}"
        return f"TimeGrid({self.steps} steps from t = {ends}, {self.schedule!r})"

    def __len__(self) -> int:
        return self.t.numel()

    def __getitem__(self, index: int) -> Node:
        try:
            return self._nodes[index]
        except IndexError:
            message = f"node {index} of a grid with {len(self)} nodes"
            raise IndexError(message) from None

    @cached_property
    def _nodes(self) -> list[Node]:
        # Made once: a sampler of many small steps would spend its time on them.
        levels = (level.tolist() for level in (self.alpha, self.sigma, self.lmbda, self.rho))
        return [
            Node(t, *values, index=index, grid=self)
            for index, (t, *values) in enumerate(zip(self.t.unbind(), *levels, strict=True))
        ]

    def __iter__(self) -> Iterator[Node]:
        return (self[index] for index in range(len(self)))

    @property
    def steps(self) -> int:
        """Number N of steps; one less than the number of nodes."""
        return len(self) - 1

    @property
    def sampling(self) -> bool:
        """Whether the grid runs from noise to data."""
        return bool(self.lmbda[-1] > self.lmbda[0])

    @property
    def h(self) -> Tensor:
        """Log-SNR widths of the N steps; positive on a sampling grid, possibly infinite."""
        return self.lmbda[1:] - self.lmbda[:-1]

    def reversed(self) -> "TimeGrid":
        """The same nodes in the opposite order: noise to data becomes data to noise."""
        return self.at(range(self.steps, -1, -1))

    def at(self, indices: Sequence[int]) -> "TimeGrid":
        """The grid of the nodes with these indices, in this order."""
        index = torch.tensor(list(indices), dtype=torch.long)
        levels = (self.t, self.alpha, self.sigma, self.lmbda, self.rho)
        return TimeGrid(self.schedule, *(level[index] for level in levels))

    @classmethod
    def from_times(cls, schedule: Schedule, t: Tensor | Sequence[float]) -> "TimeGrid":
        """Grid of explicit times.

        Args:
            schedule: gives the levels.
            t: N + 1 times in [0, 1], strictly monotone.
        """
        t = as_float64(torch.as_tensor(t, dtype=torch.float64))
        return cls(
            schedule, t, schedule.alpha(t), schedule.sigma(t), schedule.lmbda(t), schedule.rho(t)
        )

    @classmethod
    def from_sigmas(cls, schedule: Schedule, sigmas: Tensor | Sequence[float]) -> "TimeGrid":
        r"""Grid of explicit noise levels in the convention of EDM and k-diffusion.

        Args:
            schedule: places the levels in time; ``VarianceExploding`` has any up to its
                ``sigma_max``, other schedules their own range of :math:`\sigma/\alpha`.
            sigmas: N + 1 values of rho = sigma / alpha, strictly monotone; the last, or for
                encoding the first, may be 0.

        Raises:
            ValueError: negative levels, or one beyond the schedule's noisiest.
        """
        rho = as_float64(torch.as_tensor(sigmas, dtype=torch.float64))
        if not (rho >= 0.0).all():
            raise ValueError("noise levels must not be negative")
        lmbda = -rho.log()
        t = torch.where(rho == 0.0, torch.zeros_like(rho), schedule.t_of(lmbda))
        largest = float(schedule.rho(1.0))
        if float(rho.max()) > largest * (1.0 + 1e-9):
            raise ValueError(
                f"a noise level of {float(rho.max()):g} is beyond the schedule's largest, "
                f"{largest:g}; use VarianceExploding(sigma_max={float(rho.max()):g}) or larger"
            )
        t = t.clamp(0.0, 1.0)
        return cls(schedule, t, schedule.alpha(t), schedule.alpha(t) * rho, lmbda, rho)

    @classmethod
    def uniform_time(
        cls, schedule: Schedule, steps: int, t_min: float = 1e-3, t_max: float | None = None
    ) -> "TimeGrid":
        """Nodes equally spaced in t, from ``t_max`` to ``t_min``.

        Args:
            schedule: Noise levels over time.
            steps: How many steps the nodes bound.
            t_min: Where sampling ends.
            t_max: Where it begins; the schedule's end by default.

        Raises:
            ValueError: No step, or times out of order or outside 0 to 1.
        """
        t_max = _check_range(schedule, steps, t_min, t_max)
        return cls.from_times(
            schedule, torch.linspace(t_max, t_min, steps + 1, dtype=torch.float64)
        )

    @classmethod
    def uniform_lmbda(
        cls, schedule: Schedule, steps: int, t_min: float = 1e-3, t_max: float | None = None
    ) -> "TimeGrid":
        """Nodes equally spaced in log-SNR, from ``t_max`` to ``t_min``.

        Args:
            schedule: Noise levels over time, neither zero at the ends.
            steps, t_min, t_max: As of :meth:`uniform_time`.
        """
        t_max = _check_range(schedule, steps, t_min, t_max, finite=True)
        first, last = float(schedule.lmbda(t_max)), float(schedule.lmbda(t_min))
        t = schedule.t_of(torch.linspace(first, last, steps + 1, dtype=torch.float64))
        t[0], t[-1] = t_max, t_min
        return cls.from_times(schedule, t)

    @classmethod
    def karras(
        cls,
        schedule: Schedule,
        steps: int,
        t_min: float = 1e-3,
        t_max: float | None = None,
        power: float = 7.0,
    ) -> "TimeGrid":
        r"""Nodes equally spaced in :math:`\rho^{1/\mathrm{power}}`.

        Args:
            schedule: Noise levels over time, neither zero at the ends.
            steps, t_min, t_max: As of :meth:`uniform_time`.
            power: The larger, the closer the nodes are to ``t_min``.

        References:
            Elucidating the design space of diffusion models, eq. 5,
            https://arxiv.org/abs/2206.00364
        """
        t_max = _check_range(schedule, steps, t_min, t_max, finite=True)
        first = float(schedule.rho(t_max)) ** (1.0 / power)
        last = float(schedule.rho(t_min)) ** (1.0 / power)
        rho = torch.linspace(first, last, steps + 1, dtype=torch.float64) ** power
        t = schedule.t_of(-rho.log())
        t[0], t[-1] = t_max, t_min
        return cls.from_times(schedule, t)

    @classmethod
    def ddim_stride(cls, schedule: DDPM, steps: int, encode: bool = False) -> "TimeGrid":
        """DiffAE's "ddimN" spacing: every i-th timestep from 0, plus an exact end.

        i is the smallest stride with ``len(range(0, T, i)) == steps``. Decoding visits
        ``..., 2i, i, 0`` and then the clean end (alpha = 1, sigma = 0); encoding visits
        ``0, i, 2i, ...`` and then pure noise (alpha = 0, sigma = 1), the image being taken
        as a state at timestep 0.

        Args:
            schedule: a discrete schedule.
            steps: number of network evaluations.
            encode: build the data-to-noise grid.

        Raises:
            ValueError: no integer stride gives this number of steps.

        References:
            Diffusion autoencoders, https://arxiv.org/abs/2111.15640
        """
        _check_discrete(schedule, "ddim_stride")
        total = schedule.timesteps
        stride = next((i for i in range(1, total + 1) if len(range(0, total, i)) == steps), None)
        if stride is None:
            counts = {-(-total // i) for i in range(1, total + 1)}
            near = sorted(sorted(counts, key=lambda count: abs(count - steps))[:4])
            raise ValueError(
                f"no integer stride visits exactly {steps} of {total} timesteps; choose another "
                f"number of steps, such as {', '.join(map(str, near))}, or any timesteps k by "
                "TimeGrid.from_times(schedule, [*(k + 1) / T, 0])"
            )
        t = schedule.t_of_timestep(torch.arange(0, total, stride))
        if not encode:
            return cls.from_times(schedule, torch.cat((t.flip(0), t.new_zeros(1))))
        levels = (schedule.alpha(t), schedule.sigma(t), schedule.lmbda(t), schedule.rho(t))
        noise_end = (0.0, 1.0, -math.inf, math.inf)
        return cls(
            schedule,
            torch.cat((t, t.new_ones(1))),
            *(torch.cat((v, v.new_tensor([e]))) for v, e in zip(levels, noise_end, strict=True)),
        )

    @classmethod
    def greedy_dim(cls, schedule: DDPM, steps: int) -> "TimeGrid":
        """Spacing of the Greedy-DiM and AdjointDEIS programs.

        Timesteps ``round(linspace(0, T - 1, steps + 1))`` from T - 1 down to 0. The last node
        is timestep 0, not clean data: it keeps sigma = 0.01 with the default betas.

        References:
            Greedy-DiM, https://arxiv.org/abs/2404.06025
        """
        _check_discrete(schedule, "greedy_dim")
        if not 1 <= steps <= schedule.timesteps - 1:
            raise ValueError(f"steps must lie in 1..{schedule.timesteps - 1}, got {steps}")
        spaced = torch.linspace(0, schedule.timesteps - 1, steps + 1, dtype=torch.float64)
        return cls.from_times(schedule, schedule.t_of_timestep(spaced.round().flip(0)))


def _check_discrete(schedule: Schedule, name: str) -> None:
    if not isinstance(schedule, DDPM):
        raise TypeError(
            f"TimeGrid.{name} spaces integer timesteps and needs a DDPM schedule, "
            f"got {type(schedule).__name__}"
        )


def _check_range(
    schedule: Schedule, steps: int, t_min: float, t_max: float | None, finite: bool = False
) -> float:
    t_max = schedule.t_max if t_max is None else t_max
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 0.0 <= t_min < t_max <= 1.0:
        raise ValueError(f"a grid needs 0 <= t_min < t_max <= 1, got {t_min} and {t_max}")
    if finite and (t_min == 0.0 or not math.isfinite(float(schedule.lmbda(t_max)))):
        raise ValueError(
            "this spacing needs a finite log-SNR at both ends: t_min > 0 and alpha(t_max) > 0"
        )
    return t_max
