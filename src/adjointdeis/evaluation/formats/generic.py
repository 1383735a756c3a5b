"""Tables of one's own: any column names, delimiter and decimal mark, mapped by the user.

`Labels.columns` maps names of the canonical table to columns of the file, such as
`{"morph_id": "Morph", "subject_id": "Person", "score": "Similarity"}`; columns that already have a
canonical name need no mapping. The delimiter is the one that divides the header into most columns,
the decimal mark is a comma where every score has one and none has a point; both are said. Without a
`kind` column a row with a morph is of kind `morph`, and one without is mated where both ids agree.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    kind_by_ids,
    read_fields,
    score_or_failure,
)
from adjointdeis.evaluation.scores import COLUMNS, ScoreTable
from adjointdeis.evaluation.storage import metadata_with
from adjointdeis.files import read_text

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


def read_one(path: Path, labels: Labels) -> ScoreTable:
    """A delimited table with a header; several attacks and systems may be in one file.

    The table's metadata say under `read_as` which delimiter and decimal mark were found, and which
    columns were passed over.

    Raises:
        ScoreError: no score column, a mapped column that is absent, or what the labels leave open.
    """
    first = next((line for line in read_text(path, ScoreError).splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=first.count)
    if not first.count(delimiter):
        raise ScoreError(
            f"{path}:1: no {', '.join(DELIMITERS.values())} in the header {first[:60]!r}; expected "
            "a table with a header and two columns at least"
        )
    lines = read_fields(path, delimiter=delimiter, quotechar='"')
    _, header = next(lines, (1, []))
    place = _places(path, header, labels)
    body = list(lines)
    for line, fields in body:
        if len(fields) != len(header):
            raise ScoreError(f"{path}:{line}: {len(fields)} fields, expected {len(header)}")
    scores = [fields[place["score"]] for _, fields in body]
    decimal = _decimal_comma(scores)
    rows = Rows(path, by_ids="kind" not in place and not labels.kind)
    for line, fields in body:
        row: dict[str, Any] = {name: fields[at] for name, at in place.items()}
        text = row.pop("score").replace(",", ".") if decimal else row.pop("score")
        if row.get("status", "ok") in ("ok", ""):
            row |= {"status": "ok", **score_or_failure(path, line, text)}
        rows.add(line, **_completed(path, row, labels))
    mark = "comma" if decimal else "point"
    unused = [name for k, name in enumerate(header) if k not in place.values()]
    said = f"{path}: delimiter {DELIMITERS[delimiter]}, decimal {mark}"
    said += f"; columns passed over: {', '.join(unused)}" if unused else ""
    return metadata_with(rows.table(), {"read_as": said})


def _places(path: Path, header: list[str], labels: Labels) -> dict[str, int]:
    mapped = {name: name for name in COLUMNS if name in header} | dict(labels.columns)
    for name, column in mapped.items():
        if name not in COLUMNS:
            raise ScoreError(f"--columns {name}=...: expected one of {', '.join(COLUMNS)}")
        if column not in header:
            raise ScoreError(
                f"{path}:1: no column {column!r} for {name}; the header has {', '.join(header)}"
            )
    if "score" not in mapped:
        raise ScoreError(
            f"{path}:1: which column is the score? The header has {', '.join(header)}; state it "
            "as --columns score=NAME"
        )
    return {name: header.index(column) for name, column in mapped.items()}


def _decimal_comma(scores: Sequence[str]) -> bool:
    """Whether the scores are written with a decimal comma: some are, and none has a point."""
    return any(_COMMA.fullmatch(s) for s in scores) and not any("." in s for s in scores)


def _completed(path: Path, row: dict[str, Any], labels: Labels) -> dict[str, Any]:
    """A row with what the file leaves to the labels."""
    morph = bool(row.get("morph_id"))
    row.setdefault("system", labels.system)
    row.setdefault("score_type", labels.score_type or "")
    if not row["score_type"]:
        row["score_type"] = labels.direction(path)
    if not row.get("kind"):
        named = row.get("subject_id", "")
        kind = kind_by_ids(named, row.get("ref_subject_id", "")) if named else "nonmated"
        row["kind"] = labels.kind or ("morph" if morph else kind)
    if morph:
        row.setdefault("attack", labels.attack)
    if row["kind"] == "morph" and not row.get("probe_policy"):
        row["probe_policy"] = labels.probe
    return row
