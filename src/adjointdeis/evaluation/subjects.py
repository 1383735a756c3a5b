"""Covariates of subjects: sex and demographic group, which impostor policies select by."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.errors import PolicyError, ScoreError
from adjointdeis.files import read_table
from adjointdeis.texts import canonical, finite_number

# The names that published subject lists use for the same facts.
_ALIASES = {
    "subject_id": ("subject_id", "face_id", "id", "identity"),
    "sex": ("sex", "face_gender", "face_sex", "gender"),
    "group": ("group", "face_eth", "face_ethnicity", "ethnicity", "eth"),
    "age": ("age", "face_age"),
}
# Spellings of one sex: a pair of "f" and "female" is a pair of the same sex.
_SEXES = {"f": "female", "woman": "female", "w": "female", "m": "male", "man": "male"}


@dataclass(frozen=True)
class Subject:
    """One person, real or synthetic.

    Args:
        subject_id: Name of the person in score files.
        sex, group, age: Covariates; an empty text where unknown.
    """

    subject_id: str
    sex: str = ""
    group: str = ""
    age: str = ""


@dataclass(frozen=True)
class Subjects:
    """Subjects by id; build it with `from_rows` or `read_subjects`.

    Args:
        by_id: The subjects.
    """

    by_id: Mapping[str, Subject]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, object]]) -> "Subjects":
        """From dictionaries with `subject_id` and any of `sex`, `group`, `age`."""
        found: dict[str, Subject] = {}
        for row in rows:
            given = {name: canonical(str(row.get(name, ""))) for name in _ALIASES}
            given["sex"] = _SEXES.get(given["sex"].casefold(), given["sex"].casefold())
            given["group"] = given["group"].casefold()
            subject = Subject(**given)
            if not subject.subject_id:
                raise ScoreError("a row has no subject_id")
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
            subject = self.by_id.get(canonical(str(subject_id)))
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


def age_band(age: str) -> str:
    """The decade of an age in years, such as `30-39`.

    Raises:
        PolicyError: for a text that is no age.
    """
    try:
        decade = int(finite_number(age)) // 10 * 10
    except ValueError:
        raise PolicyError(f"age {age!r}: expected years") from None
    return f"{decade}-{decade + 9}"


def read_subjects(path: str | os.PathLike[str]) -> Subjects:
    """Reads a CSV of subjects: subject_id, sex, group, age, or the names that the London Set uses.

    Args:
        path: The file.

    Raises:
        ScoreError: naming file and line for a missing id column, no subject, a short row or a
            clash.
    """
    path = Path(path)
    columns, lines = read_table(path, ScoreError)
    header = {name.lower(): name for name in columns}
    used: dict[str, str | None] = {}
    for name, aliases in _ALIASES.items():
        there = [header[a] for a in aliases if a in header]
        if len(there) > 1 and name not in header:
            raise ScoreError(
                f"{path}:1: columns {' and '.join(there)}: which is the {name}? Name it so"
            )
        used[name] = there[0] if there else None
    if used["subject_id"] is None:
        raise ScoreError(f"{path}:1: no subject_id column (also accepted: face_id, id)")
    rows = [{k: row.get(str(column), "") for k, column in used.items()} for _, row in lines]
    if not rows:
        raise ScoreError(f"{path}: no subject in this file")
    try:
        return Subjects.from_rows(rows)
    except ScoreError as error:
        raise ScoreError(f"{path}: {error}") from None
