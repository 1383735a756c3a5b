"""The line of progress: what it says, where it goes; warnings of large steps once a run."""

import io
import itertools
import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.gradients import LargeAdjointStepWarning
from adjointdeis.harness import progress
from adjointdeis.harness.latent_morphing import PairSteps
from adjointdeis.harness.progress import LargeStepsOnce, ProgressLine, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds; a test moves it."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def morphing(line: ProgressLine, clock: list[float], seconds: float, **more) -> None:
    """Five pairs in batches of two, three steps each, at a constant speed."""
    pairs = PairSteps([MorphPair(f"{k:03d}", "100") for k in range(5)], 2, 3)
    loader = SimpleNamespace(dataset=pairs)
    settings = {"is_global_zero": True, "world_size": 1, "global_step": 0, "callback_metrics": {}}
    trainer = SimpleNamespace(num_training_batches=len(pairs), train_dataloader=loader)
    trainer.__dict__.update(settings | more)
    line.on_train_start(trainer, None)  # type: ignore[arg-type]
    for k, item in enumerate(pairs):
        clock[0] += seconds
        trainer.callback_metrics["loss"] = torch.tensor(0.4444 - k / 100)
        line.on_train_batch_end(trainer, None, None, item, k)  # type: ignore[arg-type]


def test_a_terminal_sees_one_line_that_changes(clock) -> None:
    stream = Terminal()
    morphing(ProgressLine("DiM-A", pairs=5, stream=stream), clock, 7.0)
    lines = [text.rstrip() for text in stream.getvalue().split("\r")[1:]]
    # Twelve items of 7 s; after the second one ten are left.
    assert lines[1] == "DiM-A 0/5 pairs, step 2 of 3, loss 0.434, 1 min 10 s left"
    assert lines[3].startswith("DiM-A 2/5 pairs, step 3 of 3")
    assert lines[-1] == "DiM-A 5/5 pairs, loss 0.334, 1 min 24 s taken"
    assert len(lines) == 12 and stream.getvalue().count("\n") == 1
    # A shorter line covers the longer one before it.
    shown = stream.getvalue().split("\r")[1:]
    assert all(len(b.rstrip("\n")) >= len(a.rstrip()) for a, b in itertools.pairwise(shown))


def test_a_file_gets_a_line_every_ten_seconds_and_the_last_one(clock) -> None:
    stream = io.StringIO()
    morphing(ProgressLine("DiM-A", pairs=7, done=2, stream=stream), clock, 4.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "DiM-A: 2 of 7 pairs were done before"
    assert lines[1] == "DiM-A 2/7 pairs, step 3 of 3, loss 0.424, 36 s left"
    assert lines[-1] == "DiM-A 7/7 pairs, loss 0.334, 48 s taken"
    assert len(lines) == 5


def test_only_the_first_process_writes(clock) -> None:
    stream = Terminal()
    morphing(ProgressLine("DiM-A", pairs=5, stream=stream), clock, 4.0, is_global_zero=False)
    assert stream.getvalue() == ""


def test_a_training_counts_the_steps_that_it_makes_now(clock) -> None:
    stream = Terminal()
    line = ProgressLine("train-autoencoder", stream=stream)
    metrics = {"train/loss": torch.tensor(0.25)}
    trainer = SimpleNamespace(
        is_global_zero=True, max_steps=10, global_step=6, callback_metrics=metrics
    )
    line.on_train_start(trainer, None)  # type: ignore[arg-type]
    clock[0] += 30
    trainer.global_step = 7
    line.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert stream.getvalue() == "\rtrain-autoencoder, step 7 of 10, loss 0.25, 1 min 30 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (4830, "1 h 20 min"),
    ],
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text


def test_large_steps_are_explained_once_a_run(capsys, monkeypatch) -> None:
    def plain(message, category, *where, **more) -> None:  # pytest keeps warnings for itself
        print(message, file=sys.stderr)

    monkeypatch.setattr(warnings, "showwarning", plain)
    once = LargeStepsOnce()
    for label in ("ODE", "SDE", "SDE"):
        with once.row(label):
            for step in (1, 2):
                warnings.warn(f"step {step} is too large", LargeAdjointStepWarning, stacklevel=1)
    err = capsys.readouterr().err
    assert err.count("is too large") == 1 and "ODE: step 1 is too large" in err
    assert err.count("SDE: its adjoint steps are too large as well") == 1


def test_other_warnings_pass(capsys) -> None:
    with LargeStepsOnce().row("ODE"), pytest.warns(RuntimeWarning, match="else"):
        warnings.warn("something else", RuntimeWarning, stacklevel=1)
