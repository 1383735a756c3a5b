"""The record of every morph, beside its PNG: written atomically, believed only when it fits."""

import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.files import read_record, write_atomically
from adjointdeis.harness.benchmark import Benchmark, file_hash
from adjointdeis.morphing.attack import Attack
from adjointdeis.reporting.paper_tables import departures

KEYS = frozenset(
    ("pair", "attack", "config_hash", "sources", "loss", "gradient_norm", "nfe", "gradient_error",
     "failed", "seconds", "sha256")
)  # fmt: skip
"""What every record of a morph holds; `sha256` is that of its PNG, None for a pair that failed."""

SCHEMA = 2
"""Of records; a failure counts from 2 on, for before it could be that of a damaged encoding."""


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a JSON record atomically."""
    text = json.dumps(record, indent=1)
    write_atomically(path, text)


def read_records(directory: Path, benchmark: Benchmark, config: str) -> dict[str, dict[str, Any]]:
    """Records of the finished pairs of an attack, by pair.

    A record of another configuration or of other source images does not count, nor one that is
    damaged or whose morph is absent or not the file that it was written for: its pair is done
    again. A morph that was changed is said in a warning, for someone may have meant it.

    Args:
        directory: Of the attack's morphs.
        benchmark: The faces and pairs.
        config: Hash of what the morphs depend on, see `recipe_of`.
    """
    records = {}
    for pair in benchmark.pairs:
        record = read_record(directory / f"{pair.morph_id}.json")
        if record is None or not KEYS <= record.keys():
            continue
        same = (record["config_hash"], record["sources"]) == (
            config,
            benchmark.source_hashes(pair),
        )
        if not same:
            continue
        if record["failed"]:
            whole = isinstance(schema := record.get("schema"), int) and schema >= SCHEMA
        else:
            whole = _is_morph_of(record, directory / f"{pair.morph_id}.png")
        if whole:
            records[pair.morph_id] = record
    return records


def _is_morph_of(record: dict[str, Any], path: Path) -> bool:
    """Whether the file is there, byte for byte as when its record was written."""
    if not path.is_file():
        return False
    same = file_hash(path) == record["sha256"]
    if not same:
        warnings.warn(
            f"{path}: damaged or replaced, not the morph of its record; it is made again",
            stacklevel=2,
        )
    return same


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


def summary_of(attack: Attack, records: dict[str, dict[str, Any]], pairs: int) -> dict[str, Any]:
    """What ``result.json`` says of an attack, from the records of its pairs."""
    good = [record for record in records.values() if not record["failed"]]
    summary: dict[str, Any] = {
        "label": attack.label,
        "paper_row": attack.paper_row,
        "settings": attack.settings(),
        "nfe_paper": attack.nfe_paper,
        "nfe": _mean_cost(good) if good else None,
        "seconds_per_pair": float(np.mean([r["seconds"] for r in good])) if good else None,
        "pairs": pairs,
        "failed": [
            {"pair_id": pair, "reason": record["failed"]}
            for pair, record in records.items()
            if record["failed"]
        ],
        "notes": departures(attack.paper_row, attack.settings()) + attack.notes(),
    }
    if good and attack.steps:
        summary["curves"] = {
            key: np.mean([record[key] for record in good], 0).tolist()
            for key in ("loss", "gradient_norm")
            if good[0][key]
        }
        measured = [r["gradient_error"] for r in good if r["gradient_error"]]
        if measured:
            summary["gradient_error"] = {
                **{
                    key: float(np.median([m[key] for m in measured]))
                    for key in ("relative", "cosine", "norm_ratio")
                },
                "pairs": len(measured),
            }
    return summary


def _mean_cost(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean counters; they differ between pairs only where pairs stop early."""
    means = {key: float(np.mean([r["nfe"][key] for r in records])) for key in records[0]["nfe"]}
    return {key: int(mean) if mean.is_integer() else mean for key, mean in means.items()}
