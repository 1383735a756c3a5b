"""The record of every morph, beside its PNG: written atomically, believed only when it fits."""

import json
import time
from pathlib import Path
from typing import Any

from adjointdeis.files import write_atomically
from adjointdeis.harness.benchmark import Benchmark


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON record atomically."""
    text = json.dumps(record, indent=1)
    write_atomically(path, lambda file: file.write(text))


def read_records(directory: Path, benchmark: Benchmark, config: str) -> dict[str, dict[str, Any]]:
    """Records of the finished pairs of an attack, by pair.

    A record of another configuration or of other source images, without its morph, or damaged,
    does not count: its pair is done again.
    """
    records = {}
    for pair in benchmark.pairs:
        path = directory / f"{pair.morph_id}.json"
        try:
            record = json.loads(path.read_text())
        except (OSError, json.JSONDecodeError):
            continue
        same = (record.get("config_hash"), record.get("sources")) == (
            config,
            benchmark.source_hashes(pair),
        )
        has_morph = (directory / f"{pair.morph_id}.png").is_file()
        if same and (has_morph or record.get("failed")):
            records[pair.morph_id] = record
    return records


def every_record(
    directory: Path, benchmark: Benchmark, config: str, patience: float = 60.0
) -> dict[str, dict[str, Any]]:
    """Records of all pairs, once every process has done its share.

    On a network file system those of another node may be seen a little later.

    Args:
        directory, benchmark, config: see :func:`read_records`.
        patience: Seconds to wait for records that are not there.

    Raises:
        RuntimeError: Some are still missing then. A table without them would look complete.
    """
    until = time.monotonic() + patience
    while len(records := read_records(directory, benchmark, config)) < len(benchmark.pairs):
        if time.monotonic() > until:
            missing = [p.morph_id for p in benchmark.pairs if p.morph_id not in records]
            raise RuntimeError(
                f"{directory}: no record of {len(missing)} pairs ({', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}) {patience:g} s after the last process "
                "was done; is the folder on a file system that all processes share?"
            )
        time.sleep(min(1.0, patience / 4))
    return records
