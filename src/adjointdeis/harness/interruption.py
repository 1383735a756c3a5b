"""Runs that end before they are done: asked to stop, out of disk, killed, started twice."""

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from omegaconf import DictConfig, OmegaConf

from adjointdeis import terminal
from adjointdeis.harness.finished import lock_of, own_folders
from adjointdeis.terminal import stopped

try:
    import fcntl
except ImportError:  # Windows: whoever starts a run twice there is not told
    fcntl = None

_RANKS = ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
TERMINATED = 128 + signal.SIGTERM
PARENT = "ADJOINTDEIS_PARENT"


@contextlib.contextmanager
def ending_cleanly(directory: Path) -> Iterator[None]:
    """Turns SIGTERM and Ctrl-C into an orderly exit: half-written files are removed.

    A cluster sends SIGTERM before it takes a machine away. Nothing needs to be saved then, since
    every finished morph is on disk; the same command continues.

    A launcher that gave an answer of its own keeps it: within a job of submitit, SIGTERM announces
    a pre-emption and SIGUSR2 puts the job back into the queue.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}

    def stop(signum: int, frame: FrameType | None) -> None:
        # A second SIGTERM while files are being put away shall not interrupt that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(
            f"stopped by SIGTERM; the same command continues {directory}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(TERMINATED)

    def interrupted(signum: int, frame: FrameType | None) -> None:
        stopped(directory)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, terminal.stop):
        before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def one_process(trainer: DictConfig) -> bool:
    """Whether a trainer is asked for one process: the others around it, as in an interactive
    allocation of several tasks, are then none of its business.

    Args:
        trainer: The group `trainer` of the configuration.
    """
    devices = trainer.devices
    one = len(devices) == 1 if OmegaConf.is_list(devices) else str(devices) == "1"
    return one and trainer.num_nodes == 1


def is_child(trainer: DictConfig) -> bool:
    """Whether another process of the same run is the first one and writes its record.

    Lightning's own launcher and torchrun tell by LOCAL_RANK and NODE_RANK; under srun every
    process starts by itself and only SLURM_PROCID tells.
    """
    if one_process(trainer):
        return False
    return any(int(os.environ.get(rank) or 0) > 0 for rank in _RANKS)


def starts_processes(trainer: DictConfig) -> bool:
    """Whether Lightning will start further processes: several are wanted and nobody else did."""
    started = "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS") or 1) > 1
    return not one_process(trainer) and not started


def end_with_parent(period: float = 0.5) -> None:
    """Ends this process soon after the first one of its machine, which Lightning started it from.

    A process whose parent was killed would go on with its share of the pairs, beside the next start
    of the same run. Processes that srun or torchrun started are theirs to end.
    """
    if not int(os.environ.get("LOCAL_RANK") or 0):
        os.environ[PARENT] = str(os.getpid())
        return
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(period)
        # Not sys.exit: the main thread may wait in a collective, for good.
        os._exit(TERMINATED)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


class DirectoryInUse(Exception):
    """Another process is at work in a run directory."""


@contextlib.contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Keeps every other run out of a run directory.

    Two of the same command, or a sweep started again while jobs of the first one are still in a
    queue, would take each other's unfinished files for leftovers. The lock is the operating
    system's: it ends with the process, however that ends.

    Raises:
        DirectoryInUse: Another process holds it; the message says which.
    """
    if fcntl is None:
        yield
        return
    path = lock_of(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path, directory) as file:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(path: Path, directory: Path) -> IO[str]:
    """The open lock file, held by this process until it is closed."""
    assert fcntl is not None
    while True:
        file = path.open("a+", encoding="utf-8", errors="replace")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read() or "another process"
                file.close()
                raise DirectoryInUse(
                    f"{directory} is being worked on by {holder}; wait for it or stop it"
                ) from None
            warnings.warn(
                f"the file system of {directory} has no locks ({error.strerror}); "
                "do not start the same run twice",
                stacklevel=4,
            )
            return file
        # The former holder may have removed the file between its opening and its locking here.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()


def remove_leftovers(directory: Path, older_than: float = 0.0) -> None:
    """Removes what a killed process was writing.

    Args:
        directory: A folder, with those below it that are no runs of their own.
        older_than: Seconds since the last change; 0 where no other process is at work.
    """
    until = time.time() - older_than  # noqa: TID251 - compared with times of files
    for folder, _, names in own_folders(directory):
        for path in (folder / name for name in names if name.startswith(".partial-")):
            with contextlib.suppress(FileNotFoundError):
                if not older_than or path.stat().st_mtime < until:
                    path.unlink()


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of a full disk or of a limit on its files."""
    while error is not None:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full:
            return True
        error = error.__cause__ or error.__context__
    return False
