"""A sampling run that keeps no graph, step by step, with every check that costs no evaluation."""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.consistency import InconsistentStepError
from adjointdeis.gradients.graphs import Mark, RunKey
from adjointdeis.gradients.inputs import (
    CHANGES_Z,
    Inputs,
    StepGraph,
    Take,
    explained,
    refuse_rewritten,
)
from adjointdeis.gradients.reachable import changes, own_state, reachable, version
from adjointdeis.gradients.step_context import ContextRecorder
from adjointdeis.gradients.trace import Trace
from adjointdeis.solvers.base import State

_SHORT = 8  # steps, of which all are taken though their states are known


class Run:
    """A sampling run that keeps no graph, step by step, with every check that needs no evaluation.

    Every step has a graph that ends at what the step was given and is gone after it. By it
    :class:`LeafCheck` finds a tensor that nobody named, and a value that the network keeps for
    later steps; and what the network lays aside for the loss leads to :class:`Aside`. Graphs of a
    network that changes what it holds in the second step are compared as well
    (:class:`GraphCheck`).

    Without ``check`` a graph only arises from a tensor that nobody named. Of a run whose states are
    known (``chain.states``) the first two steps, a middle one and the last are taken; all of a
    short one, or where the network changes what it holds.

    Args:
        chain, by, owner: the run, what it is differentiated by, and the method, for messages.
        check: whether every step has a graph.
        observed: look at every step here, record evaluations, and whether the sampler changes a
            state of its own; for methods that recompute no step.
        black_box: whether the method only needs the step as a whole.
    """

    def __init__(
        self,
        chain: Chain,
        by: Inputs,
        *,
        owner: str,
        check: bool,
        observed: bool = False,
        black_box: bool = False,
    ) -> None:
        self.chain, self.by, self.owner = chain, by, owner
        self.with_graph = check and any(by.needs)
        self.every_step = observed or not by.theta
        self.black_box, self.observed = black_box, observed
        # Methods that evaluate the network alone, and know nothing of the sampler but its states.
        chain.denoiser.edges = [] if self.with_graph and observed and not black_box else None
        self._roots = (chain.denoiser.denoiser, chain.solver)
        self.trace = Trace(owner, check, ContextRecorder(self._roots, by.x_T))
        self._conditions = chain.conditions.tensors()
        self._versions = [version(z) for z in self._conditions]
        self._before: list[dict] = []
        self._held: dict[str, Any] = {}
        self._ends, self._slot = [by.x_T.new_full((), -0.0)], -1
        self._changed = False
        self._nfe = chain.cost.nfe
        self._taken: set[int] = set()
        if self.with_graph:
            last = chain.steps - 1
            short = chain.steps <= _SHORT
            self._taken = set(range(last + 1)) if short else {0, 1, chain.steps // 2, last}
            with torch.enable_grad():
                self._ends = by.entrances(self._ends, [True])
            by.leaf_check.run = RunKey(whole=not chain.states)
            by.leaf_check.run.graphs = chain.denoiser.graphs = self.trace.graphs

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, a step without a graph gets one from a leaf that nobody named."""
        try:
            with torch.set_grad_enabled(self.every_step):
                yield
            self.trace.graphs.recording = False
        finally:
            self.chain.denoiser.graphs = None

    def enter(self, step: int) -> None:
        """Record the context of a step that is about to be taken."""
        self.trace.contexts.append(self.trace.recorder.now())
        self.watch(step)
        if self.observed:
            self.trace.evaluations.slot = self.chain.slot(step)
            self.chain.denoiser.observer = self.trace.evaluations.record
            if step == min(1, self.chain.steps - 1):
                # What is made by the first evaluation, such as a table, has been made now.
                self._before = self._own_state()

    def watch(self, step: int) -> None:
        """Look whether the network begins to keep or count something after the first step."""
        key = self.by.leaf_check.run
        if step not in (1, 2) or key is None:
            return
        before, self._held = self._held, own_state(*self._roots)
        if step == 1 and self.chain.cost.nfe > self._nfe + 1:
            self.trace.graphs.after = self._look_between_evaluations
        elif step == 2 and (self._changed or changes(before, self._held)):
            self._taken = set(range(self.chain.steps))
        elif step == 2:
            key.graphs = self.chain.denoiser.graphs = None

    def _look_between_evaluations(self) -> None:
        """The same after one of several evaluations of a step, at whose end a counter is back."""
        self._changed = bool(changes(self._held, own_state(*self._roots)))

    def advance(self, step: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Take a step; x itself stays as it is even if the network works in place."""
        chain, by, trace = self.chain, self.by, self.trace
        if chain.states and step not in self._taken:
            return chain.states[step + 1], state
        noise = by.noise[step].detach() if by.noise else None
        if self.with_graph or step == 0 or trace.in_place:
            with self.inputs(step, [x, *state]) as ((own, *history), z, mark, leaves):
                before = version(own)
                # Handed on without a name: what is refused must not be held by this step's graph.
                found = self.settled(
                    [x, *state], taken(chain, step, own, z, tuple(history), noise), mark, leaves
                )
            trace.in_place = trace.in_place or version(own) != before
            return found
        # The same in fewer calls, where neither a graph nor a change in place is expected.
        before, mark, slot = version(x), Mark(), chain.slot(step)
        leaves = [leaf.detach() for leaf in by.z[slot]]
        own, *history = entering = [x.detach(), *(value.detach() for value in state)]
        z = chain.conditions.at(slot, leaves)
        with torch.set_grad_enabled(self.every_step):
            outputs = taken(chain, step, own, z, tuple(history), noise)
        found = self.settled(entering, outputs, mark, [*entering, *leaves])
        refuse_in_place(step, x, before)
        return found

    def graph(
        self, steps: range, x: Tensor, state: State, take: Take, need_x: bool = False
    ) -> StepGraph:
        """Take steps, the first of which was entered, with one graph; see ``graph_of_steps``."""
        trace = self.trace

        def each(step: int, found: tuple[Tensor, ...], z: Any, noise: Any) -> tuple[Tensor, ...]:
            if step > steps.start:
                self.enter(step)
                found = tuple(value.clone() for value in found) if trace.in_place else found
            own, before = found[0], version(found[0])
            found = take(step, found, z, noise)
            if step > steps.start and not trace.in_place:
                refuse_in_place(step, own, before)
            trace.in_place = trace.in_place or version(own) != before
            return found

        return self.by.graph_of_steps(each, steps, [x, *state], need_x)

    @contextmanager
    def inputs(
        self, step: int, entering: Sequence[Tensor]
    ) -> Iterator[tuple[list[Tensor], Any, Mark, list[Tensor]]]:
        """What a step is taken with.

        Copies of x, which the network may change in place, and of the solver's history; the
        condition; and for :meth:`settled` the mark of the step's graph, and where it may end.

        Raises:
            ValueError: the step changes its condition in place.
        """
        by, slot, mark, graph = self.by, self.chain.slot(step), Mark(), self.with_graph
        with torch.set_grad_enabled(self.every_step or graph or step == 0), explained():
            if slot != self._slot:
                self._slot, wanted = slot, [graph and want for want in by.needs_z(slot)]
                # In the memory of the originals, by which a cache may know them.
                self._ends[1:] = by.entrances(by.z[slot], wanted)
            end, *z = self._ends
            # Copies, which the network may change in place. Adding -0 changes nothing.
            leads = end.requires_grad and (step > 0 or by.needs[0])
            copies = [value + end.to(value) if leads else value.clone() for value in entering]
            condition = self.chain.conditions.at(slot, z)
            yield copies, condition, mark, [end, *z]
            refuse_rewritten(self.chain, condition, slot, z)
        if not self.black_box:
            # By .data, which counts no version.
            for copy, value in zip(copies, entering, strict=True):
                if not torch.equal(copy.nan_to_num(), value.nan_to_num()):
                    self._refuse_in_place()

    def settled(
        self,
        entering: Sequence[Tensor],
        outputs: Sequence[Tensor],
        mark: Mark,
        leaves: Sequence[Tensor],
        kept: StepGraph | None = None,
    ) -> tuple[Tensor, State]:
        """The results of a step without their graph, after a look at what the step did.

        Args:
            entering, outputs, mark, leaves: as for :meth:`LeafCheck.look`.
            kept: the graph, where it is kept for the backward pass.

        Raises:
            UnreachableLeafError: it uses a leaf that would get no gradient, or a value of an
                earlier step.
            NotSupportedError: it changed its x in place, and this method cannot follow.
            ValueError: it changed its condition in place.
        """
        if any(output.requires_grad for output in outputs):
            self.by.leaf_check.look(outputs, entering, leaves, mark)
            self._refuse_own_use(outputs, leaves)
            outputs = tuple(output.detach() for output in outputs)
            check = self.by.leaf_check
            if kept is not None and check.suspects:
                # What the network holds is none of the step's own; of others the kept graph's end
                # will tell.
                held = {id(value) for _, value in reachable(*self._roots)}
                kept.suspects = [leaf for leaf in check.suspects if id(leaf()) not in held]
                check.suspects = [leaf for leaf in check.suspects if id(leaf()) in held]
            check.refuse("the denoiser")
        if self.chain.denoiser.works_in_place and not self.black_box:
            self._refuse_in_place()
        if not self.chain.scheduled:
            refuse_changed(self._conditions, self._versions)
        if self.chain.trajectory is None:
            return outputs[0], tuple(outputs[1:])
        self.chain.trajectory.note(outputs[0], outputs[1])
        return outputs[0], tuple(outputs[2:])

    def _refuse_own_use(self, outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
        edges = self.chain.denoiser.edges
        if edges is not None and self.by.leaf_check.bypassed(outputs, leaves, edges):
            raise NotSupportedError(
                f"the sampler {type(self.chain.solver).__name__} uses a condition, a parameter or "
                f"a network by itself, and {self.owner} differentiates the denoiser that "
                "sample() is given alone: use gradient=DiscreteAdjoint(), or check=False if that "
                "network is this denoiser"
            )
        if edges:
            edges.clear()

    def _refuse_in_place(self) -> None:
        raise NotSupportedError(
            f"the denoiser changes its x in place, so that the state of the sampler is not "
            f"what {self.owner} takes it for: write x = x * c instead of x.mul_(c), or use "
            "gradient=DiscreteAdjoint()"
        )

    def close(self, end: State) -> Trace:
        """End the run, with the solver's history after its last step.

        Raises:
            InconsistentStepError: the sampler changes a state of its own, and this method takes
                no step again by which it could be seen whether that matters.
        """
        trace, self.trace.end, self.chain.denoiser.graphs = self.trace, end, None
        self.chain.denoiser.edges = None
        self._ends.clear()
        refuse_changed(self._conditions, self._versions)
        trace.contexts.append(trace.recorder.now())
        if self.observed:
            self.chain.denoiser.observer = None
            trace.changed, of_solver = (
                changes(before, after)
                for before, after in zip(self._before, self._own_state(), strict=True)
            )
            if of_solver:
                raise InconsistentStepError(
                    f"the sampler {type(self.chain.solver).__name__} changes a state of its own "
                    f"while it runs ({of_solver[0]}), and {self.owner} cannot see whether its "
                    "steps depend on it: use gradient=Backprop() or DiscreteAdjoint(), or "
                    "check=False if they do not"
                )
        return trace

    def _own_state(self) -> list[dict]:
        return [own_state(root) for root in self._roots]


def traced(
    chain: Chain, by: Inputs, keep: Container[int] = (), **options: Any
) -> tuple[Tensor, Trace]:
    """Sample and keep no graph; x_0, and a trace with the states of these numbers, below N."""
    run = Run(chain, by, **options)
    x, state = by.x_T, chain.initial_state(by.x_T)
    with run.recording():
        for step in range(chain.steps):
            run.enter(step)
            if step in keep:
                run.trace.keep(step, x)
            x, state = run.advance(step, x, state)
    trace = run.close(state)
    chain.cost.holds(1 + trace.latents)
    return x, trace


def taken(
    chain: Chain, step: int, x: Tensor, z: Any, state: State, noise: Tensor | None
) -> tuple[Tensor, ...]:
    """State, data prediction if the trajectory is wanted, and history of a step."""
    x, state = chain.advance(step, x, z, state, noise)
    return (x, *state) if chain.trajectory is None else (x, chain.prediction(), *state)


def refuse_in_place(step: int, x: Tensor, before: int) -> None:
    """Refuse a step that was the first to change its x in place.

    Raises:
        NotSupportedError: it was.
    """
    if version(x) != before:
        raise NotSupportedError(
            f"the denoiser or the sampler begins to change its x in place at step {step}, and "
            "did not before: write x = x * c instead of x.mul_(c), or use gradient=Backprop()"
        )


def refuse_changed(conditions: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Refuse a condition that was changed in place since its versions were read.

    Raises:
        ValueError: it was.
    """
    if [version(z) for z in conditions] != list(versions):
        raise ValueError(CHANGES_Z)
