"""What a rollout is differentiated by, and the one vector-Jacobian product of every method."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from adjointdeis.gradients.chain import Chain, NotSupportedError, detached
from adjointdeis.gradients.graphs import Aside, LeafCheck, Mark, pull_back
from adjointdeis.gradients.reachable import next_number
from adjointdeis.gradients.step_context import StepContext

# What a method evaluates with a graph: (state and history, z, noise) -> outputs.
Function = Callable[[Sequence[Tensor], Any, Tensor | None], tuple[Tensor, ...]]
# Takes a step: (its number, state and history, z, noise) -> the same after it.
Take = Callable[[int, tuple[Tensor, ...], Any, Tensor | None], tuple[Tensor, ...]]
ONE_SLOT = ((0, 1.0),)
CHANGES_Z = (
    "the denoiser changes its condition z in place, so that every step has another one: write "
    "z = z * c instead of z.mul_(c), and nothing into a dictionary that is z"
)


@dataclass
class Sums:
    """Running sums of gradients, one slot per input; None, a zero, while nothing was added."""

    size: int
    values: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        self.values = [None] * self.size

    def add(self, slot: int, gradient: Tensor | None, weight: float = 1.0) -> None:
        """Add ``weight`` times a gradient to a slot."""
        if gradient is None:
            return
        total = self.values[slot]
        if total is None:
            # A copy: autograd may hand out views, or one tensor for two inputs.
            self.values[slot] = gradient * weight if weight != 1.0 else gradient.clone()
        elif total.is_sparse and not gradient.is_sparse:
            self.values[slot] = torch.add(gradient * weight, total)
        else:
            total.add_(gradient, alpha=weight)


@dataclass(eq=False)
class StepGraph:
    """A function evaluated with a graph: the leaves that enter it and the tensors that leave it.

    Attributes:
        entering, z, noise: leaves: state and history, the condition, the noise if it wants a
            gradient.
        outputs: results.
        evaluations: network evaluations in the graph.
        slot, step: whose condition and whose noise they are.
        mark: of the graph, for :class:`LeafCheck`.
        kept: whether this is a graph of the sampling run, which has looked at it.
        suspects: leaves that a kept graph leads to; whether they are its own shows when it is gone.
    """

    entering: list[Tensor]
    z: list[Tensor]
    noise: Tensor | None
    outputs: tuple[Tensor, ...]
    evaluations: int
    slot: int
    step: int | None
    mark: Mark
    kept: bool
    suspects: list[weakref.ref[Tensor]] = field(default_factory=list)

    @property
    def leaves(self) -> list[Tensor]:
        """Everything that enters the function."""
        return [*self.entering, *self.z, *([] if self.noise is None else [self.noise])]


@dataclass(eq=False)
class TrajectoryCotangents:
    """dL/d of x after each step but the last, and of each data prediction; None for zero."""

    states: Sequence[Tensor | None]
    predictions: Sequence[Tensor | None]

    def joined(self, step: int, adjoint: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Cotangents of a step's x, prediction and history from those of x and history."""
        return [total(adjoint[0], self.state(step)), self.predictions[step], *adjoint[1:]]

    def state(self, step: int) -> Tensor | None:
        """That of x after a step; x_0 has its own."""
        return self.states[step] if step < len(self.states) else None


@contextmanager
def explained() -> Iterator[None]:
    """Inside, a step that changes its condition in place says so.

    Raises:
        ValueError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if "Aside" in str(error) and "inplace" in str(error):
            raise ValueError(CHANGES_Z) from error
        raise


def refuse_rewritten(chain: Chain, condition: Any, slot: int, wanted: Sequence[Tensor]) -> None:
    """Refuse a step that put something else into the dictionary or list that is its condition.

    Raises:
        ValueError: it did; the next step would be given what was there before.
    """
    if not chain.conditions.is_intact(condition, slot, wanted):
        raise ValueError(CHANGES_Z)


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sum of two gradients, either of which may be absent."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


class Inputs:
    """x_T, z, noise and theta of a rollout, and the sums of their gradients.

    Attributes:
        chain: the run.
        x_T: initial state.
        z: for each slot the leaves of its condition that want a gradient.
        noise: recorded normals, one per step; empty unless one of them wants a gradient.
        theta: weights, and other tensors that were named as parameters.
        needs: whether each wants a gradient, in this order.
        given: those that want one, as they were given, with their graphs.
        sums: their gradients, in the same order; that of x_T is the backward pass's result.
        of_trajectory: cotangents of states and predictions, if these were asked for.
    """

    def __init__(
        self, chain: Chain, tensors: Sequence[Tensor], needs: Sequence[bool] | None = None
    ) -> None:
        places, slots = len(chain.conditions.active), len(chain.conditions.trees)
        self.chain, self.places = chain, places
        self.x_T, rest = tensors[0], tuple(tensors[1:])
        self.z = tuple(rest[slot * places : (slot + 1) * places] for slot in range(slots))
        rest = rest[slots * places :]
        self.noise = rest[: chain.steps] if chain.wanted_noise else ()
        self.theta = rest[len(self.noise) :]
        self.needs = tuple(t.requires_grad for t in tensors) if needs is None else tuple(needs)
        self.sums = Sums(len(tensors))
        self.of_trajectory: TrajectoryCotangents | None = None
        self.leaf_check = LeafCheck(self.theta)
        self.given: list[Tensor] = []
        self._first_noise = 1 + slots * places
        self._first_theta = self._first_noise + len(self.noise)

    @staticmethod
    def tensors_of(chain: Chain, x_T: Tensor, theta: Sequence[Tensor]) -> list[Tensor]:
        """The arguments of an autograd function, in the order that this class expects."""
        conditions = chain.conditions
        z = [leaf for slot in range(len(conditions.trees)) for leaf in conditions.wanted(slot)]
        return [x_T, *z, *chain.wanted_noise, *theta]

    @classmethod
    def detached(cls, chain: Chain, tensors: Sequence[Tensor], needs: Sequence[bool]) -> "Inputs":
        """The inputs with all but theta cut off from the graphs that made them."""
        found = cls(chain, tensors, needs)
        found.given = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
        found.x_T = found.x_T.detach()
        found.z = tuple(tuple(leaf.detach() for leaf in leaves) for leaves in found.z)
        found.noise = tuple(noise.detach() for noise in found.noise)
        return found

    def condition(self, slot: int) -> Any:
        """The condition of a slot, detached."""
        return self.chain.conditions.at(slot, self.z[slot])

    def z_is_untouched(self) -> bool:
        """Whether z wants a gradient, and no product has reached any of it."""
        slots = range(1, self._first_noise)
        wanted = [slot for slot in slots if self.needs[slot]]
        return bool(wanted) and all(self.sums.values[slot] is None for slot in wanted)

    def needs_z(self, slot: int) -> tuple[bool, ...]:
        """Which leaves of a slot's condition want a gradient."""
        return self.needs[1 + slot * self.places : 1 + (slot + 1) * self.places]

    def entrances(
        self, values: Sequence[Tensor], wanted: Sequence[bool], kept: bool = False
    ) -> list[Tensor]:
        """Tensors as a step is given them, where the step's graph ends; see :class:`Aside`.

        A kept graph, which this class pulls through, leads on to leaves alone.
        """
        found = [detached(value, want) for value, want in zip(values, wanted, strict=True)]
        given = [] if self.chain.cost.in_backward else self.given
        given = [tensor for tensor in given if tensor.is_leaf or not kept]
        places = [place for place, own in enumerate(found) if own.requires_grad]
        if given and places:
            own = [found[place].detach() for place in places]
            marked: Any = Aside.apply(self.chain.cost, len(own), *own, *given)
            for place, value in zip(places, marked, strict=True):
                found[place] = value
        return found

    def graph(
        self,
        function: Function,
        entering: Sequence[Tensor],
        slot: int,
        *,
        step: int | None = None,
        need_entering: bool = True,
        every_z: bool = False,
    ) -> StepGraph:
        """Evaluate a function of (state and history, z, noise) with a graph.

        Args:
            function: receives copies, which it may change in place.
            entering: state and history.
            slot, step: whose condition and noise; a step of None for a function without noise.
            need_entering: whether the gradient of ``entering`` is wanted.
            every_z: whether the gradients of all leaves of z are wanted, those of slots included
                that want none: for methods that use the product of one slot for another.
        """
        chain, before, mark = self.chain, self.chain.cost.nfe, Mark()
        with torch.enable_grad(), explained():
            wanted = [need_entering] * len(entering)
            wanted += [every_z or want for want in self.needs_z(slot)]
            found = self.entrances([*entering, *self.z[slot]], wanted, kept=True)
            leaves, z = found[: len(entering)], found[len(entering) :]
            noise = None
            if step is not None and self.noise:
                noise = detached(self.noise[step], self.needs[self._first_noise + step])
            copies = [leaf.clone() for leaf in leaves]
            condition = chain.conditions.at(slot, z)
            outputs = function(copies, condition, noise)
        refuse_rewritten(chain, condition, slot, z)
        mark.end = next_number()
        return StepGraph(
            leaves, z, noise, tuple(outputs), chain.cost.nfe - before, slot, step, mark,
            kept=not chain.cost.in_backward,
        )  # fmt: skip

    def graph_of_steps(
        self, take: Take, steps: range, entering: Sequence[Tensor], need_x: bool = False
    ) -> StepGraph:
        """Take steps, from state and history, with one graph to what wants a gradient.

        With ``need_x`` also to x_T, whose gradient may not be wanted.
        """

        def function(entering: Sequence[Tensor], z: Any, noise: Any) -> tuple[Tensor, ...]:
            found = tuple(entering)
            for step in steps:
                found = take(step, found, z, noise)
            return found

        first, need = steps.start, need_x or steps.start > 0 or self.needs[0]
        return self.graph(
            function, entering, self.chain.slot(first), step=first, need_entering=need
        )

    def pull(
        self, graph: StepGraph, cotangents: Sequence[Tensor | None]
    ) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """One product; uses the graph up, and adds the noise's gradient.

        Returns:
            The gradients of what entered, and those of z and theta, which :meth:`add` takes.

        Raises:
            UnreachableLeafError: the graph reaches a leaf that would get no gradient, or a value
                of another step.
        """
        leaves = [*graph.leaves, *self.theta]
        if graph.kept:
            self.leaf_check.suspects += graph.suspects
        else:
            again = graph.step is not None
            self.leaf_check.look(graph.outputs, graph.entering, graph.leaves, graph.mark, again)
        found = pull_back(self.chain, graph.outputs, cotangents, leaves, graph.evaluations)
        graph.outputs = tuple(output.detach() for output in graph.outputs)
        self.leaf_check.refuse("the denoiser")
        first = len(graph.entering)
        if graph.noise is not None and graph.step is not None:
            self.sums.add(self._first_noise + graph.step, found.pop(first + len(graph.z)))
        return found[:first], found[first:]

    def product(
        self,
        function: Callable[[Tensor, Any], Tensor],
        x: Tensor,
        slot: int,
        cotangent: Tensor | None,
        context: StepContext,
        of_prediction: Tensor | None = None,
    ) -> tuple[Tensor | None, list[Tensor | None], Tensor]:
        """One evaluation of a function of (x, z) with a graph, and one product.

        Args:
            function, x, slot, context: what is evaluated, where, with whose condition, and in what
                random state.
            cotangent, of_prediction: of the value, and of the data prediction of the first
                evaluation.

        Returns:
            The gradient of x, those of z and theta, and the value.
        """

        def of_one(entering: Sequence[Tensor], z: Any, noise: Tensor | None) -> tuple[Tensor, ...]:
            del noise
            self.chain.denoiser.first = None
            with context.replayed():
                value = function(entering[0], z)
            if of_prediction is not None:
                return value, self.chain.prediction()
            self.chain.denoiser.first = None
            return (value,)

        graph = self.graph(of_one, [x], slot, every_z=True)
        (a_x,), rest = self.pull(graph, [cotangent, of_prediction])
        return a_x, rest, graph.outputs[0]

    def add(
        self,
        rest: Sequence[Tensor | None],
        weight: float = 1.0,
        slots: Sequence[tuple[int, float]] = ONE_SLOT,
    ) -> None:
        """Add ``weight`` times the gradients of z and theta, from a product, to the sums.

        ``slots`` are the conditions that receive the gradient of z, each with a further factor.
        """
        for slot, share in slots:
            wanted = self.needs_z(slot)
            for place, want in enumerate(wanted):
                found = rest[place] if want else None
                if found is not None and found.shape != self.z[slot][place].shape:
                    raise NotSupportedError(
                        "conditions of different shapes, in steps that share a product of the "
                        "adjoint: take as many steps as the sampler does, or use "
                        "gradient=DiscreteAdjoint()"
                    )
                if want:
                    self.sums.add(1 + slot * self.places + place, rest[place], weight * share)
        for place, gradient in enumerate(rest[self.places :]):
            self.sums.add(self._first_theta + place, gradient, weight)
