"""The batch size found by trying, on machines made up for the purpose."""

import pytest
import torch
from tiny_profile import PAIRS, composed, overrides

from adjointdeis.harness import batch_size, latent_morphing
from adjointdeis.harness.batch_size import FreeMemory, best_batch_size
from adjointdeis.harness.launch import launch


class Machine:
    """Seconds of a step by its batch size; a clock that only its steps move."""

    def __init__(self, seconds, limit: int = 10**9) -> None:
        self.seconds, self.limit, self.now, self.tried = seconds, limit, 0.0, []

    def step(self, size: int) -> None:
        if size > self.limit:
            raise torch.cuda.OutOfMemoryError("too much")
        self.tried.append(size)
        self.now += self.seconds(size)

    def clock(self) -> float:
        return self.now


def always(size: int, next_size: int) -> bool:
    return True


@pytest.mark.parametrize(
    ("seconds", "largest", "expected"),
    [
        (lambda size: 1.0, 64, 64),  # a device that larger batches cost nothing
        (lambda size: size, 64, 1),  # one that they cost all
        (lambda size: 4 + size, 1000, 64),  # an overhead: 4/64 + 1 saves 6% on 32, 128 only 3%
        (lambda size: 1.0, 5, 4),
        (lambda size: 1.0, 1, 1),
    ],
)
def test_the_least_time_per_pair(seconds, largest: int, expected: int) -> None:
    machine = Machine(seconds)
    assert best_batch_size(machine.step, largest, always, machine.clock) == expected
    assert max(machine.tried) <= largest


def test_a_device_that_runs_out(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    machine = Machine(lambda size: 1.0, limit=6)
    assert best_batch_size(machine.step, 64, always, machine.clock) == 4


def test_no_size_is_tried_that_does_not_fit() -> None:
    machine = Machine(lambda size: 1.0)
    found = best_batch_size(machine.step, 64, lambda size, after: after <= 8, machine.clock)
    assert found == 8 and max(machine.tried) == 8


def test_memory_is_extrapolated_from_the_peak(monkeypatch) -> None:
    memory = FreeMemory(torch.device("cpu"))
    assert memory.free > 0 and memory.before > 0
    memory.before, memory.free = 0, 1000
    monkeypatch.setattr(batch_size, "memory_taken", lambda device: 300)
    assert memory.fits(2, 4)  # 600 of 1000
    assert not memory.fits(2, 5)  # 750


def test_a_run_that_finds_its_batch_size_makes_the_same_morphs(
    tiny, tmp_path, quiet_report, monkeypatch
) -> None:
    tried = []

    def two(step, largest, fits):
        step(1)
        step(2)
        tried.append(largest)
        return 2

    monkeypatch.setattr(latent_morphing, "best_batch_size", two)
    found = {}
    for size in ("auto", "2"):
        run = tmp_path / size
        own = f"optimisation.batch_size={size}"
        launch(composed(overrides(tiny, run, own, rows=("dim_a", "exact"))))
        found[size] = {p.name: p.read_bytes() for p in run.glob("morphs/exact/*.png")}
    assert tried == [len(PAIRS), len(PAIRS)]  # once per attack
    assert found["auto"] == found["2"] and len(found["2"]) == len(PAIRS)
