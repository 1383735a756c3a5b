"""Columns of a score table: directions, canonical text, and codes of equal rows."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.texts import LOOKALIKE, canonical, confusable

SCORE_TYPES = ("similarity", "dissimilarity")


def as_scores(scores: Any) -> np.ndarray:
    """Scores as float64; what a masked array hides is a failed comparison, NaN.

    Raises:
        ScoreError: what is no number.
    """
    try:
        return np.ma.filled(np.ma.asarray(scores, np.float64), np.nan)
    except (TypeError, ValueError) as error:
        raise ScoreError(f"scores: expected numbers, NaN where one failed ({error})") from None


def two_spellings(values: np.ndarray, seen: dict[str, str]) -> tuple[str, str] | None:
    """A value and another one, of these or in `seen`, that differ in `LOOKALIKE` alone."""
    for value in map(str, np.unique(values)):
        if (other := seen.setdefault(confusable(value), value)) != value:
            return value, other
    return None


def spellings(
    columns: Mapping[str, np.ndarray], groups: Iterable[Sequence[str]]
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Names of people, attacks or systems that differ in `LOOKALIKE` alone, which a table refuses.

    They are one more often than two: such a person would be an impostor of himself, contribute to
    a morph twice, or be drawn twice in the bootstrap; such an attack would be half of one.

    Args:
        columns: Texts, all of one length.
        groups: Columns that name the same things.

    Yields:
        Column, shape (R,) bool of the rows with the second spelling, and what was expected.
    """
    for names in groups:
        seen: dict[str, str] = {}
        for name in names:
            if found := two_spellings(columns[name], seen):
                yield name, columns[name] == found[0], (
                    f"it and {found[1]!r} differ in {LOOKALIKE} only; write one name one way, and "
                    "rename one of them if they are two"
                )  # fmt: skip


def oriented(scores: Any, score_type: str) -> np.ndarray:
    """Raw scores turned so that larger means more alike, float64; NaN (failed) stays.

    Raises:
        ScoreError: an unknown direction, or an infinite score.
    """
    _require_direction(score_type)
    array = as_scores(scores)
    if np.isinf(array).any():
        raise ScoreError("a score is infinite; mark a failed comparison with NaN")
    return -array if score_type == "dissimilarity" else array


def oriented_tau(tau: float, score_type: str) -> float:
    """A threshold turned like the scores.

    Raises:
        ScoreError: an unknown direction, or a threshold that is not a finite number.
    """
    _require_direction(score_type)
    try:
        value = float(tau)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ScoreError(f"threshold {tau!r}: expected a finite number")
    return -value if score_type == "dissimilarity" else value


def _require_direction(score_type: str) -> None:
    """Refuses anything but `similarity` and `dissimilarity`, such as `distance`."""
    if score_type not in SCORE_TYPES:
        raise ScoreError(f"score_type {score_type!r}: expected {' or '.join(SCORE_TYPES)}")


def text_column(values: Any) -> np.ndarray:
    """Labels as an array of canonical text: spellings of one id are equal wherever they meet.

    Args:
        values: text, or labels of another kind, which become text; any shape.

    Returns:
        fixed-width `str_` where that is about as large as the text itself, else Python objects:
        in a fixed width one id of 4,000 characters costs 16 kB in every row.
    """
    if is_scalar(values):
        return np.array(_text(values))
    if isinstance(values, np.ndarray):
        if values.ndim != 1 or (values.dtype.kind == "U" and _is_canonical(values)):
            return values
        values = values.tolist()
    known: dict[Any, str] = {}
    flat = []
    for value in values:
        if (found := known.get(value)) is None:
            found = known[value] = _text(value)
        flat.append(found)
    widest = max(map(len, known.values()), default=0)
    size = sum(map(len, flat)) + 8 * len(flat)
    return np.array(flat, dtype=np.str_ if widest * len(flat) <= 4 * size else object)


def _text(value: Any) -> str:
    """A label as text; empty for None and for what data frames hold in an empty cell."""
    # A data frame makes decimals of ids when one cell is empty: 7.0 is the 7 of another column.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = canonical(str(value))
    absent = not isinstance(value, str) and text in ("None", "nan", "<NA>", "NaT")
    return "" if absent else text


def is_scalar(value: Any) -> bool:
    return isinstance(value, str) or not hasattr(value, "__len__")


def _is_canonical(array: np.ndarray) -> bool:
    """Whether fixed-width text is ASCII without blanks, as nearly every id is; fast."""
    if not array.size or not array.dtype.itemsize:
        return True
    points = np.ascontiguousarray(array).view(np.uint32)
    return bool(((points == 0) | ((points > 32) & (points < 127))).all())


def codes(*columns: np.ndarray) -> tuple[np.ndarray, int]:
    """One integer per row, equal where all columns are equal, sorted as the columns sort.

    Returns:
        the codes 0..n-1, shape of the columns, and n.
    """
    combined = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, inverse = np.unique(column, return_inverse=True)
        # Compressing after every column keeps the mixed radix below 2^63.
        _, combined = np.unique(combined * len(values) + inverse, return_inverse=True)
    return combined, int(combined.max()) + 1 if len(combined) else 0
