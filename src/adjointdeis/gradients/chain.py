"""The discrete chain of states that a solver makes on a grid."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from adjointdeis.diffusion.conditions import Conditions
from adjointdeis.diffusion.fit import check_fit
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise, RecordedNoise, as_noise
from adjointdeis.diffusion.prediction import x0_from_eps
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.solvers.base import Solver, State, eps_factor
from adjointdeis.solvers.pair import Pair


class NotSupportedError(ValueError):
    """A gradient that the chosen method does not give, for this sampler or this input."""


_WIDER = (
    "{} takes as many channels as x has, and the denoiser returns more: take its own where it "
    "predicts a variance as well, network(...)[:, :C]"
)


@dataclass(frozen=True, eq=False)
class Chain:
    """Sampling as a chain x_T -> ... -> x_0 with everything but the differentiable inputs.

    Attributes:
        denoiser, solver, grid, cost: counted network, sampler, N + 1 nodes, counters.
        noise: path noise for an SDE solver, None for an ODE solver.
        conditions: z of every step.
        trajectory: where states and predictions are collected; None if nobody wants them.
        states: x at every node, where an earlier run of the same steps has found them.
        gradient_error: by input, filled by a method that estimates it (``Certified``).
    """

    denoiser: CountedDenoiser
    solver: Solver
    grid: TimeGrid
    noise: Noise | None
    conditions: Conditions
    cost: Cost
    trajectory: "Trajectory | None" = None
    gradient_error: dict[str, float] = field(default_factory=dict)
    states: Sequence[Tensor] = ()

    @classmethod
    def of(
        cls,
        denoiser: Callable[..., Tensor],
        solver: Solver,
        grid: TimeGrid,
        x_T: Tensor,
        z: Any = None,
        noise: Noise | Sequence[Tensor] | Tensor | None = None,
        cost: Cost | None = None,
        trajectory: bool = False,
        states: Sequence[Tensor] = (),
    ) -> "Chain":
        """The chain of a sampling run; arguments as for ``sample``."""
        check_fit(denoiser, solver, grid, x_T)
        cost = Cost() if cost is None else cost
        stochastic = solver.calculus == "sde"
        return cls(
            denoiser=CountedDenoiser(denoiser, cost, remembers=trajectory),
            solver=solver,
            grid=grid,
            noise=as_noise(noise, grid, cls.latent(solver, x_T)) if stochastic else None,
            conditions=Conditions.of(z, grid.steps),
            cost=cost,
            trajectory=Trajectory() if trajectory else None,
            states=states,
        )

    @staticmethod
    def latent(solver: Solver, x: Tensor) -> Tensor:
        """One latent as the network sees it, where x may hold a pair of them."""
        return x[0] if isinstance(solver, Pair) and not solver.tied else x

    @property
    def wanted_noise(self) -> tuple[Tensor, ...]:
        """The recorded normals of the path, if any of them requires a gradient."""
        recorded = self.noise.values if isinstance(self.noise, RecordedNoise) else ()
        return tuple(recorded) if any(n.requires_grad for n in recorded) else ()

    @property
    def steps(self) -> int:
        """Number N of steps."""
        return self.grid.steps

    @property
    def scheduled(self) -> bool:
        """Whether step i has its own condition z_i."""
        return self.conditions.scheduled

    @property
    def factor(self) -> float:
        """Weight of the eps term: 1 for the ODE, 2 for the reverse SDE (Paper: Prop. 3.1)."""
        return eps_factor(self.solver)

    @property
    def spread(self) -> float:
        """Weight of the Wiener process in y = x/alpha: 0 for the ODE, 1 for the reverse SDE."""
        return math.sqrt(self.factor - 1.0)

    def slot(self, step: int) -> int:
        """Which of the conditions step ``step`` uses."""
        return self.conditions.slot(step)

    def initial_state(self, x_T: Tensor) -> State:
        """The solver's state before the first step."""
        make = getattr(self.solver, "initial_state", None)
        state = () if make is None else make(x_T, self.grid)
        return self._checked("initial_state must return a tuple of tensors", state)

    def _checked(self, rule: str, state: Any) -> State:
        if isinstance(state, (tuple, list)) and all(isinstance(v, Tensor) for v in state):
            return tuple(state)
        raise ValueError(f"{type(self.solver).__name__}.{rule}, () without any: got {state!r:.80}")

    def advance(
        self, step: int, x: Tensor, z: Any, state: State, noise: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Take one step; ``noise`` is that of the path unless it is given."""
        s, t = self.grid[step], self.grid[step + 1]
        pair = isinstance(self.solver, Pair)  # its first step is given two latents
        if self.noise is not None:
            noise = self.noise.normal(s, t, x) if noise is None else noise.to(x)
            if not (pair or noise.shape == x.shape):
                source = type(self.noise).__name__
                raise ValueError(f"{source} gives {tuple(noise.shape)}, x has {tuple(x.shape)}")
        self.denoiser.first = None
        with self.widths():
            found = self.solver.step(self.denoiser, x, z, s, t, state, noise)
        two = isinstance(found, tuple) and len(found) == 2
        if two and self.denoiser.wider and found[0].shape != x.shape:
            raise ValueError(_WIDER.format(type(self.solver).__name__))
        rule = f"step must return (x, state), x of shape {tuple(x.shape)}"
        if not two or not (pair or getattr(found[0], "shape", None) == x.shape):
            raise ValueError(
                f"{type(self.solver).__name__}.{rule} and state a tuple of tensors, () without any"
            )
        return found[0], self._checked(f"{rule} and state a tuple of tensors", found[1])

    @contextmanager
    def widths(self) -> Iterator[None]:
        """Inside, a solver that stumbles over an output with more channels than x says so."""
        try:
            yield
        except RuntimeError as error:
            if self.denoiser.wider and "must match the size" in str(error):
                raise ValueError(_WIDER.format(type(self.solver).__name__)) from error
            raise

    def prediction(self) -> Tensor:
        r"""Data prediction :math:`(x - \sigma\epsilon)/\alpha` of the step just taken.

        From its first evaluation of the network.

        Raises:
            NotSupportedError: the step evaluated no network that this package knows, or alpha = 0.
        """
        first, self.denoiser.first = self.denoiser.first, None
        predicts = getattr(self.solver, "predicts", "eps")
        own = getattr(self.solver, "data_prediction", None)
        if first is not None and own is not None:
            return own(*first)
        if first is None or predicts not in ("eps", "velocity"):
            raise NotSupportedError(
                f"{type(self.solver).__name__} evaluates a network of its own convention, whose "
                "prediction of the data is not known: sample without trajectory=True"
            )
        x, t, output = first
        alpha, sigma = (float(f(t)) for f in (self.grid.schedule.alpha, self.grid.schedule.sigma))
        if predicts == "velocity":
            return x - sigma * output
        return x0_from_eps(x, output, alpha, sigma)

    def run(self, x_T: Tensor) -> tuple[Tensor, int]:
        """Take every step; returns x_0 and how many latents were made, solver history included."""
        x, state = x_T, self.initial_state(x_T)
        latents = 1 + len(state)
        for step in range(self.steps):
            x, state = self.advance(step, x, self.conditions.of_step(step), state)
            latents += 1 + len(state)
            if self.trajectory is not None:
                self.trajectory.note(x, self.prediction())
        return x, latents

    @contextmanager
    def backward_pass(self) -> Iterator[None]:
        """Count what happens inside as the backward pass."""
        self.cost.in_backward = True
        try:
            yield
        finally:
            self.cost.in_backward = False


@dataclass(eq=False)
class Trajectory:
    """What a run passes through: x after each of the N steps, and its data prediction."""

    states: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def note(self, x: Tensor, prediction: Tensor) -> None:
        """Add those of a step."""
        self.states.append(x)
        self.predictions.append(prediction)


def detached(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """The tensor as a leaf of its own, sharing memory."""
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().requires_grad_(requires_grad and differentiable)
