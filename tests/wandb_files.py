"""Reading the files of offline Weights & Biases runs back: what a test can see of them.

An offline run is a folder `offline-run-<time>-<id>` with `run-<id>.wandb`, a log in LevelDB's
format (blocks of 32 KiB; each record has a checksum, a length and a kind, whole or first, middle,
last) behind a header of seven bytes, whose records are protocol buffers.

References:
    | LevelDB, log format
    | https://github.com/google/leveldb/blob/main/doc/log_format.md
    | Weights & Biases, offline runs
    | https://docs.wandb.ai/support/run_wandb_offline/
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HEADER, BLOCK, PREFIX = 7, 32768, 7
WHOLE, LAST = 1, 4


@dataclass(frozen=True)
class OfflineRun:
    """What the file of an offline run holds.

    Attributes:
        path: The file.
        id: The run's id, the same for every part of a run that was continued.
        config: Configuration, nested as it was given.
        history: One dictionary per logged step.
        summary: Last and chosen values.
        artifacts: Files of every artifact, by the artifact's name.
        exit_code: 0 after success; None where the run was killed.
    """

    path: Path
    id: str
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, list[str]] = field(default_factory=dict)
    exit_code: int | None = None

    @property
    def files(self) -> Path:
        """Folder of the files that the run keeps, media among them."""
        return self.path.parent / "files"

    def curve(self, key: str) -> list[Any]:
        """Every logged value of a key, in order."""
        return [entry[key] for entry in self.history if key in entry]


def offline_runs(folder: Path) -> list[Path]:
    """Files of offline runs below a folder, in the order in which they started."""
    return sorted(folder.rglob("offline-run-*/run-*.wandb"), key=lambda p: p.parent.name)


def read_offline(path: Path) -> OfflineRun:
    """Reads `run-<id>.wandb`, also of a run that was killed.

    Raises:
        ValueError: Not such a file.
    """
    from wandb.proto import wandb_internal_pb2

    new = wandb_internal_pb2.Record  # pyright: ignore[reportAttributeAccessIssue]
    run = OfflineRun(path, path.stem.removeprefix("run-"))
    for payload in _payloads(path):
        record = new()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.config.update(_items(record.run.config.update))
        elif kind == "config":
            run.config.update(_items(record.config.update))
        elif kind == "history":
            run.history.append(_items(record.history.item))
        elif kind == "summary":
            run.summary.update(_items(record.summary.update))
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            _add(run, record.request.log_artifact.artifact)
        elif kind == "artifact":
            _add(run, record.artifact)
        elif kind == "exit":
            object.__setattr__(run, "exit_code", int(record.exit.exit_code))
    return run


def _payloads(path: Path) -> Iterator[bytes]:
    data, at, part = path.read_bytes(), HEADER, b""
    if data[:4] != b":W&B":
        raise ValueError(f"{path}: not a Weights & Biases run file")
    while at + PREFIX <= len(data):
        left = BLOCK - at % BLOCK
        if left < PREFIX:
            at += left
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + PREFIX])
        if at + PREFIX + length > len(data):
            return  # a killed run leaves half a record
        part += data[at + PREFIX : at + PREFIX + length]
        at += PREFIX + length
        if kind in (WHOLE, LAST):
            yield part
            part = b""


def _items(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        keys = list(item.nested_key) or [item.key]
        place = found
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = json.loads(item.value_json)
    return found


def _add(run: OfflineRun, artifact: Any) -> None:
    run.artifacts[artifact.name] = [entry.path for entry in artifact.manifest.contents]
