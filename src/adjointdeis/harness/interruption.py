"""Runs that end before they are done: asked to stop, out of disk, killed."""

import contextlib
import errno
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def ending_cleanly(directory: Path) -> Iterator[None]:
    """Turns SIGTERM into an orderly exit: files half-written are removed, loggers closed.

    A cluster sends SIGTERM before it takes a machine away. Nothing needs to be saved then, since
    every finished morph is on disk; the same command continues.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        # A second SIGTERM while files are being put away shall not interrupt that.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print(
            f"stopped by SIGTERM; the same command continues {directory}",
            file=sys.stderr,
            flush=True,
        )
        sys.exit(TERMINATED)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def remove_leftovers(directory: Path) -> None:
    """Removes what a killed process was writing; no other process may be at work there."""
    for path in directory.rglob(".partial-*"):
        path.unlink(missing_ok=True)


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of a full disk or an exhausted quota."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
