"""The project's own long table, in the interface of the other formats."""

from collections.abc import Sequence
from pathlib import Path

from adjointdeis.evaluation.formats.text import Labels, one_path
from adjointdeis.evaluation.scores import ScoreTable, concatenate
from adjointdeis.evaluation.storage import read_scores, write_scores


def read(paths: Sequence[Path], labels: Labels) -> ScoreTable:
    """Reads one or more canonical files as one table; `labels` are not needed, the files say it."""
    return concatenate([read_scores(path) for path in paths])


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes one canonical file, CSV or Parquet by suffix."""
    write_scores(table, one_path(paths, "scores.csv or scores.parquet")[0])
