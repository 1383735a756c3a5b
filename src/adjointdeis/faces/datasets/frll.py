"""The Face Research Lab London Set: 102 adults, frontal, neutral (03) and smiling (08).

Read as it is downloaded: the official zip archives (with `__MACOSX` and nested folders), folders
unpacked from them, or webmorphR's flat folder of images and .tem templates. Ages, genders and
ethnic groups come from `london_faces_info.csv`, whose columns changed names between versions.

Obtain it from https://doi.org/10.6084/m9.figshare.5047666 (CC BY 4.0). Nothing is downloaded here.
"""

import dataclasses
from pathlib import Path

from adjointdeis.faces.datasets.folder import (
    NEUTRAL,
    SMILING,
    DatasetError,
    FaceDataset,
    load_folder,
    walk,
)
from adjointdeis.faces.image_io import AnyPath
from adjointdeis.files import read_table
from adjointdeis.texts import canonical

INFO_FILE = "london_faces_info.csv"
LICENCE = "CC BY 4.0 (DeBruine & Jones 2017, doi:10.6084/m9.figshare.5047666)"
_COLUMNS = {
    "id": ("face_id", "id"),
    "gender": ("face_gender", "face_sex", "gender", "sex"),
    "ethnicity": ("face_eth", "face_ethnicity", "ethnicity"),
    "age": ("face_age", "age"),
}
_GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}


def load_frll(root: Path | str, need_templates: bool = True, need_info: bool = True) -> FaceDataset:
    """FRLL's subjects with neutral and smiling images, templates of the neutral ones, and groups.

    Args:
        root: Folder or zip archive; files may lie at any depth.
        need_templates: Demand a .tem for every neutral image.
        need_info: False takes a folder without the info file for photographs of one's own.

    Raises:
        FileNotFoundError: `root` does not exist.
        DatasetError: No images, no info file, or files missing for some subjects (all are listed).
    """
    root = Path(root)
    dataset = load_folder(root, "FRLL")
    info = next((path for path in walk(root) if path.name == INFO_FILE), None)
    if info is None and not need_info:
        dataset = dataclasses.replace(dataset, name="folder")
        dataset.require((NEUTRAL, SMILING))
        return dataset
    if info is None:
        raise DatasetError(
            f"FRLL at {root}: {INFO_FILE} is missing; the pair rule needs the genders. It is "
            "part of doi:10.6084/m9.figshare.5047666; for photographs of your own write one with "
            "the columns face_id and face_gender"
        )
    people = read_info(info)
    unknown = [subject.id for subject in dataset.subjects if subject.id not in people]
    if unknown:
        raise DatasetError(f"{info}: no row for the subjects {', '.join(unknown)}")
    subjects = tuple(
        dataclasses.replace(subject, **people[subject.id]) for subject in dataset.subjects
    )
    dataset = dataclasses.replace(dataset, subjects=subjects, licence=LICENCE)
    dataset.require((NEUTRAL, SMILING), (NEUTRAL,) if need_templates else ())
    return dataset


def read_info(path: AnyPath | str) -> dict[str, dict[str, str | float | None]]:
    """Gender, ethnicity and age per three-digit id; ids `X001`, `001` and `1` are the same.

    Raises:
        DatasetError: A column is missing, or a gender is neither female nor male, or a subject is
            listed twice; names file and line.
    """
    path = Path(path) if isinstance(path, str) else path
    header, lines = read_table(path, DatasetError)
    column: dict[str, str | None] = {}
    for field, names in _COLUMNS.items():
        column[field] = next((name for name in names if name in header), None)
        if column[field] is None and field in ("id", "gender"):
            raise DatasetError(
                f"{path}: no column {' or '.join(names)}; the columns are {', '.join(header)}"
            )
    people: dict[str, dict[str, str | float | None]] = {}
    lines_of: dict[str, int] = {}
    for number, row in lines:
        found = {k: canonical(row.get(str(name), "")) for k, name in column.items()}
        subject = found["id"].lstrip("Xx").zfill(3)
        first = lines_of.setdefault(subject, number)
        if first != number:
            raise DatasetError(
                f"{path}:{number}: subject {found['id']} is listed twice, first in line {first}; "
                "keep one of the lines"
            )
        word = found["gender"].lower()
        if word not in _GENDERS:
            raise DatasetError(f"{path}:{number}: gender {word!r}, expected female or male")
        people[subject] = {
            "gender": _GENDERS[word],
            "ethnicity": found["ethnicity"].lower() or None,
            "age": _number(found["age"]),
        }
    if not people:
        raise DatasetError(f"{path}: no subject in this file")
    return people


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
