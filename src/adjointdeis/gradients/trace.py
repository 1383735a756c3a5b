"""What the sampling run of a method that keeps no graph leaves for the backward pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from adjointdeis.diffusion.prediction import wide
from adjointdeis.diffusion.transition import path_scale
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.consistency import (
    CAUSES,
    EvaluationCheck,
    GraphCheck,
    InconsistentStepError,
)
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.step_context import ContextRecorder, StepContext
from adjointdeis.solvers.base import State


@dataclass(eq=False, slots=True)
class Carry:
    """What enters a step: the state and the solver's history."""

    x: Tensor
    state: State


@dataclass(eq=False)
class Trace:
    """What a run leaves behind.

    Attributes:
        owner: the method, for messages.
        checked: whether what is evaluated again is compared.
        recorder, contexts: what records the context of every step, and these.
        carries, outputs: inputs of steps, and outputs of the network, that are kept, by number.
        latents: how many latents these are.
        evaluations, changed: those of the network, and what it changed of its own while it ran,
            where the run was observed.
        graphs: those of its first evaluations.
        in_place: whether a step changed its x in place.
        end: the solver's history after the last step.
    """

    owner: str
    checked: bool
    recorder: ContextRecorder
    contexts: list[StepContext] = field(default_factory=list)
    carries: dict[int, Carry] = field(default_factory=dict)
    latents: int = 0
    evaluations: EvaluationCheck = field(default_factory=EvaluationCheck)
    graphs: GraphCheck = field(default_factory=GraphCheck)
    outputs: dict[int, list[Tensor]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    in_place: bool = False
    end: State = ()

    def keep(self, step: int, x: Tensor, state: State = ()) -> None:
        """Store the input of a step."""
        self.carries[step] = Carry(x, state)
        self.latents += 1 + len(state)

    def drop(self, step: int) -> Carry:
        """Give up the input of a step."""
        carry = self.carries.pop(step)
        self.latents -= 1 + len(carry.state)
        return carry

    def reevaluations(self, chain: Chain, by: Inputs) -> "Reevaluations":
        """A check of the evaluations that a backward pass makes."""
        return Reevaluations(self, chain, by)

    def state(self, step: int) -> Tensor:
        """x before a step that was kept."""
        return self.carries[step].x

    def tensors(self) -> Iterator[Tensor]:
        """Everything that is held here."""
        for carry in self.carries.values():
            yield from (carry.x, *carry.state)
        for context in self.recorder.distinct:
            yield from context.buffers
        for found in (*self.outputs.values(), *self.evaluations.known.values()):
            for held in found:
                yield from (held,) if isinstance(held, Tensor) else held


@dataclass(eq=False)
class Reevaluations:
    """The network's evaluations of a backward pass that takes no step again."""

    trace: Trace
    chain: Chain
    by: Inputs
    _compared: int = 0

    def compare(self, x: Tensor, t: Tensor, slot: int, output: Tensor) -> None:
        """Compare an evaluation with that of the sampling run at the same x and t, if any.

        Raises:
            InconsistentStepError: they differ.
        """
        if not self.trace.checked:
            return
        allowed = self.trace.recorder.tolerance
        same = self.trace.evaluations.matches(x, t, slot, output, allowed)
        self._compared += same is not None
        if same is False:
            raise InconsistentStepError(
                f"the network, evaluated again at t = {float(t):.4g} and the same x, gives "
                "something else than in the sampling run. It must be a function of its "
                f"arguments. {CAUSES}"
            )

    def finish(self) -> None:
        """See to it that something has been compared: the first step, if nothing else.

        That step is taken again for it, which costs its evaluations. To be called before an
        adaptive integrator, which would take ever smaller steps through a network that changes.

        Raises:
            InconsistentStepError: it gives something else; or the network is seen to change a
                state of its own, of which one step says too little.
        """
        trace, chain = self.trace, self.chain
        if not trace.checked or self._compared:
            return
        if trace.changed:
            raise InconsistentStepError(
                f"the denoiser changes a state of its own while it runs ({trace.changed[0]}), and "
                f"{trace.owner} evaluates it at no point of the sampling run, where it could be "
                "seen whether that matters: use gradient=DiscreteAdjoint(), which compares every "
                "step, or check=False if it only counts"
            )

        def first(entering: Sequence[Tensor], z: Any, noise: Tensor | None) -> tuple[Tensor, ...]:
            with trace.contexts[0].replayed():
                x, state = chain.advance(0, entering[0], z, tuple(entering[1:]), noise)
            return (x, *state)

        graphs, chain.denoiser.graphs = chain.denoiser.graphs, trace.graphs
        chain.denoiser.observer = lambda x, t, output: self.compare(x, t, chain.slot(0), output)
        entering = [self.by.x_T, *chain.initial_state(self.by.x_T)]
        self.by.graph(first, entering, chain.slot(0), need_entering=self.by.needs[0])
        chain.denoiser.graphs, chain.denoiser.observer = graphs, None
        increment = getattr(chain.noise, "increment", None)
        if chain.noise is None or increment is None:
            return
        x, s, t = self.by.x_T, chain.grid[0], chain.grid[1]
        with trace.contexts[0].replayed():
            drawn = path_scale(s, t) * chain.noise.normal(s, t, x)
        off, size = (float(wide(v).norm()) for v in (increment(chain.grid, 0, 1, x) - drawn, drawn))
        if off > trace.recorder.tolerance * size:
            raise InconsistentStepError(
                f"the noise {type(chain.noise).__name__} is not what the sampling run was given: "
                f"its increment of the first step is off by {off / size:.2g} of its size. It must "
                "be a function of the nodes: pass noise=RecordedNoise([...]) or BrownianPath(...)"
            )
