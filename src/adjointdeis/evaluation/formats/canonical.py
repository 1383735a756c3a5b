"""The project's own long table, in the interface of the other formats."""

from collections.abc import Sequence
from pathlib import Path

from adjointdeis.evaluation.formats.text import Labels, one_path
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.storage import read_scores, write_scores


def read_one(path: Path, labels: Labels) -> ScoreTable:
    """A canonical file; `labels` are not needed, the file says it."""
    return read_scores(path)


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes one canonical file, CSV or Parquet by suffix."""
    write_scores(table, one_path(paths, "scores.csv or scores.parquet")[0])
