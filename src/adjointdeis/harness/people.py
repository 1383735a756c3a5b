"""Who is in a benchmark: sexes and groups from FRLL's table or a table of one's own."""

from pathlib import Path

from adjointdeis.evaluation import Subjects, read_subjects
from adjointdeis.faces.datasets.folder import DatasetError
from adjointdeis.faces.datasets.frll import INFO_FILE, read_info
from adjointdeis.files import read_table


def read_people(path: Path | str) -> Subjects:
    """Sex, group and age by subject: ``subject_id,sex,...``, or ``london_faces_info.csv``.

    Raises:
        ScoreError, DatasetError: No such file, or neither has the columns; names file and line.
    """
    path = Path(path)
    header, _ = read_table(path, DatasetError)
    if "subject_id" in header:
        return read_subjects(path)
    found = read_info(path)
    if not found:
        raise DatasetError(f"{path}: no subject in it")
    names = {"sex": "gender", "group": "ethnicity", "age": "age"}
    return Subjects.from_rows(
        {"subject_id": i, **{ours: entry[theirs] or "" for ours, theirs in names.items()}}
        for i, entry in found.items()
    )


def people_beside(root: Path) -> Subjects | None:
    """The table ``subjects.csv`` or FRLL's in a folder of faces or beside it, if there is one."""
    for folder in (root, root.parent):
        for name in ("subjects.csv", INFO_FILE):
            if (folder / name).is_file():
                return read_people(folder / name)
    return None
