"""The exact adjoint of the discrete sampler, one step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.gradients.base import Needs, StepwiseMethod, Watch
from adjointdeis.gradients.chain import Chain, Conditions, Sums, Surroundings, detached, pull_back
from adjointdeis.gradients.snapshots import placements
from adjointdeis.solvers.base import State


@dataclass(frozen=True, eq=False)
class Carry:
    """Everything that enters a step: the state, the solver's history, the surroundings."""

    x: Tensor
    state: State
    surroundings: Surroundings

    @property
    def latents(self) -> int:
        """How many latents this holds."""
        return 1 + len(self.state)


@dataclass(frozen=True, eq=False)
class Linear:
    """A step with its graph: the leaves that enter it and the tensors that leave it.

    Attributes:
        carry, z: leaves.
        outputs: state and history after the step.
        evaluations: network evaluations in the graph.
    """

    carry: list[Tensor]
    z: Tensor | None
    outputs: tuple[Tensor, ...]
    evaluations: int

    @property
    def leaves(self) -> list[Tensor]:
        """Everything that enters the step."""
        return self.carry if self.z is None else [*self.carry, self.z]


@dataclass(frozen=True, eq=False)
class Record:
    """What a sampling run leaves behind: stored inputs of steps, and kept graphs.

    The input of step 0 is always there: it is x_T, which autograd holds in any case.
    """

    carries: dict[int, Carry]
    kept: dict[int, Linear]

    def latents(self) -> int:
        """How many latents are held, x_0 included."""
        kept = sum(len(linear.carry) for step, linear in self.kept.items() if step > 0)
        return 1 + kept + sum(carry.latents for carry in self.carries.values())


@dataclass(frozen=True)
class DiscreteAdjoint(StepwiseMethod):
    r"""Discretise-then-optimise: backpropagation of each step from its stored input.

    With :math:`x_{i+1}, c_{i+1} = \Phi_i(x_i, c_i, z_i, \theta)` (c is a multistep history),
    :math:`a_i = a_{i+1}\, \partial\Phi_i / \partial(x_i, c_i)`, and the gradients of z_i and
    theta add up :math:`a_{i+1}\, \partial\Phi_i / \partial(z_i, \theta)`. For DDIM this is
    :math:`p_s = p_t - (\rho_s - \rho_t)\, p_t\, \alpha_s J(x_s, s)` with p = alpha a: the
    Jacobian sits at the noisy end of the step, where the sampler evaluated the network.

    Exact for any solver object with ``step``, multistep ones included, for ODE and SDE.
    Dropout masks and autocast are repeated in the recomputation.

    Cost by default: N evaluations forward, N more with a graph, N vector-Jacobian products for
    x, z and theta together; N + 1 latents (and the history of multistep solvers) and the
    activations of one step.

    Args:
        snapshots: how many inputs of steps to hold at one time, besides that of the last
            step; None holds all N. With s < N the others are recomputed by the optimal
            binomial schedule, at ``advances(N, s) - (N - 1)`` further evaluations (see the
            module ``snapshots``).
        keep_activations: for how many of the last steps to keep the graph of the sampling run
            instead of recomputing it. Trades k activations for k evaluations; N is plain
            backpropagation in all but its second derivatives.

    Raises:
        ValueError: snapshots < 1 or keep_activations < 0.
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: for second derivatives (use ``Backprop``); it is otherwise the default.

    References:
        DiffGrad in DiffBreak, https://arxiv.org/abs/2411.16598
    """

    snapshots: int | None = None
    keep_activations: int = 0
    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = True
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents; s latents with s snapshots"

    def __post_init__(self) -> None:
        if self.snapshots is not None and self.snapshots < 1:
            raise ValueError(f"snapshots must be at least 1, or None for all: {self.snapshots}")
        if self.keep_activations < 0:
            raise ValueError(f"keep_activations must not be negative: {self.keep_activations}")

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: Needs, watch: Watch
    ) -> tuple[Tensor, Record]:
        recomputed = max(0, chain.steps - self.keep_activations)
        # The input of the last recomputed step is where the backward pass starts; without it
        # the first thing to do there would be to repeat this whole sweep.
        stored = {0, *placements(0, recomputed, self._capacity(chain)), recomputed - 1}
        record = Record({}, {})
        x, state = x_T, chain.initial_state(x_T)
        for step in range(chain.steps):
            if step in stored:
                record.carries[step] = Carry(x, state, Surroundings.capture(x))
            if step >= recomputed:
                linear = linearised(chain, step, x, state, zs, needs)
                outputs = watch.inspect(linear.outputs, linear.leaves if step == 0 else None)
                record.kept[step] = linear
            elif step == 0:
                with watch:
                    x, state = chain.advance(step, x, chain.condition(zs, step), state)
                outputs = watch.inspect((x, *state), [])
            else:
                x, state = chain.advance(step, x, chain.condition(zs, step), state)
                outputs = (x, *state)
            x, state = outputs[0], outputs[1:]
        chain.cost.holds(record.latents(), graphs=len(record.kept))
        return x, record

    def backward_pass(
        self,
        chain: Chain,
        record: Record,
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: Needs,
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        del x_0
        a_z, a_theta = Sums(len(zs)), Sums(len(parameters))
        adjoint: list[Tensor | None] = [a_x]
        for step in reversed(range(chain.steps)):
            linear = record.kept.pop(step, None)
            if linear is None:
                carry = self._carry(chain, record, step, zs)
                with carry.surroundings.replayed():
                    linear = linearised(chain, step, carry.x, carry.state, zs, needs)
                chain.cost.holds(record.latents(), graphs=1 + len(record.kept))
            inputs = [*linear.leaves, *parameters]
            found = pull_back(chain, linear.outputs, adjoint, inputs, linear.evaluations)
            adjoint, rest = found[: len(linear.carry)], found[len(linear.carry) :]
            if linear.z is not None:
                a_z.add(chain.slot(step), rest.pop(0))
            for slot, gradient in enumerate(rest):
                a_theta.add(slot, gradient)
        return through_initial_state(chain, x_T, adjoint), a_z.values, a_theta.values

    def _capacity(self, chain: Chain) -> int:
        return chain.steps if self.snapshots is None else self.snapshots

    def _carry(self, chain: Chain, record: Record, step: int, zs: Conditions) -> Carry:
        """The input of a step, recomputed from the last one stored before it where need be."""
        carries = record.carries
        if step in carries:
            # A snapshot is spent once; that of step 0 stays, and so do all when all are stored.
            spent = self.snapshots is not None and step > 0
            return carries.pop(step) if spent else carries[step]
        start = max(stored for stored in carries if stored < step)
        room = self._capacity(chain) - len(carries) + 1
        stored = placements(start, step - start + 1, room)
        x, state = carries[start].x, carries[start].state
        with carries[start].surroundings.replayed():
            for i in range(start, step):
                x, state = chain.advance(i, x, chain.condition(zs, i), state)
                if i + 1 in stored and i + 1 < step:
                    carries[i + 1] = Carry(x, state, Surroundings.capture(x))
            return Carry(x, state, Surroundings.capture(x))


def linearised(
    chain: Chain, step: int, x: Tensor, state: State, zs: Conditions, needs: Needs
) -> Linear:
    """Take a step from fresh leaves, with a graph to those that want a gradient."""
    need_x, before = step > 0 or needs.x_T, chain.cost.nfe
    with torch.enable_grad():
        carry = [detached(value, need_x) for value in (x, *state)]
        slot = chain.slot(step)
        z = detached(zs[slot], needs.zs[slot]) if zs else None
        x, state = chain.advance(step, carry[0], z, tuple(carry[1:]))
    return Linear(carry, z, (x, *state), chain.cost.nfe - before)


def through_initial_state(
    chain: Chain, x_T: Tensor, adjoint: Sequence[Tensor | None]
) -> Tensor | None:
    """Add what a solver's initial state, made from x_T, contributes to its gradient."""
    if len(adjoint) == 1 or not x_T.requires_grad:
        return adjoint[0]
    with torch.enable_grad():
        leaf = detached(x_T)
        state = chain.initial_state(leaf)
    (extra,) = pull_back(chain, state, adjoint[1:], [leaf], evaluations=0)
    parts = [part for part in (adjoint[0], extra) if part is not None]
    return sum(parts[1:], parts[0]) if parts else None
