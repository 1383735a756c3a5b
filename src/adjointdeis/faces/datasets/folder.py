"""A folder or zip archive of faces named `<subject>_<capture>.<suffix>`, such as `001_03.jpg`."""

import hashlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adjointdeis.faces.image_io import IMAGE_SUFFIXES, AnyPath
from adjointdeis.files import read_bytes
from adjointdeis.texts import LOOKALIKE, canonical, confusable

NAME = re.compile(r"^(?P<subject>[A-Za-z]*\d{1,6})_(?P<capture>\d{2})$")
"""Subject, underscore, two-digit capture: 03 is neutral and 08 smiling, frontal, in FRLL."""

NEUTRAL, SMILING = "03", "08"


# Images that phones and cameras write and this project does not read.
OTHER_IMAGES = (
    ".avif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".gif", ".psd", ".tga", ".svg", ".pdf",
    ".ppm", ".pgm", ".pnm", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2",
)  # fmt: skip


# What may lie beside an image under its name.
BESIDE_IMAGES = (".tem", ".txt", ".json", ".csv", ".pts", ".npy", ".npz", ".xml", ".mat", ".md")


class LeftOutWarning(UserWarning):
    """Images that a folder holds and its reader does not take, with the reasons."""


class OnePictureWarning(UserWarning):
    """A person has one picture as two captures."""


class DatasetError(ValueError):
    """A data set is not what its loader expects; the message lists what was found."""


@dataclass(frozen=True)
class SubjectImages:
    """One person.

    Attributes:
        id: As in the file names, for example `001`.
        images: Image file per capture, for example {"03": ..., "08": ...}.
        templates: Landmark template (.tem) per capture; may be empty.
        gender: `female`, `male`, or None where unknown.
        ethnicity: As the data set says, lower case, or None.
        age: Years, or None.
    """

    id: str
    images: Mapping[str, AnyPath]
    templates: Mapping[str, AnyPath]
    gender: str | None = None
    ethnicity: str | None = None
    age: float | None = None


@dataclass(frozen=True)
class FaceDataset:
    """Subjects in the order of their ids.

    Attributes:
        name: For tables and provenance.
        root: Where it was read from.
        subjects: All subjects.
        licence: Licence of the images, one line.
    """

    name: str
    root: Path
    subjects: tuple[SubjectImages, ...]
    licence: str = "unknown"

    @property
    def ids(self) -> tuple[str, ...]:
        """Subject ids."""
        return tuple(subject.id for subject in self.subjects)

    @cached_property
    def _contents(self) -> dict[str, str]:
        """SHA-256 of every image file by subject and capture."""
        return {
            f"{subject.id}_{capture}": hashlib.sha256(read_bytes(path, DatasetError)).hexdigest()
            for subject in self.subjects
            for capture, path in sorted(subject.images.items())
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every subject, capture and image file: which faces these are.

        Thresholds belong to a data set, and are refused for one with another fingerprint.
        """
        lines = (f"{name} {content}\n" for name, content in self._contents.items())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def refuse_one_picture_twice(self) -> None:
        """Refuses one picture of two people, and warns of two names for one picture of a person.

        Compared with itself it would be the best of all impostors, or of all probes.

        Raises:
            DatasetError: Naming both.
        """
        names: dict[str, str] = {}
        twice = []
        for name, content in self._contents.items():
            if (other := names.setdefault(content, name)) == name:
                continue
            if other.rpartition("_")[0] != name.rpartition("_")[0]:
                raise DatasetError(
                    f"{self.root}: {other} and {name} are one picture, and comparing it with "
                    "itself says nothing of two people; leave one of the two out"
                )
            twice.append(f"{other} and {name}")
        if twice:
            warnings.warn(
                f"{self.root}: {len(twice)} people have one picture under two names, such as "
                f"{twice[0]}: it is no other probe than the source",
                OnePictureWarning,
                stacklevel=2,
            )

    def subject(self, subject_id: str) -> SubjectImages:
        """The subject of an id.

        Raises:
            KeyError: Unknown id; the message names it and the data set.
        """
        for subject in self.subjects:
            if subject.id == subject_id:
                return subject
        raise KeyError(f"{self.name} at {self.root} has no subject {subject_id}")

    def require(self, captures: tuple[str, ...], templates: tuple[str, ...] = ()) -> None:
        """Raises `DatasetError` listing every subject that lacks an image or a template."""
        problems = [
            f"{subject.id}_{capture} ({what})"
            for subject in self.subjects
            for what, wanted, present in (
                ("image", captures, subject.images),
                ("template .tem", templates, subject.templates),
            )
            for capture in wanted
            if capture not in present
        ]
        if problems:
            raise DatasetError(
                f"{self.name} at {self.root}: {len(problems)} files are missing: "
                f"{', '.join(problems)}"
            )


def load_folder(root: Path | str, name: str = "folder") -> FaceDataset:
    """Any folder or zip archive with images named `<subject>_<capture>`, at any depth.

    Archives inside of the folder are read too, without unpacking. Resource forks of macOS
    (`__MACOSX`, `._*`) and files that are no images are ignored; images that are not taken are
    counted in a `LeftOutWarning`.

    Args:
        root: Folder or .zip file.
        name: Name of the data set.

    Raises:
        FileNotFoundError: `root` does not exist.
        DatasetError: No image matches, two different files claim the same subject and capture, or
            two subjects differ in case or leading zeros only, or a link leads nowhere.
    """
    root = Path(root)
    images: dict[str, dict[str, AnyPath]] = {}
    templates: dict[str, dict[str, AnyPath]] = {}
    clashes = []
    left_out: dict[str, list[str]] = {}
    for path in walk(root):
        stem, suffix = canonical(Path(path.name).stem), Path(path.name).suffix.lower()
        match = NAME.match(stem)
        if match is None or suffix not in (*IMAGE_SUFFIXES, ".tem"):
            if reason := why_left_out(path.name, "not named <subject number>_<two digits>"):
                left_out.setdefault(reason, []).append(path.name)
            continue
        table = templates if suffix == ".tem" else images
        captures = table.setdefault(match["subject"], {})
        first = captures.setdefault(match["capture"], path)
        if first is path:
            continue
        if read_bytes(first, DatasetError) != read_bytes(path, DatasetError):
            clashes.append(f"{first} and {path}")
    if clashes:
        raise DatasetError(
            f"{root}: different files have the same name: {'; '.join(clashes)}; keep one of each"
        )
    if not images:
        raise DatasetError(
            f"{root}: no image is named <subject>_<capture>.jpg or .png, a number, or letters and "
            "a number, and two digits, 03 for neutral and 08 for smiling (001_03.jpg, anna1_08.png)"
            + (f"; it has {_said_of(left_out)}" if left_out else "")
        )
    warn_left_out(root, left_out)
    keys: dict[str, str] = {}
    for subject in images:
        if (other := keys.setdefault(confusable(subject), subject)) != subject:
            raise DatasetError(
                f"{root}: subjects {other} and {subject} differ in {LOOKALIKE} only; write one "
                "person one way, and rename one of them if they are two"
            )
    subjects = (SubjectImages(key, images[key], templates.get(key, {})) for key in sorted(images))
    return FaceDataset(name, root, tuple(subjects))


def why_left_out(name: str, otherwise: str) -> str:
    """Why a file that looks like an image is not taken; empty for files that are no images.

    Args:
        name: The file's name.
        otherwise: The reason for an image in a format that is read.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return otherwise
    if suffix in OTHER_IMAGES or (NAME.match(canonical(path.stem)) and suffix not in BESIDE_IMAGES):
        return f"{suffix or 'a file without suffix'} is not read, convert it to PNG"
    return ""


def warn_left_out(root: AnyPath | str, left_out: Mapping[str, list[str]]) -> None:
    """Warns of the files of each reason, counted; silent where there are none."""
    if left_out:
        warnings.warn(f"{root}: left out {_said_of(left_out)}", LeftOutWarning, stacklevel=3)


def _said_of(left_out: Mapping[str, list[str]]) -> str:
    """Counts, examples and reasons on one line."""
    parts = []
    for reason, names in left_out.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        parts.append(f"{len(names)} ({reason}): {', '.join(names[:3])}{more}")
    return "; ".join(parts)


def walk(root: Path) -> Iterator[AnyPath]:
    """Files below a folder or inside a zip archive, sorted, loose files before archived ones.

    Raises:
        FileNotFoundError: `root` does not exist.
        DatasetError: `root` is a file but no zip archive.
    """
    if not root.exists():
        raise FileNotFoundError(f"data root {root}: no such folder or zip archive")
    if root.is_file():
        if not zipfile.is_zipfile(root):
            raise DatasetError(f"data root {root}: neither a folder nor a readable zip archive")
        yield from _walk_zip(_archive(root))
        return
    files = sorted(path for path in root.rglob("*") if path.is_file())
    if dead := [path for path in root.rglob("*") if path.is_symlink() and not path.exists()]:
        raise DatasetError(
            f"{min(dead)}: a link to what is not there ({len(dead)} such in {root}); remove it, or "
            "fetch what it stands for"
        )
    files = [path for path in files if not _is_litter(path.relative_to(root).parts)]
    yield from (path for path in files if path.suffix.lower() != ".zip")
    for path in files:
        if path.suffix.lower() == ".zip":
            yield from _walk_zip(_archive(path))


def _archive(path: Path) -> zipfile.Path:
    try:
        return zipfile.Path(path)
    # A directory that lies brings about whatever its decoding does.
    except Exception as error:
        raise DatasetError(f"{path}: the zip archive is truncated or damaged ({error})") from None


def _walk_zip(folder: zipfile.Path) -> Iterator[zipfile.Path]:
    for path in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if _is_litter((path.name,)):
            continue
        if path.is_dir():
            yield from _walk_zip(path)
        else:
            yield path


def _is_litter(parts: tuple[str, ...]) -> bool:
    return any(part == "__MACOSX" or part.startswith(".") for part in parts)
