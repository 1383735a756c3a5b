"""A sampling run without a graph, taken step by step, with every check that needs no evaluation."""

import weakref
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adjointdeis.gradients.chain import Chain, NotSupportedError, Trajectory
from adjointdeis.gradients.consistency import GraphCheck, InconsistentStepError
from adjointdeis.gradients.graphs import Mark, RunKey
from adjointdeis.gradients.inputs import CHANGES_Z, Inputs, StepGraph, Take, explained
from adjointdeis.gradients.reachable import (
    Newborn,
    changes,
    comparable,
    is_constant,
    own_state,
    reachable,
    version,
)
from adjointdeis.gradients.step_context import ContextRecorder
from adjointdeis.gradients.trace import Trace
from adjointdeis.solvers.base import State

_SHORT = 8  # steps; looking whether something is kept costs more than a graph for each


class Run:
    """A sampling run without a graph, step by step, with every check that needs no evaluation.

    Where no weight requires a gradient the steps run with gradients enabled on detached inputs:
    a graph then only arises from a tensor that nobody named, and costs nothing otherwise. With
    trainable weights the first step does so, the others are looked at when they are recomputed.

    Some steps have a graph to x and z as well, by which :class:`LeafCheck` finds a value that the
    network keeps for later ones: the first two, a middle one and the last; all of a short run, and
    of a network that changes what it holds in the second step, whose graphs are compared as well
    (:class:`GraphCheck`). What another network holds anew after the run was made in a step without
    a graph, and is watched in the backward pass.

    Args:
        chain, by, owner: the run, what it is differentiated by, and the method, for messages.
        check: whether to look for kept values.
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
        self.with_graph: set[int] = set()
        self.every_step = observed or not by.theta
        self.black_box, self.observed = black_box, observed
        self._roots = (chain.denoiser.denoiser, chain.solver)
        self.trace = Trace(owner, check, ContextRecorder(self._roots, by.x_T))
        self._conditions = chain.conditions.tensors()
        self._versions = [version(z) for z in self._conditions]
        self._before: list[dict] = []
        self._held: dict[str, Any] = {}
        self._newborn = Newborn()
        self._recording = self._changed = False
        self._nfe = chain.cost.nfe
        self._latest: Sequence[Tensor] = ()
        if check and any(by.needs):
            last = chain.steps - 1
            self.with_graph = {0, min(1, last), chain.steps // 2, last}
            if chain.steps <= _SHORT:
                self.with_graph = set(range(chain.steps))
            by.leaf_check.run = RunKey()
            by.leaf_check.run.graphs = chain.denoiser.graphs = GraphCheck()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, a step without a graph gets one from a leaf that nobody named."""
        self._recording = True
        with torch.set_grad_enabled(self.every_step), self._newborn:
            try:
                yield
                self._note_kept()
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
        before, self._held = self._held, comparable(reachable(*self._roots))
        if step == 1 and isinstance(key.graphs, GraphCheck) and self.chain.cost.nfe > self._nfe + 1:
            key.graphs.after = self._look_between_evaluations
        elif step == 2 and (self._changed or changes(before, self._held)):
            self.with_graph = set(range(self.chain.steps))
        elif step == 2:
            key.graphs = self.chain.denoiser.graphs = None
            if self._recording and len(self.with_graph) < self.chain.steps:
                self._newborn.begin()

    def _look_between_evaluations(self) -> None:
        """The same after one of several evaluations of a step, at whose end a counter is back."""
        self._changed = bool(changes(self._held, comparable(reachable(*self._roots))))

    def _note_kept(self) -> None:
        key = self.by.leaf_check.run
        if key is None:
            return
        if isinstance(key.graphs, GraphCheck):
            key.graphs.recording = False
        if len(self.with_graph) == self.chain.steps:
            return
        found = reachable(*self._roots)
        names = set(changes(self._held, comparable(found)))
        key.late = [weakref.ref(v) for name, v in found if name in names and is_constant(v)]
        way = self.chain.trajectory or Trajectory()
        ours = [*self._latest, *way.states, *way.predictions, *self.trace.tensors()]
        others = self._newborn.alive([*ours, *(value for _, value in found)])
        if others:
            known = reachable(self.chain.noise, self.chain.grid, self.chain.conditions)
            others = self._newborn.alive([*ours, *(value for _, value in [*found, *known])])
        key.hidden = {id(tensor): weakref.ref(tensor) for tensor in others}

    def advance(self, step: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Take a step; x itself stays as it is even if the network works in place."""
        chain, by, trace = self.chain, self.by, self.trace
        if chain.states and step not in self.with_graph:
            return chain.states[step + 1], state
        noise = by.noise[step].detach() if by.noise else None
        if step in self.with_graph or step == 0 or trace.in_place:
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
        if torch.is_grad_enabled() == self.every_step:
            outputs = taken(chain, step, own, z, tuple(history), noise)
        else:
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
        by, slot, mark = self.by, self.chain.slot(step), Mark()
        graph = step in self.with_graph
        enabled = self.every_step or graph or step == 0
        with torch.set_grad_enabled(enabled), explained():
            # In the memory of the originals, by which a cache may know them.
            z = [
                by.entrance(leaf, graph and want)
                for leaf, want in zip(by.z[slot], by.needs_z(slot), strict=True)
            ]
            leaves = [by.entrance(value, graph and (step > 0 or by.needs[0])) for value in entering]
            # A network may change its x in place, but never a leaf.
            copies = [leaf.clone() if graph or leaf is leaves[0] else leaf for leaf in leaves]
            yield copies, self.chain.conditions.at(slot, z), mark, [*leaves, *z]
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
        """The results of a step without a graph, after a look at what the step did.

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
        self._latest = outputs
        if self.chain.trajectory is None:
            return outputs[0], tuple(outputs[1:])
        self.chain.trajectory.note(outputs[0], outputs[1])
        return outputs[0], tuple(outputs[2:])

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
    """Sample without a graph; x_0, and a trace with the states of these numbers, below N."""
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
