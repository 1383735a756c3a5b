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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import SCORE_TYPES, codes, is_scalar, text_column
from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.files import canonical, confusable

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
_KEY = (
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
        lines: the line of `source` each row came from, for messages.
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
            array = np.array(value, np.float64) if name == "score" else text_column(value)
            if array.ndim == 0:
                array = np.full(length, array[()], dtype=array.dtype)
            if array.shape != (length,):
                raise ScoreError(f"column {name!r} has shape {array.shape}, expected ({length},)")
            arrays[name] = array
        # What a program writes as the score of a failed comparison (-1, 0) means nothing.
        arrays["score"] = np.where(arrays["status"] == "ok", arrays["score"], np.nan)
        table = cls(arrays, _canonical_metadata(metadata or {}), source, lines)
        if check:
            table = checked(table)
        for array in table.columns.values():
            array.flags.writeable = False
        return table

    @classmethod
    def from_rows(
        cls, rows: Iterable[Mapping[str, Any]], *, metadata: Mapping[str, Any] | None = None
    ) -> "ScoreTable":
        """Builds a table from dictionaries; a failed comparison may have score None or NaN."""
        listed = list(rows)
        columns = {}
        for name in COLUMNS:
            default = DEFAULTS.get(name, "")
            if name == "score":
                values = [row.get(name) for row in listed]
                columns[name] = np.array(
                    [np.nan if v is None or v == "" else v for v in values], dtype=np.float64
                )
            else:
                columns[name] = [str(row.get(name, default)) for row in listed]
        return cls.from_columns(metadata=metadata, **columns)

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
        if self.lines is not None:
            return f"{self.source or 'scores'}:{int(self.lines[row])}"
        return f"{self.source or 'scores'}: row {row}"

    def fingerprint(self) -> str:
        """SHA-256 over the comparisons and their scores; does not depend on the order of rows."""
        keys = [*_KEY, "score_type", "status"]
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
    """One checked table of all rows; the metadata of the first table wins on a clash of keys.

    Args:
        tables: Any number, at least one.
    """
    listed = list(tables)
    if not listed:
        raise ScoreError("no score table to concatenate")
    metadata: dict[str, Any] = {}
    for table in reversed(listed):
        metadata.update(table.metadata)
    columns: dict[str, Any] = {
        name: [value for table in listed for value in table[name].tolist()] for name in COLUMNS
    }
    return ScoreTable.from_columns(metadata=metadata, **columns)


def _canonical_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(metadata)
    if isinstance(systems := found.get("systems"), Mapping):
        found["systems"] = {canonical(str(name)): stated for name, stated in systems.items()}
    return found


def checked(table: ScoreTable) -> ScoreTable:
    """The same table without identical repeats, or an error that names the first bad row.

    Raises:
        ScoreError: unknown kind, direction, status or policy; a score that is not finite in a row
            with status ok; an empty id that the kind needs; a mated comparison of two subjects or a
            nonmated one of one; a system with two directions; one
            comparison with two scores; a morph with fewer than two subjects; a subject of a morph
            without a probe under a system and policy under which the morph was scored.
    """
    for name, allowed in (("kind", KINDS), ("score_type", SCORE_TYPES), ("status", STATUSES)):
        _refuse(
            table, ~np.isin(table[name], allowed), name, f"expected one of {', '.join(allowed)}"
        )
    morph, policy = table["kind"] == "morph", table["probe_policy"]
    allowed = ", ".join(PROBE_POLICIES)
    _refuse(table, ~np.isin(policy, (*PROBE_POLICIES, "")), "probe_policy", f"expected {allowed}")
    _refuse(table, morph & (policy == ""), "probe_policy", f"a morph row needs one of {allowed}")
    _refuse(table, table["system"] == "", "system", "every row needs a system")
    for name in ("morph_id", "attack", "subject_id"):
        _refuse(table, morph & (table[name] == ""), name, f"a morph row needs {name}")
    attack_row = (table["kind"] == "mad") & ~np.isin(table["attack"], ("", BONA_FIDE))
    _refuse(table, attack_row & (table["morph_id"] == ""), "morph_id", "a MAD attack row needs it")
    ok = table["status"] == "ok"
    _refuse(table, ok & ~np.isfinite(table["score"]), "score", "status ok needs a finite number")
    same = table["subject_id"] == table["ref_subject_id"]
    known = (table["subject_id"] != "") & (table["ref_subject_id"] != "")
    for kind, wrong, why in (("nonmated", same, "one subject"), ("mated", ~same, "two subjects")):
        bad = (table["kind"] == kind) & known & wrong
        _refuse(table, bad, "ref_subject_id", f"a {kind} comparison is of {why} by its ids")
    _refuse_two_spellings(table)
    _one_direction(table)
    table = _without_repeats(table)
    _subjects_complete(table)
    return table


def _refuse(table: ScoreTable, bad: np.ndarray, column: str, expected: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise ScoreError(f"{table.place(row)}: {column} {str(table[column][row])!r}: {expected}")


def _refuse_two_spellings(table: ScoreTable) -> None:
    """Refuses impostor comparisons of ids that differ in case, dashes or leading zeros alone.

    They are one person more often than two, and one such pair can move a threshold.
    """
    rows = table.where(table["kind"] == "nonmated")
    keys = {}
    for side in ("subject_id", "ref_subject_id"):
        values, inverse = np.unique(rows[side], return_inverse=True)
        keys[side] = text_column([confusable(str(v)) for v in values])[inverse]
    bad = (keys["subject_id"] == keys["ref_subject_id"]) & (keys["subject_id"] != "")
    if bad.any():
        row = int(np.argmax(bad))
        one, two = rows["subject_id"][row], rows["ref_subject_id"][row]
        raise ScoreError(
            f"{rows.place(row)}: subject_id {str(one)!r} and ref_subject_id {str(two)!r} of a "
            "nonmated comparison differ in case, dashes or leading zeros only; write one person "
            "one way, and rename one of them if they are two people"
        )


def _one_direction(table: ScoreTable) -> None:
    # A detector and a recogniser may share a name, so the kind `mad` counts as another system.
    code, n = codes(table["system"], table["kind"] == "mad")
    distance = table["score_type"] == "dissimilarity"
    first = np.full(n, -1)
    first[code[::-1]] = np.arange(len(table))[::-1]
    bad = distance != distance[first[code]] if n else np.zeros(0, dtype=bool)
    if bad.any():
        row = int(np.argmax(bad))
        raise ScoreError(
            f"{table.place(row)}: score_type {str(table['score_type'][row])!r}: system "
            f"{str(table['system'][row])!r} has the other direction at "
            f"{table.place(int(first[code[row]]))}; one system has one direction"
        )


def _without_repeats(table: ScoreTable) -> ScoreTable:
    code, n = codes(*(table[name] for name in _KEY))
    if n == len(table):
        return table
    order = np.argsort(code, kind="stable")
    same = code[order[1:]] == code[order[:-1]]
    score, status = table["score"], table["status"]
    here, before = order[1:][same], order[:-1][same]
    differs = (status[here] != status[before]) | (
        (score[here] != score[before]) & ~(np.isnan(score[here]) & np.isnan(score[before]))
    )
    if differs.any():
        row = int(here[differs].min())
        other = int(before[here == row][0])
        raise ScoreError(
            f"{table.place(row)}: duplicate comparison with another score: "
            f"{_shown(table, row)}, first seen at {table.place(other)} as {_shown(table, other)}; "
            "keep one of the two"
        )
    keep = np.ones(len(table), dtype=bool)
    keep[here] = False
    return table.where(keep)


def _shown(table: ScoreTable, row: int) -> str:
    status = str(table["status"][row])
    return f"{float(table['score'][row])!r}" if status == "ok" else status


def _subjects_complete(table: ScoreTable) -> None:
    index = np.flatnonzero(table["kind"] == "morph")
    if not len(index):
        return
    rows = table.where(index)
    morph, n_morphs = codes(rows["attack"], rows["morph_id"])
    pair, _ = codes(morph, rows["subject_id"])
    first_of_pair = np.unique(pair, return_index=True)[1]
    n_subjects = np.bincount(morph[first_of_pair], minlength=n_morphs)
    alone = n_subjects[morph] < 2
    if alone.any():
        row = int(np.argmax(alone))
        raise ScoreError(
            f"{rows.place(row)}: morph {str(rows['morph_id'][row])!r} of attack "
            f"{str(rows['attack'][row])!r} has probes of one subject "
            f"({str(rows['subject_id'][row])!r}) only; a morph needs every contributing subject"
        )
    cell, n_cells = codes(morph, rows["system"], rows["probe_policy"])
    cell_pair, _ = codes(cell, pair)
    first = np.unique(cell_pair, return_index=True)[1]
    present = np.bincount(cell[first], minlength=n_cells)
    lacking = present[cell] < n_subjects[morph]
    if lacking.any():
        row = int(np.argmax(lacking))
        subjects = set(rows["subject_id"][morph == morph[row]])
        absent = sorted(subjects - set(rows["subject_id"][cell == cell[row]]))
        raise ScoreError(
            f"{rows.place(row)}: subject {str(absent[0])!r} of morph "
            f"{str(rows['morph_id'][row])!r} has no probe under system "
            f"{str(rows['system'][row])!r}, policy {str(rows['probe_policy'][row])!r}; add its "
            "comparisons, with status fta if the capture failed"
        )
