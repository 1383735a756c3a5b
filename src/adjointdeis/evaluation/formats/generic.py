"""Tables of one's own: any column names, delimiter and decimal mark, mapped by the user.

`Labels.columns` maps names of the canonical table to columns of the file, such as
`{"morph_id": "Morph", "subject_id": "Person", "score": "Similarity"}`; columns that already have a
canonical name need no mapping. The delimiter is the one that divides the header into most columns,
the decimal mark is a comma where every score has one and none has a point; both are said. Without a
`kind` column a row with a morph is of kind `morph`, and one without is mated where both ids agree.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    kind_by_ids,
    named,
    read_fields,
    score_or_failure,
)
from adjointdeis.evaluation.scores import COLUMNS, ScoreTable
from adjointdeis.files import read_text, records, refuse_twice

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


def read_one(path: Path, labels: Labels) -> ScoreTable:
    """A delimited table with a header; several attacks and systems may be in one file.

    The table's metadata say under `read_as` which delimiter and decimal mark were found, and which
    columns were passed over.

    Raises:
        ScoreError: no score column, a mapped column that is absent, or what the labels leave open.
    """
    texts = read_text(path, ScoreError).splitlines()
    first = next((line for line in texts if line.strip() and not line.startswith("#")), "")
    stated = first.startswith("sep=")
    delimiter = max(DELIMITERS, key=first.count)
    if not first.count(delimiter):
        raise ScoreError(
            f"{path}:1: no {', '.join(DELIMITERS.values())} in the header {first[:60]!r}; expected "
            "a table with a header and two columns at least"
        )
    lines = read_fields(path, delimiter=delimiter, quotechar='"')
    if stated:  # As spreadsheets write it above the header.
        next(lines)
    _, header = next(lines, (1, []))
    columns = _columns(path, header, labels)
    body = list(records(path, header, lines, ScoreError))
    decimal = _decimal_comma(path, {line: fields[columns["score"]] for line, fields in body})
    stated_kind = "kind" in columns or bool(labels.kind)
    rows = Rows(path, labels, labels.score_type or "", stated_kind)
    for line, fields in body:
        row: dict[str, Any] = {name: fields[column] for name, column in columns.items()}
        text = row.pop("score").replace(",", ".") if decimal else row.pop("score")
        if row.get("status", "ok") in ("ok", ""):
            row |= {"status": "ok", **score_or_failure(path, line, text)}
        rows.add(line, **_completed(path, line, row, labels))
    mark = "comma" if decimal else "point"
    unused = [name for name in header if name not in columns.values()]
    said = f"{path}: delimiter {DELIMITERS[delimiter]}, decimal {mark}"
    said += f"; columns passed over: {', '.join(unused)}" if unused else ""
    return rows.table(read_as=said)


def _columns(path: Path, header: list[str], labels: Labels) -> dict[str, str]:
    """Column of the file by canonical name."""
    refuse_twice(path, header, ScoreError)
    mapped = {name: name for name in COLUMNS if name in header} | dict(labels.columns)
    for name, column in mapped.items():
        if name not in COLUMNS:
            raise ScoreError(f"--columns {name}=...: expected one of {', '.join(COLUMNS)}")
        if not column or column not in header:
            raise ScoreError(
                f"{path}:1: no column {column!r} for {name}; the header has {', '.join(header)}"
            )
    if "score" not in mapped:
        raise ScoreError(
            f"{path}:1: which column is the score? The header has {', '.join(header)}; state it "
            "as --columns score=NAME"
        )
    return mapped


def _decimal_comma(path: Path, scores: Mapping[int, str]) -> bool:
    """Whether the scores are written with a decimal comma: some are, and none has a point.

    Raises:
        ScoreError: every comma may as well stand between thousands, as in 1,234 beside 999.
    """
    commas = {line: s for line, s in scores.items() if _COMMA.fullmatch(s)}
    if not commas or any("." in s for s in scores.values()):
        return False
    if all(map(_THOUSANDS.fullmatch, commas.values())):
        line = min(commas)
        raise ScoreError(
            f"{path}:{line}: score {commas[line]!r}: is the comma a decimal one, or between "
            "thousands? Write the scores with a decimal point and without marks of thousands"
        )
    return True


def _completed(path: Path, line: int, row: dict[str, Any], labels: Labels) -> dict[str, Any]:
    """A row with what the file leaves to the labels."""
    morph = bool(named(path, line, "morph_id", row.get("morph_id", "")))
    if not row.setdefault("score_type", labels.score_type or ""):
        row["score_type"] = labels.direction(path)
    if not row.get("kind"):
        who = [row.get(name, "") for name in ("subject_id", "ref_subject_id")]
        if not (labels.kind or morph or all(who)):
            raise ScoreError(
                f"{path}:{line}: is the comparison of one person or of two? subject_id {who[0]!r} "
                f"and ref_subject_id {who[1]!r} do not say; map both in --columns, or state --kind"
            )
        row["kind"] = labels.kind or ("morph" if morph else kind_by_ids(who[0], who[1]))
    if morph:
        row.setdefault("attack", labels.attack)
    if row["kind"] == "morph" and not row.get("probe_policy"):
        row["probe_policy"] = labels.probe
    return row
