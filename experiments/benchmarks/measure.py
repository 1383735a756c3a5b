"""Interleaved timing, and ratios within a round."""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch


def interleaved(
    work: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: float,
    device: torch.device,
    warm: bool = True,
) -> dict[str, list[float]]:
    """Seconds of every piece of work, once per round, in a new order every round.

    A machine that slows down for a while slows all of them; ratios are taken within a round.

    Args:
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
