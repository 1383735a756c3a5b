"""Score matrices of numpy: rows are probes, columns are references, labels beside them.

`scores.npy` with two label tables, or `scores.npz` with the array `scores` alone and the same two.
A label table is a CSV with a header, one line per row or column of the matrix: `subject_id` and
optionally `image_id`; morphs have `morph_id`, `subject_a`, `subject_b`, further contributors as
`subject_c` and so on, and optionally `attack`. NaN is a failure to acquire.

A morph is compared with its contributors only, on either side; an image with itself is no
comparison; of a symmetric matrix of one list of images every pair is taken once.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import Labels, Rows, one_path
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.storage import check_header
from adjointdeis.files import read_arrays, read_table
from adjointdeis.texts import canonical

_COLUMNS = ("subject_id", "image_id", "morph_id", "attack")
_OF_MORPH = re.compile("subject_[a-z]")


def read(paths: Sequence[Path], labels: Labels) -> ScoreTable:
    """Reads [matrix, labels of the rows, labels of the columns].

    Raises:
        ScoreError: shapes that differ, a label table without the columns, an object array.
    """
    expected = "scores.npy or .npz, labels of its rows, labels of its columns"
    matrix, first, second = one_path(paths, expected, count=3)
    scores = _array(matrix)
    probes, references = _labels(first), _labels(second)
    if scores.shape != (len(probes), len(references)):
        raise ScoreError(
            f"{matrix}: shape {scores.shape}, but {first} names {len(probes)} rows and {second} "
            f"{len(references)} columns"
        )
    direction = labels.direction(matrix)
    one_list = first == second or probes == references
    # Of an asymmetric matrix both triangles count; rounding makes none asymmetric.
    once = one_list and np.allclose(scores, scores.T, rtol=1e-5, atol=1e-6, equal_nan=True)
    rows = Rows(matrix, labels, direction)
    for i, probe in enumerate(probes):
        for j, reference in enumerate(references):
            if (i == j and one_list) or (once and j > i):
                continue
            morph, other = (probe, reference) if probe.get("morph_id") else (reference, probe)
            sides = (probe.get("image_id") or f"row {i + 1}",
                     reference.get("image_id") or f"column {j + 1}")  # fmt: skip
            value = float(scores[i, j])
            score = {"status": "fta"} if np.isnan(value) else {"score": value}
            if morph.get("morph_id"):
                subject = other.get("subject_id")
                # A morph is the reference, whichever side it is on; two morphs are no comparison.
                if other.get("morph_id") or subject not in _contributors(morph):
                    continue
                rows.morph(
                    i + 1,
                    morph_id=morph["morph_id"],
                    attack=morph.get("attack") or labels.attack,
                    subject_id=subject,
                    probe_id=sides[morph is probe],
                    **score,
                )
            else:
                if reference.get("image_id") and sides[0] == sides[1]:
                    continue
                people = probe["subject_id"], reference["subject_id"]
                rows.comparison(i + 1, *people, probe_id=sides[0], ref_id=sides[1], **score)
    return rows.table()


def _contributors(morph: Mapping[str, str]) -> list[str]:
    return [who for name, who in morph.items() if _OF_MORPH.fullmatch(name) and who]


def _array(path: Path) -> np.ndarray:
    arrays = read_arrays(path, ScoreError)
    found = arrays.get("", arrays.get("scores"))
    if found is None:
        raise ScoreError(
            f"{path}: not a matrix of numbers; expected .npy, or .npz with an array named scores"
        )
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise ScoreError(f"{path}: {found.dtype} of shape {found.shape}, expected a matrix")
    return found.astype(np.float64)


def _labels(path: Path) -> list[dict[str, str]]:
    header, lines = read_table(path, ScoreError)
    morphs = [name for name in header if _OF_MORPH.fullmatch(name)]
    check_header(path, header, (), (*_COLUMNS, *morphs) if "morph_id" in header else _COLUMNS[:2])
    found = []
    for line, row in lines:
        found.append({k: canonical(v) for k, v in row.items()})
        if found[-1].get("morph_id"):
            if len(_contributors(found[-1])) < 2:
                raise ScoreError(f"{path}:{line}: a morph needs subject_a and subject_b")
        elif not found[-1].get("subject_id"):
            raise ScoreError(f"{path}:{line}: no subject_id, and no morph_id either")
    return found
