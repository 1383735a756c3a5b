"""A `detection.csv` whose rates are known in closed form: normal scores, laid out by quantiles.

Bona fide scores are those of N(0, 1), morphs of an attack those of N(d, s). With z = Phi^-1,

    D-EER = Phi(-d / (1 + s))                      where tau = d / (1 + s)
    BSCER at MACER f = 1 - Phi(d + s z(f))         MACER at BSCER g = Phi((z(1 - g) - d) / s)

s other than 1 keeps the two apart, so that a swap of the error rates is seen.
"""

import csv
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri

from adjointdeis.evaluation.detection_matrix import COLUMNS


def d_eer(d: float, s: float) -> float:
    return float(ndtr(-d / (1 + s)))


def bscer_at_macer(d: float, s: float, f: float) -> float:
    return float(1 - ndtr(d + s * ndtri(f)))


def macer_at_bscer(d: float, s: float, g: float) -> float:
    return float(ndtr((ndtri(1 - g) - d) / s))


def quantiles(n: int) -> np.ndarray:
    """N(0, 1) at n points: every rate is right to 1/n, whatever the seed."""
    return ndtri((np.arange(n) + 0.5) / n)


def setting_rows(
    attacks: dict[str, tuple[float, float]],
    *,
    detector: str = "cnn",
    kind: str = "s_mad",
    trained_on: str = "all",
    degradation: str = "none",
    n_bona_fide: int = 400,
    n_morphs: int = 200,
    n_subjects: int = 40,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Rows of one setting; the seed says which image has which score, and who is on it."""
    generator = np.random.default_rng(seed)
    base = {"detector": detector, "kind": kind, "trained_on": trained_on,
            "degradation": degradation}  # fmt: skip
    rows: list[dict[str, object]] = []
    for k, score in enumerate(generator.permutation(quantiles(n_bona_fide))):
        person = f"{k % n_subjects:03d}"
        rows.append({**base, "attack": "", "label": "bona_fide", "subject_1": person,
                     "subject_2": "", "image": f"{person}_{k // n_subjects}",
                     "score": float(score)})  # fmt: skip
    for attack, (d, s) in attacks.items():
        for k, score in enumerate(generator.permutation(d + s * quantiles(n_morphs))):
            one = k % n_subjects
            two = (one + 1 + k // n_subjects) % n_subjects
            rows.append({**base, "attack": attack, "label": "morph", "subject_1": f"{one:03d}",
                         "subject_2": f"{two:03d}", "image": f"{one:03d}_{two:03d}",
                         "score": float(score)})  # fmt: skip
    return rows


def write_detection(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
