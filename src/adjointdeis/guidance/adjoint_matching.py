r"""Adjoint matching: fine-tuning towards the tilted law, by regression on a lean adjoint.

Descent of a loss alone has no law to end at: it ends at the smallest loss, wherever that is. Here
the fine-tuned sampler is to draw from

.. math:: p^*(x_0) \propto p_{\mathrm{base}}(x_0)\, e^{-w L(x_0)} .

A step of the sampler is :math:`x_t = \Phi(x_s, \epsilon) + \nu n`; the *base* is the network that
the run starts from. With :math:`c = \partial\Phi/\partial\epsilon` a number, the
fine-tuned network moves the mean of a step by :math:`\delta = c\,(\epsilon_\theta -
\epsilon_{\mathrm{base}})(x_s)`, which costs :math:`|\delta|^2 / 2v` with :math:`v = \nu^2`: the
divergence of the two steps. The control that makes :math:`\sum |\delta|^2/2v + w L(x_0)` least has
:math:`\delta = -v\,a_t`, where the lean adjoint goes through the base sampler alone, at the states
that the fine-tuned one visited,

.. math:: a_0 = w \nabla L(x_0), \qquad
          a_s = \big(\partial\Phi(x_s, \epsilon_{\mathrm{base}}(x_s))/\partial x_s\big)^T a_t ,

and the network is regressed on it, the states and :math:`a` being constants:

.. math:: \min_\theta\; \frac1B \sum_b \sum_{s \to t} \frac{|\delta_\theta(x_s) + v\,a_t|^2}{2 v} .

Of the continuous equations, and where x_T says nothing about x_0, the least is at p*. A sampler of
the full reverse SDE is *memoryless* in this sense; its steps are too wide by an error of order 1/N,
which the law that is reached inherits. At the base its gradient is that of the mean loss.

With a sampler of the ODE the control is deterministic, v is the width of the step in the schedule's
time, and what is reached is not p* but a compromise: loss against how far each path is moved.

References:
    | Adjoint matching, https://arxiv.org/abs/2409.08861
    | Deterministic and truncated (its abstract could be read here, its equations could not),
    | https://arxiv.org/abs/2605.06583
"""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.diffusion.noise import as_noise
from adjointdeis.gradients import NotSupportedError
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.guidance.fine_tuning import UpdatingWeights, update
from adjointdeis.guidance.problem import Algorithm, Batch, OptimizerFactory, Step, WeightProblem
from adjointdeis.rollout import sample
from adjointdeis.solvers.base import eps_factor


@dataclass(frozen=True, eq=False)
class AdjointMatching(Algorithm):
    r"""Regression of the denoiser on the lean adjoint; see the module.

    Optimises theta. Cost of an update: N evaluations, and for each of the K last steps two more
    with a graph and two products, one of which goes through the frozen base. Memory: N latents, the
    activations of one step, and a second copy of the weights.

    Args:
        optimizer: Factory called with the list of weights that require a gradient.
        steps: Updates of the weights.
        strength: w of :math:`p^* \propto p\,e^{-w L}`, above 0.
        last: K, how many of the last steps are regressed; None for all. What is not regressed
            follows as the weights are shared; the tilted law is reached with all.
        base: The network that p stands for; None for a copy of the problem's denoiser as it is
            when the run starts. It is never changed.
        clip_norm: Largest norm of the gradient over all weights; None leaves it.

    Raises:
        ValueError: ``strength`` or ``clip_norm`` is not positive, ``last`` is below 1, or the
            problem's grid encodes.
        NotSupportedError: The problem's sampler is not one step with one evaluation, or its noise
            is not that of the reverse SDE.
        FloatingPointError: While it runs, if the gradient is not finite; the weights are as they
            were before the step.

    When not to use: for the smallest loss, whatever becomes of the law: ``FineTuning`` gets there
    with half of the products. Nor with few steps: the law that is reached is off by order 1/N.
    """

    optimizer: OptimizerFactory
    steps: int = 15
    strength: float = 1.0
    last: int | None = None
    base: nn.Module | None = None
    clip_norm: float | None = None
    solves: ClassVar[type] = WeightProblem

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength}: expected more than 0")
        if self.last is not None and self.last < 1:
            raise ValueError(f"last={self.last}: expected 1 or more, or None for all steps")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm={self.clip_norm}: expected more than 0, or None")

    def _start(self, problem: WeightProblem) -> "_Matching":
        solver = problem.solver
        if not problem.grid.sampling:
            raise ValueError("AdjointMatching needs a grid from noise to data; this one encodes")
        first_order = getattr(solver, "order", 1) == 1 and not getattr(solver, "multistep", False)
        if not first_order or (solver.calculus == "sde" and not hasattr(solver, "noise_weight")):
            raise NotSupportedError(
                f"AdjointMatching needs a sampler whose step is one evaluation, and {solver} is "
                "another; use solver=SDEDPMSolverPP(order=1), SDEDPMSolver() or DDIM()"
            )
        if solver.calculus == "sde" and eps_factor(solver) != 2.0:
            raise NotSupportedError(
                f"{solver} has another noise than the reverse SDE, with which x_0 remembers x_T "
                "and the tilted law is not reached; use solver=SDEDPMSolverPP(order=1)"
            )
        return _Matching(self, problem)


class _Matching(UpdatingWeights):
    """Adjoint matching under way."""

    def __init__(self, algorithm: AdjointMatching, problem: WeightProblem) -> None:
        super().__init__(algorithm.steps)
        self.algorithm, self.problem, self.parameters = algorithm, problem, problem.parameters
        base = algorithm.base
        self.base = copy.deepcopy(problem.denoiser) if base is None else base
        if base is None:
            self.base.requires_grad_(False)
        self.optimizer = algorithm.optimizer(self.parameters)

    def step(self) -> Step:
        """Samples, goes back along the base, and takes one step of the regression."""
        problem, cost = self.problem, Cost()
        batch = problem.draw(self.updates)
        with torch.no_grad():
            rollout = sample(
                problem.denoiser, batch.x_T, batch.z, solver=problem.solver, grid=problem.grid,
                noise=batch.noise, trajectory=True,
            )  # fmt: skip
        cost.add(rollout.cost)
        with torch.enable_grad():
            x_0 = rollout.x_0.detach().requires_grad_()
            loss = problem.losses(x_0)
            (a,) = torch.autograd.grad(loss.sum(), x_0)
            found = self._regression(batch, rollout.states, self.algorithm.strength * a, cost)
        self.cost.add(cost)
        norm = update(self.optimizer, self.parameters, found, self.algorithm.clip_norm)
        return self.noted(Step(loss.detach(), cost, norm, rollout.x_0))

    def _regression(
        self, batch: Batch, states: tuple[Tensor, ...], a: Tensor, cost: Cost
    ) -> list[Tensor]:
        """Gradient of the objective by the weights; ``a`` is the adjoint at x_0."""
        problem, grid = self.problem, self.problem.grid
        network, base = (CountedDenoiser(d, cost) for d in (problem.denoiser, self.base))
        given: Any = batch.z
        cost.in_backward = True
        cost.holds(len(states), 1)
        total = [torch.zeros_like(parameter) for parameter in self.parameters]
        first = max(0, grid.steps - (self.algorithm.last or grid.steps))
        noise = None if batch.noise is None else as_noise(batch.noise, grid, states[0])
        for i in range(grid.steps - 1, first - 1, -1):
            s, t = grid[i], grid[i + 1]
            z = given.values[i] if isinstance(given, PerStep) else given
            x = states[i].detach().requires_grad_(i > first)
            eps = base(x, s.t, z)
            c, v = self._weights(s, t)
            # Where the step ends without noise nothing can be controlled.
            if v > 0.0:
                mine = network(x.detach(), s.t, z)
                with torch.no_grad():
                    cotangent = (c * (c * (mine - eps) / v + a)) / len(a)
                found = torch.autograd.grad(mine, self.parameters, cotangent, allow_unused=True)
                cost.vjps += 1
                for mean, value in zip(total, found, strict=True):
                    if value is not None:
                        mean += value
            if i > first:
                drawn = None if noise is None else noise.normal(s, t, x)
                after = problem.solver.step(_constant(eps), x, z, s, t, (), drawn)[0]
                (a,) = torch.autograd.grad(after, x, a)
                cost.vjps += 1
        cost.in_backward = False
        return total

    def _weights(self, s: Node, t: Node) -> tuple[float, float]:
        """c, how far a step goes with the noise prediction, and v, its variance."""
        solver: Any = self.problem.solver
        zero = torch.zeros(1, 1, dtype=torch.float64)
        noise = zero if solver.calculus == "sde" else None

        def ends(eps: Tensor) -> float:
            return float(solver.step(_constant(eps), zero, None, s, t, (), noise)[0])

        c = ends(zero + 1.0) - ends(zero)
        v = float(s.t - t.t) if noise is None else solver.noise_weight(s, t) ** 2
        return c, v


def _constant(eps: Tensor) -> Denoiser:
    """A denoiser that has been evaluated already."""

    def known(x: Tensor, t: Tensor, z: Any) -> Tensor:
        del x, t, z
        return eps

    return known
