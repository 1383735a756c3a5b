"""Two habits of everything here that writes pictures: atomic files and one torch thread."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside the target and renames, so that a killed run leaves no half file."""
    unfinished = path.with_name(path.name + ".partial")
    unfinished.write_bytes(content)
    os.replace(unfinished, path)


@contextmanager
def single_thread() -> Iterator[None]:
    """One torch thread inside the block: bits must not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
