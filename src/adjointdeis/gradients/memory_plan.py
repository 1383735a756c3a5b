"""How much a gradient may hold: bytes of one step measured, and the split that fits a budget."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from adjointdeis.gradients.free_memory import free_bytes
from adjointdeis.gradients.snapshots import advances

AUTO = "auto"
# The rest is for what an operation needs while it runs, and for what follows the sampler.
_AUTO_SHARE = 0.5
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


class MemoryBudgetError(ValueError):
    """A budget that not even the smallest plan fits into."""


def parse_bytes(size: int | str) -> int:
    """A number of bytes, from itself or from a text such as "2 GiB" or "500 MB".

    Raises:
        ValueError: another text, or a size that is not positive.
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)\s*", size)
        if found is None:
            raise ValueError(
                f"{size!r} is not a size; write 2 GiB, 500 MB, auto or a number of bytes"
            )
        size = int(float(found[1]) * _UNITS[found[2]])
    if not isinstance(size, Real) or not 1 <= size < math.inf:
        raise ValueError(f"a size in bytes must be positive, got {size!r}")
    return size


def resolve_budget(budget: int | str, device: torch.device) -> int:
    """A budget in bytes; "auto" is half of what the device has left at this moment."""
    if budget == AUTO:
        return int(_AUTO_SHARE * free_bytes(device))
    return parse_bytes(budget)


class SavedBytes:
    """Counts the bytes that autograd saves while this context is entered.

    Every storage counts once, however many views of it are saved. Storages of ``besides`` do
    not count: weights and inputs are there anyway.

    Args:
        besides: tensors whose storages are left out.

    Attributes:
        total: bytes saved so far.
    """

    def __init__(self, besides: Iterable[Tensor] = ()) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in besides}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda saved: saved)
        self.total = 0

    def __enter__(self) -> "SavedBytes":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        if len(error) > 1 and "saved tensor hooks" in str(error[1]):
            raise MemoryBudgetError(
                "the denoiser takes a derivative by torch.func, under which torch does not say "
                "what a step holds: use DiscreteAdjoint(snapshots=...) or keep_activations= in the "
                "place of budget, or torch.autograd.grad inside the denoiser"
            ) from error[1]

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        # Without its graph: a saved output that holds it would keep a graph that is never used.
        return tensor.detach()


@dataclass(frozen=True)
class MemoryPlan:
    """What an exact gradient over some steps holds.

    Attributes:
        snapshots: inputs of recomputed steps held at one time; None holds them all.
        kept: of how many of the last steps the graph is kept.
    """

    snapshots: int | None
    kept: int

    def recomputed(self, steps: int) -> int:
        """Evaluations made again in the backward pass, for one evaluation a step."""
        redone = max(0, steps - self.kept)
        if self.snapshots is None or self.snapshots >= redone:
            return redone
        return redone + advances(redone, self.snapshots) - (redone - 1)

    def bytes(self, steps: int, latent: int, activations: int) -> int:
        """Largest number of bytes held, from those of a step's input and activations."""
        kept = min(self.kept, steps)
        redone = steps - kept
        # The input of the last recomputed step is held beside the snapshots, and so is x_0.
        stored = redone if self.snapshots is None else min(redone, self.snapshots + 1)
        return (1 + kept + stored) * latent + max(1, kept) * activations


def choose_plan(steps: int, budget: int, latent: int, activations: int) -> MemoryPlan:
    """The plan with the fewest recomputed evaluations that fits into a budget.

    Among equals the one that keeps the fewest graphs, which holds the least.

    Raises:
        MemoryBudgetError: not even one snapshot and one step's activations fit.
    """
    candidates = []
    for kept in range(steps + 1):
        redone = steps - kept
        # Snapshots only help: take as many as fit beside the kept graphs.
        fitting = (budget - MemoryPlan(0, kept).bytes(steps, latent, activations)) // max(1, latent)
        if fitting >= max(0, redone - 1):
            candidates.append(MemoryPlan(None, kept))
        elif fitting >= 1:
            candidates.append(MemoryPlan(fitting, kept))
    fits = [p for p in candidates if p.bytes(steps, latent, activations) <= budget]
    if not fits:
        least = MemoryPlan(1, 0).bytes(steps, latent, activations)
        raise MemoryBudgetError(
            f"a budget of {budget} bytes is too small: one snapshot and the activations of one "
            f"step take {least}. Allow that much, or shrink the activations with checkpoint_blocks"
        )
    return min(fits, key=lambda plan: (plan.recomputed(steps), plan.kept))
