"""Bytes of tensor storage alive at one time, measured while something runs."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages from their creation to their release, temporaries of the backward included.

    On a CPU there is no allocator to ask; the resident set of the process keeps what was freed.
    This sees every storage that an operation returns, so a number of bytes here is a number of
    bytes that were needed. What was alive before is not counted, nor is memory inside an
    operation.

    Attributes:
        now: bytes alive.
        peak: largest value of ``now``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        # A view of what was there before is nothing new.
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        for tensor in _tensors(result):
            self._note(tensor, given)
        return result

    def _note(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in given or storage.nbytes() == 0:
            return
        self._alive[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._released, key)

    def _released(self, key: int) -> None:
        self.now -= self._alive.pop(key, 0)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(run: Callable[[], Any], device: torch.device | str = "cpu") -> int:
    """Peak bytes that ``run`` needs beyond what is alive before it.

    Args:
        run: called twice on a GPU, where the first call is not counted: it initialises libraries.
        device: where it computes; on a GPU its allocator is asked.
    """
    device = torch.device(device)
    if device.type != "cuda":
        with LiveBytes() as meter:
            run()
        return meter.peak
    run()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
