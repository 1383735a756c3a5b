"""One line that says how far a run is and how long it takes still; and warnings said once a run."""

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import Callback

from adjointdeis.gradients import LargeAdjointStepWarning
from adjointdeis.harness.latent_morphing import WorkItem
from adjointdeis.texts import printable


class ProgressLine(Callback):
    """Writes "DiM-A 8/16 pairs, step 12 of 50, loss 0.44, 1 min 10 s left", and keeps it current.

    On a terminal the line is written over; in a file a new one is added every ten seconds. Only the
    first process writes. Trainings of weights have no pairs: "train-autoencoder, step 20 of 3000,
    loss 0.044, 40 min 10 s left".

    Args:
        label: What is under way.
        pairs: Pairs of the attack; None for a training.
        done: Pairs that were finished before.
        stream: Where to write; standard error by default.
    """

    def __init__(
        self,
        label: str,
        pairs: int | None = None,
        done: int = 0,
        stream: TextIO | None = None,
    ) -> None:
        self.label, self.pairs, self.done = printable(label), pairs, done
        self.loss = "train/loss" if pairs is None else "loss"
        self.stream = stream or sys.stderr
        self.over = self.stream.isatty()
        self.batches, self.width = 0, 0
        self.started = self.written = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = self.written = time.monotonic()
        self.first = trainer.global_step
        if self.done:
            self._write(f"{self.label}: {self.done} of {self.pairs} pairs were done before", True)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.batches += 1
        if isinstance(batch, WorkItem):
            whole = trainer.num_training_batches
            work: Any = trainer.train_dataloader
            if batch.pairs and batch.step == work.dataset.steps:
                # The others have finished as many, give or take one.
                shared = batch.unfinished * trainer.world_size
                self.done = min(self.pairs or 0, self.done + shared)
        else:
            whole = trainer.max_steps - self.first
        if not trainer.is_global_zero:
            return
        now, last = time.monotonic(), self.batches == whole
        if not (last or now - self.written > (0.2 if self.over else 10)):
            return
        self.written = now
        left = (now - self.started) / self.batches * (whole - self.batches)
        parts = [f"{self.label} {self.done}/{self.pairs} pairs" if self.pairs else self.label]
        step, steps = self._step(trainer, batch)
        if steps and not (last and self.pairs):
            parts.append(f"step {step} of {steps}")
        if self.loss in trainer.callback_metrics:
            parts.append(f"loss {float(trainer.callback_metrics[self.loss]):.3g}")
        parts.append(f"{duration(now - self.started)} taken" if last else f"{duration(left)} left")
        self._write(", ".join(parts), last)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if self.over and self.width:
            self._write("", last=True)  # the message that follows gets a line of its own

    def _step(self, trainer: L.Trainer, batch: Any) -> tuple[int, int]:
        if isinstance(batch, WorkItem):
            steps = trainer.train_dataloader.dataset.steps  # type: ignore[union-attr]
            return min(batch.step + 1, steps), steps
        return trainer.global_step, trainer.max_steps

    def _write(self, text: str, last: bool) -> None:
        if self.over:
            self.stream.write("\r" + text.ljust(self.width) + ("\n" if last else ""))
            self.width = 0 if last else len(text)
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 1 min 10 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class LargeStepsOnce:
    """Prints the first warning of too large adjoint steps in full, and a word for later rows."""

    def __init__(self) -> None:
        self.told: set[str] = set()

    @contextmanager
    def row(self, label: str) -> Iterator[None]:
        """Within it warnings concern the row of a label; each row is named once."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", LargeAdjointStepWarning)
            shown = warnings.showwarning

            def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
                if not issubclass(category, LargeAdjointStepWarning):
                    shown(message, category, *where, **more)
                    return
                if not self.told:
                    shown(category(f"{label}: {message}"), category, *where, **more)
                elif label not in self.told:
                    print(f"{label}: its adjoint steps are too large as well", file=sys.stderr)
                self.told.add(label)

            warnings.showwarning = show
            yield
