"""The command line of a study, and what it leaves in its folder."""

import argparse
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.storage import write_json
from adjointdeis.files import write_atomically


def parser(description: str, file: str) -> argparse.ArgumentParser:
    """A parser with the first line of a description, and ``--out``, by default the study's folder.

    Args:
        description: the study's ``__doc__``.
        file: its ``__file__``.
    """
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, default=Path(file).parent, help="where results go")
    return made


def started(command: argparse.ArgumentParser) -> argparse.Namespace:
    """The options of this run, torch on one thread: numbers of a study are those of one core."""
    import torch

    torch.set_num_threads(1)
    return command.parse_args()


def publish(folder: Path, text: str, record: Any = None, name: str = "result") -> None:
    """Writes ``name.md``, and ``name.json`` where there is a record, and prints the text.

    Args:
        folder: ``--out`` of the study.
        text: Markdown.
        record: what the text was made of, as JSON.
        name: of both files.
    """
    if record is not None:
        write_json(record, folder / f"{name}.json")
    write_atomically(folder / f"{name}.md", text + "\n")
    print(text)
