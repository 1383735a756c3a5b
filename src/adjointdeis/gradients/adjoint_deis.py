"""AdjointDEIS: exponential integrators for the continuous adjoint equations."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.noise import BrownianPath, refuse_without_increments
from adjointdeis.diffusion.prediction import x0_from_eps
from adjointdeis.gradients.adjoint_kernel import Form, Prediction, Velocity, solve_adjoint
from adjointdeis.gradients.adjoint_nodes import AdjointNodes
from adjointdeis.gradients.base import ContinuousAdjoint, StepwiseMethod, refuse_count, refuse_other
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.inputs import ONE_SLOT, Inputs
from adjointdeis.gradients.large_steps import LargeAdjointStepWarning, warn_of_large_steps
from adjointdeis.gradients.trace import Trace
from adjointdeis.solvers.base import Solver

States = Literal["recorded", "resolved", "interpolated"]

__all__ = ["AdjointDEIS", "LargeAdjointStepWarning"]


@dataclass(frozen=True)
class AdjointDEIS(StepwiseMethod):
    r"""Optimise-then-discretise: the continuous adjoint, solved in M steps of its own.

    Order 1, for t clean and s noisy, :math:`H = \lambda_s - \lambda_t < 0` and c = 1 for an
    ODE sampler, 2 for an SDE sampler (:math:`c` is read from the solver):

    .. math:: a_x(s) = \tfrac{\alpha_t}{\alpha_s} a_x(t)
              + c\, \sigma_s (e^H - 1) \tfrac{\alpha_t^2}{\alpha_s^2}\,
              a_x(t)^\top \partial_x \epsilon(x_t, z, t),

    2M as in Algorithm 1; a_z and a_theta alike. The gradient of a scheduled z_i is the increment
    of a_z over sampling step i. docs/methods/gradients/adjoint_deis.md says what each choice
    costs and where it fails.
    Paper: eq. 2.8 to 2.10, 2.14, 2.15, Algorithm 1, Theorem 2.2, Prop. 3.1.

    Args:
        order: 1, 2 (also written "2M"), 3 ("3M") or 4 ("4M"); the paper has the first two.
        steps: M, the number of adjoint steps; None takes M = N.
        states: where x_t comes from: "recorded" in the sampling run (M <= N), "interpolated"
            between recorded states (any M), or "resolved" by integrating back from x_0 (holds
            O(1) latents; orders 1 and 2).
        prediction: what is interpolated: "noise", the paper's form, or "data", which has the
            exact factor at high noise and needs sigma > 0 at the clean end.
        check: as for ``StepwiseMethod``.

    Warns:
        LargeAdjointStepWarning: a step so wide in lambda that its sign is wrong: beyond ln 2
            (ODE) or ln 1.5 (SDE) for order 1, less for higher ones.

    Raises:
        ValueError: unknown order, states or prediction; more recorded steps than sampling
            steps; re-solved states beyond order 2; data prediction to sigma = 0.
        NotSupportedError: data prediction with re-solved states of an SDE, whose noise in that
            variable is no increment of the path.

    When not to use: wherever ``DiscreteAdjoint`` fits, which costs the same with M = N and
    recorded states and is the gradient of the sampler that ran. What remains are M < N and
    samplers that are black boxes but for their states.

    References:
        AdjointDEIS, https://arxiv.org/abs/2405.15020
    """

    order: Literal[1, 2, 3, 4, "2M", "3M", "4M"] = 1
    steps: int | None = None
    states: States = "recorded"
    prediction: Prediction = "noise"
    memory: ClassVar[str] = "N latents; O(1) latents with re-solved states"
    adjoint: ClassVar[ContinuousAdjoint] = ContinuousAdjoint(
        clock="lambda", integrator="custom solver", sde_coefficients=True, own_steps=True
    )

    def __post_init__(self) -> None:
        orders: dict[int | str, int] = {1: 1, 2: 2, 3: 3, 4: 4, "2M": 2, "3M": 3, "4M": 4}
        if self.order not in orders:
            raise ValueError(
                f"AdjointDEIS has orders 1 to 4 (or '2M', '3M', '4M'), got {self.order!r}"
            )
        refuse_other(
            self,
            states=(self.states, get_args(States)),
            prediction=(self.prediction, get_args(Prediction)),
        )
        if self.steps is not None:
            refuse_count("AdjointDEIS.steps", self.steps, 1)
        object.__setattr__(self, "order", orders[self.order])
        if self.states == "resolved" and int(self.order) > 2:
            raise ValueError(
                f"AdjointDEIS of order {self.order} corrects its first steps and needs their "
                "states beforehand: use states='recorded', or order 2 with re-solved states"
            )

    def refuse(self, solver: Solver, wanted: Collection[str]) -> None:
        super().refuse(solver, wanted)
        if (self.prediction, self.states, solver.calculus) == ("data", "resolved", "sde"):
            raise NotSupportedError(
                "AdjointDEIS does not re-solve the states of an SDE in data prediction, where the "
                "noise is an integral of the path and not its increment; use states='recorded' or "
                "prediction='noise'"
            )

    def nodes(self, grid: TimeGrid) -> AdjointNodes:
        """The nodes of the adjoint solve on this sampling grid."""
        if not grid.sampling or float(grid.alpha.min()) <= 0.0:
            raise ValueError(
                "AdjointDEIS differentiates sampling grids (noise to data, alpha > 0); use "
                "DiscreteAdjoint or Backprop for an encoding"
            )
        if self.prediction == "data" and grid[-1].sigma == 0.0:
            raise ValueError(
                "AdjointDEIS in data prediction integrates over (alpha/sigma)^c, which is infinite "
                "at sigma = 0: end the grid at t_min > 0, or use prediction='noise'"
            )
        steps = grid.steps if self.steps is None else self.steps
        if self.states == "recorded" or (self.states == "resolved" and steps <= grid.steps):
            return AdjointNodes.nearest(grid, steps)
        return AdjointNodes.between(grid, steps)

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, tuple[AdjointNodes, Trace]]:
        nodes = self.nodes(chain.grid)
        if self.states == "resolved" and chain.noise is not None:
            refuse_without_increments(chain.noise, "AdjointDEIS with re-solved states")
            if not nodes.exact and not isinstance(chain.noise, BrownianPath):
                raise ValueError(
                    "re-solving an SDE between sampling nodes needs its path there: pass "
                    "noise=BrownianPath(...), or take steps <= N"
                )
        warn_of_large_steps(nodes.grid, chain.factor, int(self.order), self.prediction)
        x_0, trace = self.traced(chain, by, self._kept(nodes))
        return x_0, (nodes, trace)

    def backward_pass(
        self, chain: Chain, record: tuple[AdjointNodes, Trace], by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        (nodes, trace), grid = record, record[0].grid
        states = {chain.steps: x_0, **{i: carry.x for i, carry in trace.carries.items()}}
        resolved, data = self.states == "resolved", self.prediction == "data"
        form = Form(self.prediction, chain.factor)
        y = x_0 / form.scale(grid[-1])
        check = trace.reevaluations(chain, by)
        chain.cost.holds(1, graphs=1)

        def velocity(interval: int, t: Node, p: Tensor | None) -> Velocity:
            slot = chain.slot(nodes.shares(interval)[0][0])

            def predicted(x: Tensor, z: Any) -> Tensor:
                eps = chain.denoiser(x, t.t, z)
                check.compare(x, t.t, slot, eps)
                return x0_from_eps(x, eps, t.alpha, t.sigma) if data else eps

            x = form.scale(t) * y if resolved else nodes.state(interval + 1, states)
            context = trace.contexts[nodes.index(interval + 1)]
            pJ, rest, out = by.product(predicted, x, slot, p, context)
            return [None if pJ is None else form.scale(t) * pJ, *rest, out]

        def integrate(interval: int, weight: float, D: Velocity) -> None:
            nonlocal y
            _, *rest, out = D
            by.add(rest, weight, nodes.shares(interval) if chain.scheduled else ONE_SLOT)
            if resolved and out is not None:
                # weight = -c r, and y_s = y_t + c r eps - dB; or Gamma_t - Gamma_s, and
                # w_s = w_t - (Gamma_t - Gamma_s) x0.
                y = y - weight * out
                if chain.noise is not None:
                    y = y - chain.spread * path_increment(chain, nodes, interval, y)

        p = solve_adjoint(
            grid,
            form.scale(grid[-1]) * a_x,
            velocity,
            integrate,
            factor=chain.factor,
            order=int(self.order),
            prediction=self.prediction,
            refine=chain.scheduled,
        )
        check.finish()
        return None if p is None else p / form.scale(grid[0])

    def _kept(self, nodes: AdjointNodes) -> set[int]:
        """Numbers of the sampling states that the backward pass reads."""
        if self.states == "resolved":
            return set()
        kept = set()
        for node in range(1, len(nodes.grid)):
            fraction = nodes.fraction[node]
            if fraction < 1.0:
                kept.add(nodes.cell[node])
            if fraction > 0.0:
                kept.add(nodes.cell[node] + 1)
        return kept


def path_increment(chain: Chain, nodes: AdjointNodes, interval: int, like: Tensor) -> Tensor:
    r"""Wiener increment of the sampling path over an adjoint interval, in y."""
    assert chain.noise is not None
    if nodes.exact:
        first, last = nodes.index(interval), nodes.index(interval + 1)
        return chain.noise.increment(nodes.sampling, first, last, like)
    return chain.noise.increment(nodes.grid, interval, interval + 1, like)
