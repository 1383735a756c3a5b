"""What the sampling run of a method that keeps no graph leaves for the backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from adjointdeis.gradients.consistency import CAUSES, EvaluationCheck, InconsistentStepError
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

    def reevaluations(self) -> "Reevaluations":
        """A check of the evaluations that a backward pass makes."""
        return Reevaluations(self)

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
        """Refuse a network that changes and of which no evaluation could be compared.

        Raises:
            InconsistentStepError: naming what it changes.
        """
        trace = self.trace
        if trace.checked and trace.changed and not self._compared:
            raise InconsistentStepError(
                f"the denoiser changes a state of its own while it runs ({trace.changed[0]}), and "
                f"{trace.owner} evaluates it at no point of the sampling run, where it could be "
                "seen whether that matters: use gradient=DiscreteAdjoint(), which compares every "
                "step, or check=False if it only counts"
            )
