"""Other programs' score files: each format family is a module that reads, and most write, them.

`read_one(path, labels)` gives a checked `ScoreTable` of a file, `read(paths, labels)` that of files
that belong together, and `write(table, paths)` leaves the files of a table. What a format
does not say (system, direction, attack, probe policy) comes from `Labels`. Errors name file and
line. Lists of images and pairs, which are not scores, are in `lists.py`.
"""

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from adjointdeis import texts
from adjointdeis.evaluation.errors import EvaluationError, ScoreError
from adjointdeis.evaluation.formats.text import Labels
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable, concatenate, joined_metadata

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
        EvaluationError: unknown format; a label that the files contradict; the format's own errors
            name file and line.
    """
    module, files = _format(name), [Path(p) for p in paths]
    if hasattr(module, "read"):
        found = module.read(files, labels)
    else:
        found = concatenate(module.read_one(file, labels) for file in files)
    _refuse_contradicted(found, labels, name)
    return replace(found, metadata=joined_metadata(found, labels.metadata(found.unique("system"))))


def write(name: str, table: ScoreTable, paths: Sequence[str | Path]) -> None:
    """Writes a table in a named format; refuses what the format cannot hold.

    Args:
        name: Key of `FORMATS`.
        table: The scores.
        paths: The files to write, in the order that the format wants.

    Raises:
        ScoreError: what the format cannot hold, or one that is read only.
    """
    module = _format(name)
    if not hasattr(module, "write"):
        raise ScoreError(f"files of the format {name} are read only; write --to canonical")
    module.write(table, [Path(p) for p in paths])


def _refuse_contradicted(table: ScoreTable, labels: Labels, name: str) -> None:
    """Refuses a stated label that rows of the files do not have: they say something else."""
    if labels.columns and name != "generic":
        raise ScoreError(f"--columns is of --from generic; the format {name} has its own columns")
    morph, attack = table["kind"] == "morph", ~np.isin(table["attack"], ("", BONA_FIDE))
    where = {"attack": attack, "probe_policy": morph}
    for column in ("system", "score_type", "kind", "attack", "probe_policy"):
        stated = getattr(labels, column)
        if stated == getattr(Labels, column):
            continue
        wrong = where.get(column, True) & (table[column] != texts.canonical(stated))
        if wrong.any():
            row = int(np.argmax(wrong))
            flag = "--" + column.removesuffix("_policy").replace("_", "-")
            raise ScoreError(
                f"{table.place(row)}: {column} is {str(table[column][row])!r}, and {flag} {stated} "
                f"was stated; files of the format {name} may say it themselves: leave {flag} out, "
                "or correct the file"
            )


def _format(name: str) -> ModuleType:
    """The module of a format, imported on first use."""
    if name not in FORMATS:
        raise EvaluationError(f"format {name!r}: expected one of {', '.join(FORMATS)}")
    return importlib.import_module(f".{FORMATS[name]}", __name__)
