"""Files of the bob toolboxes: 4 and 5 columns, comparison CSV, and PAD CSV.

4 columns: `claimed_id real_id test_label score`; 5 columns: `claimed_id model_label real_id
test_label score`; mated where the two ids are equal; a first line of these names is passed
over. Comparison CSV: `bio_ref_subject_id,
probe_subject_id, probe_key, probe_attack_type, score` and the template ids where present; a row
with an attack type is a morph shown as the probe against one claimed subject. PAD CSV:
`claimed_id,test_label,is_bonafide,attack_type,score`. Comparison scores are similarities; PAD
scores are high for bona fide images unless `Labels.score_type` says otherwise. A score of NaN is a
failure to acquire.

References:
    | bob.measure
    | https://www.idiap.ch/software/bob/docs/bob/bob.measure/master/guide.html
    | bob.pad.base
    | https://gitlab.idiap.ch/bob/bob.pad.base
"""

from collections.abc import Sequence
from pathlib import Path

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    joined_by_blanks,
    named,
    one_path,
    only,
    read_fields,
    score_lines,
    score_or_failure,
    write_lines,
)
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable
from adjointdeis.files import records, write_csv

FOUR = ("claimed_id", "real_id", "test_label", "score")
FIVE = ("claimed_id", "model_label", "real_id", "test_label", "score")
COMPARISON_COLUMNS = (
    "bio_ref_subject_id",
    "bio_ref_template_id",
    "probe_subject_id",
    "probe_key",
    "probe_attack_type",
    "score",
)
PAD_COLUMNS = ("claimed_id", "test_label", "is_bonafide", "attack_type", "score")
_TRUE = {"true": True, "1": True, "false": False, "0": False}


def read_one(path: Path, labels: Labels) -> ScoreTable:
    """A file, whose kind is seen from its first line."""
    first = next(read_fields(path), None)
    if first is None:
        raise ScoreError(f"{path}:1: empty file")
    if "," not in " ".join(first[1]):
        return _read_columns(path, labels)
    lines = read_fields(path, delimiter=",", quotechar='"')
    header = next(lines, (1, []))[1]
    if "score" not in header:
        raise ScoreError(f"{path}:1: no column 'score' in the header {','.join(header)}")
    if "is_bonafide" in header:
        rows, needed = Rows(path, labels, labels.score_type or "dissimilarity"), PAD_COLUMNS
        add = _add_image
    else:
        rows = Rows(path, labels, labels.score_type or "similarity")
        needed, add = ("bio_ref_subject_id", "probe_subject_id"), _add_comparison
    for line, row in records(path, header, lines, ScoreError):
        if absent := [name for name in needed if name not in row]:
            raise ScoreError(f"{path}:1: no column {absent[0]!r} in the header")
        add(rows, line, row)
    return rows.table()


def _read_columns(path: Path, labels: Labels) -> ScoreTable:
    rows = Rows(path, labels, labels.score_type or "similarity")
    for line, fields in score_lines(path, FOUR, FIVE):
        if len(fields) not in (4, 5):
            raise ScoreError(
                f"{path}:{line}: {len(fields)} fields, expected 4 ({' '.join(FOUR)}) or 5 "
                f"({' '.join(FIVE)})"
            )
        claimed, real, probe, score = fields[0], *fields[-3:]
        rows.comparison(
            line,
            real,
            claimed,
            probe_id=probe,
            ref_id=fields[1] if len(fields) == 5 else "",
            **score_or_failure(path, line, score),
        )
    return rows.table()


def _add_comparison(rows: Rows, line: int, row: dict[str, str]) -> None:
    probe = row.get("probe_key") or row.get("probe_template_id", "")
    reference, subject = row["bio_ref_subject_id"], row["probe_subject_id"]
    attack = named(rows.path, line, "probe_attack_type", row.get("probe_attack_type", ""))
    score = score_or_failure(rows.path, line, row["score"])
    template = row.get("bio_ref_template_id", "")
    if attack:
        # Here the morph is the probe and the genuine image the reference; the canonical table
        # has it the other way round, and comparison scores are symmetric.
        names = {"morph_id": probe, "attack": attack, "subject_id": reference}
        rows.morph(line, **names, probe_id=template, **score)
    else:
        rows.comparison(line, subject, reference, probe_id=probe, ref_id=template, **score)


def _add_image(rows: Rows, line: int, row: dict[str, str]) -> None:
    truth = _TRUE.get(row["is_bonafide"].lower())
    if truth is None:
        raise ScoreError(
            f"{rows.path}:{line}: is_bonafide {row['is_bonafide']!r}, expected True or False"
        )
    if not truth and not row["attack_type"]:
        raise ScoreError(f"{rows.path}:{line}: an attack needs an attack_type")
    rows.image(
        line,
        row["test_label"],
        None if truth else row["attack_type"],
        subject_id=row["claimed_id"],
        **score_or_failure(rows.path, line, row["score"]),
    )


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes a PAD CSV for `mad` rows, else by suffix: `.csv` the comparison CSV, or 5 columns.

    Raises:
        ScoreError: several systems; both comparisons and detection; morphs in columns.
    """
    path = one_path(paths, "one score file")[0]
    only(table, "system")
    detection = table.select(kind="mad")
    if len(detection):
        if len(detection) != len(table):
            raise ScoreError("detection scores and comparisons go into separate files")
        write_csv(path, [PAD_COLUMNS, *map(_pad_cells, table.to_rows())])
        return
    if path.suffix == ".csv":
        write_csv(path, [COMPARISON_COLUMNS, *map(_comparison_cells, table.to_rows())])
        return
    if len(table.select(kind="morph")):
        raise ScoreError("the column formats cannot hold morphs; write a .csv")
    names = ("ref_subject_id", "ref_id", "subject_id", "probe_id")
    lines = []
    for row in table.to_rows():
        cells = [*(row[name] for name in names), _number(row["score"])]
        lines.append(
            joined_by_blanks(cells, "the 5-column format needs ids without blanks; write a .csv")
        )
    write_lines(path, lines)


def _number(score: object) -> str:
    # The toolbox writes NaN where no template could be made.
    return "nan" if score is None else repr(score)


def _pad_cells(row: dict[str, object]) -> list[object]:
    truth = row["attack"] in ("", BONA_FIDE)
    attack = "" if truth else row["attack"]
    return [row["subject_id"], row["ref_id"], str(truth), attack, _number(row["score"])]


def _comparison_cells(row: dict[str, object]) -> list[object]:
    score = _number(row["score"])
    if row["kind"] == "morph":
        ref, probe = row["subject_id"], row["probe_id"]
        return [ref, probe, row["morph_id"], row["morph_id"], row["attack"], score]
    return [
        row["ref_subject_id"], row["ref_id"], row["subject_id"], row["probe_id"], "", score,
    ]  # fmt: skip
