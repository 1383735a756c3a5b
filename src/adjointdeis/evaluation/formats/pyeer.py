"""Files of pyeer: genuine scores and impostor scores, one comparison a line, score last.

References:
    | pyeer
    | https://github.com/manuelaguadomtz/pyeer
"""

from collections.abc import Sequence
from pathlib import Path

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    number,
    one_path,
    only,
    refuse_failures,
    score_lines,
    write_lines,
)
from adjointdeis.evaluation.scores import ScoreTable, concatenate


def read(paths: Sequence[Path], labels: Labels) -> ScoreTable:
    """Reads [genuine, impostor]; the direction must be stated in `labels`.

    With three or more columns the first two are taken for the reference and the probe image.
    Nobody's identity is in these files, so impostor policies and the bootstrap cannot use them.
    """
    genuine, impostor = one_path(paths, "genuine scores, impostor scores", count=2)
    return concatenate(
        [_read_one(genuine, "mated", labels), _read_one(impostor, "nonmated", labels)]
    )


def _read_one(path: Path, kind: str, labels: Labels) -> ScoreTable:
    rows = Rows(path, labels, labels.direction(path))
    for line, fields in score_lines(path, ("score",)):
        named = len(fields) >= 3
        rows.add(
            line,
            kind=kind,
            probe_id=fields[1] if named else f"{path.stem}:{line}",
            ref_id=fields[0] if named else "",
            score=number(path, line, fields[-1]),
        )
    return rows.table()


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes [genuine, impostor] with `reference probe score` where both names are known.

    Raises:
        ScoreError: several systems, failures, or rows that are neither mated nor nonmated.
    """
    files = one_path(paths, "genuine scores, impostor scores", count=2)
    only(table, "system")
    refuse_failures(table)
    if len(table.select(kind=("mated", "nonmated"))) != len(table):
        raise ScoreError("this format holds mated and nonmated comparisons only; select them first")
    for path, kind in zip(files, ("mated", "nonmated"), strict=True):
        lines = []
        for row in table.select(kind=kind).to_rows():
            names = [row["ref_id"], row["probe_id"]]
            known = all(name and " " not in name for name in names)
            lines.append(" ".join([*(names if known else []), repr(row["score"])]))
        write_lines(path, lines)
