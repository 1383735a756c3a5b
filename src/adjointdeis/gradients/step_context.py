"""What a step depends on besides its arguments, so that evaluating it again repeats it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.gradients.reachable import reachable, version


class RandomState:
    """Reads and sets back the state of a device's generator, or of a ``torch.Generator``."""

    def __init__(self, source: torch.device | torch.Generator) -> None:
        if isinstance(source, torch.device) and source.type != "cpu":
            module = torch.get_device_module(source)
            # There is one MPS device, and its functions take none.
            place = () if source.type == "mps" else (source,)
            self.get: Callable[[], Tensor] = partial(module.get_rng_state, *place)
            self.set: Callable[[Tensor], Any] = lambda state: module.set_rng_state(state, *place)
        else:
            own = torch.default_generator if isinstance(source, torch.device) else source
            self.get, self.set = own.get_state, own.set_state


@dataclass(frozen=True, eq=False)
class StepContext:
    """States of the random sources, and values of the buffers, at one moment of a run."""

    recorder: "ContextRecorder"
    random: tuple[Tensor, ...]
    buffers: tuple[Tensor, ...]

    def replayed(self) -> AbstractContextManager[None]:
        """Inside, everything is as it was at this moment; afterwards, as it was before."""
        return self._replayed() if self.recorder.replays() else nullcontext()

    @contextmanager
    def _replayed(self) -> Iterator[None]:
        recorder = self.recorder
        with ExitStack() as stack:
            if recorder.autocast != recorder.autocast_now():
                enabled, dtype = recorder.autocast
                stack.enter_context(
                    torch.autocast(
                        recorder.device.type, dtype=dtype, enabled=enabled, cache_enabled=False
                    )
                )
            if recorder.drew:
                for source, state in zip(recorder.sources, self.random, strict=True):
                    stack.callback(source.set, source.get())
                    source.set(state)
            for place in recorder.changed:
                # A stand-in, and not the buffer set back: graphs of the caller may hold it.
                owner, name = recorder.places[place]
                stack.callback(owner.__setitem__, name, owner[name])
                owner[name] = self.buffers[place].clone()
            yield


class ContextRecorder:
    """Records the context of every step, and stores what has not changed only once.

    Random sources are the global generator of the CPU and of every device on which x or the
    weights lie, and every ``torch.Generator`` that the sampler holds (see ``reachable``); buffers
    are those of the modules that it holds.

    Attributes:
        modules: every module that the sampler holds, whose buffers are recorded.
        autocast: its setting at the beginning of the run.
        changed: numbers of the buffers that the run changed.
        drew: whether the run took anything from a random source.
        distinct: contexts that were given, each once.
    """

    def __init__(self, roots: Sequence[Any], x: Tensor) -> None:
        found = [value for _, value in reachable(*roots)]
        self.device, self._dtype = x.device, x.dtype
        self.modules = list({id(m): m for m in found if isinstance(m, nn.Module)}.values())
        self.places: list[tuple[dict[str, Any], str]] = [
            (module._buffers, name)
            for module in self.modules
            for name, value in module._buffers.items()
            if value is not None
        ]
        tensors = [x, *(p for m in self.modules for p in m._parameters.values() if p is not None)]
        # Memory is planned on the meta device, which draws nothing.
        kinds = dict.fromkeys(t.device for t in tensors if t.device.type not in ("cpu", "meta"))
        generators = [g for g in found if isinstance(g, torch.Generator)]
        self.sources = [RandomState(s) for s in (torch.device("cpu"), *kinds, *generators)]
        self.autocast = self.autocast_now()
        self.changed: list[int] = []
        self.drew = False
        self._seen = [(owner[name], version(owner[name])) for owner, name in self.places]
        self._values = [owner[name].clone() for owner, name in self.places]
        self.distinct: list[StepContext] = []
        self._last: StepContext | None = None
        self._bytes: list[bytes] = []

    def autocast_now(self) -> tuple[bool, torch.dtype | None]:
        """Whether autocast is on, and its dtype."""
        kind = self.device.type
        # The meta device, on which memory is planned, has no autocast to ask about.
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
            return False, None
        return True, torch.get_autocast_dtype(kind)

    @cached_property
    def tolerance(self) -> float:
        """Relative difference that kernels which are not deterministic may leave.

        The square root of the rounding of the coarsest arithmetic in use: that of x, of the
        weights, or of autocast.
        """
        weights = (p for module in self.modules for p in module._parameters.values())
        dtypes = {self._dtype, self.autocast[1], *(p.dtype for p in weights if p is not None)}
        kinds = [kind for kind in dtypes if kind and (kind.is_floating_point or kind.is_complex)]
        return max(torch.finfo(kind).eps for kind in kinds) ** 0.5

    def replays(self) -> bool:
        """Whether a step, taken again at this moment, needs anything set back."""
        return self.drew or bool(self.changed) or self.autocast != self.autocast_now()

    def now(self) -> StepContext:
        """The present context; the last one again if nothing has changed since."""
        last, random = self._last, [source.get() for source in self.sources]
        # Compared as bytes, which is several times faster than as tensors.
        found = [state.numpy().tobytes() for state in random]
        same = found == self._bytes
        moved = [p for p in range(len(self.places)) if self._has_changed(p)] if self.places else []
        if last is not None and same and not moved:
            return last
        self._bytes = found
        self.drew = self.drew or (last is not None and not same)
        for place in moved:
            owner, name = self.places[place]
            self._seen[place] = (owner[name], version(owner[name]))
            self._values[place] = owner[name].clone()
        self.changed = sorted({*self.changed, *moved})
        kept = last.random if last is not None and same else tuple(random)
        self._last = StepContext(self, kept, tuple(self._values))
        self.distinct.append(self._last)
        return self._last

    def _has_changed(self, place: int) -> bool:
        owner, name = self.places[place]
        seen, number = self._seen[place]
        if owner[name] is not seen or version(seen) != number:
            return True
        # Batch statistics are written inside an operation, which leaves the version as it is.
        return seen.ndim <= 1 and not torch.equal(seen, self._values[place])
