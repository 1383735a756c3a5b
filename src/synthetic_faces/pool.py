"""Renders pools of pictures to disk: in parallel, resumable, never mixing two specs.

    python -m synthetic_faces.pool --role arcface --identities 1000 --out <dir>

A finished pool is a folder with ``images.npy`` (n, size, size, 3) uint8, ``meta.csv`` with one row
per picture, ``spec.json``, and ``sums.json`` with the SHA-256 of the first two. While it is being
rendered the pictures lie in ``shards/``.
"""

import argparse
import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import sys
from dataclasses import asdict, dataclass, fields
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from synthetic_faces.pool_spec import GENERATOR_VERSION, PoolSpec, scene
from synthetic_faces.process import single_thread, write_whole
from synthetic_faces.renderer import Renderer

_SHARD = 64


@dataclass(frozen=True, eq=False)
class Pool:
    """A finished pool.

    Attributes:
        spec: what it contains.
        images: (n, size, size, 3) uint8, memory-mapped.
        labels: (n,) int64, 0 .. identities - 1.
        meta: columns of ``meta.csv`` by name, each (n,).
    """

    spec: PoolSpec
    images: NDArray
    labels: NDArray
    meta: dict[str, NDArray]


class PoolMismatch(ValueError):
    """The folder holds a pool of another spec or of another generator version."""


class PoolDamaged(ValueError):
    """A file of a finished pool is not the one that was rendered."""


def to_uint8(picture: torch.Tensor) -> NDArray:
    """(3, h, w) floats in [0, 1] as (h, w, 3) bytes."""
    return (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


@lru_cache(maxsize=1)
def _renderer() -> Renderer:
    return Renderer()


def _shard_path(directory: Path, first: int) -> Path:
    return directory / "shards" / f"{first:08d}.npz"


def _render_shard(spec: PoolSpec, directory: Path, first: int) -> int:
    """Renders pictures first .. first + _SHARD - 1 and returns how many there were."""
    indices = range(first, min(first + _SHARD, len(spec)))
    images = np.empty((len(indices), spec.size, spec.size, 3), np.uint8)
    rows = []
    with single_thread():
        for k, index in enumerate(indices):
            shot = scene(spec, index)
            picture = _renderer().render(shot.identity, shot.expression, shot.capture, spec.size)
            images[k] = to_uint8(picture)
            rows.append(shot.row)
    arrays = {"images": images, "rows": np.array(json.dumps(rows))}
    write_whole(_shard_path(directory, first), lambda file: np.savez(file, **arrays))
    return len(indices)


def _check_spec(spec: PoolSpec, directory: Path) -> None:
    """Writes ``spec.json``, or compares it with the one that is there."""
    path = directory / "spec.json"
    if not path.is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise PoolMismatch(
                f"{directory} is not empty and holds no spec.json; choose another folder"
            )
        directory.mkdir(parents=True, exist_ok=True)
        content = {"fingerprint": spec.fingerprint, "generator": GENERATOR_VERSION}
        described = json.dumps({**content, "spec": asdict(spec)}, indent=2)
        write_whole(path, lambda file: file.write(described.encode()))
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["fingerprint"] != spec.fingerprint:
        there = {**found["spec"], "generator": found["generator"]}
        here = {**asdict(spec), "generator": GENERATOR_VERSION}
        keys = sorted(there.keys() | here.keys())
        wrong = [
            f"{k}: {there.get(k)!r} there, {here.get(k)!r} wanted"
            for k in keys
            if there.get(k) != here.get(k)
        ]
        raise PoolMismatch(
            f"{directory} holds another pool ({'; '.join(wrong)}); "
            "choose another folder or delete this one"
        )


def _merge(spec: PoolSpec, directory: Path, shards: list[int]) -> None:
    """Joins the shards into ``images.npy`` and ``meta.csv``; the pictures come last."""
    unfinished = directory / "images.npy.partial"
    images = np.lib.format.open_memmap(
        unfinished, "w+", np.uint8, (len(spec), spec.size, spec.size, 3)
    )
    rows: list[dict[str, int | str]] = []
    for first in shards:
        with np.load(_shard_path(directory, first), allow_pickle=False) as stored:
            images[first : first + len(stored["images"])] = stored["images"]
            rows += json.loads(str(stored["rows"]))
    images.flush()
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(directory / "meta.csv", lambda file: file.write(text.getvalue().encode()))
    sums = {"images.npy": _sum(unfinished), "meta.csv": _sum(directory / "meta.csv")}
    write_whole(directory / "sums.json", lambda file: file.write(json.dumps(sums).encode()))
    os.replace(unfinished, directory / "images.npy")


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_whole(directory: Path) -> None:
    """Compares a pool with its checksums; pools of earlier versions have none."""
    path = directory / "sums.json"
    try:
        sums = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        wrong = [name for name, known in sums.items() if _sum(directory / name) != known]
    except (ValueError, AttributeError, OSError):
        wrong = ["sums.json"]
    if wrong:
        raise PoolDamaged(f"{directory / wrong[0]}: not the file that was rendered, or damaged")


def open_pool(directory: Path) -> Pool:
    """A finished pool.

    Raises:
        FileNotFoundError: the folder holds no finished pool.
        PoolDamaged: a file of it is not what was rendered.
    """
    for name in ("spec.json", "images.npy", "meta.csv"):
        if not (directory / name).is_file():
            raise FileNotFoundError(f"{directory / name} is missing; run render_pool to finish it")
    _require_whole(directory)
    spec = PoolSpec(**json.loads((directory / "spec.json").read_text(encoding="utf-8"))["spec"])
    with (directory / "meta.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    meta = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    for name in ("label", "identity_seed", "appearance_seed"):
        meta[name] = meta[name].astype(np.int64)
    images = np.load(directory / "images.npy", mmap_mode="r")
    return Pool(spec, images, meta["label"], meta)


def render_pool(
    spec: PoolSpec, directory: str | os.PathLike, workers: int = 2, progress: bool = True
) -> Pool:
    """Renders a pool, continues one that was interrupted, or opens one that is finished.

    A finished pool that is damaged is said in one line and rendered again.

    Args:
        spec: what to render.
        directory: an empty or absent folder, or one with the same spec.
        workers: processes, each with one torch thread; 0 renders in this process. The pictures do
            not depend on it. Worker processes import the calling script, which must therefore
            guard its entry point with ``if __name__ == "__main__"``.
        progress: show a progress bar.

    Raises:
        PoolMismatch: the folder holds something else.
    """
    directory = Path(directory)
    _check_spec(spec, directory)
    if (directory / "images.npy").is_file():
        try:
            pool = open_pool(directory)
            shutil.rmtree(directory / "shards", ignore_errors=True)
            return pool
        except PoolDamaged as error:
            print(f"{error}; the pool is rendered again", file=sys.stderr)
            (directory / "images.npy").unlink()
        except FileNotFoundError:
            (directory / "images.npy").unlink()
    (directory / "shards").mkdir(exist_ok=True)
    shards = list(range(0, len(spec), _SHARD))
    missing = [first for first in shards if not _shard_path(directory, first).is_file()]
    done = sum(min(_SHARD, len(spec) - f) for f in shards if f not in set(missing))
    render = partial(_render_shard, spec, directory)
    with tqdm(
        total=len(spec),
        initial=done,
        unit="image",
        desc=f"{spec.role} faces",
        disable=not progress,
    ) as bar:
        if workers < 1:
            for first in missing:
                bar.update(render(first))
        elif missing:
            # Forking a process that has used torch's thread pool may hang, hence spawn.
            context = multiprocessing.get_context("spawn")
            with context.Pool(min(workers, len(missing))) as processes:
                for count in processes.imap_unordered(render, missing):
                    bar.update(count)
    _merge(spec, directory, shards)
    shutil.rmtree(directory / "shards", ignore_errors=True)
    return open_pool(directory)


def main() -> None:
    """Command line: one option per field of ``PoolSpec``, plus ``--out`` and ``--workers``."""
    parser = argparse.ArgumentParser(description="Render a pool of synthetic faces.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the pool")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    for field in fields(PoolSpec):
        option = "--" + field.name.replace("_", "-")
        if field.name == "role":
            parser.add_argument(option, required=True, help="see roles.py")
        else:
            kind = float if field.type is float else int
            parser.add_argument(option, type=kind, default=field.default)
    values = vars(parser.parse_args())
    out, workers = values.pop("out"), values.pop("workers")
    pool = render_pool(PoolSpec(**values), out, workers)
    print(f"{out}: {len(pool.images)} pictures of {pool.spec.identities} identities")


if __name__ == "__main__":
    main()
