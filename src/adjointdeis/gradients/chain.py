"""The discrete chain of states that a solver makes on a grid, and the leaves that it may hide."""

import gc
import math
import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from adjointdeis.diffusion.conditions import Conditions
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise, RecordedNoise, as_noise
from adjointdeis.diffusion.prediction import x0_from_eps
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.gradients.reachable import next_number
from adjointdeis.solvers.base import Solver, State, eps_factor
from adjointdeis.solvers.pair import Pair


class NotSupportedError(ValueError):
    """A gradient that the chosen method does not give, for this sampler or this input."""


class UnreachableLeafError(RuntimeError):
    """A tensor that requires a gradient, and that the chosen method cannot give one."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Sampling as a chain x_T -> ... -> x_0 with everything but the differentiable inputs.

    Attributes:
        denoiser: counted network.
        solver: sampler.
        grid: N + 1 nodes.
        noise: path noise for an SDE solver, None for an ODE solver.
        conditions: z of every step.
        cost: counters.
        trajectory: where states and predictions are collected; None if nobody wants them.
        gradient_error: by input, filled by a method that estimates it (``Certified``).
    """

    denoiser: CountedDenoiser
    solver: Solver
    grid: TimeGrid
    noise: Noise | None
    conditions: Conditions
    cost: Cost
    trajectory: "Trajectory | None" = None
    gradient_error: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        denoiser: Callable[..., Tensor],
        solver: Solver,
        grid: TimeGrid,
        x_T: Tensor,
        z: Any = None,
        noise: Noise | Sequence[Tensor] | None = None,
        cost: Cost | None = None,
        trajectory: bool = False,
    ) -> "Chain":
        """The chain of a sampling run; arguments as for ``sample``."""
        cost = Cost() if cost is None else cost
        stochastic = solver.calculus == "sde"
        return cls(
            denoiser=CountedDenoiser(denoiser, cost, remembers=trajectory),
            solver=solver,
            grid=grid,
            noise=as_noise(noise, grid, cls.latent(solver, x_T)) if stochastic else None,
            conditions=Conditions.of(z, grid.steps),
            cost=cost,
            trajectory=Trajectory() if trajectory else None,
        )

    @staticmethod
    def latent(solver: Solver, x: Tensor) -> Tensor:
        """One latent as the network sees it, where x may hold a pair of them."""
        return x[0] if isinstance(solver, Pair) and not solver.tied else x

    @property
    def wanted_noise(self) -> tuple[Tensor, ...]:
        """The recorded normals of the path, if any of them requires a gradient."""
        recorded = self.noise.values if isinstance(self.noise, RecordedNoise) else ()
        return tuple(recorded) if any(n.requires_grad for n in recorded) else ()

    @property
    def steps(self) -> int:
        """Number N of steps."""
        return self.grid.steps

    @property
    def scheduled(self) -> bool:
        """Whether step i has its own condition z_i."""
        return self.conditions.scheduled

    @property
    def factor(self) -> float:
        """Weight of the eps term: 1 for the ODE, 2 for the reverse SDE (Paper: Prop. 3.1)."""
        return eps_factor(self.solver)

    @property
    def spread(self) -> float:
        """Weight of the Wiener process in y = x/alpha: 0 for the ODE, 1 for the reverse SDE."""
        return math.sqrt(self.factor - 1.0)

    def slot(self, step: int) -> int:
        """Which of the conditions step ``step`` uses."""
        return self.conditions.slot(step)

    def initial_state(self, x_T: Tensor) -> State:
        """The solver's state before the first step."""
        make = getattr(self.solver, "initial_state", None)
        return () if make is None else tuple(make(x_T, self.grid))

    def advance(
        self, step: int, x: Tensor, z: Any, state: State, noise: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Take one step; ``noise`` is that of the path unless it is given."""
        s, t = self.grid[step], self.grid[step + 1]
        if self.noise is not None:
            noise = self.noise.normal(s, t, x) if noise is None else noise.to(x)
        self.denoiser.first = None
        x, state = self.solver.step(self.denoiser, x, z, s, t, state, noise)
        return x, tuple(state)

    def prediction(self) -> Tensor:
        r"""Data prediction :math:`(x - \sigma\epsilon)/\alpha` of the step just taken.

        From its first evaluation of the network.

        Raises:
            NotSupportedError: the step evaluated no network that this package knows, or alpha = 0.
        """
        first, self.denoiser.first = self.denoiser.first, None
        predicts = getattr(self.solver, "predicts", "eps")
        own = getattr(self.solver, "data_prediction", None)
        if first is not None and own is not None:
            return own(*first)
        if first is None or predicts not in ("eps", "velocity"):
            raise NotSupportedError(
                f"{type(self.solver).__name__} evaluates a network of its own convention, whose "
                "prediction of the data is not known: sample without trajectory=True"
            )
        x, t, output = first
        alpha, sigma = (float(f(t)) for f in (self.grid.schedule.alpha, self.grid.schedule.sigma))
        if predicts == "velocity":
            return x - sigma * output
        return x0_from_eps(x, output, alpha, sigma)

    def run(self, x_T: Tensor) -> tuple[Tensor, int]:
        """Take every step; returns x_0 and how many latents were made, solver history included."""
        x, state = x_T, self.initial_state(x_T)
        latents = 1 + len(state)
        for step in range(self.steps):
            x, state = self.advance(step, x, self.conditions.of_step(step), state)
            latents += 1 + len(state)
            if self.trajectory is not None:
                self.trajectory.note(x, self.prediction())
        return x, latents

    @contextmanager
    def backward_pass(self) -> Iterator[None]:
        """Count what happens inside as the backward pass."""
        self.cost.in_backward = True
        try:
            yield
        finally:
            self.cost.in_backward = False


@dataclass(eq=False)
class Trajectory:
    """What a run passes through.

    Attributes:
        states: x after each of the N steps.
        predictions: data prediction of each step.
    """

    states: list[Tensor] = field(default_factory=list)
    predictions: list[Tensor] = field(default_factory=list)

    def note(self, x: Tensor, prediction: Tensor) -> None:
        """Add a step."""
        self.states.append(x)
        self.predictions.append(prediction)


def detached(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """The tensor as a leaf of its own, sharing memory."""
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return tensor.detach().requires_grad_(requires_grad and differentiable)


_BEFORE = object()  # marks what was made before the run, which every step may share
_THREAD = threading.local()
_KEPT = (
    "the denoiser keeps a value that it computed in an earlier step (a cache of a projected "
    "prompt, of a time embedding or of outputs: {}), so that its gradient would be lost in this "
    "step. Switch the cache off, compute the value before sampling and pass it as z or in "
    "sample(..., parameters=[...]), or use gradient=Backprop()"
)


class Mark:
    """Of the graph of one step: autograd numbers the nodes that a thread makes in their order.

    Attributes:
        first, end: numbers of the nodes that this thread has made for the step; there is no end
            before :class:`LeafCheck` has looked at the graph.
    """

    __slots__ = ("end", "first")

    def __init__(self) -> None:
        self.first, self.end = next_number(), 0


class RunKey:
    """Under which nodes carry their marks; it knows which nodes were there before the run.

    Attributes:
        numbered: whether the network makes its nodes in the thread that calls it, so that their
            numbers tell whose they are.
        late: tensors that the network began to hold in a step without a graph.
        graphs: compares the graphs of evaluations; None where the network holds what it held.
    """

    def __init__(self) -> None:
        self._thread, self._first, self.numbered = _this_thread(), next_number(), True
        self.late: list[weakref.ref[Tensor]] = []
        self.graphs: Callable[[Tensor, Tensor, Any, Tensor, int], None] | None = None

    @contextmanager
    def exposed(self, denoiser: CountedDenoiser) -> Iterator[None]:
        """Inside, a graph shows where it uses what the network began to hold, or is another."""
        denoiser.graphs = self.graphs
        held = [tensor for ref in self.late if (tensor := ref()) is not None]
        late = [tensor for tensor in held if not tensor.requires_grad]
        try:
            for tensor in late:
                tensor.requires_grad_()
            yield
        except RuntimeError as error:
            if late and "leaf Variable that requires grad" in str(error):
                raise UnreachableLeafError(_KEPT.format("written in place")) from error
            raise
        finally:
            denoiser.graphs = None
            for tensor in late:
                if tensor.is_leaf:
                    tensor.requires_grad_(False)

    def is_late(self, leaf: Tensor) -> bool:
        """Whether this is a tensor that the network began to hold in a step without a graph."""
        return any(ref() is leaf for ref in self.late)

    def here(self) -> bool:
        """Whether this is the thread of the sampling run."""
        return self._thread is _this_thread()

    def holds(self, node: Any, mark: Mark, own: bool, by_number: bool) -> bool:
        """Whether a step may use a node: its own, or one that was there before the run.

        Args:
            node: has the step's mark from now on, if it has none and is not told by its number.
            mark: of the step.
            own: whether the node's number is one of the mark's.
            by_number: whether the numbers of this thread tell, as they do in a backward pass.
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


class LeafCheck:
    """Looks for leaves that would silently get no gradient, and for values that were kept.

    A leaf that the denoiser made itself, to take a gradient inside the step, is none of them: it
    ends with the graph of its step, or shares the memory of what the step was given.

    A value that the network keeps from one evaluation for later ones (a projected prompt, keys
    and values, the embedding of a time, its own outputs) is right, so that comparing numbers finds
    nothing; but the graph behind it is that of another step, whose inputs are no longer those that
    a gradient is asked for. Every node that the sampling run was seen to make carries the mark of
    its step, whatever thread looks (backward passes of a GPU run in threads of their own); in the
    sampling run's own thread a backward pass goes by the nodes' numbers.

    Attributes:
        run: under which key nodes carry marks, one for both passes of a rollout; None looks for
            leaves only.
        by_number: whether numbers tell whose a node is, which is several times faster.

    Args:
        known: tensors at which a graph may end, because they receive their gradient. They need
            not be leaves: the output of a text encoder is one, and what lies behind it is
            autograd's own business.
    """

    def __init__(self, known: Collection[Tensor]) -> None:
        # By their place in a graph: autograd may hand out a leaf as another object, as it does
        # under hooks such as save_on_cpu.
        edges = (get_gradient_edge(tensor) for tensor in known if tensor.requires_grad)
        self._known = {(edge.node, edge.output_nr) for edge in edges}
        self._suspects: list[weakref.ref[Tensor]] = []
        self.run: RunKey | None = None
        self.by_number = False

    def goes_back(self, run: RunKey | None) -> None:
        """Begin a backward pass of a sampling run."""
        self.run, self.by_number = run, run is not None and run.numbered

    def look(
        self,
        outputs: Sequence[Tensor],
        entering: Sequence[Tensor],
        mark: Mark,
        leaves: Sequence[Tensor] = (),
    ) -> None:
        """Search the graph of a step; :meth:`refuse` must follow once the graph is gone.

        Args:
            outputs: results of a step whose own inputs were detached.
            entering: what the step was given.
            mark: made before the graph; the same whenever this graph is looked at.
            leaves: further leaves that the step was given, and that no other leaf stands for.

        Raises:
            UnreachableLeafError: the step uses a value that another step of the run has made.
        """
        if not any(out.requires_grad for out in outputs):
            return
        memory = {tensor.untyped_storage().data_ptr() for tensor in entering}
        given = {get_gradient_edge(leaf).node for leaf in leaves if leaf.requires_grad}
        mark.end = mark.end or next_number()
        first, end = mark.first, mark.end
        run, known, by_number = self.run, self._known, self.by_number
        quick = run is not None and by_number and run.here()
        stack: list[Any] = [(out.grad_fn, out.output_nr) for out in outputs]
        seen: set[Any] = {None}
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
            if not isinstance(leaf, Tensor) or not leaf.requires_grad or node in given:
                continue
            if run is not None and run.late and run.is_late(leaf):
                raise UnreachableLeafError(_KEPT.format(f"a tensor of shape {tuple(leaf.shape)}"))
            if leaf.untyped_storage().data_ptr() not in memory:
                self._suspects.append(weakref.ref(leaf))

    def _is_cast(self, node: Any) -> bool:
        """Whether this is the cast of a weight, which autocast keeps for its whole region."""
        if not node.name().startswith("ToCopyBackward"):
            return False
        return all(parent in self._known for parent in node.next_functions)

    def refuse(self, where: str) -> None:
        """Raise if a leaf outlived the graph in which it was found.

        Raises:
            UnreachableLeafError: naming the shape of the first such leaf. Leaves behind a
                custom autograd function that hides its inputs cannot be seen.
        """
        if not self._suspects:
            return
        suspects, self._suspects = self._suspects, []
        if not any(suspect() is not None for suspect in suspects):
            return
        gc.collect()
        for suspect in suspects:
            leaf = suspect()
            if leaf is not None:
                raise UnreachableLeafError(
                    f"{where} uses a tensor of shape {tuple(leaf.shape)} that requires a gradient "
                    "but is neither x_T, z, nor one of the denoiser's parameters(), so this method "
                    "would leave its .grad empty. Pass it as z, make it a parameter of the "
                    "denoiser, list it in sample(..., parameters=[...]), call "
                    "requires_grad_(False) on it, sample under torch.no_grad(), or use "
                    "gradient=Backprop()"
                )


def pull_back(
    chain: Chain,
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    evaluations: int,
) -> list[Tensor | None]:
    """One vector-Jacobian product of a graph, for all inputs that require a gradient at once.

    Outputs without a graph and outputs without a cotangent are left out: both are zero, and
    the history that the last step leaves behind has none.

    Args:
        chain: counts the products.
        outputs, cotangents: what is pulled back.
        inputs: what it is pulled back to.
        evaluations: network evaluations in the graph; one product passes through each.

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
            "cached parametrisation, a hypernetwork), so its gradient is asked for once per step. "
            "List that tensor in sample(..., parameters=[...]), compute it inside the denoiser, "
            "or use gradient=Backprop()"
        ) from error
    found = iter(gradients)
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
