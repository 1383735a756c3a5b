"""Covariates of subjects: sex and demographic group, which impostor policies select by."""

import csv
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.errors import PolicyError, ScoreError

# The names that published subject lists use for the same facts.
_ALIASES = {
    "subject_id": ("subject_id", "face_id", "id", "identity"),
    "sex": ("sex", "face_gender", "gender"),
    "group": ("group", "face_eth", "ethnicity", "eth"),
    "age": ("age", "face_age"),
}


@dataclass(frozen=True)
class Subject:
    """One person, real or synthetic; an unknown covariate is an empty text."""

    subject_id: str
    sex: str = ""
    group: str = ""
    age: str = ""


@dataclass(frozen=True)
class Subjects:
    """Subjects by id; build it with `from_rows` or `read_subjects`."""

    by_id: Mapping[str, Subject]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]]) -> "Subjects":
        """From dictionaries with `subject_id` and any of `sex`, `group`, `age`."""
        found: dict[str, Subject] = {}
        for row in rows:
            subject = Subject(*(str(row.get(name, "")) for name in _ALIASES))
            if found.get(subject.subject_id, subject) != subject:
                raise ScoreError(f"subject {subject.subject_id!r} appears twice with other values")
            found[subject.subject_id] = subject
        return cls(found)

    def values(self, subject_ids: np.ndarray, covariate: str) -> np.ndarray:
        """The covariate `sex`, `group` or `age` of every id in the array.

        Raises:
            PolicyError: when an id is unknown or its covariate is empty.
        """
        unique, inverse = np.unique(subject_ids, return_inverse=True)
        values = []
        for subject_id in unique.tolist():
            subject = self.by_id.get(subject_id)
            value = "" if subject is None else getattr(subject, covariate)
            if value == "":
                problem = (
                    "is not in the subjects table" if subject is None else f"has no {covariate}"
                )
                raise PolicyError(
                    f"subject {subject_id!r} {problem}; give every subject of a comparison, "
                    "or use the impostor policy 'all'"
                )
            values.append(value)
        return np.array(values, dtype=np.str_)[inverse] if values else subject_ids


def read_subjects(path: str | os.PathLike[str]) -> Subjects:
    """Reads a CSV of subjects: subject_id, sex, group, age, or the names that the London Set uses.

    Raises:
        ScoreError: naming file and line for a missing id column, a short row or a clash.
    """
    path = Path(path)
    if not path.is_file():
        raise ScoreError(f"{path}: no such subjects file")
    with path.open(encoding="utf-8-sig", newline="") as f:
        reader = csv.DictReader(f)
        header = {name.strip().lower(): name for name in reader.fieldnames or ()}
        used = {
            name: next((header[a] for a in aliases if a in header), None)
            for name, aliases in _ALIASES.items()
        }
        if used["subject_id"] is None:
            raise ScoreError(f"{path}:1: no subject_id column (also accepted: face_id, id)")
        rows = []
        for row in reader:
            if None in row or None in row.values():
                raise ScoreError(f"{path}:{reader.line_num}: expected {len(header)} fields")
            rows.append({k: row[v].strip() if v else "" for k, v in used.items()})
    try:
        return Subjects.from_rows(rows)
    except ScoreError as error:
        raise ScoreError(f"{path}: {error}") from None
