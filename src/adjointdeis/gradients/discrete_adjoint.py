"""The exact adjoint of the discrete sampler, one step at a time."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from adjointdeis.gradients.base import StepwiseMethod, refuse_count
from adjointdeis.gradients.chain import Chain, detached
from adjointdeis.gradients.consistency import StepCheck
from adjointdeis.gradients.graphs import pull_back
from adjointdeis.gradients.inputs import Inputs, StepGraph, Take
from adjointdeis.gradients.memory_plan import (
    AUTO,
    MemoryBudgetError,
    MemoryPlan,
    SavedBytes,
    choose_plan,
    parse_bytes,
    resolve_budget,
)
from adjointdeis.gradients.run import Run, taken
from adjointdeis.gradients.snapshots import placements
from adjointdeis.gradients.trace import Carry, Trace
from adjointdeis.solvers.base import State


@dataclass(eq=False)
class Checkpoints:
    """What a sampling run leaves behind: stored inputs of steps, and kept graphs.

    Attributes:
        trace, plan: of the run, and what may be held.
        graphs: kept graphs, each with its first step, by the number of the step after them.
        latents: how many latents enter the steps of these, that of step 0 left out.
        evaluations: how many network evaluations the graphs hold.
    """

    trace: Trace
    plan: MemoryPlan
    graphs: dict[int, tuple[int, StepGraph]] = field(default_factory=dict)
    latents: int = 0
    evaluations: int = 0

    def keep(self, steps: range, graph: StepGraph) -> None:
        """Store the graph of some steps."""
        self.graphs[steps.stop] = steps.start, graph
        self._count(steps, graph, 1)

    def drop(self, end: int) -> tuple[int, StepGraph] | None:
        """Give up the graph that ends where this step begins, if there is one."""
        found = self.graphs.pop(end, None)
        if found is not None:
            self._count(range(found[0], end), found[1], -1)
        return found

    def _count(self, steps: range, graph: StepGraph, sign: int) -> None:
        self.latents += sign * len(graph.entering) * len(steps[steps.start == 0 :])
        self.evaluations += sign * graph.evaluations

    def held(self) -> int:
        """How many latents are held, x_0 included."""
        return 1 + self.latents + self.trace.latents

    def existing(self, by: Inputs) -> Iterator[Tensor]:
        """Tensors that are there whatever is recomputed: states, conditions, weights, buffers."""
        for carry in self.trace.carries.values():
            yield from (carry.x, *carry.state)
        yield from (*by.chain.conditions.tensors(), *by.theta)
        for module in self.trace.recorder.modules:
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)


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
            run begins. Chooses the other two for the fewest recomputed evaluations. Weights, and
            what an operation needs while it runs, are not in it.
        check: as for ``StepwiseMethod``.

    Raises:
        ValueError: snapshots < 1, keep_activations < 0, or a budget beside either.
        MemoryBudgetError: the budget is less than one snapshot and one step take.

    When not to use: for second derivatives (use ``Backprop``); it is otherwise the default.

    References:
        DiffGrad in DiffBreak, https://arxiv.org/abs/2411.16598
    """

    snapshots: int | None = None
    keep_activations: int = 0
    budget: int | str | None = None
    noise: ClassVar[bool] = True
    trajectory: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents; s latents with s snapshots"

    def __post_init__(self) -> None:
        if self.snapshots is not None:
            refuse_count("snapshots", self.snapshots, 1, ", or None for all")
        refuse_count("keep_activations", self.keep_activations, 0)
        if self.budget is not None:
            if self.budget != AUTO:
                parse_bytes(self.budget)
            if self.snapshots is not None or self.keep_activations:
                raise ValueError("budget chooses snapshots and keep_activations; give it alone")

    def first_step(self, by: Inputs) -> int:
        """Number of the first step that is differentiated."""
        del by
        return 0

    def begin(self, run: Run) -> None:
        """Called before the first step of the sampling run."""

    def counted(
        self, by: Inputs, step: int, rest: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """What a step adds to the gradients of z and theta."""
        del by, step
        return rest

    def take(
        self,
        chain: Chain,
        trace: Trace,
        step: int,
        found: tuple[Tensor, ...],
        z: Any,
        noise: Tensor | None,
        again: bool,
    ) -> tuple[Tensor, ...]:
        """A step, from state and history to what :func:`taken` gives.

        Args:
            chain, trace, z, noise: of the run, and what the step uses.
            step, found: its number, and state and history before it.
            again: whether the sampling run took it, too.
        """
        del trace, again
        return taken(chain, step, found[0], z, found[1:], noise)

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Checkpoints]:
        first, steps = self.first_step(by), chain.steps
        run = Run(chain, by, owner=type(self).__name__, black_box=True, check=self.check)
        self.begin(run)
        record = Checkpoints(run.trace, MemoryPlan(self.snapshots, self.keep_activations))
        check = StepCheck(chain, run.trace.recorder, self.check)
        stored: set[int] = set()
        x, state = by.x_T, chain.initial_state(by.x_T)
        take, step = partial(self.take, chain, run.trace, again=False), 0
        with run.recording():
            while step < steps:
                run.enter(step)
                graph, end, before = None, step + 1, x
                if step == first:
                    if self.budget is not None:
                        graph, record.plan = self._measured(run, record, step, x, state, take)
                    stored = _stored(first, steps, record.plan)
                if step in stored:
                    run.trace.keep(step, x, state)
                if step >= max(first, steps - record.plan.kept):
                    if graph is None:
                        end = steps if self._joins_steps(by) else end
                        graph = run.graph(range(step, end), x, state, take)
                    record.keep(range(step, end), graph)
                if graph is None:
                    x, state = run.advance(step, x, state)
                else:
                    x, state = run.settled(
                        graph.entering, graph.outputs, graph.mark, graph.leaves, graph
                    )
                    if end not in record.graphs:
                        # It was made to be measured only.
                        by.leaf_check.suspects += graph.suspects
                        graph = None
                        by.leaf_check.refuse("the denoiser")
                if chain.states:
                    check.compare(step, before, [x], [chain.states[end]])
                step = end
        check.finish()
        run.close(state)
        chain.cost.holds(record.held(), graphs=record.evaluations)
        return x, record

    def backward_pass(
        self, chain: Chain, record: Checkpoints, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        adjoint: list[Tensor | None] = [a_x]
        first, end = self.first_step(by), chain.steps
        check = StepCheck(chain, record.trace.recorder, self.check)
        after, wanted, cost = Carry(x_0, record.trace.end), by.of_trajectory, chain.cost
        # With snapshots or a budget the memory of recomputed steps is promised.
        promised = self.snapshots is not None or self.budget is not None
        length = 0 if self._joins_steps(by) and not promised else 1
        while end > first:
            kept = record.drop(end)
            if kept is not None:
                step, graph = kept
            else:
                step = max(first, end - max(1, length))
                carry = self._carry(chain, record, by, step)
                taken, before = (by, record.trace, range(step, end), carry, after, check), cost.nfe
                try:
                    with nullcontext() if length else SavedBytes(record.existing(by)) as saved:
                        graph = self._again(*taken)
                except MemoryBudgetError:  # it cannot be measured
                    length, saved = 1, None
                    cost.nfe_backward -= cost.nfe - before
                    graph = self._again(*taken)
                if saved is not None:
                    length = segment_length(record.trace.carries.values(), saved.total)
                chain.cost.holds(record.held(), graphs=graph.evaluations + record.evaluations)
            after = Carry(graph.entering[0].detach(), tuple(v.detach() for v in graph.entering[1:]))
            if wanted is not None:
                adjoint = wanted.joined(step, adjoint)
            adjoint, rest = by.pull(graph, adjoint)
            by.add(self.counted(by, step, rest), slots=((graph.slot, 1.0),))
            end = step
        check.finish()
        return through_initial_state(chain, by.x_T, adjoint) if first == 0 else None

    def _joins_steps(self, by: Inputs) -> bool:
        """Whether several steps may have one graph, so that one call of autograd serves them all.

        Not where a method cuts the graph of each step, or a step has a condition, noise or
        cotangent of its own.
        """
        single = by.chain.scheduled or by.noise or by.chain.trajectory is not None
        return self.exact and not single

    def _again(
        self, by: Inputs, trace: Trace, steps: range, carry: Carry, after: Carry, check: StepCheck
    ) -> StepGraph:
        """Take steps, from a carry, again with one graph, and compare each with what it led to."""
        replays, before = trace.recorder.replays(), carry

        def again(step: int, found: tuple[Tensor, ...], z: Any, noise: Any) -> tuple[Tensor, ...]:
            nonlocal before
            if trace.in_place and step > steps.start:
                found = tuple(value.clone() for value in found)
            with trace.contexts[step].replayed() if replays else nullcontext():
                found = self.take(by.chain, trace, step, found, z, noise, again=True)
            reached = after if step + 1 == steps.stop else trace.carries[step + 1]
            known = (reached.x, *reached.state)
            values = found if by.chain.trajectory is None else (found[0], *found[2:])
            same = check.compare(step, before.x, values, known)
            if not same and step + 1 < steps.stop:
                # The next step starts where it did in the sampling run.
                pairs = zip(found, known, strict=True)
                found = tuple(now + (then - now).detach() for now, then in pairs)
            before = reached
            return found

        return by.graph_of_steps(again, steps, [carry.x, *carry.state])

    def _measured(
        self, run: Run, record: Checkpoints, step: int, x: Tensor, state: State, take: Take
    ) -> tuple[StepGraph, MemoryPlan]:
        """A step with its graph, and the plan that fits its bytes into the budget."""
        assert self.budget is not None
        budget = resolve_budget(self.budget, x.device)
        # The input counts as a latent.
        with SavedBytes([x, *state, *record.existing(run.by)]) as saved:
            graph = run.graph(range(step, step + 1), x, state, take, need_x=True)
        latent = sum(out.numel() * out.element_size() for out in graph.outputs)
        return graph, choose_plan(run.chain.steps - step, budget, latent, saved.total)

    def _carry(self, chain: Chain, record: Checkpoints, by: Inputs, step: int) -> Carry:
        """The input of a step, recomputed from the last one stored before it where need be."""
        trace, capacity = record.trace, record.plan.snapshots
        if step in trace.carries:
            # A snapshot is spent once; the first one stays, and so do all when all are stored.
            spent = capacity is not None and step > min(trace.carries)
            return trace.drop(step) if spent else trace.carries[step]
        start = max(stored for stored in trace.carries if stored < step)
        room = (chain.steps if capacity is None else capacity) - len(trace.carries) + 1
        stored = placements(start, step - start + 1, room)
        x, state = trace.carries[start].x, trace.carries[start].state
        for i in range(start, step):
            with trace.contexts[i].replayed():
                z = by.condition(chain.slot(i))
                noise = by.noise[i] if by.noise else None
                x, state = chain.advance(i, x.clone(), z, state, noise)
            if i + 1 in stored and i + 1 < step:
                trace.keep(i + 1, x, state)
        return Carry(x, state)


def _stored(first: int, steps: int, plan: MemoryPlan) -> set[int]:
    """Numbers of the steps whose input the sampling run stores."""
    end = max(first, steps - plan.kept)
    capacity = steps if plan.snapshots is None else plan.snapshots
    # The input of the last recomputed step is where the backward pass starts; without it the
    # first thing to do there would be to repeat this whole sweep.
    if capacity >= end - first:
        return set(range(first, end)) | {first}
    return {first, *placements(first, end - first, capacity), max(first, end - 1)}


def segment_length(carries: Collection[Carry], activations: int) -> int:
    """How many steps to recompute as one graph, so that one call of autograd serves them all.

    The activations of a segment, of so many bytes a step, take no more than the states that are
    stored, so that memory stays O(N latents); segments of a large network are single steps.
    """
    states = [value for carry in carries for value in (carry.x, *carry.state)]
    stored = sum(value.numel() * value.element_size() for value in states)
    # The state between two steps is made anew as well.
    return max(1, stored // max(1, activations + stored // len(carries)))


def through_initial_state(
    chain: Chain, x_T: Tensor, adjoint: Sequence[Tensor | None]
) -> Tensor | None:
    """Add what a solver's initial state, made from x_T, contributes to its gradient."""
    if len(adjoint) == 1:
        return adjoint[0]
    with torch.enable_grad():
        leaf = detached(x_T)
        state = chain.initial_state(leaf)
    (extra,) = pull_back(chain, state, adjoint[1:], [leaf], evaluations=0)
    parts = [part for part in (adjoint[0], extra) if part is not None]
    return sum(parts[1:], parts[0]) if parts else None
