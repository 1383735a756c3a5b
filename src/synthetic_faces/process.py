"""What everything here that renders to files shares: one torch thread, no half-written file."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside the block: bits must not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file that is whole or absent, whenever the process is killed.

    Args:
        path: Where to; the folder exists.
        write: Receives a binary file beside it, which takes its name once this returns.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with unfinished.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)
