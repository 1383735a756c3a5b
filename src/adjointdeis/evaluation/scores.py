r"""The canonical long table of biometric scores: one row per comparison, one column per fact.

Columns (all text but `score`):

=============== ==========================================================================
kind            `mated`, `nonmated`, `morph` (a morph against a probe of one of its
                contributing subjects) or `mad` (a detector's score of one image)
morph_id        the morph, in rows of kind `morph` and in `mad` rows of attacks
attack          the morphing attack; in `mad` rows `bonafide` marks a bona fide image
subject_id      whose probe it is; in `mad` rows who is on the image, optional
probe_id        the probe image (in `mad` rows the trusted live capture, if any)
ref_id          the reference image (in `mad` rows the suspect image)
system          the recogniser, or the detector in `mad` rows
score           a finite number; empty where the comparison failed
score_type      `similarity` (match iff S > tau) or `dissimilarity` (match iff D < tau);
                in `mad` rows `similarity` means that a high score says "morph"
status          `ok`, `fta` (failure to acquire) or `fte` (failure to enrol)
probe_policy    `source` (the very image that made the morph) or `other` (another image of
                the subject); may be empty outside `morph` rows
ref_subject_id  whose reference it is; optional; impostor policies and the subject
                bootstrap need it in `nonmated` rows; in `mad` rows the morph's second person
=============== ==========================================================================

A table is immutable and holds numpy arrays. `subjects.py` holds the covariates of subjects and
`storage.py` the files.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import as_scores, is_scalar, text_column
from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.texts import canonical

KINDS = ("mated", "nonmated", "morph", "mad")
STATUSES = ("ok", "fta", "fte")
PROBE_POLICIES = ("source", "other")
BONA_FIDE = "bonafide"

TEXT_COLUMNS = (
    "kind",
    "morph_id",
    "attack",
    "subject_id",
    "probe_id",
    "ref_id",
    "system",
    "score_type",
    "status",
    "probe_policy",
    "ref_subject_id",
)
COLUMNS = (*TEXT_COLUMNS[:7], "score", *TEXT_COLUMNS[7:])
REQUIRED_COLUMNS = ("kind", "system", "score", "score_type")
DEFAULTS = {"status": "ok"}
KEY = (
    "kind",
    "morph_id",
    "attack",
    "subject_id",
    "probe_id",
    "ref_id",
    "ref_subject_id",
    "system",
    "probe_policy",
)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """An immutable table of comparisons; build it with `from_rows`, `from_columns` or a reader.

    Args:
        columns: every name of `COLUMNS` to an array of one length; text as `str_`, score float64
            with NaN where status is not `ok`.
        metadata: what the sidecar JSON holds (tool version, model fingerprints, alignment, seed).
        source: the file it came from, for messages.
        lines: the line of `source` each row came from, or its whole place where tables were joined.
    """

    columns: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    lines: np.ndarray | None = None

    @classmethod
    def from_columns(
        cls,
        *,
        metadata: Mapping[str, Any] | None = None,
        source: str = "",
        lines: np.ndarray | None = None,
        check: bool = True,
        **columns: Any,
    ) -> "ScoreTable":
        """Builds and checks a table; a scalar is repeated, an absent column is empty.

        Args:
            metadata: What the sidecar JSON holds.
            source: The file, for messages.
            lines: Shape (R,), the line of each row in it, or as text `file:line`.
            check: False takes the columns for right.
            columns: Of `COLUMNS`, shape (R,) or one value; `score` in float64, NaN where it failed.

        Raises:
            ScoreError: for an unknown column or anything that `checked` refuses.
        """
        unknown = sorted(set(columns) - set(COLUMNS))
        if unknown:
            raise ScoreError(
                f"unknown column {unknown[0]!r}; expected some of {', '.join(COLUMNS)}"
            )
        missing = [name for name in REQUIRED_COLUMNS if name not in columns]
        if missing:
            raise ScoreError(f"{source or 'scores'}: column {missing[0]!r} is missing")
        # Never np.size or np.ndim of a list of text: either makes a fixed-width array of it.
        length = max((len(v) for v in columns.values() if not is_scalar(v)), default=1)
        arrays: dict[str, np.ndarray] = {}
        for name in COLUMNS:
            value = columns.get(name, DEFAULTS.get(name, ""))
            array = as_scores(value) if name == "score" else text_column(value)
            if array.ndim == 0:
                array = np.full(length, array[()], dtype=array.dtype)
            if array.shape != (length,):
                raise ScoreError(f"column {name!r} has shape {array.shape}, expected ({length},)")
            arrays[name] = array
        # The status that a cell or a data frame leaves empty is that of an absent column.
        arrays["status"] = np.where(arrays["status"] == "", "ok", arrays["status"])
        # What a program writes as the score of a failed comparison (-1, 0) means nothing.
        arrays["score"] = np.where(arrays["status"] == "ok", arrays["score"], np.nan)
        table = cls(arrays, _canonical_metadata(metadata or {}), source, lines)
        if check:
            from adjointdeis.evaluation.checks import checked

            table = checked(table)
        for array in table.columns.values():
            array.flags.writeable = False
        return table

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], **options: Any) -> "ScoreTable":
        """Builds a table from dictionaries; a failed comparison may have score None or NaN.

        Args:
            rows: Comparisons by column; an absent column is empty.
            options: Of `from_columns`, such as `metadata`.
        """
        listed = list(rows)
        columns: dict[str, Any] = {
            name: [row.get(name, DEFAULTS.get(name, "")) for row in listed] for name in COLUMNS
        }
        columns["score"] = [np.nan if s is None or s == "" else s for s in columns["score"]]
        return cls.from_columns(**columns, **options)

    def __len__(self) -> int:
        return len(self.columns["score"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def where(self, mask: np.ndarray) -> "ScoreTable":
        """The rows of a boolean mask or an index array, in that order."""
        lines = None if self.lines is None else self.lines[mask]
        columns = {name: array[mask] for name, array in self.columns.items()}
        return ScoreTable(columns, self.metadata, self.source, lines)

    def select(self, **conditions: str | Iterable[str]) -> "ScoreTable":
        """The rows in which every named column equals the value, or is one of the values."""
        mask = np.ones(len(self), dtype=bool)
        for name, wanted in conditions.items():
            values = [wanted] if isinstance(wanted, str) else list(wanted)
            column = self.columns[name]
            found = np.zeros(len(self), dtype=bool)
            for value in values:
                found |= column == canonical(str(value))
            mask &= found
        return self.where(mask)

    def unique(self, name: str, **conditions: str | Iterable[str]) -> list[str]:
        """The sorted distinct non-empty values of one column among the selected rows."""
        table = self.select(**conditions) if conditions else self
        return [str(v) for v in np.unique(table[name]) if v != ""]

    @property
    def oriented(self) -> np.ndarray:
        """Scores turned so that larger means more alike: S, or -D; NaN where status is not ok."""
        sign = np.where(self["score_type"] == "dissimilarity", -1.0, 1.0)
        return np.where(self["status"] == "ok", sign * self["score"], np.nan)

    def direction(self, system: str) -> str:
        """`similarity` or `dissimilarity`, as one system's rows state it."""
        found = self.unique("score_type", system=system)
        if len(found) != 1:
            raise ScoreError(
                f"system {system!r}: expected one score_type, found {found or 'no row'}"
            )
        return found[0]

    def place(self, row: int) -> str:
        """Where a row came from: `file:line`, or its index."""
        if self.lines is not None and self.lines.dtype.kind == "U":
            return str(self.lines[row])
        if self.lines is not None:
            return f"{self.source or 'scores'}:{int(self.lines[row])}"
        return f"{self.source or 'scores'}: row {row}"

    def fingerprint(self) -> str:
        """SHA-256 over the comparisons and their scores; does not depend on the order of rows."""
        keys = [*KEY, "score_type", "status"]
        text = ["\x1f".join(parts) for parts in zip(*(self[k] for k in keys), strict=True)]
        scores = [float(s).hex() for s in self["score"]]
        digest = hashlib.sha256()
        for line in sorted(f"{t}\x1f{s}" for t, s in zip(text, scores, strict=True)):
            digest.update(line.encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def to_rows(self) -> list[dict[str, Any]]:
        """Plain dictionaries; a failed comparison has score None."""
        lists = {name: array.tolist() for name, array in self.columns.items()}
        lists["score"] = [None if s != s else s for s in lists["score"]]
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def concatenate(tables: Iterable[ScoreTable]) -> ScoreTable:
    """One checked table of all rows; a single table as it is.

    What the tables state about their systems is joined; of other metadata the first table's wins.

    Args:
        tables: Any number, at least one.

    Raises:
        ScoreError: Two tables state another model or alignment of one system, or another data set,
            so that no threshold could judge them together.
    """
    listed = list(tables)
    if not listed:
        raise ScoreError("no score table to concatenate")
    if len(listed) == 1:
        return listed[0]
    metadata: dict[str, Any] = {}
    for table in listed:
        metadata = joined_metadata(table, metadata)
    columns: dict[str, Any] = {
        name: [value for table in listed for value in table[name].tolist()] for name in COLUMNS
    }
    return ScoreTable.from_columns(metadata=metadata, lines=_places(listed), **columns)


def joined_metadata(table: ScoreTable, other: Mapping[str, Any]) -> dict[str, Any]:
    """What a table and another source state together; where both state more, the other's wins.

    Args:
        table: The table.
        other: Metadata of another table, or what the user states.

    Raises:
        ScoreError: They state another model or alignment of one system, or another data set, so
            that no threshold could judge both.
    """
    source, own, joined = table.source or "scores", table.metadata, {**table.metadata, **other}
    if own.get("data_set", joined.get("data_set")) != joined.get("data_set"):
        raise ScoreError(
            f"{source}: of data set {own['data_set']!r}, and {joined['data_set']!r} was stated, "
            "too; evaluate them apart, for a threshold belongs to one data set"
        )
    systems = {name: dict(stated) for name, stated in (other.get("systems") or {}).items()}
    for name, stated in (own.get("systems") or {}).items():
        for key, value in stated.items():
            if systems.setdefault(name, {}).setdefault(key, value) != value:
                raise ScoreError(
                    f"{source}: system {name!r} has {key} {value!r}, and "
                    f"{systems[name][key]!r} was stated, too; give the two systems two names"
                )
    return joined | ({"systems": systems} if systems else {})


def _places(tables: Sequence[ScoreTable]) -> np.ndarray | None:
    """Where each row of joined tables came from, `file:line`; None where one does not know."""
    if any(table.lines is None for table in tables):
        return None
    places = [np.char.add(f"{t.source or 'scores'}:", np.char.mod("%s", t.lines)) for t in tables]
    return np.concatenate(places)


def _canonical_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(metadata)
    if isinstance(systems := found.get("systems"), Mapping):
        found["systems"] = {canonical(str(name)): stated for name, stated in systems.items()}
    return found
