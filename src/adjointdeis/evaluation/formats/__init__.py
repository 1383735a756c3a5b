"""Other programs' score files: each format family is a module with `read` and `write`.

`read(paths, labels)` gives a checked `ScoreTable`, `write(table, paths)` the files. What a format
does not say (system, direction, attack, probe policy) comes from `Labels`. Errors name file and
line. Lists of images and pairs, which are not scores, are in `lists.py`.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.formats.text import Labels
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.storage import metadata_with

__all__ = ["FORMATS", "Format", "Labels", "read", "write"]


@dataclass(frozen=True)
class Format:
    """A format family.

    Args:
        name: what `--from` and `--to` call it.
        module: of this package, which reads and writes it.
        files: the files that it consists of, in words.
    """

    name: str
    module: str
    files: str

    def load(self) -> ModuleType:
        """The module, imported on first use."""
        return importlib.import_module(f".{self.module}", __name__)


FORMATS = {
    f.name: f
    for f in (
        Format("canonical", "canonical", "scores.csv or scores.parquet, with its sidecar JSON"),
        Format("mvr", "mvr", "`morph; subject; sample; score`, or with five fields bona fide"),
        Format("map", "attack_potential", "a folder with one TSV per recogniser, FRS_Info.json"),
        Format("bob", "bob", "4 or 5 columns, comparison CSV, or PAD CSV: seen from the file"),
        Format("nist", "nist", "FATE MORPH logs of comparison, single or differential detection"),
        Format("pyeer", "pyeer", "two files, genuine then impostor, score in the last column"),
        Format("revelio", "revelio", "two files, bona fide then morph, one score per line"),
        Format("generic", "generic", "any table with a header; --columns names its columns"),
        Format("matrix", "matrix", "scores.npy or .npz, labels of its rows, of its columns (CSV)"),
    )
}


def read(name: str, paths: Sequence[str | Path], labels: Labels) -> ScoreTable:
    """Reads score files of a named format.

    Args:
        name: Key of `FORMATS`.
        paths: The files, in the order that the format wants.
        labels: What the files do not say: system, attack, direction of the scores.

    Raises:
        EvaluationError: unknown format; the format's own errors name file and line.
    """
    function: Callable[..., ScoreTable] = _format(name).load().read
    found = function([Path(p) for p in paths], labels)
    stated = labels.metadata(found.unique("system"))
    return metadata_with(found, stated) if stated and name != "canonical" else found


def write(name: str, table: ScoreTable, paths: Sequence[str | Path]) -> None:
    """Writes a table in a named format; refuses what the format cannot hold.

    Args:
        name: Key of `FORMATS`.
        table: The scores.
        paths: The files to write, in the order that the format wants.
    """
    _format(name).load().write(table, [Path(p) for p in paths])


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise EvaluationError(f"format {name!r}: expected one of {', '.join(FORMATS)}")
    return FORMATS[name]
