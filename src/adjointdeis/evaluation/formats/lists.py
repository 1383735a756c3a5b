"""Lists that are not scores: triples of morphs, generation lists, labelled images, landmarks.

* SYN-MAD triples: `morph<TAB>bonafide1<TAB>bonafide2`, no header; the bona fides are the source
  images.
* Generation list (DiM, Greedy-DiM): `source_a,source_b,out`, no header.
* SMDD: `image_path,label` with `bonafide` or `attack`.
* Landmark line: `path` then 14 numbers, the box as x1 x2 y1 y2 and five points (left eye, right
  eye, nose, left and right corner of the mouth) as x y.

References:
    | SYN-MAD 2022
    | https://arxiv.org/abs/2208.07337
    | SMDD
    | https://arxiv.org/abs/2203.06691
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    below_header,
    expect,
    number,
    read_fields,
    write_lines,
)

SMDD_LABELS = ("bonafide", "attack")


Found = TypeVar("Found", bound=Sized)


@dataclass(frozen=True)
class Triple:
    """A morph and the two images that it was, or is to be, made from."""

    morph: str
    source_a: str
    source_b: str


@dataclass(frozen=True)
class FaceBox:
    """A face on an image: the box (x1, x2, y1, y2) and five points (x, y), in pixels."""

    path: str
    box: tuple[float, float, float, float]
    points: tuple[tuple[float, float], ...]


def read_triples(path: str | Path) -> list[Triple]:
    """Reads SYN-MAD triples; a morph listed twice is an error."""
    return _triples(Path(path), "\t", (0, 1, 2), ("morph", "bonafide1", "bonafide2"))


def write_triples(triples: Sequence[Triple], path: str | Path) -> None:
    """Writes SYN-MAD triples."""
    write_lines(Path(path), ["\t".join((t.morph, t.source_a, t.source_b)) for t in triples])


def read_generation_list(path: str | Path) -> list[Triple]:
    """Reads `source_a,source_b,out`; an output listed twice is an error."""
    return _triples(Path(path), ",", (2, 0, 1), ("source_a", "source_b", "out"))


def write_generation_list(triples: Sequence[Triple], path: str | Path) -> None:
    """Writes `source_a,source_b,out`."""
    write_lines(Path(path), [",".join((t.source_a, t.source_b, t.morph)) for t in triples])


def read_labels(path: str | Path) -> dict[str, bool]:
    """Reads an SMDD list: image path -> whether it is bona fide; a header line is allowed."""
    path = Path(path)
    found: dict[str, bool] = {}
    names = ("image_path", "label")
    for line, fields in below_header(read_fields(path, delimiter=","), names):
        expect(path, line, fields, names)
        image, label = fields
        if label not in SMDD_LABELS:
            raise ScoreError(f"{path}:{line}: label {label!r}, expected bonafide or attack")
        if image in found:
            raise ScoreError(f"{path}:{line}: image {image!r} is listed twice")
        found[image] = label == "bonafide"
    return _some(found, path)


def write_labels(labels: dict[str, bool], path: str | Path) -> None:
    """Writes an SMDD list with its header."""
    lines = [f"{image},{SMDD_LABELS[not bona_fide]}" for image, bona_fide in labels.items()]
    write_lines(Path(path), ["image_path,label", *lines])


def read_landmarks(path: str | Path) -> list[FaceBox]:
    """Reads landmark lines."""
    path = Path(path)
    names = ["path", "x1", "x2", "y1", "y2"]
    names += [f"{p}_{a}" for p in ("eyeL", "eyeR", "nose", "mouthL", "mouthR") for a in "xy"]
    found = []
    for line, fields in below_header(read_fields(path), names):
        expect(path, line, fields, names)
        x = [number(path, line, text) for text in fields[1:]]
        if x[0] >= x[1] or x[2] >= x[3]:
            raise ScoreError(f"{path}:{line}: the box is empty; expected x1 < x2 and y1 < y2")
        points = tuple((x[i], x[i + 1]) for i in range(4, 14, 2))
        found.append(FaceBox(fields[0], (x[0], x[1], x[2], x[3]), points))
    return _some(found, path)


def write_landmarks(faces: Sequence[FaceBox], path: str | Path) -> None:
    """Writes landmark lines."""
    lines = []
    for face in faces:
        numbers = [*face.box, *(value for point in face.points for value in point)]
        lines.append(" ".join([face.path, *(f"{value:g}" for value in numbers)]))
    write_lines(Path(path), lines)


def _some(found: Found, path: Path) -> Found:
    """What a list holds.

    Raises:
        ScoreError: Nothing: a header alone, or an empty file.
    """
    if not found:
        raise ScoreError(f"{path}: no entry in this file")
    return found


def _triples(
    path: Path, delimiter: str, order: tuple[int, int, int], names: Sequence[str]
) -> list[Triple]:
    found, seen = [], set()
    for line, fields in below_header(read_fields(path, delimiter=delimiter), names):
        expect(path, line, fields, names)
        if "" in fields:
            raise ScoreError(f"{path}:{line}: an empty field; expected {', '.join(names)}")
        triple = Triple(*(fields[i] for i in order))
        if triple.morph in seen:
            raise ScoreError(f"{path}:{line}: {triple.morph!r} is listed twice")
        seen.add(triple.morph)
        found.append(triple)
    return _some(found, path)
