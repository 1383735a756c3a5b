"""The exact adjoint of the discrete sampler, one step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.gradients.base import Needs, StepwiseMethod, Watch
from adjointdeis.gradients.chain import Chain, Conditions, Sums, Surroundings, detached, pull_back
from adjointdeis.gradients.memory_plan import (
    AUTO,
    MemoryPlan,
    SavedBytes,
    choose_plan,
    parse_bytes,
    resolve_budget,
)
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

    The input of the first differentiated step is always there; for step 0 it is x_T, which
    autograd holds in any case.
    """

    plan: MemoryPlan
    carries: dict[int, Carry]
    kept: dict[int, Linear]

    def latents(self) -> int:
        """How many latents are held, x_0 included."""
        kept = sum(len(linear.carry) for step, linear in self.kept.items() if step > 0)
        return 1 + kept + sum(carry.latents for carry in self.carries.values())

    def graphs(self) -> int:
        """How many network evaluations are held with their activations."""
        return sum(linear.evaluations for linear in self.kept.values())


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
        budget: bytes that latents and activations may take together, as a number or a text
            such as "2 GiB"; "auto" takes half of what the device has left when the sampling
            run begins. The other two are then chosen: the bytes of a step are counted at
            the first one, and the split with the fewest recomputed evaluations is taken.
            Weights, and what an operation needs while it runs, are not in the budget.
            The gradient does not depend on it; the evaluations counted do.

    Raises:
        ValueError: snapshots < 1, keep_activations < 0, or a budget beside either.
        MemoryBudgetError: the budget is less than one snapshot and one step take.
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: for second derivatives (use ``Backprop``); it is otherwise the default.

    References:
        DiffGrad in DiffBreak, https://arxiv.org/abs/2411.16598
    """

    snapshots: int | None = None
    keep_activations: int = 0
    budget: int | str | None = None
    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = True
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents; s latents with s snapshots"

    def __post_init__(self) -> None:
        if self.snapshots is not None and self.snapshots < 1:
            raise ValueError(f"snapshots must be at least 1, or None for all: {self.snapshots}")
        if self.keep_activations < 0:
            raise ValueError(f"keep_activations must not be negative: {self.keep_activations}")
        if self.budget is not None:
            if self.budget != AUTO:
                parse_bytes(self.budget)
            if self.snapshots is not None or self.keep_activations:
                raise ValueError("budget chooses snapshots and keep_activations; give it alone")

    def first_step(self, chain: Chain) -> int:
        """Number of the first step that is differentiated."""
        del chain
        return 0

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: Needs, watch: Watch
    ) -> tuple[Tensor, Record]:
        first = self.first_step(chain)
        record, stored = Record(MemoryPlan(self.snapshots, self.keep_activations), {}, {}), set()
        x, state = x_T, chain.initial_state(x_T)
        for step in range(chain.steps):
            linear = None
            if step == first:
                # Before the measured step draws anything.
                entry = Carry(x, state, Surroundings.capture(x))
                if self.budget is not None:
                    linear, plan = self._measured(chain, step, x, state, zs, needs, watch)
                    record = Record(plan, {}, {})
                stored = _stored(first, chain.steps, record.plan)
                record.carries[first] = entry
            elif step in stored:
                record.carries[step] = Carry(x, state, Surroundings.capture(x))
            if step >= max(first, chain.steps - record.plan.kept):
                linear = linear or linearised(chain, step, x, state, zs, needs)
                record.kept[step] = linear
            if linear is not None:
                outputs = watch.inspect(linear.outputs, linear.leaves if step == 0 else None)
            elif step == 0:
                with watch:
                    x, state = chain.advance(step, x, chain.condition(zs, step), state)
                outputs = watch.inspect((x, *state), [])
            else:
                x, state = chain.advance(step, x, chain.condition(zs, step), state)
                outputs = (x, *state)
            x, state = outputs[0], outputs[1:]
        chain.cost.holds(record.latents(), graphs=record.graphs())
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
        first = self.first_step(chain)
        for step in reversed(range(first, chain.steps)):
            linear = record.kept.pop(step, None)
            if linear is None:
                carry = self._carry(chain, record, step, zs)
                with carry.surroundings.replayed():
                    linear = linearised(chain, step, carry.x, carry.state, zs, needs)
                graphs = linear.evaluations + record.graphs()
                chain.cost.holds(record.latents(), graphs=graphs)
            inputs = [*linear.leaves, *parameters]
            found = pull_back(chain, linear.outputs, adjoint, inputs, linear.evaluations)
            adjoint, rest = found[: len(linear.carry)], found[len(linear.carry) :]
            if linear.z is not None:
                a_z.add(chain.slot(step), rest.pop(0))
            for slot, gradient in enumerate(rest):
                a_theta.add(slot, gradient)
        a_T = through_initial_state(chain, x_T, adjoint) if first == 0 else None
        return a_T, a_z.values, a_theta.values

    def _measured(
        self,
        chain: Chain,
        step: int,
        x: Tensor,
        state: State,
        zs: Conditions,
        needs: Needs,
        watch: Watch,
    ) -> tuple[Linear, MemoryPlan]:
        """A step with its graph, and the plan that fits its bytes into the budget."""
        assert self.budget is not None
        budget = resolve_budget(self.budget, x.device)
        # What exists anyway: weights, buffers, and the input, which counts as a latent.
        besides = [x, *state, *zs, *watch.allowed, *chain.denoiser.tensors()]
        with SavedBytes(besides) as saved:
            linear = linearised(chain, step, x, state, zs, needs, need_x=True)
        latent = sum(out.numel() * out.element_size() for out in linear.outputs)
        steps = chain.steps - step
        return linear, choose_plan(steps, budget, latent, saved.total)

    def _carry(self, chain: Chain, record: Record, step: int, zs: Conditions) -> Carry:
        """The input of a step, recomputed from the last one stored before it where need be."""
        carries, capacity = record.carries, record.plan.snapshots
        if step in carries:
            # A snapshot is spent once; the first one stays, and so do all when all are stored.
            spent = capacity is not None and step > min(carries)
            return carries.pop(step) if spent else carries[step]
        start = max(stored for stored in carries if stored < step)
        room = (chain.steps if capacity is None else capacity) - len(carries) + 1
        stored = placements(start, step - start + 1, room)
        x, state = carries[start].x, carries[start].state
        with carries[start].surroundings.replayed():
            for i in range(start, step):
                x, state = chain.advance(i, x, chain.condition(zs, i), state)
                if i + 1 in stored and i + 1 < step:
                    carries[i + 1] = Carry(x, state, Surroundings.capture(x))
            return Carry(x, state, Surroundings.capture(x))


def _stored(first: int, steps: int, plan: MemoryPlan) -> set[int]:
    """Numbers of the steps whose input the sampling run stores."""
    end = max(first, steps - plan.kept)
    capacity = steps if plan.snapshots is None else plan.snapshots
    # The input of the last recomputed step is where the backward pass starts; without it the
    # first thing to do there would be to repeat this whole sweep.
    return {first, *placements(first, end - first, capacity), max(first, end - 1)}


def linearised(
    chain: Chain,
    step: int,
    x: Tensor,
    state: State,
    zs: Conditions,
    needs: Needs,
    need_x: bool = False,
) -> Linear:
    """Take a step from fresh leaves, with a graph to those that want a gradient.

    Args:
        need_x: build the graph to x even for x_T, whose gradient may not be wanted.
    """
    need_x, before = need_x or step > 0 or needs.x_T, chain.cost.nfe
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
