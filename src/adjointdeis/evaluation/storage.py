"""Score tables on disk: canonical CSV or Parquet, each with a sidecar JSON of the same stem.

`scores.csv` goes with `scores.csv.json`. Files are written to a temporary name in the same folder
and then renamed, so a reader never sees half a table.
"""

import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.scores import COLUMNS, REQUIRED_COLUMNS, ScoreTable
from adjointdeis.extras import load
from adjointdeis.files import read_json, read_table, refuse_twice, write_atomically, write_csv
from adjointdeis.texts import any_number

SCHEMA = "adjointdeis-scores/1"
_DETECTION = " (scores of detectors? use `adjointdeis-eval detection`)"
_CONVERT = " (another format? use `adjointdeis-eval convert`)"


def read_scores(path: str | os.PathLike[str]) -> ScoreTable:
    """Reads a canonical table, CSV or Parquet by its suffix, with its sidecar where there is one.

    Args:
        path: The file.

    Raises:
        ScoreError: naming file and line, for anything that `scores.checked` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise ScoreError(f"{path}: no such score file")
    columns, lines = (_read_parquet if _is_parquet(path) else _read_csv)(path)
    # Often what a program that failed has left.
    if not len(lines):
        raise ScoreError(f"{path}: a header and no comparison; make the file again")
    columns["score"] = _numbers(path, columns["score"], lines)
    return ScoreTable.from_columns(
        metadata=_metadata(path), source=str(path), lines=lines, **columns
    )


def write_scores(table: ScoreTable, path: str | os.PathLike[str]) -> None:
    """Writes a canonical table and its sidecar; the suffix `.parquet` needs pyarrow.

    Args:
        table: The comparisons to write.
        path: The file; its folder is made. The sidecar lies beside it, with `.json` appended.
    """
    path = Path(path)
    if _is_parquet(path):
        _write_parquet(table, path)
    else:
        _write_csv(table, path)
    sidecar = {"schema": SCHEMA, "rows": len(table), **table.metadata}
    sidecar.update(fingerprint=table.fingerprint())
    write_json(sidecar, sidecar_of(path))


def sidecar_of(path: Path) -> Path:
    """The sidecar's path: the table's name with `.json` appended."""
    return path.with_name(path.name + ".json")


def write_json(value: Any, path: str | os.PathLike[str]) -> None:
    """Writes JSON atomically, keys in the order given, NaN refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(Path(path), text + "\n")


def _metadata(path: Path) -> dict[str, Any]:
    sidecar = sidecar_of(path)
    if not sidecar.is_file():
        return {}
    found = read_json(sidecar, ScoreError)
    if not isinstance(found, dict):
        raise ScoreError(f"{sidecar}: expected a JSON object")
    systems = found.get("systems", {})
    if not isinstance(systems, dict) or not all(isinstance(s, dict) for s in systems.values()):
        raise ScoreError(f'{sidecar}: "systems": expected an object of objects, one per system')
    return {k: v for k, v in found.items() if k not in ("schema", "rows", "fingerprint")}


def _read_csv(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Columns, and the line of each comparison."""
    header, rows = read_table(path, ScoreError)
    if not header:
        raise ScoreError(f"{path}:1: empty file; expected the header of a score table")
    hint = _DETECTION if "detector" in header else _CONVERT
    check_header(path, header, REQUIRED_COLUMNS, COLUMNS, hint)
    # A table repeats few texts many times: one object each keeps memory like the file.
    known: dict[str, str] = {}
    columns: dict[str, Any] = {name: [] for name in header}
    lines: list[int] = []
    for line, row in rows:
        for name, value in row.items():
            columns[name].append(known.setdefault(value, value))
        lines.append(line)
    return columns, np.array(lines, dtype=np.int64)


def check_header(
    path: Path,
    header: Sequence[str],
    required: Sequence[str],
    known: Sequence[str],
    hint: str = "",
) -> None:
    """Refuses a header that lacks a column, or has an unknown one or one twice; names it.

    Args:
        path: The file, for the message; `hint` says what else it may be.
        header, required, known: Its columns, those that it must have, and all that it may have.
    """
    expected = ",".join(known)
    for name in required:
        if name not in header:
            raise ScoreError(
                f"{path}:1: column {name!r} is missing; expected the header {expected}{hint}"
            )
    unknown = [name for name in header if name not in known]
    if unknown:
        raise ScoreError(f"{path}:1: unknown column {unknown[0]!r}; expected {expected}")
    refuse_twice(path, header, ScoreError)


def _numbers(path: Path, cells: list[Any], lines: np.ndarray) -> np.ndarray:
    numbers = np.empty(len(cells))
    for k, value in enumerate(cells):
        try:
            numbers[k] = any_number("nan" if value in ("", None) else str(value))
        except ValueError as error:
            raise ScoreError(f"{path}:{lines[k]}: score {value!r} {error}") from None
    return numbers


def _write_csv(table: ScoreTable, path: Path) -> None:
    columns = [table[name].tolist() for name in COLUMNS]
    at = COLUMNS.index("score")
    # repr is the shortest text that reads back as the same float64.
    columns[at] = ["" if math.isnan(s) else repr(s) for s in columns[at]]
    write_csv(path, itertools.chain([COLUMNS], zip(*columns, strict=True)))


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _pyarrow(path: Path) -> tuple[Any, Any]:
    purpose = f"{path}: Parquet files (.csv would not)"
    return load("pyarrow", purpose), load("pyarrow.parquet", purpose)


def _read_parquet(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Columns, and the number of each comparison."""
    _, parquet = _pyarrow(path)
    try:
        found = parquet.read_table(path)
    # pyarrow's errors of damaged files have no common base.
    except Exception as error:
        raise ScoreError(f"{path}: not a readable Parquet file ({error})") from None
    check_header(path, found.column_names, REQUIRED_COLUMNS, COLUMNS, _CONVERT)
    columns = {name: found.column(name).to_pylist() for name in found.column_names}
    return columns, np.arange(1, found.num_rows + 1)


def _write_parquet(table: ScoreTable, path: Path) -> None:
    pyarrow, parquet = _pyarrow(path)
    columns: dict[str, Any] = {}
    for name in COLUMNS:
        if name == "score":
            columns[name] = pyarrow.array(table[name], from_pandas=True)
        else:
            # Nearly every text column repeats few values, so a dictionary is small and fast.
            columns[name] = pyarrow.array(table[name].tolist()).dictionary_encode()
    arrow = pyarrow.table(columns)
    write_atomically(path, lambda f: parquet.write_table(arrow, f), mode="wb")
