"""Other programs' score files: each format family is a module with `read` and `write`.

`read(paths, labels)` gives a checked `ScoreTable`, `write(table, paths)` the files. What a format
does not say (system, direction, attack, probe policy) comes from `Labels`. Errors name file and
line.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.formats.text import Labels
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.storage import metadata_with

__all__ = ["FORMATS", "Labels", "read", "write"]


FORMATS = {
    **{name: name for name in ("canonical", "mvr", "bob", "nist", "pyeer", "revelio", "generic")},
    "matrix": "matrix",
    "map": "attack_potential",
}
"""Module by the name that `--from` and `--to` take; the help of `convert` says what each holds."""


def read(name: str, paths: Sequence[str | Path], labels: Labels) -> ScoreTable:
    """Reads score files of a named format.

    Args:
        name: Key of `FORMATS`.
        paths: The files, in the order that the format wants.
        labels: What the files do not say: system, attack, direction of the scores.

    Raises:
        EvaluationError: unknown format; the format's own errors name file and line.
    """
    function: Callable[..., ScoreTable] = _format(name).read
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
    _format(name).write(table, [Path(p) for p in paths])


def _format(name: str) -> ModuleType:
    """The module of a format, imported on first use."""
    if name not in FORMATS:
        raise EvaluationError(f"format {name!r}: expected one of {', '.join(FORMATS)}")
    return importlib.import_module(f".{FORMATS[name]}", __name__)
