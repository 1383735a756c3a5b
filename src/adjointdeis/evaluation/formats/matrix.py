"""Score matrices of numpy: rows are probes, columns are references, labels beside them.

`scores.npy` with two label tables, or `scores.npz` with the array `scores` alone and the same two.
A label table is a CSV with a header, one line per row or column of the matrix: `subject_id` and
optionally `image_id`; references that are morphs have `morph_id`, `subject_a`, `subject_b` and
optionally `attack`. NaN is a failure to acquire.

A morph is compared with its contributors' probes only; an image with itself is no comparison; of a
symmetric matrix of one list of images every pair is taken once.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import Labels, Rows, kind_by_ids, one_path
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.files import canonical, read_arrays, read_table


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
    once = first == second or probes == references
    rows = Rows(matrix, by_ids=True)
    for i, probe in enumerate(probes):
        for j, reference in enumerate(references):
            if once and (j >= i):
                continue
            subject, image = probe["subject_id"], probe.get("image_id") or f"row {i + 1}"
            row = {"subject_id": subject, "probe_id": image, "system": labels.system,
                   "score_type": direction}  # fmt: skip
            value = float(scores[i, j])
            row |= {"status": "fta"} if np.isnan(value) else {"score": value}
            if reference.get("morph_id"):
                if subject not in (reference.get("subject_a"), reference.get("subject_b")):
                    continue
                row |= {"kind": "morph", "morph_id": reference["morph_id"],
                        "attack": reference.get("attack") or labels.attack,
                        "probe_policy": labels.probe}  # fmt: skip
            else:
                other = reference["subject_id"]
                place = reference.get("image_id") or f"column {j + 1}"
                if reference.get("image_id") and image == place:
                    continue
                row |= {"kind": kind_by_ids(subject, other),
                        "ref_subject_id": other, "ref_id": place}  # fmt: skip
            rows.add(i + 1, **row)
    return rows.table()


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
    if "subject_id" not in header and not {"morph_id", "subject_a", "subject_b"} <= set(header):
        raise ScoreError(
            f"{path}:1: expected the columns subject_id, image_id, or of morphs morph_id, "
            f"subject_a, subject_b, attack; found {', '.join(header)}"
        )
    return [{k: canonical(v) for k, v in row.items()} for _, row in lines]
