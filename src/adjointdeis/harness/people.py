"""Who is in a benchmark: sexes from FRLL's table or the embedded one."""

import csv
from pathlib import Path

from adjointdeis.faces.datasets.folder import DatasetError
from adjointdeis.faces.datasets.frll import read_info


def read_sexes(path: Path | str) -> dict[str, str]:
    """Sex by subject, from ``subject_id,sex`` columns or FRLL's ``london_faces_info.csv``.

    Raises:
        DatasetError: Neither has the columns.
    """
    path = Path(path)
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        if {"subject_id", "sex"} <= set(reader.fieldnames or ()):
            return {row["subject_id"]: row["sex"] for row in reader}
    found = {subject: str(entry["gender"]) for subject, entry in read_info(path).items()}
    if not found:
        raise DatasetError(f"{path}: no subject in it")
    return found
