"""Writes the benchmark that ships with the package: 102 identities, neutral and smiling.

    python -m experiments.mini.faces --out <dir>

The pictures are stored and not rendered on demand because their bits may differ between torch
versions, and a benchmark may not.
"""

import argparse
import os
from pathlib import Path

from adjointdeis.harness.synthetic_people import (
    LANDMARKS,
    NOTICE,
    README,
    Person,
    choose_subjects,
    write_landmarks,
    write_people,
)
from synthetic_faces.pool_spec import GENERATOR_VERSION

__all__ = ["LANDMARKS", "NOTICE", "README", "choose_subjects"]

PER_SEX = 51
TITLE = "Synthetic benchmark faces"
MADE_BY = (
    f"Made by `python -m experiments.mini.faces`, generator version {GENERATOR_VERSION}. The "
    "identity seeds\nare those of the role `test`, which no network of the package was trained or "
    "tuned on."
)


def write_benchmark(
    directory: str | os.PathLike, per_sex: int = PER_SEX, size: int = 64, progress: bool = True
) -> list[Person]:
    """Writes the pictures, landmarks, ``subjects.csv`` and a README; existing files are replaced.

    Args:
        directory: where to.
        per_sex: identities per sex; the released benchmark has 51.
        size: side in pixels.
        progress: show a bar.
    """
    subjects = choose_subjects(per_sex)
    write_people(directory, subjects, size, TITLE, MADE_BY, progress)
    return subjects


def main() -> None:
    """Command line: ``--out`` the folder to write, ``--landmarks`` for theirs alone."""
    parser = argparse.ArgumentParser(description="Write the frozen synthetic benchmark.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--landmarks", action="store_true", help="write the landmarks only")
    arguments = parser.parse_args()
    if arguments.landmarks:
        write_landmarks(arguments.out / LANDMARKS, choose_subjects(PER_SEX))
        return
    subjects = write_benchmark(arguments.out)
    print(f"{arguments.out}: {len(subjects)} subjects, {2 * len(subjects)} pictures")


if __name__ == "__main__":
    main()
