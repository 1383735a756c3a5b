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

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.noise import as_noise
from adjointdeis.diffusion.prediction import x0_from_eps
from adjointdeis.gradients.cost import CountedDenoiser
from adjointdeis.guidance.problem import (
    Algorithm,
    AlgorithmRun,
    LatentProblem,
    OptimizerFactory,
    Outcome,
    Step,
)

Objective = Callable[[Tensor], Tensor]
Predict = Callable[[Any], Tensor]

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

    def choose(self, predict: Predict, x: Tensor, s: Node, z: Any, objective: Objective) -> Choice:
        """The prediction at x.

        Args:
            predict: ``z -> eps`` at x, counted, never with a graph.
            x: State at ``s``, with shape (B, *).
            s: Node with alpha > 0.
            z: The problem's condition, or the pair of conditions that the strategy blends.
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

    def choose(self, predict: Predict, x: Tensor, s: Node, z: Any, objective: Objective) -> Choice:
        eps = predict(z)
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

    def choose(self, predict: Predict, x: Tensor, s: Node, z: Any, objective: Objective) -> Choice:
        if not isinstance(z, (tuple, list)) or len(z) != 2:
            raise ValueError("SearchBlend blends two conditions: give the problem z=(z_a, z_b)")
        z_a, z_b = z
        eps_a, eps_b = predict(z_a), predict(z_b)
        middle = self.blend(eps_a, eps_b, 0.5)
        initial = _losses(objective, x, middle, s)
        best, lowest = middle.clone(), torch.full_like(initial, float("inf"))
        for weight in self.weights:
            eps = self.blend(eps_a, eps_b, weight)
            _keep_better(best, lowest, eps, _losses(objective, x, eps, s))
        return Choice(best, lowest, initial)


@dataclass(frozen=True, eq=False)
class Greedy(Algorithm):
    """Greedy guidance of a sampling run.

    Optimises the trajectory. Cost: N evaluations, none with a graph, and the strategy's gradients
    of the loss (``loss_gradients`` of the outcome). A step of a run is a sampling step; its loss
    is that of the prediction which was chosen.

    Args:
        strategy: How each step's eps is chosen; :class:`OptimiseEps` takes the problem's z,
            :class:`SearchBlend` a problem whose z is the pair of both conditions.

    Raises:
        ValueError: An encoding grid, noise that does not fit, or a solver that asks for more than
            one evaluation a step.

    When not to use: with a solver of several evaluations a step, or where the sample must stay
    what the network believes.
    """

    strategy: Strategy = OptimiseEps()

    def _start(self, problem: LatentProblem) -> "GreedySampling":
        return GreedySampling(self.strategy, problem)


class GreedySampling(AlgorithmRun):
    """A batch under greedy sampling.

    Attributes:
        x: State at node ``done``.
        done: Sampling steps made.
        loss_gradients: Gradients of the loss so far.
    """

    def __init__(self, strategy: Strategy, problem: LatentProblem) -> None:
        super().__init__()
        grid, solver, noise = problem.grid, problem.solver, problem.noise
        if not grid.sampling:
            raise ValueError("greedy guidance needs a grid from noise to data; this one encodes")
        if problem.scheduled:
            raise ValueError("greedy guidance takes one condition for all steps, not a schedule")
        if (noise is not None) != (solver.calculus == "sde"):
            raise ValueError(
                f"{type(solver).__name__} is an {solver.calculus.upper()} solver and "
                f"{'needs' if noise is None else 'takes no'} noise"
            )
        self.loss_gradients, self.done = 0, 0
        self.problem, self.strategy = problem, strategy
        self.denoiser = CountedDenoiser(problem.denoiser, self.cost)
        self.noise = None if noise is None else as_noise(noise, grid, problem.x_T)
        self.x = problem.x_T.detach()
        self._state = solver.initial_state(self.x, grid)

    @property
    def finished(self) -> bool:
        return self.done == self.problem.grid.steps

    def step(self) -> Step:
        """One sampling step."""
        problem, x, before = self.problem, self.x, replace(self.cost)
        s, t = problem.grid[self.done], problem.grid[self.done + 1]

        def predict(z: Any) -> Tensor:
            return self.denoiser(x, s.t, z).detach()

        with torch.no_grad():
            choice = self.strategy.choose(predict, x, s, problem.z, self._loss)
            noise = None if self.noise is None else self.noise.normal(s, t, x)
            given = _Given(x, choice.eps, type(problem.solver).__name__)
            self.x, self._state = problem.solver.step(given, x, None, s, t, self._state, noise)
        self.loss_gradients += choice.loss_gradients
        self.done += 1
        self.history.append(choice.loss)
        return Step(choice.loss, self.cost.since(before))

    def outcome(self) -> Outcome:
        with torch.no_grad():
            loss = self._loss(self.x)
        return Outcome(
            self.x, loss, self.cost, history=self.history, loss_gradients=self.loss_gradients
        )

    def _loss(self, x_0: Tensor) -> Tensor:
        return self.problem.losses(x_0, self.problem.rows)


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
