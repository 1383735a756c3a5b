r"""Implicit Diffusion: sampling and optimising the weights in one loop, by a queue of particles.

Slot m of the queue holds samples after m of N steps. Every iteration all slots advance one step
with the present weights, the oldest leave as samples, and the weights take one step:

.. math:: x^{(m+1)}_{k+1} = \Phi_m\big(x^{(m)}_k; \theta_k\big),\qquad
          \theta_{k+1} = \theta_k - \eta\,\Gamma\big(x^{(N)}_{k+1}, \theta_k\big),

Gamma being the adjoint of the loss along the path that the leaving sample came,
:math:`a_N = dL`, :math:`a_m = a_{m+1}\,\partial\Phi_m/\partial x`,
:math:`\Gamma = \sum_m a_{m+1}\,\partial\Phi_m/\partial\theta`, with the Jacobians at the stored
states and the present weights. The path was made by the weights of the last N iterations: the
gradient is exact for eta = 0 and biased in proportion to eta.

The bias is a delay, and a delayed descent that is too fast oscillates. For a quadratic loss of
curvature L, step m having the share b_m of the influence of the weights on x_0,

.. math:: e_{k+1} = e_k - \eta L \sum_m b_m\, e_{k-(N-1-m)},

which converges for all :math:`b_m \ge 0` if :math:`\eta L < 2\sin\frac{\pi}{4N - 2}`, about
:math:`\pi/2N`; a loop that waits for its samples may take :math:`\eta L < 2`.

References:
    Implicit Diffusion, https://arxiv.org/abs/2402.05468
"""

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

import torch

from adjointdeis.gradients import Cost, SamplingPath
from adjointdeis.guidance.fine_tuning import UpdatingWeights, update
from adjointdeis.guidance.problem import Algorithm, Batch, OptimizerFactory, Step, WeightProblem


@dataclass(frozen=True, eq=False)
class ImplicitDiffusion(Algorithm):
    """The single loop for a finite number of sampling steps.

    Optimises theta. Cost of an update: N evaluations (one per slot, independent of each other),
    N more with a graph and N products for the adjoint of the leaving batch; a nested loop pays
    the same but waits for N steps in a row. Memory: the paths of all slots, N(N + 3)/2 latents.

    Args:
        optimizer: Factory called with the list of weights that require a gradient.
        steps: Updates of the weights, after the N - 1 iterations that fill the queue.
        clip_norm: Largest norm of the gradient over all weights; None leaves it.

    Raises:
        ValueError: The problem's grid encodes.
        FloatingPointError: While it runs, if the gradient is not finite; the weights are as they
            were before the iteration.

    When not to use: with learning rates at which the weights move visibly within N iterations:
    the loop then passes the optimum before it sees it, and swings (see the module). The first
    update tells the rate: with a loss that is zero at its optimum, L is about its gradient's
    squared norm over twice the loss. That is for plain descent: Adam, most of all behind a
    ``clip_norm`` that always binds, moves as fast near the optimum as far from it, and swings.
    ``FineTuning`` has no such bias.
    """

    optimizer: OptimizerFactory
    steps: int = 15
    clip_norm: float | None = None
    solves: ClassVar[type] = WeightProblem

    def _start(self, problem: WeightProblem) -> "_Queue":
        if not problem.grid.sampling:
            raise ValueError("ImplicitDiffusion needs a grid from noise to data; this one encodes")
        return _Queue(self, problem)


class _Queue(UpdatingWeights):
    """The single loop under way."""

    def __init__(self, algorithm: ImplicitDiffusion, problem: WeightProblem) -> None:
        super().__init__(algorithm.steps)
        self.algorithm, self.problem, self.parameters = algorithm, problem, problem.parameters
        self.solver, self.grid = problem.solver, problem.grid
        self.optimizer = algorithm.optimizer(self.parameters)
        self.iterations = 0
        self._queue: deque[SamplingPath] = deque()

    def step(self) -> Step | None:
        """One iteration; None while the queue fills, which takes N - 1 iterations."""
        self._queue.append(self._enter(self.problem.draw(self.iterations)))
        self.iterations += 1
        for path in self._queue:
            path.step()
        self.cost.holds(sum(path.latents for path in self._queue))
        if len(self._queue) < self.grid.steps:
            return None
        return self.noted(self._learn(self._queue.popleft()))

    def _enter(self, batch: Batch) -> SamplingPath:
        return SamplingPath(
            self.problem.denoiser,
            batch.x_T,
            batch.z,
            solver=self.solver,
            grid=self.grid,
            noise=batch.noise,
            parameters=self.parameters,
            cost=self.cost,
        )

    def _learn(self, leaving: SamplingPath) -> Step:
        before = Cost(nfe_backward=self.cost.nfe_backward, vjps=self.cost.vjps)
        with torch.enable_grad():
            leaf = leaving.x.detach().requires_grad_()
            loss = self.problem.losses(leaf)
            (a_x,) = torch.autograd.grad(loss.mean(), leaf)
        found = leaving.gradient(a_x)
        norm = update(self.optimizer, self.parameters, found, self.algorithm.clip_norm)
        spent = Cost(
            nfe_forward=self.grid.steps,
            nfe_backward=self.cost.nfe_backward - before.nfe_backward,
            vjps=self.cost.vjps - before.vjps,
        )
        return Step(loss.detach(), spent, norm, leaving.x)
