"""The record of every morph, beside its PNG: written atomically, believed only when it fits."""

import json
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
