r"""What a guidance algorithm is given, how it is run, and what it gives back.

An algorithm is its settings and nothing else; a problem is a sampler, its inputs and a loss:

.. code-block:: python

    problem = LatentProblem(denoiser, x_T, z, loss=loss, solver=DDIM(), grid=grid)
    outcome = LatentOptimisation(steps=20).solve(problem)
    outcome.x_0, outcome.loss, outcome.cost

Every algorithm can be run one step at a time as well, for a progress bar or inside another loop:

.. code-block:: python

    run = LatentOptimisation(steps=20).start(problem)
    while not run.finished:
        run.step()
    outcome = run.outcome()

A problem, rather than the arguments of ``sample`` once more in every call, because one problem is
handed to many algorithms when they are compared.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise, RecordedNoise, rows_of_noise
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.per_sample import losses_of
from adjointdeis.rollout import Condition, Rollout, sample
from adjointdeis.solvers.base import Solver

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""Called with what is to be optimised: ``partial(torch.optim.Adam, lr=0.05)``."""
ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=0.05)


@dataclass(frozen=True, eq=False)
class LatentProblem:
    """Find latents, or a trajectory, whose sample has a small loss.

    Args:
        denoiser, x_T, z, solver, grid: As for :func:`adjointdeis.sample`; nothing is modified.
            Every tensor of z has the batch as its first dimension.
        loss: ``(x_0, rows) -> losses`` with shape (R), of the samples of these numbers. A loss
            that is the same for every sample ignores ``rows``.
        noise: Of an SDE solver's steps, for the whole batch.
        moves: What an algorithm that optimises latents may move: "both", "x_T" or "z".
        scheduled: z holds one condition per step: its tensors have shape (B, N, *).

    Raises:
        ValueError: Unknown ``moves``, or latents that are not there to be moved.
    """

    denoiser: Callable[..., Tensor]
    x_T: Tensor
    z: Any = None
    loss: Callable[[Tensor, Tensor], Tensor] = field(kw_only=True)
    solver: Solver = field(kw_only=True)
    grid: TimeGrid = field(kw_only=True)
    noise: Noise | Sequence[Tensor] | None = field(default=None, kw_only=True)
    moves: Literal["both", "x_T", "z"] = field(default="both", kw_only=True)
    scheduled: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if self.moves not in ("both", "x_T", "z"):
            raise ValueError(f"moves={self.moves!r} must be 'both', 'x_T' or 'z'")
        try:
            inspect.signature(self.loss).bind(None, None)
        except TypeError as error:
            raise TypeError(
                f"loss is called as loss(x_0, rows), rows being the numbers of the samples, and "
                f"takes other arguments ({error}): write loss=lambda x_0, rows: ..."
            ) from None
        except ValueError:  # a function that does not tell
            pass
        if self.z is None and self.moves == "z":
            raise ValueError("moves='z', and the problem has no z; give one, or moves='x_T'")

    @property
    def rows(self) -> Tensor:
        """Numbers of all samples."""
        return torch.arange(len(self.x_T), device=self.x_T.device)

    def losses(self, x_0: Tensor, rows: Tensor) -> Tensor:
        """The losses of samples of these numbers, with shape (R); :func:`losses_of` checks."""
        return losses_of(x_0, self.loss(x_0, rows), len(rows))

    def per_step(self) -> "LatentProblem":
        """The same problem with a condition of its own for every step, all equal at first."""
        if self.scheduled:
            return self
        repeated = tree_map_only(
            Tensor, lambda z: z.unsqueeze(1).repeat_interleave(self.grid.steps, 1), self.z
        )
        return replace(self, z=repeated, scheduled=True)

    def conditions(self, z: Any) -> Condition:
        """A condition of this problem as :func:`adjointdeis.sample` takes it."""
        if not self.scheduled:
            return z
        steps = range(self.grid.steps)
        return PerStep([tree_map_only(Tensor, lambda t, i=i: t[:, i], z) for i in steps])

    def sample(
        self,
        x_T: Tensor | None = None,
        z: Any = None,
        rows: Tensor | None = None,
        gradient: GradientMethod | None = None,
    ) -> Rollout:
        """Samples, from other latents than the problem's where they are given.

        Args:
            x_T, z: Latents of the samples ``rows``; None for the problem's, of all samples.
            rows: Numbers of the samples; None for all.
            gradient: How to differentiate.
        """
        noise = self.noise
        if rows is not None and noise is not None and len(rows) < len(self.x_T):
            recorded = isinstance(noise, Sequence)
            noise = RecordedNoise(tuple(noise)) if recorded else noise
            noise = rows_of_noise(noise, rows, len(self.x_T))
        return sample(
            self.denoiser,
            self.x_T if x_T is None else x_T,
            self.conditions(self.z if z is None else z),
            solver=self.solver,
            grid=self.grid,
            noise=noise,
            gradient=gradient,
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """What one update of the weights is computed from.

    Attributes:
        x_T: Initial noise, with shape (B, *).
        z: Condition, or None.
        noise: Of the N steps, for an SDE solver.
    """

    x_T: Tensor
    z: Tensor | None = None
    noise: Noise | Sequence[Tensor] | None = None


@dataclass(frozen=True, eq=False)
class WeightProblem:
    """Change the weights of a denoiser until what it samples has a small loss.

    Args:
        denoiser: Network, changed in place. Weights that do not require a gradient stay as they
            are and cost nothing.
        draw: ``step -> Batch`` to sample from; a fresh one every step, or the weights fit these
            samples only.
        loss: ``x_0 -> losses`` with shape (B); the mean is descended.
        solver, grid: Sampler.

    Raises:
        ValueError: No weight requires a gradient.
    """

    denoiser: nn.Module
    draw: Callable[[int], Batch]
    loss: Callable[[Tensor], Tensor] = field(kw_only=True)
    solver: Solver = field(kw_only=True)
    grid: TimeGrid = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ValueError(
                "no weight of the denoiser requires a gradient; call requires_grad_() on those to "
                "fine-tune"
            )

    @property
    def parameters(self) -> list[Tensor]:
        """The weights that move."""
        return [p for p in self.denoiser.parameters() if p.requires_grad]

    def evaluate(
        self, batch: Batch, gradient: GradientMethod | None = None
    ) -> tuple[Rollout, Tensor]:
        """Samples and their losses (B), differentiable in the weights; nothing is updated."""
        rollout = sample(
            self.denoiser,
            batch.x_T.detach(),
            batch.z,
            solver=self.solver,
            grid=self.grid,
            noise=batch.noise,
            gradient=gradient,
            parameters=self.parameters,
        )
        return rollout, self.losses(rollout.x_0)

    def losses(self, x_0: Tensor) -> Tensor:
        """The losses of samples, with shape (B); :func:`losses_of` checks."""
        return losses_of(x_0, self.loss(x_0))


@dataclass(frozen=True, eq=False)
class Step:
    """What one step saw, before it moved anything.

    Attributes:
        loss: Losses of the samples that took part, with shape (R).
        cost: Counters of this step.
        gradient_norm: Euclidean norm of the gradient: of each sample, with shape (R), or of all
            weights together; None of an algorithm that has no such gradient.
        x_0: The samples; None where a step makes none.
        rows: Numbers of the samples that took part; None for all.
    """

    loss: Tensor
    cost: Cost
    gradient_norm: Any = None
    x_0: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an algorithm found.

    Attributes:
        x_0: Samples, with shape (B, *); of weights, those of the last update.
        loss: Their losses, with shape (B).
        cost: Counters of everything that was run. An evaluation of the network on the whole
            batch counts once.
        x_T, z: The latents that x_0 was sampled from; None where none were optimised.
        history: Losses that each step saw, see :class:`Step`.
        failed: Why a sample was given up, by its number.
        stopped: The step at which a sample was accepted before the end, by its number.
        loss_gradients: Gradients of the loss alone, without the network.
    """

    x_0: Tensor
    loss: Tensor
    cost: Cost
    x_T: Tensor | None = None
    z: Any = None
    history: list[Tensor] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    stopped: dict[int, int] = field(default_factory=dict)
    loss_gradients: int = 0


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem of which it is known how good an outcome is.

    Attributes:
        problem: What an algorithm works on.
        quality: ``outcome -> measures`` per sample by name, against a truth that no algorithm
            sees. Where the outcome is in what the problem holds (weights), None will do.
    """

    problem: Any
    quality: Callable[[Any], dict[str, Tensor]]


class AlgorithmRun(ABC):
    """An algorithm under way on a problem.

    Attributes:
        cost: Counters so far.
        history: Losses that each step saw.
    """

    def __init__(self) -> None:
        self.cost = Cost()
        self.history: list[Tensor] = []

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether the algorithm would make no further step."""

    @abstractmethod
    def step(self) -> Step | None:
        """One step; None of one that moves nothing yet."""

    @abstractmethod
    def outcome(self) -> Outcome:
        """What was found so far; may sample once more."""


class Algorithm(ABC):
    """A guidance algorithm: settings, and :meth:`solve`.

    Attributes:
        solves: The class of problems that it is for.
    """

    solves: ClassVar[type] = LatentProblem

    def solve(self, problem: Any) -> Outcome:
        """Runs to the end.

        Args:
            problem: Of the class ``solves``.

        Raises:
            TypeError: A problem of another class.
        """
        run = self.start(problem)
        while not run.finished:
            run.step()
        return run.outcome()

    def start(self, problem: Any) -> AlgorithmRun:
        """A run that makes one step at a time; see :meth:`solve`."""
        if not isinstance(problem, self.solves):
            raise TypeError(
                f"{type(self).__name__} solves a {self.solves.__name__}, not a "
                f"{type(problem).__name__}"
            )
        return self._start(problem)

    @abstractmethod
    def _start(self, problem: Any) -> AlgorithmRun: ...


def normals(source: int | Sequence[Tensor], count: int, like: Tensor) -> list[Tensor]:
    """So many standard normals shaped like a tensor.

    Args:
        source: A seed to draw them from, in float64 on the CPU, or the tensors themselves.
        count: How many are needed.
        like: Shape, type and device.

    Raises:
        ValueError: Another number of tensors.
    """
    if isinstance(source, int):
        generator = torch.Generator().manual_seed(source)
        drawn = torch.randn(count, *like.shape, generator=generator, dtype=torch.float64)
        return list(drawn.to(like))
    if len(source) != count:
        raise ValueError(f"{count} tensors of noise are needed here, got {len(source)}")
    return list(source)
