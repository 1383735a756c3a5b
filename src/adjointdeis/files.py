"""Files that are whole or absent: the one way in which every room writes what it keeps."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Literal


def write_atomically(
    path: str | os.PathLike[str],
    write: Callable[[IO[Any]], Any],
    mode: Literal["w", "wb"] = "w",
) -> None:
    """Calls `write` on a temporary file beside `path`, which takes its place when that succeeded.

    A run that is killed, a power cut, or a disk that is full leaves the former file or none, never
    half of one; two processes that write the same file leave one of the two.

    Args:
        path: Where to; folders are made.
        write: Receives the open file.
        mode: "w" for text, UTF-8 with line ends as they are given; "wb" for bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".partial-{path.name}-", dir=path.parent)
    text: dict[str, Any] = {} if mode == "wb" else {"encoding": "utf-8", "newline": ""}
    try:
        with os.fdopen(handle, mode, **text) as file:
            write(file)
            # After a power cut, a name on the disk without its content would be half a file.
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; a result is readable like any other file.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
