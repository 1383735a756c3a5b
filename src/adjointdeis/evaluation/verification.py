r"""Bona fide verification errors: FMR, FNMR, EER.

.. math::
    \mathrm{FMR}(\tau) = \#\{\text{nonmated } S > \tau\} / N_I, \qquad
    \mathrm{FNMR}(\tau) = \#\{\text{mated } S \le \tau\} / N_G

Failed comparisons (NaN) are left out of both denominators, as ISO/IEC 19795-1 defines matching
errors, and counted in `n_failed`. Never use the EER's threshold to report an attack: it is far
looser than any operating point.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import oriented, oriented_tau
from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.rates import EXACT, Rate, clopper_pearson, rate
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.subjects import Subjects


@dataclass(frozen=True)
class EqualErrorRate:
    """The point where FMR and FNMR are closest; `value` is their mean, no interpolation."""

    value: float
    tau: float
    fmr: float
    fnmr: float


def false_match_rate(
    nonmated: np.ndarray, tau: float, *, score_type: str = "similarity", confidence: float = 0.95
) -> Rate:
    """FMR of impostor scores, shape (N_I,), at tau; with a Clopper-Pearson interval.

    Args:
        nonmated: Impostor scores, shape (N_I,).
        tau: Threshold.
        score_type: similarity, or dissimilarity, where a match lies below tau.
        confidence: Level of the interval, in (0, 1).
    """
    scores, n_failed = _valid(nonmated, score_type)
    k = int(np.count_nonzero(scores > oriented_tau(tau, score_type)))
    lo, hi = clopper_pearson(k, len(scores), confidence)
    return Rate(k, len(scores), k / len(scores), lo, hi, confidence, EXACT, n_failed)


def false_non_match_rate(
    mated: np.ndarray, tau: float, *, score_type: str = "similarity", confidence: float = 0.95
) -> Rate:
    """FNMR of genuine scores, shape (N_G,), at tau; with a Wilson interval.

    Args:
        mated: Genuine scores, shape (N_G,).
        tau: Threshold.
        score_type: similarity, or dissimilarity, where a match lies below tau.
        confidence: Level of the interval, in (0, 1).
    """
    scores, n_failed = _valid(mated, score_type)
    k = int(np.count_nonzero(scores <= oriented_tau(tau, score_type)))
    return rate(k, len(scores), confidence=confidence, n_failed=n_failed)


def equal_error_rate(
    mated: np.ndarray, nonmated: np.ndarray, *, score_type: str = "similarity"
) -> EqualErrorRate:
    """The EER over all observed scores as thresholds.

    Args:
        mated: Genuine scores, shape (N_G,).
        nonmated: Impostor scores, shape (N_I,).
        score_type: similarity or dissimilarity.
    """
    genuine = np.sort(_valid(mated, score_type)[0])
    impostor = np.sort(_valid(nonmated, score_type)[0])
    lowest = min(genuine[0], impostor[0])
    # Below every score nothing is rejected; that threshold is part of the curve too.
    taus = np.concatenate(
        [[np.nextafter(lowest, -np.inf)], np.unique(np.concatenate([genuine, impostor]))]
    )
    fmr = 1.0 - np.searchsorted(impostor, taus, side="right") / len(impostor)
    fnmr = np.searchsorted(genuine, taus, side="right") / len(genuine)
    at = int(np.argmin(np.abs(fmr - fnmr)))
    return EqualErrorRate(
        value=float((fmr[at] + fnmr[at]) / 2),
        tau=oriented_tau(float(taus[at]), score_type),
        fmr=float(fmr[at]),
        fnmr=float(fnmr[at]),
    )


def verification_rows(
    table: ScoreTable,
    *,
    fmr: Sequence[float] = (0.01, 0.001, 0.0001),
    impostor_policy: str = "all",
    subjects: Subjects | None = None,
    systems: Sequence[str] | None = None,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """How well each recogniser verifies genuine people, without any morph; JSON-ready.

    Args:
        table: `mated` and `nonmated` rows.
        fmr: target false match rates of the FNMR.
        impostor_policy, subjects: which impostors; see `policies`.
        systems: recognisers to evaluate; None takes those with rows of both kinds.
        replicates, seed, confidence: as for `evaluate`; without replicates intervals are exact.

    Returns:
        system, eer, eer_lo, eer_hi, eer_tau, mated, nonmated (comparisons that did not fail),
        n_failed, subjects, thresholds (records), and for every target `fnmr` with fmr_target, k, n,
        value, lo, hi; intervals are for new subjects.

    Raises:
        EvaluationError: no system with mated and nonmated rows.
    """
    from adjointdeis.evaluation import detection_points, uncertainty
    from adjointdeis.evaluation.operating import ThresholdSource, chosen
    from adjointdeis.evaluation.policies import impostors

    both = [set(table.unique("system", kind=kind)) for kind in ("mated", "nonmated")]
    names = chosen(table, "system", systems) if systems else sorted(both[0] & both[1])
    if not names:
        raise EvaluationError(
            f"{table.source or 'scores'}: no system has rows of both kinds mated and nonmated"
        )
    named = ThresholdSource(table, None, subjects, replicates, seed, confidence)
    rows = []
    for system in names:
        mated = table.select(kind="mated", system=system)
        found = impostors(table, system, impostor_policy, subjects)
        genuine, n_failed = _valid(mated.oriented, "similarity")
        usable = ~np.isnan(found.oriented)
        people = [(s, s) for s in mated["subject_id"][~np.isnan(mated.oriented)].tolist()]
        people += zip(found.subject[usable].tolist(), found.other[usable].tolist(), strict=True)
        scores = np.concatenate([genuine, found.oriented[usable]])
        impostor = np.arange(len(scores)) >= len(genuine)
        images = detection_points.Images(
            scores, impostor, np.where(impostor, "", "mated"), np.array(people, object), "subjects"
        )
        known = found.people_known and bool((mated["subject_id"] != "").all())
        source = named if known else replace(named, replicates=0)
        draws = source.draws
        n_people = len(set(mated["subject_id"].tolist())) if known else len(genuine)

        def ends(values: np.ndarray | None, value: float, n: int = n_people) -> tuple[float, float]:
            if values is None:
                return clopper_pearson(value * n, n, confidence)
            return uncertainty.covering_interval(values, value, n, confidence)

        eer = equal_error_rate(genuine, found.oriented[usable])
        drawn = values = None
        if draws is not None:
            drawn = detection_points.resampled_points(images, [["mated"]], draws)[0]["d_eer"]
        lo, hi = ends(drawn, eer.value)
        points = source.points(system, fmr, [impostor_policy])
        fnmr = []
        for point in points:
            rate_ = false_non_match_rate(genuine, point.record.oriented)
            if draws is not None:
                values = uncertainty.bootstrap_fnmr(
                    draws, mated.oriented, mated["subject_id"], point.taus
                )
            low, high = ends(values, rate_.value)
            fnmr.append({"fmr_target": point.record.target_fmr, "k": rate_.k, "n": rate_.n,
                         "value": rate_.value, "lo": low, "hi": high})  # fmt: skip
        rows.append(
            {
                "system": system, "eer": eer.value, "eer_lo": lo, "eer_hi": hi,
                "eer_tau": oriented_tau(eer.tau, found.score_type),
                "mated": len(genuine), "nonmated": int(usable.sum()),
                "n_failed": n_failed + int((~usable).sum()),
                "subjects": n_people if known else None,
                "fnmr": fnmr, "thresholds": [p.record.to_dict() for p in points],
                "confidence": confidence,
            }
        )  # fmt: skip
    return rows


def _valid(scores: np.ndarray, score_type: str) -> tuple[np.ndarray, int]:
    turned = oriented(scores, score_type).ravel()
    failed = np.isnan(turned)
    valid = turned[~failed]
    if not len(valid):
        raise EvaluationError("no score: expected at least one comparison that did not fail")
    return valid, int(failed.sum())
