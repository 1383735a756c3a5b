"""``done.json``: that a run is finished, and the files that it left, by their SHA-256."""

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from adjointdeis.faces.weights import fingerprint
from adjointdeis.files import write_atomically

MARKER = "done.json"
_NO_OUTPUT = ("logs", "wandb", "cache", "plots", "report.md", "report.html", "morphs.png")
"""Left out: curves are kept per session, caches have checksums, a report can be made again."""
_OF_THE_PROGRAM = (MARKER, "error.txt")


def outputs(directory: Path, hashed: bool = True) -> dict[str, str]:
    """SHA-256 of every file that a run left, by its path in the run directory.

    Neither links, hidden files and checkpoints, nor what lies in a run of its own below this one.

    Args:
        hashed: False leaves the hashes empty, and reads no file.
    """
    found = {}
    for here, below, names in own_folders(directory):
        left_out = (*_NO_OUTPUT, *_OF_THE_PROGRAM) if here == directory else ()
        below[:] = sorted(n for n in below if not n.startswith(".") and n not in left_out)
        for name in sorted(names):
            path = here / name
            if name.startswith(".") or name in left_out or path.suffix == ".ckpt":
                continue
            if path.is_file() and not path.is_symlink():
                name = path.relative_to(directory).as_posix()
                found[name] = fingerprint(path) if hashed else ""
    return found


def own_folders(directory: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """A run directory and its folders as `os.walk` gives them, without the runs below it: settings
    of one's own are run in a folder below that of the bare experiment."""
    for folder, below, names in os.walk(directory):
        below[:] = [name for name in below if not is_run(Path(folder, name))]
        yield Path(folder), below, names


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, also one that a run is only about to write into."""
    return (folder / "run.json").is_file() or lock_of(folder).is_file()


def lock_of(directory: Path) -> Path:
    """The file that a run locks: beside its directory, which may be set aside as a whole; one for
    all links to it."""
    place = Path(os.path.realpath(directory))
    return place.with_name(f".{place.name}.lock")


def write_marker(directory: Path, identifier: str, seconds: float) -> None:
    """Says that a run is finished; to be written last.

    Args:
        identifier: Hash of its configuration.
    """
    done = {"config_hash": identifier, "seconds": seconds, "files": outputs(directory)}
    write_atomically(directory / MARKER, json.dumps(done, indent=1))


def missing(directory: Path, done: dict[str, Any]) -> list[str]:
    """Files that a finished run left and that are not there any more.

    Of runs of earlier versions, whose marker lists nothing, the result of a table of morphs.
    """
    files = done.get("files")
    if not isinstance(files, dict):
        files = {"result.json": ""} if (directory / "morphs").is_dir() else {}
    return [name for name in files if inside(name) and not (directory / name).is_file()]


def inside(name: str) -> bool:
    """Whether a path of a marker stays within the run directory, and can be one."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        return False
    return len(name) < 1024 and all(len(part.encode()) < 256 for part in path.parts)
