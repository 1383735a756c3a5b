r"""Greedy guidance: choose the noise prediction of every sampling step against a loss of its x_0.

At a state :math:`x_s` the prediction :math:`\epsilon` determines the clean image that the sampler
is heading for, :math:`\hat x_0 = (x_s - \sigma_s \epsilon) / \alpha_s`.  A step of greedy guidance
asks the network once, replaces its answer by the :math:`\epsilon` of least
:math:`L(\hat x_0)` that a strategy finds, and lets the solver go on with it.  The gradient

.. math:: \frac{\partial L}{\partial \epsilon}
    = -\frac{\sigma_s}{\alpha_s}\,\frac{\partial L}{\partial \hat x_0}

needs no vector-Jacobian product of the network, whose parameters and activations it never
touches.

Strategies: :class:`OptimiseEps` descends from the network's answer; :class:`SearchBlend` searches
the arc between its answers under two conditions.

References:
    | Greedy-DiM: Greedy Algorithms for Unreasonably Effective Face Morphs
    | https://arxiv.org/abs/2404.06025
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.noise import Noise, as_noise
from adjointdeis.diffusion.prediction import x0_from_eps
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.solvers.base import Solver

Objective = Callable[[Tensor], Tensor]
OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
Predict = Callable[[Tensor], Tensor]

ADAM: OptimizerFactory = partial(torch.optim.Adam, lr=0.01, betas=(0.5, 0.9))
"""The optimiser of Greedy-DiM*."""


@dataclass(frozen=True, eq=False)
class Choice:
    """The noise prediction that a strategy takes.

    Attributes:
        eps: With the shape of x, detached.
        loss: Its loss, with shape (B).
        initial: Loss of the network's own answer, with shape (B).
        loss_gradients: How often the loss was differentiated.
    """

    eps: Tensor
    loss: Tensor
    initial: Tensor
    loss_gradients: int = 0


class Strategy(Protocol):
    """How a step's noise prediction is chosen."""

    def choose(
        self, predict: Predict, x: Tensor, s: Node, z: Sequence[Tensor], objective: Objective
    ) -> Choice:
        """The prediction at x.

        Args:
            predict: ``z -> eps`` at x, counted, never with a graph.
            x: State at ``s``, with shape (B, *).
            s: Node with alpha > 0.
            z: The conditions that the strategy may ask for.
            objective: ``x_0 -> losses`` with shape (B), differentiable.
        """
        ...


@dataclass(frozen=True)
class OptimiseEps:
    """Descend the loss over eps from the network's answer, keep each sample's best.

    The answer itself competes, so that no step is worse than the plain one by its own loss.

    Args:
        steps: Gradient steps of every sampling step; 0 is plain sampling.
        optimizer: Factory called with ``[eps]``, fresh at every sampling step; an elementwise one
            (Adam, RAdam, SGD) keeps the samples independent.

    When not to use: with a loss that small changes of pixels can lower without meaning anything;
    nothing keeps eps close to what the network believes.
    """

    steps: int = 50
    optimizer: OptimizerFactory = ADAM

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"OptimiseEps.steps={self.steps}: expected 0 or more")

    def choose(
        self, predict: Predict, x: Tensor, s: Node, z: Sequence[Tensor], objective: Objective
    ) -> Choice:
        (condition,) = z
        eps = predict(condition)
        initial = _losses(objective, x, eps, s)
        best, lowest = eps.clone(), initial.clone()
        if not self.steps:
            return Choice(best, lowest, initial)
        moving = eps.clone().requires_grad_()
        optimizer = self.optimizer([moving])
        for _ in range(self.steps):
            with torch.enable_grad():
                loss = objective(x0_from_eps(x, moving, s.alpha, s.sigma))
                (moving.grad,) = torch.autograd.grad(loss.sum(), (moving,))
            _keep_better(best, lowest, moving.detach(), loss.detach())
            optimizer.step()
        _keep_better(best, lowest, moving.detach(), _losses(objective, x, moving.detach(), s))
        return Choice(best, lowest, initial, loss_gradients=self.steps)


@dataclass(frozen=True)
class SearchBlend:
    """Try the spherical blends of the answers under two conditions, take each sample's best.

    Args:
        weights: Shares of the second answer that are tried, each in [0, 1].
        blend: ``(eps_a, eps_b, weight) -> eps``.
    """

    weights: tuple[float, ...]
    blend: Callable[[Tensor, Tensor, float], Tensor]

    def __post_init__(self) -> None:
        if not self.weights or not all(0 <= w <= 1 for w in self.weights):
            raise ValueError(f"SearchBlend.weights={self.weights}: expected shares in [0, 1]")

    def choose(
        self, predict: Predict, x: Tensor, s: Node, z: Sequence[Tensor], objective: Objective
    ) -> Choice:
        z_a, z_b = z
        eps_a, eps_b = predict(z_a), predict(z_b)
        middle = self.blend(eps_a, eps_b, 0.5)
        initial = _losses(objective, x, middle, s)
        best, lowest = middle.clone(), torch.full_like(initial, float("inf"))
        for weight in self.weights:
            eps = self.blend(eps_a, eps_b, weight)
            _keep_better(best, lowest, eps, _losses(objective, x, eps, s))
        return Choice(best, lowest, initial)


class GreedyRun:
    """A batch under greedy sampling, one sampling step at a time.

    Args:
        denoiser: ``(x, t, z) -> eps``, evaluated without a graph.
        x_T: State at the first node, with shape (B, *); not modified.
        z: The conditions of the strategy: one for OptimiseEps, two for SearchBlend.
        solver: Sampler that evaluates the network once a step, at the state it is given.
        grid: Sampling grid, N steps.
        objective: ``x_0 -> losses`` with shape (B).
        strategy: How each step's eps is chosen.
        noise: Noises of the steps, for an SDE solver.

    Attributes:
        x: State at node ``done``.
        done: Sampling steps made.
        cost: Network evaluations so far; there are no vector-Jacobian products.
        loss_gradients: Gradients of the loss so far.

    Raises:
        ValueError: An encoding grid, noise that does not fit, or a solver that asks for more than
            one evaluation a step.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        x_T: Tensor,
        z: Sequence[Tensor],
        *,
        solver: Solver,
        grid: TimeGrid,
        objective: Objective,
        strategy: Strategy,
        noise: Noise | Sequence[Tensor] | None = None,
    ) -> None:
        if not grid.sampling:
            raise ValueError("greedy guidance needs a grid from noise to data; this one encodes")
        if (noise is not None) != (solver.calculus == "sde"):
            raise ValueError(
                f"{type(solver).__name__} is an {solver.calculus.upper()} solver and "
                f"{'needs' if noise is None else 'takes no'} noise"
            )
        self.cost, self.loss_gradients, self.done = Cost(), 0, 0
        self.denoiser = CountedDenoiser(denoiser, self.cost)
        self.z, self.solver, self.grid = tuple(z), solver, grid
        self.objective, self.strategy = objective, strategy
        self.noise = None if noise is None else as_noise(noise, grid, x_T)
        self.x = x_T.detach()
        self._state = solver.initial_state(self.x, grid)

    def step(self) -> Choice:
        """One sampling step; returns what was chosen for it."""
        s, t = self.grid[self.done], self.grid[self.done + 1]
        x = self.x

        def predict(z: Tensor) -> Tensor:
            return self.denoiser(x, s.t, z).detach()

        with torch.no_grad():
            choice = self.strategy.choose(predict, x, s, self.z, self.objective)
            noise = None if self.noise is None else self.noise.normal(s, t, x)
            given = _Given(x, choice.eps, type(self.solver).__name__)
            self.x, self._state = self.solver.step(given, x, None, s, t, self._state, noise)
        self.loss_gradients += choice.loss_gradients
        self.done += 1
        return choice


def sample_greedily(run: GreedyRun) -> tuple[Tensor, Tensor]:
    """Makes the steps that are left.

    Returns:
        x_0, and the losses of the chosen predictions with shape (N, B).
    """
    losses = [run.step().loss for _ in range(run.done, run.grid.steps)]
    return run.x, torch.stack(losses)


class _Given:
    """A denoiser that answers once, at one state, what has been decided."""

    def __init__(self, x: Tensor, eps: Tensor, solver: str) -> None:
        self.x, self.eps, self.solver, self.asked = x, eps, solver, False

    def __call__(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        if self.asked or x is not self.x:
            raise ValueError(
                f"greedy guidance replaces the one prediction of a step; {self.solver} asks for "
                "another one. Use a solver with one evaluation a step, at its state: DDIM, "
                "DPMSolverPP, SDEDPMSolver"
            )
        self.asked = True
        return self.eps


def _losses(objective: Objective, x: Tensor, eps: Tensor, s: Node) -> Tensor:
    return objective(x0_from_eps(x, eps, s.alpha, s.sigma)).detach()


def _keep_better(best: Tensor, lowest: Tensor, eps: Tensor, loss: Tensor) -> None:
    """Takes over, in place, the samples of lower loss; one that is not a number is none."""
    better = loss < lowest
    best[better], lowest[better] = eps[better], loss[better]
