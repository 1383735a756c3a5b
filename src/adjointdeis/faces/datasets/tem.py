"""The .tem landmark template of PsychoMorph and WebMorph.

A text file: the number of points, one `x y` per line, the number of curves, and for each curve
three lines: open (0) or closed (1), the number of points, their indices. FRLL's templates have 189
points, of which 0 and 1 are the pupils.

Reference:
    | webmorphR: Reproducible Stimuli (DeBruine, 2022)
    | https://debruine.github.io/webmorphR/
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adjointdeis.faces.image_io import AnyPath
from adjointdeis.files import read_text, write_atomically


class TemplateError(ValueError):
    """The file is not a .tem template."""


@dataclass(frozen=True)
class Template:
    """Landmarks of one image.

    Attributes:
        points: (P, 2) float64 (x, y) in pixels of the photograph.
        curves: Indices of the points of each curve.
        closed: Whether each curve is closed.
    """

    points: np.ndarray
    curves: tuple[tuple[int, ...], ...]
    closed: tuple[bool, ...]


def read_tem(path: AnyPath | str) -> Template:
    """Reads a .tem file.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: No such file.
        TemplateError: Not a template; the message names file and line.
    """
    path = Path(path) if isinstance(path, str) else path
    if not path.is_file():
        raise FileNotFoundError(f"landmark template {path}: no such file")
    lines = read_text(path, TemplateError).split("\n")
    rows = [(i + 1, line.split()) for i, line in enumerate(lines) if line.strip()]
    cursor = iter(rows)

    def numbers(what: str, kind: type, count: int | None) -> list:
        number, fields = next(cursor, (len(lines), []))
        try:
            values = [kind(field) for field in fields]
        except ValueError:
            values = []
        if not values or (count is not None and len(values) != count):
            raise TemplateError(
                f"{path}, line {number}: expected {what}, found {' '.join(fields)[:40]!r}"
            )
        return values

    (total,) = numbers("the number of points", int, 1)
    if total < 3:
        raise TemplateError(f"{path}: {total} points, expected at least 3 points")
    xy = np.array([numbers("a point 'x y'", float, 2) for _ in range(total)])
    if not np.isfinite(xy).all():
        raise TemplateError(f"{path}: a point is not finite")
    curves, closed = [], []
    for _ in range(numbers("the number of curves", int, 1)[0] if len(rows) > total + 1 else 0):
        closed.append(bool(numbers("0 (open) or 1 (closed)", int, 1)[0]))
        (length,) = numbers("the number of points of a curve", int, 1)
        indices = numbers(f"{length} indices", int, length)
        if min(indices) < 0 or max(indices) >= total:
            raise TemplateError(f"{path}: a curve refers to a point beyond {total - 1}")
        curves.append(tuple(indices))
    return Template(xy, tuple(curves), tuple(closed))


def write_tem(path: Path | str, points: np.ndarray) -> None:
    """Writes points (P, 2) as a template without curves, atomically."""
    rows = "\n".join(f"{x:.4f}\t{y:.4f}" for x, y in np.asarray(points, np.float64))
    text = f"{len(points)}\n{rows}\n0\n"
    write_atomically(Path(path), text)
