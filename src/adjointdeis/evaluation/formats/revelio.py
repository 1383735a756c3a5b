"""Files of revelio: a detector's scores of bona fide images and of morphs, one score a line.

References:
    | revelio
    | https://github.com/revelio-mad/revelio
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    expect,
    number,
    one_path,
    only,
    refuse_failures,
    score_lines,
    write_lines,
)
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable, concatenate


def read(paths: Sequence[Path], labels: Labels) -> ScoreTable:
    """Reads [bona fide, morph]; the direction must be stated in `labels`."""
    bona_fide, morph = one_path(paths, "bona fide scores, morph scores", count=2)
    return concatenate(
        [_read_one(bona_fide, None, labels), _read_one(morph, labels.attack, labels)]
    )


def _read_one(path: Path, attack: str | None, labels: Labels) -> ScoreTable:
    rows = Rows(path, labels, labels.direction(path))
    for line, fields in score_lines(path, ("score",)):
        expect(path, line, fields, ("score",))
        # The files name no image, so the line stands for it.
        image = f"{path.stem}:{line}"
        rows.image(line, image, attack, score=number(path, line, fields[0]))
    return rows.table()


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes [bona fide, morph].

    Raises:
        ScoreError: several systems or attacks, failures, or rows that are no detection scores.
    """
    files = one_path(paths, "bona fide scores, morph scores", count=2)
    only(table, "system")
    refuse_failures(table)
    if len(table.select(kind="mad")) != len(table):
        raise ScoreError("this format holds detection scores only; select kind=mad first")
    bona = np.isin(table["attack"], ("", BONA_FIDE))
    only(table.where(~bona), "attack")
    for path, mask in zip(files, (bona, ~bona), strict=True):
        write_lines(path, [repr(float(score)) for score in table["score"][mask]])
