r"""FlowGrad: neighbouring steps of a nearly straight path share one vector-Jacobian product."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients.base import Needs, NotSupportedError, StepwiseMethod, Watch
from adjointdeis.gradients.chain import Chain, Conditions, Sums, Surroundings, pull_back
from adjointdeis.gradients.discrete_adjoint import linearised


@dataclass(frozen=True)
class FlowGrad(StepwiseMethod):
    r"""Merge the steps between which the velocity hardly turns, and differentiate the merged chain.

    With :math:`y = x/\alpha` and the velocity of step i,
    :math:`v_i = (y_{i+1} - y_i) / (\rho_{i+1} - \rho_i)` (for DDIM, eps), the deviation is

    .. math:: d_i = \max(|v_{i-1} - v_i|^2, |v_{i+1} - v_i|^2) / |v_i|^2

    with the one neighbour there is at the ends. (The published program, for rectified flows,
    compares dx/dt instead; both vanish on the same straight paths.) Walking from the noise, a
    step joins the current node while the sum of d over the node's members stays below the
    threshold. A node that covers the steps i..j is differentiated as one step of the sampler
    from node i to node j + 1 of the grid, at the recorded x_i: one evaluation and one product
    for all its members.

    The states are those of the fine chain, so the result is neither the gradient of the fine
    chain nor that of the coarse sampler. Bias: the turning inside a node, of order threshold
    times its width; with threshold = 0 nothing merges and the gradient is exact. In a batch
    the least straight sample decides, so that no sample is merged more than alone.

    Cost: N evaluations forward, one evaluation with a graph and one product per node; N + 1
    latents and one activation.

    Args:
        threshold: largest sum of d in a node, at least 0; 5e-3 is the published value, whose
            error is not negligible: about 0.2 of the gradient's length on mixtures.
        members: what the z_i of a node's members receive. "shared": the node's gradient in
            proportion to the width of each step in rho, for conditions of the network, whose
            gradient is an integral over the steps. "copied": all of it each, for controls
            that a solver adds to the state (the u_i of the paper), whose gradient is the
            adjoint at that state.

    Raises:
        ValueError: a negative threshold, or unknown members.
        NotSupportedError: a solver with a history, whose steps cannot be merged, or an
            encoding grid.
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: when one product per step is affordable; on N = 20 steps of a curved
    path little merges.

    References:
        FlowGrad, https://openaccess.thecvf.com/content/CVPR2023/html/Liu_FlowGrad_Controlling_the_Output_of_Generative_ODEs_With_Gradients_CVPR_2023_paper.html
    """

    threshold: float = 5e-3
    members: Literal["shared", "copied"] = "shared"
    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = False
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents"

    def __post_init__(self) -> None:
        if self.threshold < 0.0:
            raise ValueError(f"FlowGrad.threshold must not be negative, got {self.threshold}")
        if self.members not in ("shared", "copied"):
            raise ValueError(f"FlowGrad.members must be 'shared' or 'copied', got {self.members!r}")

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: Needs, watch: Watch
    ) -> tuple[Tensor, tuple[list[Tensor], list[Surroundings]]]:
        del needs
        if not chain.grid.sampling or float(chain.grid.alpha.min()) <= 0.0:
            raise NotSupportedError(
                "FlowGrad differentiates sampling grids (noise to data, alpha > 0); use "
                "DiscreteAdjoint for an encoding"
            )
        x, state = x_T, chain.initial_state(x_T)
        states, surroundings = [x_T], []
        for step in range(chain.steps):
            surroundings.append(Surroundings.capture(x))
            if step == 0:
                with watch:
                    x, state = chain.advance(step, x, chain.condition(zs, step), state)
                x, *history = watch.inspect((x, *state), [])
                state = tuple(history)
            else:
                x, state = chain.advance(step, x, chain.condition(zs, step), state)
            if state:
                raise NotSupportedError(
                    f"FlowGrad merges steps, and {type(chain.solver).__name__} carries a history "
                    "from one to the next; use a single-step solver such as DDIM, or "
                    "gradient=DiscreteAdjoint()"
                )
            states.append(x)
        chain.cost.holds(len(states))
        return x, (states[:-1], surroundings)

    def backward_pass(
        self,
        chain: Chain,
        record: tuple[list[Tensor], list[Surroundings]],
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: Needs,
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        del x_T
        states, surroundings = record
        starts = merged_steps(deviations([*states, x_0], chain.grid), self.threshold)
        ends = [*starts[1:], chain.steps]
        coarse = replace(chain, grid=chain.grid.at([*starts, chain.steps]))
        # A node is evaluated under the condition of its first member.
        conditions = tuple(zs[i] for i in starts) if chain.scheduled else zs
        wanted = Needs(
            [needs.x_T, *(needs.zs if not chain.scheduled else _any(needs.zs, starts, ends))],
            len(conditions),
        )
        a_z, a_theta = Sums(len(zs)), Sums(len(parameters))
        adjoint: Tensor | None = a_x
        for node in reversed(range(len(starts))):
            first, last = starts[node], ends[node]
            with surroundings[first].replayed():
                linear = linearised(coarse, node, states[first], (), conditions, wanted)
            chain.cost.holds(len(states) + 1, graphs=linear.evaluations)
            inputs = [*linear.leaves, *parameters]
            adjoint, *rest = pull_back(
                chain, linear.outputs, (adjoint,), inputs, linear.evaluations
            )
            if linear.z is not None:
                gradient = rest.pop(0)
                for slot, weight in self._weights(chain, first, last):
                    a_z.add(slot, gradient, weight)
            for slot, gradient in enumerate(rest):
                a_theta.add(slot, gradient)
        return adjoint, a_z.values, a_theta.values

    def _weights(self, chain: Chain, first: int, last: int) -> list[tuple[int, float]]:
        """Which conditions receive how much of the gradient of a node."""
        if not chain.scheduled:
            return [(0, 1.0)]
        if self.members == "copied":
            return [(step, 1.0) for step in range(first, last)]
        rho = chain.grid.rho
        width = float(rho[first] - rho[last])
        return [(i, float(rho[i] - rho[i + 1]) / width) for i in range(first, last)]


def _any(flags: Sequence[bool], starts: Sequence[int], ends: Sequence[int]) -> list[bool]:
    """Whether any member of each node wants a gradient."""
    return [any(flags[a:b]) for a, b in zip(starts, ends, strict=True)]


def deviations(states: Sequence[Tensor], grid: TimeGrid) -> list[float]:
    """d_i of each step from the N + 1 states of a run; the largest over the batch."""
    scaled = [x.detach() / node.alpha for x, node in zip(states, grid, strict=True)]
    velocities = [
        ((scaled[i + 1] - scaled[i]) / (grid[i + 1].rho - grid[i].rho)).flatten(1)
        for i in range(grid.steps)
    ]
    turns = [(after - before).square().sum(1) for before, after in pairwise(velocities)]
    found = []
    for i, velocity in enumerate(velocities):
        # The first and the last step have one neighbour.
        neighbours = turns[max(0, i - 1) : i + 1] or [torch.zeros_like(velocity[:, 0])]
        deviation = torch.stack(neighbours).amax(0) / velocity.square().sum(1)
        # 0 / 0: a path that stands still is straight.
        found.append(float(deviation.nan_to_num(nan=0.0, posinf=torch.inf).max()))
    return found


def merged_steps(deviation: Sequence[float], threshold: float) -> list[int]:
    """Numbers of the steps at which a node starts."""
    starts, total = [0], deviation[0]
    for step, d in enumerate(deviation[1:], 1):
        total += d
        # Not strictly: with threshold 0 nothing merges, not even steps that agree exactly.
        if total >= threshold:
            starts.append(step)
            total = d
    return starts
