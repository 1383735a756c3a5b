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
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.conditions import Conditions
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import eps_weight, path_scale
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.guidance.lookahead import Ahead, Lookahead
from adjointdeis.guidance.per_sample import expanded, rms
from adjointdeis.rollout import Condition
from adjointdeis.solvers.base import Solver, eps_factor


@dataclass(frozen=True, eq=False)
class GuidedSample:
    """The result of a guided sampling run.

    Attributes:
        x_0: state at the last node, detached.
        loss: losses of the clean estimates in the order of the guided visits, with shape (G, B).
        cost: counters of the whole run.
    """

    x_0: Tensor
    loss: Tensor
    cost: Cost


@dataclass(frozen=True)
class FreeDoM:
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

    def sample(
        self,
        denoiser: Callable[..., Tensor],
        x_T: Tensor,
        z: Condition = None,
        *,
        loss: Callable[[Tensor], Tensor],
        solver: Solver,
        grid: TimeGrid,
        noise: Sequence[Tensor] | None = None,
        travel_noise: Sequence[Tensor] | None = None,
    ) -> GuidedSample:
        """Run the sampler once, guided.

        Args:
            denoiser, x_T, z, solver, grid: as for :func:`adjointdeis.sample`.
            loss: ``x_0 -> losses`` with shape (B).
            noise: for an SDE solver, a standard normal for every visit of every step
                (``sum(visits(grid))`` of them).
            travel_noise: a standard normal for every return (``sum(visits(grid)) - N``).
        """
        visits = self.visits(grid)
        total = sum(visits)
        if not grid.sampling:
            raise ValueError("FreeDoM needs a grid from noise to data; this one encodes")
        if self.lookahead.steps == "all" and solver.calculus == "sde":
            raise ValueError(
                "FreeDoM does not know an SDE's later noises; use Lookahead(k) with a whole k"
            )
        _check_count("noise", noise, total if solver.calculus == "sde" else 0)
        _check_count("travel_noise", travel_noise, total - grid.steps)
        conditions = Conditions.of(z, grid.steps)
        draws, returns = iter(noise or ()), iter(travel_noise or ())
        cost, losses = Cost(), []
        counted = CountedDenoiser(denoiser, cost)
        x = x_T.detach()
        state = tuple(solver.initial_state(x, grid)) if hasattr(solver, "initial_state") else ()
        for step in range(grid.steps):
            s, t = grid[step], grid[step + 1]
            condition = conditions.of_step(step)
            for visit in range(visits[step]):
                ahead = None
                if self._guides(s):
                    ahead = self.lookahead.look(
                        denoiser, x, z, loss, solver=solver, grid=grid, step=step
                    )
                    cost.add(ahead.cost)
                    losses.append(ahead.loss)
                predict = counted if ahead is None else Known(counted, x, s.t, ahead.eps)
                draw = next(draws, None)
                moved, later = solver.step(predict, x, condition, s, t, state, draw)
                moved = moved.detach()
                if ahead is not None:
                    moved = moved - self._correction(ahead, eps_factor(solver), s, t)
                if visit + 1 < visits[step]:
                    x = renoised(moved, s, t, next(returns))
            x, state = moved, tuple(value.detach() for value in later)
        return GuidedSample(x, torch.stack(losses) if losses else x.new_zeros(0, len(x)), cost)

    def _guides(self, s: Node) -> bool:
        return self.scale > 0 and self.window[0] <= float(s.t) <= self.window[1]

    def _correction(self, ahead: Ahead, factor: float, s: Node, t: Node) -> Tensor:
        if self.rule == "alpha":
            return self.scale * s.alpha * ahead.gradient
        length = self.scale * factor * abs(eps_weight(s, t)) * rms(ahead.eps)
        size = rms(ahead.gradient)
        # A sample at its optimum has no gradient and gets no correction.
        rho = torch.where(size > 0, length / size.clamp_min(torch.finfo(size.dtype).tiny), 0.0)
        return expanded(rho, ahead.gradient) * ahead.gradient


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
    """A state of node t noised back to the noisier node s."""
    return s.alpha / t.alpha * x + s.alpha * path_scale(s, t) * normal.to(x)


def _check_count(name: str, given: Sequence[Tensor] | None, wanted: int) -> None:
    count = 0 if given is None else len(given)
    if count != wanted:
        raise ValueError(f"FreeDoM: {wanted} tensors of {name} are needed here, got {count}")
