r"""FreeDoM: training-free guidance of every sampling step by the loss on a clean estimate.

.. math:: x_t = \Phi(x_s) - \rho_s\, g,\qquad
          g = \nabla_{x_s} L\big(\hat x_0(x_s)\big)

through the network, with optional time travel: after the step, the state is noised back,

.. math:: x_s \gets \frac{\alpha_s}{\alpha_t} x_t
          + \sqrt{\sigma_s^2 - \tfrac{\alpha_s^2}{\alpha_t^2}\sigma_t^2}\; n,

and the step is taken again, so that the guided state returns to where the network was trained.

References:
    FreeDoM, https://arxiv.org/abs/2303.09833
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.conditions import Conditions
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import eps_weight, path_scale
from adjointdeis.gradients.cost import CountedDenoiser
from adjointdeis.guidance.lookahead import Ahead, Lookahead
from adjointdeis.guidance.per_sample import expanded, rms
from adjointdeis.guidance.problem import (
    Algorithm,
    AlgorithmRun,
    LatentProblem,
    Outcome,
    Step,
    normals,
)
from adjointdeis.solvers.base import eps_factor


@dataclass(frozen=True, eq=False)
class FreeDoM(Algorithm):
    r"""Guided sampling; nothing is learned and nothing is stored.

    Optimises the trajectory. Cost: per guided visit 1 evaluation with a graph and 1 product (the
    sampler's step uses the same prediction again), per unguided one 1 evaluation; the activations
    of one evaluation, O(1) latents. With ``lookahead=Lookahead(k)``, k of each.

    Args:
        scale: strength, 0 or more; 0 is the plain sampler, bit for bit.
        rule: length of the correction.

            * "alpha": :math:`\rho_s = \text{scale} \cdot \alpha_s`; the length of g is kept, so
              the scale belongs to one loss (the authors: 0.2 to 500).
            * "rms": :math:`\rho_s = \text{scale} \cdot |w_s|\,
              \mathrm{rms}(\epsilon) / \mathrm{rms}(g)`, per sample, with w_s the weight of
              :math:`\epsilon` in the sampler's step. The correction is ``scale`` times as long as
              the noise that the step removes, whatever the loss is multiplied with.
        window: guided times, as (lowest, highest) t of the noisy end of a step.
        repeats: visits of each step inside ``travel``; 1 is no time travel.
        travel: times at which steps are repeated, as for ``window``.
        lookahead: how far ahead the estimate is; 1 is FreeDoM's.
        travel_noise: of the returns: a seed, or a standard normal shaped like x_T for every one
            (``sum(visits(grid)) - N`` of them).

    A step of a run is a sampling step; the outcome's ``history`` has the losses of the clean
    estimates in the order of the guided visits. The noise of an SDE problem is a list with a
    standard normal for every visit of every step (``sum(visits(grid))`` of them).

    Raises:
        ValueError: values out of range, an encoding grid, or noise lists of the wrong length.

    When not to use: where the estimate is a blur (high noise) and the loss a network trained on
    clean images: leave these times out of ``window``. For the optimum of a loss over x_T use
    ``LatentOptimisation``; FreeDoM takes one pass and stops wherever that leads.
    """

    scale: float = 0.2
    rule: Literal["alpha", "rms"] = "rms"
    window: tuple[float, float] = (0.0, 1.0)
    repeats: int = 1
    travel: tuple[float, float] = (0.0, 1.0)
    lookahead: Lookahead = field(default_factory=Lookahead)
    travel_noise: int | Sequence[Tensor] = 0

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"FreeDoM.scale={self.scale}: expected 0 or more")
        if self.rule not in ("alpha", "rms"):
            raise ValueError(f"FreeDoM.rule={self.rule!r}: expected 'alpha' or 'rms'")
        if self.repeats < 1:
            raise ValueError(f"FreeDoM.repeats={self.repeats}: expected 1 or more")
        for name in ("window", "travel"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 1:
                raise ValueError(f"FreeDoM.{name}={low, high}: expected 0 <= low <= high <= 1")

    def visits(self, grid: TimeGrid) -> list[int]:
        """How often each step of a grid is taken."""
        low, high = self.travel
        return [
            self.repeats if low <= float(grid.t[step]) <= high else 1 for step in range(grid.steps)
        ]

    def _start(self, problem: LatentProblem) -> "_GuidedSampling":
        if not problem.grid.sampling:
            raise ValueError("FreeDoM needs a grid from noise to data; this one encodes")
        if self.lookahead.steps == "all" and problem.solver.calculus == "sde":
            raise ValueError(
                "FreeDoM does not know an SDE's later noises; use Lookahead(k) with a whole k"
            )
        return _GuidedSampling(self, problem)

    def guides(self, s: Node) -> bool:
        """Whether the step that begins at this node is guided."""
        return self.scale > 0 and self.window[0] <= float(s.t) <= self.window[1]

    def correction(self, ahead: Ahead, factor: float, s: Node, t: Node) -> Tensor:
        """What a lookahead from s changes the state at t by; ``factor`` is 1 or 2, of the SDE."""
        if self.rule == "alpha":
            return self.scale * s.alpha * ahead.gradient
        length = self.scale * factor * abs(eps_weight(s, t)) * rms(ahead.eps)
        size = rms(ahead.gradient)
        # A sample at its optimum has no gradient and gets no correction.
        rho = torch.where(size > 0, length / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
        return (expanded(rho, ahead.gradient) * ahead.gradient).to(ahead.gradient.dtype)


class _GuidedSampling(AlgorithmRun):
    """A sampling run, guided."""

    def __init__(self, freedom: FreeDoM, problem: LatentProblem) -> None:
        super().__init__()
        self.freedom, self.problem, self.done = freedom, problem, 0
        self.visits = freedom.visits(problem.grid)
        total, solver = sum(self.visits), problem.solver
        given = 0 if problem.noise is None else len(problem.noise)  # type: ignore[arg-type]
        wanted = total if solver.calculus == "sde" else 0
        if given != wanted:
            raise ValueError(f"FreeDoM: {wanted} tensors of noise are needed here, got {given}")
        self.x = problem.x_T.detach()
        self.draws = iter(problem.noise or ())  # type: ignore[arg-type]
        self.returns = iter(normals(freedom.travel_noise, total - problem.grid.steps, self.x))
        self.denoiser = CountedDenoiser(problem.denoiser, self.cost)
        self.conditions = problem.conditions(problem.z)
        begins = hasattr(solver, "initial_state")
        self.state = tuple(solver.initial_state(self.x, problem.grid)) if begins else ()

    @property
    def finished(self) -> bool:
        return self.done == self.problem.grid.steps

    def step(self) -> Step:
        """One sampling step, with its returns."""
        freedom, problem, before = self.freedom, self.problem, replace(self.cost)
        s, t = problem.grid[self.done], problem.grid[self.done + 1]
        z = Conditions.of(self.conditions, problem.grid.steps).of_step(self.done)
        ahead, moved, later = None, self.x, self.state
        for visit in range(self.visits[self.done]):
            ahead = None
            if freedom.guides(s):
                ahead = freedom.lookahead.look(
                    problem.denoiser,
                    self.x,
                    self.conditions,
                    lambda x_0: problem.losses(x_0, problem.rows),
                    solver=problem.solver,
                    grid=problem.grid,
                    step=self.done,
                )
                self.cost.add(ahead.cost)
                self.history.append(ahead.loss)
            known = None if ahead is None else Known(self.denoiser, self.x, s.t, ahead.eps)
            moved, later = problem.solver.step(
                known or self.denoiser, self.x, z, s, t, self.state, next(self.draws, None)
            )
            moved = moved.detach()
            if ahead is not None:
                moved = moved - freedom.correction(ahead, eps_factor(problem.solver), s, t)
            if visit + 1 < self.visits[self.done]:
                self.x = renoised(moved, s, t, next(self.returns))
        self.x, self.state = moved, tuple(value.detach() for value in later)
        self.done += 1
        loss = self.x.new_zeros(0) if ahead is None else ahead.loss
        return Step(loss, self.cost.since(before), x_0=None if ahead is None else ahead.x_0)

    def outcome(self) -> Outcome:
        with torch.no_grad():
            loss = self.problem.losses(self.x, self.problem.rows)
        return Outcome(self.x, loss, self.cost, history=self.history)


@dataclass(frozen=True, eq=False)
class Known:
    """A denoiser whose prediction at one state is known already."""

    denoiser: Callable[..., Tensor]
    x: Tensor
    t: Tensor
    eps: Tensor

    def __call__(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        """The known prediction for that very state and time; the network everywhere else."""
        if x is self.x and float(t) == float(self.t):
            return self.eps
        return self.denoiser(x, t, z)


def renoised(x: Tensor, s: Node, t: Node, normal: Tensor) -> Tensor:
    """A state of node t noised back to the noisier node s.

    Args:
        x: State (B, ...) at t.
        s, t: The noisier node, and that of x.
        normal: Standard normals, of the shape of x.
    """
    return s.alpha / t.alpha * x + s.alpha * path_scale(s, t) * normal.to(x)
