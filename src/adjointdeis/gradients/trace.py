"""What the sampling run of a method that keeps no graph leaves for the backward pass."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from adjointdeis.gradients.consistency import EvaluationCheck, Reevaluations
from adjointdeis.gradients.step_context import ContextRecorder, StepContext
from adjointdeis.solvers.base import State


@dataclass(eq=False, slots=True)
class Carry:
    """What enters a step: the state and the solver's history."""

    x: Tensor
    state: State

    @property
    def latents(self) -> int:
        """How many latents this holds."""
        return 1 + len(self.state)


@dataclass(eq=False)
class Trace:
    """What a run leaves behind.

    Attributes:
        owner: the method, for messages.
        checked: whether what is evaluated again is compared.
        recorder: records the context of every step.
        contexts: for each step, the context in which it was taken.
        carries: inputs of the steps that are kept, by number.
        latents: how many latents these are.
        evaluations: those of the network, where the run was observed.
        outputs: what the network gave in the steps whose outputs are kept, by number.
        changed: what the denoiser changed of its own while it ran, where the run was observed.
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
        self.latents -= carry.latents
        return carry

    def reevaluations(self) -> Reevaluations:
        """A check of the evaluations that a backward pass makes."""
        return Reevaluations(
            self.evaluations, self.recorder, self.changed, self.owner, self.checked
        )

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
