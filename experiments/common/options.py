"""The command line of a study."""

import argparse
from pathlib import Path


def parser(description: str, file: str) -> argparse.ArgumentParser:
    """A parser with the first line of a description, and ``--out``, by default the study's folder.

    Args:
        description: the study's ``__doc__``.
        file: its ``__file__``.
    """
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("--out", type=Path, default=Path(file).parent, help="where results go")
    return made
