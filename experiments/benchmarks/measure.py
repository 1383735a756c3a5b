"""Interleaved timing, and live bytes of tensors."""

import random
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def interleaved(
    work: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: float,
    device: torch.device,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every piece of work, once per round, in a new order every round.

    A machine that slows down for a while slows all of them; ratios are taken within a round.

    Arguments:
        work: What to time.
        rounds: Most rounds.
        seconds: No round starts after this time, but the first.
        device: Synchronised around every piece on CUDA.
        warm: Run each once before the first round.
    """
    shuffle = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in work}
    for function in work.values() if warm else ():
        function()
    started = time.perf_counter()
    for number in range(rounds):
        if number and time.perf_counter() - started > seconds:
            break
        for name in shuffle.sample(list(work), len(work)):
            _synchronise(device)
            begun = time.perf_counter()
            work[name]()
            _synchronise(device)
            times[name].append(time.perf_counter() - begun)
    return times


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(times: Mapping[str, list[float]], name: str, base: str) -> dict[str, float]:
    """Median and quartiles of the ratio of two pieces of work, paired by round."""
    values = np.array(times[name]) / np.array(times[base])
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive, by storage, and their largest sum.

    Counts every storage that an operation makes inside of the context, in both passes, from its
    birth to its death: graphs, latents and intermediate results alike. What a kernel allocates
    and frees within itself is not seen.

    Attributes:
        live, peak: Bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if _counts(tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if _counts(tensor) and _key(tensor) not in given:
                self._born(tensor)
        return result

    def _born(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._died, key, size)

    def _died(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _counts(value: Any) -> bool:
    return isinstance(value, Tensor)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """Largest number of live bytes that a piece of work adds to what is there."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        function()
    return live.peak
