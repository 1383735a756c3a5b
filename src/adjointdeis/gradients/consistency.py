"""Checks that what is evaluated again gives what it gave in the sampling run.

A backward pass that recomputes is right only if steps and network are functions of their arguments.
Both checks compare numbers that exist anyway; neither evaluates the network.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.reachable import next_number
from adjointdeis.gradients.step_context import ContextRecorder

CAUSES = (
    "Usual causes: a counter or cached features (a scheduler's _step_index, DeepCache, "
    "FirstBlockCache), noise of numpy, random or a generator that the sampler does not hold, "
    "train() or eval() called in between. Use gradient=Backprop(), which evaluates nothing "
    "again; or check=False, if the difference is that of a kernel which is not deterministic"
)
_FUNCTION = f"A step must be a function of its arguments. {CAUSES}"
_STALE = (
    "states= are those of a run with another z, another network or other weights, or the network "
    "is no function of its arguments: call adaptive_grid() again with what sample() is given, or "
    "leave states out, sample(..., solver=found.solver, grid=found.grid)"
)

# Casts may be kept by autocast, or made anew; a reshape copies or does not, as its input lies in
# memory, which need not be the same when a step is taken again.
_NO_MATHEMATICS = (
    *("ToCopyBackward", "CloneBackward", "ViewBackward", "UnsafeViewBackward"),
    "ReshapeAliasBackward",
)


class InconsistentStepError(RuntimeError):
    """A step or a network that gave something else when it was evaluated again."""


class StepCheck:
    """Compares steps that are taken again with the states that they led to."""

    def __init__(self, chain: Chain, recorder: ContextRecorder, enabled: bool) -> None:
        self.chain, self.recorder, self.enabled = chain, recorder, enabled
        self._pending: list[tuple[int, Tensor]] = []

    def compare(
        self, step: int, before: Tensor, found: Sequence[Tensor], known: Sequence[Tensor]
    ) -> bool:
        """Compare state and history after a step; whether they are the same to the last bit.

        A difference counts in relation to how far the step goes from ``before``.

        Raises:
            InconsistentStepError: they differ. On an accelerator :meth:`finish` raises it, so
                that no step waits for the device.
        """
        on_cpu = before.device.type == "cpu"
        if on_cpu and all(map(torch.equal, found, known)):
            return True
        if not self.enabled:
            return False
        pairs = [(now.detach(), then) for now, then in zip(found, known, strict=False)]
        eps, measured = torch.finfo(before.dtype).eps, []
        tolerance = max(self.recorder.tolerance, eps**0.5)
        for place, (now, then) in enumerate(pairs):
            now, then = wide(now), wide(then)
            # A number that is not finite, found again, is no difference; nor has it a size.
            same = (now == then) | (now.isnan() & then.isnan())
            off = torch.where(same, 0.0, now - then).abs()
            scale = _largest(then)
            way = _largest(then - wide(before)) if place == 0 else scale
            measured.append(torch.stack((off.amax(), way, tolerance * way + 8 * eps * scale)))
        self._pending.append((step, torch.stack(measured)))
        if on_cpu:
            self.finish()
        return False

    def finish(self) -> None:
        """Raise what has been found."""
        pending, self._pending = self._pending, []
        for step, measured in pending:
            for off, way, allowed in measured.tolist():
                if not off <= allowed:
                    s, t = self.chain.grid[step], self.chain.grid[step + 1]
                    raise InconsistentStepError(
                        f"step {step} of {self.chain.steps} (t = {float(s.t):.4g} to "
                        f"{float(t.t):.4g}), taken again, ends somewhere else: off by {off:.3g}, "
                        f"where the step itself goes {way:.3g}. "
                        + (_STALE if self.chain.states else _FUNCTION)
                    )


def _largest(values: Tensor) -> Tensor:
    return values.nan_to_num(0.0, 0.0, 0.0).abs().amax()


def fingerprint(tensor: Tensor) -> Tensor:
    """Nine numbers whose distance is about that of the tensors: projections on fixed weights."""
    tensor = wide(tensor.detach())
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    rows = tensor.reshape(-1, tensor.shape[-1] if tensor.ndim else 1)
    for _ in range(2):
        rows = _projection(rows.shape[-1], rows.device, rows.dtype) @ rows.mT
    return rows.flatten()


@lru_cache(maxsize=16)
def _projection(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Three rows of fixed weights; several sizes are kept, since every step asks for them."""
    places = torch.arange(1, size + 1, device=device, dtype=dtype)
    rates = torch.arange(1, 4, device=device, dtype=dtype).unsqueeze(1)
    # cos^2 has the mean 1/2; of the three rates each tells a third.
    return torch.cos(rates * places.square()) * (2.0 / 3.0) ** 0.5


def distance(one: Tensor, other: Tensor) -> float:
    """Distance of two tensors by their fingerprints."""
    return float((one - other).norm())


def _share(off: float, of: Tensor) -> float:
    size = float(wide(of).norm())
    return off / size if size > 0.0 else math.inf if off > 0.0 else 0.0


@dataclass
class EvaluationCheck:
    """Compares evaluations of the network with those of the sampling run at the same x and t.

    For methods that evaluate the network at recorded states, but take no step of the sampler. It
    knows, for each time (to seven digits) and slot, fingerprints of x and of the output.
    """

    slot: int = 0
    known: dict[tuple[float, int], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def record(self, x: Tensor, t: Tensor, output: Tensor) -> None:
        """Remember an evaluation."""
        place = self.known.setdefault((round(float(t), 7), self.slot), [])
        place.append((fingerprint(x), fingerprint(output)))

    def matches(
        self, x: Tensor, t: Tensor, slot: int, output: Tensor, allowed: float
    ) -> bool | None:
        """Whether the output is the known one; None where x was not evaluated before."""
        x, output = x.detach(), output.detach()
        for x_then, output_then in self.known.get((round(float(t), 7), slot), ()):
            size, rounding = float(wide(x).norm()), 64 * torch.finfo(x.dtype).eps
            if distance(fingerprint(x), x_then) <= rounding * size:
                off = distance(fingerprint(output), output_then)
                return off <= allowed * float(wide(output).norm()) or bool(output.isnan().any())
        return None


class GraphCheck:
    """Compares the graphs of evaluations with those of the sampling run.

    A network that counts its calls may give the same numbers and cut its gradient elsewhere
    (``detach()`` or a frozen weight in every other call), which no comparison of numbers finds.
    ``after`` is called after the next evaluation, once.
    """

    def __init__(self) -> None:
        self.recording = True
        self.after: Callable[[], None] | None = None
        self._known: dict[tuple, set[frozenset]] = {}

    def __call__(self, x: Tensor, t: Tensor, z: Any, output: Tensor, first: int) -> None:
        """Look at an evaluation whose first node has this number.

        Raises:
            InconsistentStepError: one of the sampling run, at this time, had another graph.
        """
        if self.after is not None:
            self.after = self.after()
        if not torch.is_grad_enabled():
            return
        given = [x, *(leaf for leaf in tree_leaves(z) if isinstance(leaf, Tensor))]
        key = (round(float(t), 7), *(tensor.requires_grad for tensor in given))
        found = _shape(output, given, first)
        if found is None:
            return
        if self.recording:
            self._known.setdefault(key, set()).add(found)
        elif self._known.get(key, {found}) != {found}:
            raise InconsistentStepError(
                f"the network, evaluated again at t = {float(t):.4g}, builds another graph than "
                "in the sampling run: it detaches a value or freezes a weight in some of its "
                f"calls. It must be a function of its arguments. {CAUSES}"
            )


def _shape(output: Tensor, given: Sequence[Tensor], first: int) -> frozenset | None:
    """How often each kind of node occurs in the graph of an evaluation, and with what inputs.

    None where it uses a node that was there before, which :class:`LeafCheck` looks at.
    """
    counts: Counter = Counter()
    stack: list[Any] = [output.grad_fn]
    seen, end = {None, *(tensor.grad_fn for tensor in given)}, next_number()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        stack.extend(parents)
        if not parents or node.name().startswith(_NO_MATHEMATICS):
            continue
        if not first <= node._sequence_nr() < end:
            return None
        counts[node.name(), len(parents)] += 1
    return frozenset(counts.items())


class CouplingCheck:
    """Compares the moves of a reversible sampler with those that its inverse finds.

    A reconstructed latent is off by rounding that the inverse has amplified, and the increment
    that the network gives there by its slope times as much; an increment that is off by more than
    that comes from another network. A few numbers are held for each move.
    """

    _STEEPEST = 1e4  # relative slope of an increment; about 1/sigma where the data are narrow

    def __init__(self, chain: Chain, recorder: ContextRecorder, enabled: bool) -> None:
        self.chain, self.recorder, self.enabled = chain, recorder, enabled
        self._known: list[tuple[Tensor, Tensor]] = []
        self._position, self._drift = 0, 0.0

    def record(self, v: Tensor, change: Tensor) -> None:
        """Remember a move by the latent that it leaves and its increment."""
        if self.enabled:
            self._known.append((fingerprint(v), fingerprint(change)))

    def rewound(self) -> "CouplingCheck":
        """This check at the end of the run, for one backward pass."""
        again = CouplingCheck(self.chain, self.recorder, self.enabled)
        again._known, again._position = self._known, len(self._known)
        return again

    def compare(self, step: int, v: Tensor, change: Tensor) -> None:
        """Compare the last move that has not been compared.

        Raises:
            InconsistentStepError: its increment is not that of the sampling run.
        """
        if not self.enabled:
            return
        self._position -= 1
        v_then, change_then = self._known[self._position]
        # The largest so far: the projections of one difference may happen to be small.
        self._drift = max(self._drift, _share(distance(fingerprint(v), v_then), v))
        off = _share(distance(fingerprint(change), change_then), change)
        allowed = self.recorder.tolerance + self._STEEPEST * self._drift
        if off > allowed:
            s, t = self.chain.grid[step], self.chain.grid[step + 1]
            raise InconsistentStepError(
                f"step {step} of {self.chain.steps} (t = {float(s.t):.4g} to {float(t.t):.4g}), "
                f"undone, is not the step that was taken: the increment is off by {off:.2g} of its "
                f"size, where the reconstructed latents explain {allowed:.2g}. A step must be a "
                f"function of its arguments. {CAUSES}"
            )
