"""``done.json``: that a run is finished, with the SHA-256 of the files that it left and used."""

import json
import os
import shutil
import time
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adjointdeis.faces.weights import fingerprint
from adjointdeis.files import write_atomically

MARKER = "done.json"
_NO_OUTPUT = ("logs", "wandb", "cache", "plots", "report.md", "report.html", "morphs.png")
"""Left out: curves are kept per session, caches have checksums, a report can be made again."""
_NO_INPUT = ("paths", "logger", "trainer", "hydra")
_MANY = 5000
_OF_THE_PROGRAM = (MARKER, "error.txt")


def outputs(directory: Path, hashed: bool = True) -> dict[str, str]:
    """SHA-256 of every file that a run left, by its path in the run directory.

    Neither links, hidden files and checkpoints, nor what lies in a run of its own below this one.

    Args:
        directory: The run directory.
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


def set_aside(directory: Path) -> Path:
    """Moves a run, but not the runs below it, which may be under way; where it is now."""
    aside = unused = Path(f"{directory}.{time.strftime('%Y%m%d-%H%M%S')}")
    number = 0
    while aside.exists():  # moving a folder onto another one would move it inside
        number += 1
        aside = Path(f"{unused}-{number}")
    kept = [Path(folder, name) for folder, below, _ in os.walk(directory) for name in below]
    kept = [folder for folder in kept if is_run(folder)]
    if not kept:
        shutil.move(directory, aside)
        return aside
    aside.mkdir()
    locks = {folder.with_name(lock_of(folder).name) for folder in kept}
    around = {path for folder in kept for path in (folder, *folder.parents)} | locks
    for path in directory.iterdir():
        if path not in around:
            shutil.move(path, aside)
    return aside


def inputs(cfg: DictConfig) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of others that a configuration names, by the name and the path below it.

    A name is that of a file or a folder, or of a file in the folder of the profile. Of a folder of
    thousands, as trainings have them, sizes take the place of hashes. A task that is repeated
    whenever it is asked for has none.
    """
    if cfg.task.get("repeat", False):
        return {}
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    profile = plain["assets"].get("root") or ""
    todo = [value for key, value in plain.items() if key not in _NO_INPUT]
    names = {profile and f"{profile}/thresholds.json"}
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += [entry for key, entry in value.items() if key not in ("name", "_target_")]
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, str) and value not in ("", profile):
            names |= {value, profile and f"{profile}/{value}"}
    own = {Path(place).resolve() for place in plain["paths"].values() if place}
    return {name: files for name in sorted(names - {""}) if (files := _files(name, own))}


def _files(name: str, own: Collection[Path]) -> dict[str, str]:
    """Files of an input, without those of runs and caches that lie below it."""
    try:
        top = Path(name).resolve()
        if top.is_file():
            return {"": _hashed(top)}
        found = []
        for folder, below, files in os.walk(top):
            below[:] = [n for n in below if n[0] != "." and Path(folder, n).resolve() not in own]
            found += [path for n in files if n[0] != "." and (path := Path(folder, n)).is_file()]
        many = len(found) > _MANY
        return {
            path.relative_to(top).as_posix(): str(path.stat().st_size) if many else _hashed(path)
            for path in found
        }
    except (OSError, ValueError):  # a text that is no path, or a file that cannot be read
        return {}


def _hashed(path: Path) -> str:
    at = path.stat()
    return _sha256(path, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@lru_cache(None)
def _sha256(path: Path, *_state: int) -> str:
    """Of a file in a state: the jobs of a sweep name the same ones."""
    return fingerprint(path)


def changed_input(done: dict[str, Any], cfg: DictConfig) -> str | None:
    """What of a finished run's data is not as it was, in words; None where all of it is."""
    recorded, now = done.get("inputs"), inputs(cfg)
    for name, files in recorded.items() if isinstance(recorded, dict) else ():
        found = now.get(name, {})
        if not isinstance(files, dict) or files == found:
            continue
        file = min(str(f) for f in {**files, **found} if files.get(f) != found.get(f))
        what = "is new" if file not in files else "changed" if file in found else "is gone"
        return f"{name}{file and '/'}{file} {what} since"
    return None


def write_marker(
    directory: Path, identifier: str, seconds: float, used: dict[str, dict[str, str]] | None = None
) -> None:
    """Says that a run is finished; to be written last.

    Args:
        directory: Of the run.
        identifier: Hash of its configuration.
        seconds: How long it took.
    """
    files = outputs(directory)
    done = {
        "config_hash": identifier,
        "seconds": seconds,
        "files": files,
        "sizes": {name: (directory / name).stat().st_size for name in files},
        "inputs": used or {},
    }
    write_atomically(directory / MARKER, json.dumps(done, indent=1))


def missing(directory: Path, done: dict[str, Any]) -> list[str]:
    """Files that a finished run left and that are not there any more, or changed.

    Of files in folders, as morphs are, the size is compared: `task=verify` reads them all. Of runs
    of earlier versions, whose marker lists nothing, the result of a table of morphs.
    """
    files, sizes = done.get("files"), done.get("sizes")
    if not isinstance(files, dict):
        files = {"result.json": ""} if (directory / "morphs").is_dir() else {}
    sizes = sizes if isinstance(sizes, dict) else {}

    def same(path: Path, name: str) -> bool:
        if not path.is_file() or path.stat().st_size != sizes.get(name, path.stat().st_size):
            return False
        return "/" in name or not files[name] or fingerprint(path) == files[name]

    return [name for name in files if inside(name) and not same(directory / name, name)]


def inside(name: str) -> bool:
    """Whether a path of a marker stays within the run directory, and can be one."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        return False
    return len(name) < 1024 and all(len(part.encode()) < 256 for part in path.parts)
