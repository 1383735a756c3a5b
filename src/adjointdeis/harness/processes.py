"""Several processes of one run: they meet at every step, and none goes on without the others."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy

from adjointdeis.harness.interruption import TERMINATED

_T = TypeVar("_T")


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or did not come to a meeting in time."""


class LatentDDPStrategy(DDPStrategy):
    """Distributed data parallel that leaves a module without trainable weights alone.

    There is nothing to reduce when only latents are optimised, and torch refuses to wrap such a
    module. With trainable weights this is plain DDP.

    All processes meet before every step. Where one has died, or is later than ``timeout``, the
    others end with :class:`ProcessLost`: Lightning's own broadcast at every step passes over a
    broken process group in silence, and a process that is left alone would work on for hours to
    fail at the end.

    Arguments: those of Lightning's ``DDPStrategy``, among them ``timeout``.
    """

    strategy_name = "latent_ddp"

    def configure_ddp(self) -> None:
        if any(p.requires_grad for p in self.lightning_module.parameters()):  # type: ignore[union-attr]
            super().configure_ddp()

    def setup_distributed(self) -> None:
        _watch_children(getattr(self.launcher, "procs", ()))
        try:
            super().setup_distributed()
        except RuntimeError as error:
            raise self._lost() from error

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.barrier("step")

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().barrier(*args, **kwargs)
        except RuntimeError as error:
            raise self._lost() from error

    def broadcast(self, obj: _T, src: int = 0) -> _T:
        try:
            return super().broadcast(obj, src)
        except RuntimeError as error:
            raise self._lost() from error

    def _lost(self) -> ProcessLost:
        children = getattr(self.launcher, "procs", ())
        time.sleep(0.2)  # a connection breaks a moment before its process can be waited for
        ends = [_end(rank, child.poll()) for rank, child in enumerate(children, 1) if child.poll()]
        for child in children:
            child.kill()  # one that hangs would outlive this process
        reason = " and ".join(ends) or (
            "another process of this run has ended, or did not come to the next step within "
            f"{self._timeout} (trainer.strategy.timeout)"
        )
        return ProcessLost(f"{reason}; the others stop, and the same command continues")


def _watch_children(children: Sequence[subprocess.Popen], period: float = 0.5) -> None:
    """Says so when a process that Lightning started has died.

    Lightning ends the others within five seconds, at once where they wait for the dead one, but
    says nothing about it.

    Args:
        children: Processes 1, 2, ... of the run.
        period: Seconds between two looks.
    """

    def watch() -> None:
        while any(child.poll() is None for child in children):
            for rank, child in enumerate(children, 1):
                # One that was asked to stop has said so itself.
                if child.poll() and child.poll() not in (TERMINATED, -signal.SIGTERM):
                    print(f"{_end(rank, child.poll())}; the others stop", file=sys.stderr)
                    return
            time.sleep(period)

    if children:
        threading.Thread(target=watch, name="watch-children", daemon=True).start()


def _end(rank: int, code: int | None) -> str:
    if code is not None and code < 0:
        return f"process {rank} of this run was killed by {signal.Signals(-code).name}"
    return f"process {rank} of this run ended with exit code {code}"


class OwnSigterm(Callback):
    """Leaves the answer to SIGTERM to whoever gave it before Lightning did.

    Lightning's handler broadcasts to the other processes, from the middle of whatever the process
    was at: where that was another collective they wait for each other until the time limit. Here
    nothing has to be agreed upon before a process ends, since every finished morph is on disk.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self.handler)
