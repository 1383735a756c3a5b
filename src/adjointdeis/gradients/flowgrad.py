r"""FlowGrad: neighbouring steps of a nearly straight path share one vector-Jacobian product."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients.base import StepwiseMethod, refuse_other
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.consistency import StepCheck
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.trace import Trace


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

    Args:
        threshold: largest sum of d in a node, at least 0; 5e-3 is the published value, whose
            error is not negligible: about 0.2 of the gradient's length on mixtures.
        members: what the z_i of a node's members receive. "shared": the node's gradient in
            proportion to the width of each step in rho, for conditions of the network, whose
            gradient is an integral over the steps. "copied": all of it each, for controls
            that a solver adds to the state (the u_i of the paper), whose gradient is the
            adjoint at that state.
        check: as for ``StepwiseMethod``.

    Raises:
        ValueError: a negative threshold, or unknown members.
        NotSupportedError: a solver with a history, whose steps cannot be merged, or an
            encoding grid.

    When not to use: when one product per step is affordable; on N = 20 steps of a curved
    path little merges.

    References:
        FlowGrad, https://openaccess.thecvf.com/content/CVPR2023/html/Liu_FlowGrad_Controlling_the_Output_of_Generative_ODEs_With_Gradients_CVPR_2023_paper.html
    """

    threshold: float = 5e-3
    members: Literal["shared", "copied"] = "shared"
    sde: ClassVar[bool] = False
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents"

    def __post_init__(self) -> None:
        if not self.threshold >= 0.0:
            raise ValueError(f"FlowGrad.threshold must not be negative, got {self.threshold}")
        refuse_other(self, members=(self.members, ("shared", "copied")))

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Trace]:
        if not chain.grid.sampling or float(chain.grid.alpha.min()) <= 0.0:
            raise NotSupportedError(
                "FlowGrad differentiates sampling grids (noise to data, alpha > 0); use "
                "DiscreteAdjoint for an encoding"
            )
        x_0, trace = self.traced(chain, by, range(chain.steps), black_box=True)
        if trace.end:
            raise NotSupportedError(
                f"FlowGrad merges steps, and {type(chain.solver).__name__} carries a history "
                "from one to the next; use a single-step solver such as DDIM, or "
                "gradient=DiscreteAdjoint()"
            )
        return x_0, trace

    def backward_pass(
        self, chain: Chain, record: Trace, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        states = [*(record.state(step) for step in range(chain.steps)), x_0]
        starts = merged_steps(deviations(states, chain.grid), self.threshold)
        coarse = replace(chain, grid=chain.grid.at([*starts, chain.steps]))
        steps = StepCheck(chain, record.recorder, self.check)
        network = record.reevaluations(chain, by)
        adjoint: Tensor | None = a_x
        for node, (first, last) in reversed(list(enumerate(pairwise([*starts, chain.steps])))):
            # A node is evaluated under the condition of its first member.
            slot = chain.slot(first)
            chain.denoiser.observer = lambda x, t, out, slot=slot: network.compare(x, t, slot, out)
            adjoint, rest, found = by.product(
                lambda x, z, node=node: coarse.advance(node, x, z, ())[0],
                states[first],
                slot,
                adjoint,
                record.contexts[first],
            )
            if last == first + 1:
                steps.compare(first, states[first], [found], [states[last]])
            by.add(rest, slots=self._weights(chain, first, last))
        chain.denoiser.observer = None
        network.finish()
        steps.finish()
        chain.cost.holds(len(states), graphs=1)
        return adjoint

    def _weights(self, chain: Chain, first: int, last: int) -> list[tuple[int, float]]:
        """Which conditions receive how much of the gradient of a node."""
        if not chain.scheduled:
            return [(0, 1.0)]
        if self.members == "copied":
            return [(step, 1.0) for step in range(first, last)]
        rho = chain.grid.rho
        width = float(rho[first] - rho[last])
        return [(i, float(rho[i] - rho[i + 1]) / width) for i in range(first, last)]


def deviations(states: Sequence[Tensor], grid: TimeGrid) -> list[float]:
    """d_i of each step from the N + 1 states of a run; the largest over the batch."""
    scaled = [wide(x.detach()) / node.alpha for x, node in zip(states, grid, strict=True)]
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
