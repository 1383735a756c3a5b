"""The graphs of steps: what they lead to, and their products."""

import gc
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.reachable import next_number


class UnreachableLeafError(RuntimeError):
    """A tensor that requires a gradient, and that the chosen method cannot give one."""


_BEFORE = object()  # marks what was made before the run, which every step may share
_THREAD = threading.local()
_KEPT = (
    "the denoiser keeps a value that it computed in an earlier step (a cache of a projected "
    "prompt, of a time embedding or of outputs: {}), so that its gradient would be lost in this "
    "step. Switch the cache off, compute the value before sampling and pass it as z or in "
    "sample(..., parameters=[...]), or use gradient=Backprop()"
)


class Mark:
    """From which number to which a thread has made the nodes of a step's graph.

    Autograd numbers them in their order; there is no end before :class:`LeafCheck` has looked.
    """

    __slots__ = ("end", "first")

    def __init__(self) -> None:
        self.first, self.end = next_number(), 0


class RunKey:
    """Under which nodes carry their marks; it knows which nodes were there before the run.

    Attributes:
        numbered: whether the network makes its nodes in the thread that calls it, so that their
            numbers tell whose they are.
        graphs: compares the graphs of evaluations; None where the network holds what it held.
        whole: whether the sampling run takes every step, and looks at it.
    """

    def __init__(self, whole: bool) -> None:
        self.whole = whole
        self._thread, self._first, self.numbered = _this_thread(), next_number(), True
        self.graphs: Callable[[Tensor, Tensor, Any, Tensor, int], None] | None = None
        self._given: set[weakref.ref[Any]] = set()

    def hands_out(self, leaves: Iterable[Tensor]) -> None:
        """Note where the graph of a step ends, which is to be gone with it."""
        self._given |= {weakref.ref(leaf.grad_fn or leaf) for leaf in leaves if leaf.requires_grad}

    def something_outlived(self) -> bool:
        """Whether anything holds the graph of an earlier step."""
        self._given = {ref for ref in self._given if ref() is not None}
        return bool(self._given)

    def here(self) -> bool:
        """Whether this is the thread of the sampling run."""
        return self._thread is _this_thread()

    def holds(self, node: Any, mark: Mark, own: bool, by_number: bool) -> bool:
        """Whether a step may use a node: its own, or one that was there before the run.

        The node has the step's mark from now on, if it has none and is not told by its number:
        ``own`` says whether that is one of the mark's, ``by_number`` whether numbers of this thread
        tell, as they do in a backward pass.
        """
        here = self.here()
        before = here and node._sequence_nr() < self._first
        if by_number and (here or not own):
            return own or before or node.metadata.get(self) is _BEFORE
        self.numbered = self.numbered and (own or by_number)
        return node.metadata.setdefault(self, _BEFORE if before else mark) in (mark, _BEFORE)


def _this_thread() -> object:
    # Not its identifier, which a later thread may have again.
    return _THREAD.__dict__.setdefault("token", object())


class Aside(torch.autograd.Function):
    """What a step of the sampling run is given, where its graph ends for that run.

    It is no leaf, so that a loss on what the network laid aside comes by here and is refused.
    """

    @staticmethod
    def forward(ctx: Any, cost: Cost, count: int, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Views of the first tensors; the others are what a loss may be differentiated by."""
        ctx.cost = cost
        ctx.set_materialize_grads(False)
        return tuple(value.view_as(value) for value in inputs[:count])

    @staticmethod
    def leads(value: Tensor) -> bool:
        """Whether a tensor is one of these views."""
        return type(value.grad_fn).__name__ == "AsideBackward"

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        if ctx.cost.in_backward:  # a kept graph, whose end is where the step before began
            return (None,) * len(ctx.needs_input_grad)
        raise UnreachableLeafError(
            "the loss uses a value that the denoiser computed in a step and laid aside (a penalty "
            "of each step, an attention map), and its gradient by the other steps is lost: "
            "compute it from rollout.states or rollout.predictions of sample(..., "
            "trajectory=True), or use gradient=Backprop()"
        )


class LeafCheck:
    """Looks for leaves that would silently get no gradient, and for values that were kept.

    A leaf that the denoiser made itself, to take a gradient inside the step, is none of them: it
    ends with the graph of its step, or shares the memory of what the step was given.

    A value that the network keeps from one evaluation for later ones is right, but the graph behind
    it is that of another step, whose inputs get no gradient any more. Every node that the sampling
    run was seen to make carries the mark of its step, whatever thread looks (backward passes of a
    GPU run in threads of their own); in its own thread a backward pass goes by the nodes' numbers.

    A step taken again needs no such walk where the sampling run shows that it leads to nothing but
    what it is given, and nothing holds the graph of another step.

    Attributes:
        run: under which key nodes carry marks, one for both passes of a rollout; None looks for
            leaves only.
        by_number: whether numbers tell whose a node is, which is several times faster.
        suspects: leaves that were found and are lost if they outlive their graph.

    Args:
        known: tensors at which a graph may end, because they receive their gradient; they need
            not be leaves, such as the output of a text encoder.
    """

    def __init__(self, known: Collection[Tensor]) -> None:
        # By their place in a graph: autograd may hand out a leaf as another object, as it does
        # under hooks such as save_on_cpu.
        self._known = _edges(known)
        self.suspects: list[weakref.ref[Tensor]] = []
        self.run: RunKey | None = None
        self.by_number = False

    def look(
        self,
        outputs: Sequence[Tensor],
        entering: Sequence[Tensor],
        leaves: Sequence[Tensor],
        mark: Mark,
        again: bool = False,
    ) -> None:
        """Search the graph of a step; :meth:`refuse` must follow once the graph is gone.

        Args:
            outputs, entering, leaves: results of the step, the state and history that it was
                given, and where its graph ends.
            mark: made before the graph; the same whenever this graph is looked at.
            again: whether the sampling run took this step, too.

        Raises:
            UnreachableLeafError: the step uses a value that another step of the run has made.
        """
        if not any(out.requires_grad for out in outputs):
            return
        mark.end = mark.end or next_number()
        run, known, by_number = self.run, self._known, self.by_number
        if run is not None:
            plain = again and run.whole and by_number and not known
            plain = plain and not run.something_outlived()
            run.hands_out(leaves)
            if plain:
                return
        memory = {tensor.untyped_storage().data_ptr() for tensor in entering}
        first, end = mark.first, mark.end
        quick = run is not None and by_number and run.here()
        stack: list[Any] = [(out.grad_fn, out.output_nr) for out in outputs]
        seen: set[Any] = {None, *(leaf.grad_fn for leaf in leaves)}
        while stack:
            node, output = stack.pop()
            if node in seen or (known and (node, output) in known):
                continue
            seen.add(node)
            parents = node.next_functions
            if parents:
                stack.extend(parents)
                own = first <= node._sequence_nr() < end
                if run is None or (own and quick):
                    continue
                if not self._is_cast(node) and not run.holds(node, mark, own, by_number):
                    raise UnreachableLeafError(_KEPT.format(node.name()))
                continue
            leaf = getattr(node, "variable", None)
            if not isinstance(leaf, Tensor) or not leaf.requires_grad:
                continue
            if any(leaf is given for given in leaves):
                continue
            if leaf.untyped_storage().data_ptr() not in memory:
                self.suspects.append(weakref.ref(leaf))

    def bypassed(
        self, outputs: Sequence[Tensor], leaves: Sequence[Tensor], evaluated: Iterable[GradientEdge]
    ) -> bool:
        """Whether a step leads to a weight or a condition by another way than its evaluations.

        Args:
            outputs, leaves: as for :meth:`look`; the first leaf is that of x.
            evaluated: edges of what the network gave.
        """
        wanted = self._known | _edges(leaves[1:])
        stack, seen = list(_edges(outputs)), _edges(leaves[:1])
        seen |= {(edge.node, edge.output_nr) for edge in evaluated}
        while stack:
            edge = stack.pop()
            if edge in seen or edge[0] is None:
                continue
            if edge in wanted:
                return True
            seen.add(edge)
            stack.extend(edge[0].next_functions)
        return False

    def _is_cast(self, node: Any) -> bool:
        """Whether this is the cast of a weight, which autocast keeps for its whole region."""
        if not node.name().startswith("ToCopyBackward"):
            return False
        return all(parent in self._known for parent in node.next_functions)

    def refuse(self, where: str) -> None:
        """Raise if a leaf outlived the graph in which it was found.

        Leaves behind a custom autograd function that hides its inputs cannot be seen.
        """
        if not self.suspects:
            return
        suspects, self.suspects = self.suspects, []
        if not any(suspect() is not None for suspect in suspects):
            return
        gc.collect()
        for suspect in suspects:
            leaf = suspect()
            if leaf is not None:
                raise UnreachableLeafError(
                    f"{where} uses a tensor of shape {tuple(leaf.shape)} that requires a gradient "
                    "but is neither x_T, z, nor one of the denoiser's parameters(), so this method "
                    "would leave its .grad empty. Pass it as z (a tensor, tuple or dict: other "
                    "objects are not looked into), make it a parameter of the denoiser, list it in "
                    "sample(..., parameters=[...]), call "
                    "requires_grad_(False) on it, sample under torch.no_grad(), or use "
                    "gradient=Backprop()"
                )


def _edges(tensors: Iterable[Tensor]) -> set[tuple[Any, int]]:
    """Where tensors lie in their graphs."""
    edges = (get_gradient_edge(tensor) for tensor in tensors if tensor.requires_grad)
    return {(edge.node, edge.output_nr) for edge in edges}


@contextmanager
def _without_hooks(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, hooks on tensors rest: the outer pass calls them, once, with the whole gradient."""
    resting = [(hooks, dict(hooks)) for t in tensors if (hooks := t._backward_hooks)]
    for hooks, _ in resting:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, own in resting:
            hooks.update(own)


def refuse_made_of_each_other(theta: Sequence[Tensor]) -> None:
    """Refuse parameters one of which was made from another, whose gradient would count twice.

    Raises:
        UnreachableLeafError: naming the shapes of both.
    """
    edges = (get_gradient_edge(tensor) for tensor in theta)
    named = {(e.node, e.output_nr): t for e, t in zip(edges, theta, strict=True)}
    for made in theta:
        stack: list[Any] = [*made.grad_fn.next_functions] if made.grad_fn else []
        seen: set[Any] = set()
        while stack:
            edge = stack.pop()
            if edge in named:
                raise UnreachableLeafError(
                    f"parameters=[...] names a tensor of shape {tuple(made.shape)} and one that "
                    f"it was made from, of shape {tuple(named[edge].shape)}, whose gradient would "
                    "count twice: pass the first as z, or leave out the second, which it reaches; "
                    "or use gradient=Backprop()"
                )
            if edge not in seen and edge[0] is not None:
                seen.add(edge)
                stack.extend(edge[0].next_functions)


def pull_back(
    chain: Chain,
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    evaluations: int,
) -> list[Tensor | None]:
    """One vector-Jacobian product of a graph, for all inputs that require a gradient at once.

    Outputs without a graph or a cotangent are left out; the chain counts a product for each of the
    ``evaluations`` in the graph.

    Raises:
        NotSupportedError: the graph holds a reentrant checkpoint.
        UnreachableLeafError: the graph runs through a part that was computed before the step
            and was used up by another step.
    """
    pairs = [
        (out, cotangent)
        for out, cotangent in zip(outputs, cotangents, strict=False)
        if out.requires_grad and cotangent is not None
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    chain.cost.vjps += evaluations
    try:
        with _without_hooks(wanted):
            gradients = torch.autograd.grad(
                [out for out, _ in pairs], wanted, [a for _, a in pairs], allow_unused=True
            )
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise NotSupportedError(
                "the denoiser recomputes a part of itself by torch.utils.checkpoint with "
                "use_reentrant=True, which gives no gradient of chosen tensors. Write "
                "checkpoint(function, x, use_reentrant=False), for a model of transformers "
                "gradient_checkpointing_enable(gradient_checkpointing_kwargs={'use_reentrant': "
                "False}); or use gradient=Backprop() and x_0.backward()"
            ) from error
        if "backward through the graph a second time" not in str(error):
            raise
        raise UnreachableLeafError(
            "the denoiser uses a tensor that was computed from its weights before the step (a "
            "cached parametrisation, a hypernetwork), or the loss one that it laid aside, so its "
            "gradient is asked for more than once. "
            "List that tensor in sample(..., parameters=[...]), compute it inside the denoiser, "
            "or use gradient=Backprop()"
        ) from error
    found = iter(gradients)
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
