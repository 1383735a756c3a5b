"""Files of the MMPMR reference scripts (dasec/mvr): semicolons, similarity scores, no header.

Morphs: `morph; subject; sample; score`. Bona fide: `subject1; sample1; subject2; sample2; score`,
mated where the subjects are equal; the first is taken for the reference. A first line of these
names is passed over.

References:
    | Morphing Vulnerability Reporting
    | https://github.com/dasec/mvr
"""

from collections.abc import Sequence
from pathlib import Path

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    expect,
    number,
    only,
    refuse_failures,
    score_lines,
    write_lines,
)
from adjointdeis.evaluation.scores import ScoreTable

MORPH_FIELDS = ("morph", "subject", "sample", "score")
BONA_FIDE_FIELDS = ("subject1", "sample1", "subject2", "sample2", "score")


def read_one(path: Path, labels: Labels) -> ScoreTable:
    """A file of morphs (four fields), of bona fide comparisons (five), or of both.

    Raises:
        ScoreError: a line with another number of fields; a stated direction but similarity.
    """
    if labels.score_type == "dissimilarity":
        raise ScoreError(f"{path}: files of this format hold similarities by definition")
    rows = Rows(path, labels, "similarity")
    headers = (MORPH_FIELDS, BONA_FIDE_FIELDS)
    for line, fields in score_lines(path, *headers, delimiter=";", quotechar="|"):
        if len(fields) == len(BONA_FIDE_FIELDS):
            ref_subject, ref, subject, probe, text = fields
            score = number(path, line, text)
            rows.comparison(line, subject, ref_subject, probe_id=probe, ref_id=ref, score=score)
            continue
        expect(path, line, fields, MORPH_FIELDS)
        morph, subject, probe, text = fields
        score = number(path, line, text)
        rows.morph(line, morph_id=morph, subject_id=subject, probe_id=probe, score=score)
    return rows.table()


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes the morphs to the first path and, if given, bona fide comparisons to the second.

    Raises:
        ScoreError: several systems, attacks or policies; dissimilarities; failed comparisons.
    """
    only(table, "system")
    refuse_failures(table)
    if "dissimilarity" in table.unique("score_type"):
        raise ScoreError("this format holds similarities only; negate the scores yourself")
    morphs = table.select(kind="morph")
    for column in ("attack", "probe_policy"):
        only(morphs, column)
    bona_fide = table.select(kind=("mated", "nonmated"))
    if len(bona_fide) and len(paths) < 2:
        raise ScoreError("the table has bona fide comparisons; give a second file for them")
    names = ("morph_id", "subject_id", "probe_id", "score")
    write_lines(paths[0], _lines(morphs, names))
    if len(paths) > 1:
        names = ("ref_subject_id", "ref_id", "subject_id", "probe_id", "score")
        write_lines(paths[1], _lines(bona_fide, names))


def _lines(table: ScoreTable, names: Sequence[str]) -> list[str]:
    columns = [table[name].tolist() for name in names]
    lines = []
    for row in zip(*columns, strict=True):
        cells = [str(cell) if isinstance(cell, str) else repr(cell) for cell in row]
        lines.append("; ".join(f"|{c}|" if ";" in c else c for c in cells))
    return lines
