"""What no score table may hold: every check names the first row that is wrong, by file and line."""

import warnings

import numpy as np

from adjointdeis.evaluation.columns import SCORE_TYPES, codes, spellings
from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.scores import (
    BONA_FIDE,
    KEY,
    KINDS,
    PROBE_POLICIES,
    STATUSES,
    ScoreTable,
)


class SameImageWarning(UserWarning):
    """A genuine comparison of an image with itself, by the names."""


def checked(table: ScoreTable) -> ScoreTable:
    """The same table without identical repeats, or an error that names the first bad row.

    Raises:
        ScoreError: unknown kind, direction, status or policy; a score that is not finite in a row
            with status ok; an empty id that the kind needs; a mated comparison of two subjects or a
            nonmated one of one; two spellings of one name; a system with two directions; one
            comparison with two scores; a morph with fewer than two subjects; a subject of a morph
            without a probe under a system and policy under which the morph was scored; morphs and
            probes that changed places.
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
    plain = np.char.replace(np.char.lower(table["attack"].astype(np.str_)), "_", "")
    bona = (plain == BONA_FIDE) & (morph | (table["attack"] != BONA_FIDE))
    _refuse(table, bona, "attack", f"{BONA_FIDE!r} marks a bona fide image, and only of kind mad")
    attack_row = (table["kind"] == "mad") & ~np.isin(table["attack"], ("", BONA_FIDE))
    _refuse(table, attack_row & (table["morph_id"] == ""), "morph_id", "a MAD attack row needs it")
    ok = table["status"] == "ok"
    _refuse(table, ok & ~np.isfinite(table["score"]), "score", "status ok needs a finite number")
    people = ("subject_id", "ref_subject_id")
    for name, bad, expected in spellings(table.columns, (people, ("attack",), ("system",))):
        _refuse(table, bad, name, expected)
    same = table["subject_id"] == table["ref_subject_id"]
    known = (table["subject_id"] != "") & (table["ref_subject_id"] != "")
    for kind, wrong, why in (("nonmated", same, "one subject"), ("mated", ~same, "two subjects")):
        bad = (table["kind"] == kind) & known & wrong
        _refuse(table, bad, "ref_subject_id", f"a {kind} comparison is of {why} by its ids")
    _warn_of_itself(table)
    _one_direction(table)
    table = _without_repeats(table)
    _refuse_swapped(table)
    _subjects_complete(table)
    return table


def _refuse(table: ScoreTable, bad: np.ndarray, column: str, expected: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise ScoreError(f"{table.place(row)}: {column} {str(table[column][row])!r}: {expected}")


def _warn_of_itself(table: ScoreTable) -> None:
    probe = table["probe_id"]
    itself = (table["kind"] == "mated") & (probe != "") & (probe == table["ref_id"])
    if itself.any():
        row = int(np.argmax(itself))
        warnings.warn(
            f"{table.place(row)}: {int(itself.sum())} mated comparisons have one image on both "
            f"sides, such as {str(probe[row])!r}; of an image with itself no recogniser fails, "
            "leave them out, or give two captures two names",
            SameImageWarning,
            stacklevel=4,
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
    code, n = codes(*(table[name] for name in KEY))
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
            "keep one of the two, or give two runs of one attack two names"
        )
    keep = np.ones(len(table), dtype=bool)
    keep[here] = False
    return table.where(keep)


def _shown(table: ScoreTable, row: int) -> str:
    status = str(table["status"][row])
    return f"{float(table['score'][row])!r}" if status == "ok" else status


def _refuse_swapped(table: ScoreTable) -> None:
    """Refuses a table in which every morph is, by its names, a bona fide image or of one person."""
    morph, bona_fide = table["kind"] == "morph", np.isin(table["kind"], ("mated", "nonmated"))
    if not (morph.any() and bona_fide.any()):
        return
    row, people = int(np.argmax(morph)), ("subject_id", "ref_subject_id")

    def met(name: str, *columns: str) -> bool:
        """Whether bona fide rows have every name of the morphs; the first settles it, mostly."""
        found = (bona_fide & (table[column] == table[name][row]) for column in columns)
        if not any(rows.any() for rows in found):
            return False
        known = np.concatenate([table[column][bona_fide] for column in columns])
        return bool(np.isin(table[name][morph], known[known != ""]).all())

    def nobody() -> bool:
        known = np.concatenate([table[column][bona_fide] for column in people])
        return not np.isin(table["subject_id"][morph], known).any()

    image = (table["morph_id"] == table["ref_id"])[morph].all()
    if (image and met("morph_id", "probe_id", "ref_id")) or (
        met("ref_subject_id", *people) and nobody()
    ):
        seen = {name: str(table[name][row]) for name in ("morph_id", "subject_id", *people[1:])}
        raise ScoreError(
            f"{table.place(row)}: were morphs and probes taken for each other? In every morph row "
            "the morph is an image, or its ref_subject_id a person, of the bona fide comparisons, "
            f"as here ({', '.join(f'{k} {v!r}' for k, v in seen.items())}). morph_id and ref_id "
            "name the morph, subject_id and probe_id the person and the image that met it"
        )


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
