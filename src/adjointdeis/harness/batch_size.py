"""How many pairs to optimise together, found by trying before a long run."""

import resource
import sys
import time
from collections.abc import Callable

import torch

from adjointdeis.gradients.free_memory import free_bytes

_GAIN = 1.05  # a doubling that saves less than this is not worth its memory
_SHARE = 0.7  # of the memory that is there


def best_batch_size(
    step: Callable[[int], None],
    largest: int,
    fits: Callable[[int, int], bool],
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The batch size with the least time per pair, doubling from 1.

    Stops where the next doubling would not fit, runs out of memory, or saves less than a
    twentieth. Results do not depend on the batch size, but for rounding.

    Args:
        step: Makes one optimisation step with so many pairs.
        largest: No more pairs than these.
        fits: ``(size, next_size) -> bool``, asked after ``step(size)``: whether the next size has
            memory, too.
        clock: Seconds.
    """
    best, least, size = 1, float("inf"), 1
    while size <= largest:
        try:
            step(size)  # once for allocators and compilers
            started = clock()
            step(size)
            seconds = (clock() - started) / size
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if seconds * _GAIN > least:
            break
        best, least = size, seconds
        if not fits(size, 2 * size):
            break
        size *= 2
    return best


def memory_taken(device: torch.device) -> int:
    """Most bytes held so far: resident memory of this process, or what torch took on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class FreeMemory:
    """Whether a larger batch fits, from what the smaller ones took at most.

    Args:
        device: CPU (resident memory of this process against what the machine has left) or CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = memory_taken(device)
        self.free = free_bytes(device)

    def fits(self, size: int, next_size: int) -> bool:
        """Whether the peak so far, scaled to the next size, stays below 70% of what is free."""
        taken = max(0, memory_taken(self.device) - self.before)
        return taken * next_size / size <= _SHARE * self.free
