r"""Bona fide verification errors: FMR, FNMR, EER.

.. math::
    \mathrm{FMR}(\tau) = \#\{\text{nonmated } S > \tau\} / N_I, \qquad
    \mathrm{FNMR}(\tau) = \#\{\text{mated } S \le \tau\} / N_G

Failed comparisons (NaN) are left out of both denominators, as ISO/IEC 19795-1 defines matching
errors, and counted in `n_failed`. Never use the EER's threshold to report an attack: it is far
looser than any operating point.
"""

from dataclasses import dataclass

import numpy as np

from adjointdeis.evaluation.columns import oriented, oriented_tau
from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.rates import EXACT, Rate, clopper_pearson, rate


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
    """FMR of impostor scores, shape (N_I,), at tau; with a Clopper-Pearson interval."""
    scores, n_failed = _valid(nonmated, score_type)
    k = int(np.count_nonzero(scores > oriented_tau(tau, score_type)))
    lo, hi = clopper_pearson(k, len(scores), confidence)
    return Rate(k, len(scores), k / len(scores), lo, hi, confidence, EXACT, n_failed)


def false_non_match_rate(
    mated: np.ndarray, tau: float, *, score_type: str = "similarity", confidence: float = 0.95
) -> Rate:
    """FNMR of genuine scores, shape (N_G,), at tau; with a Wilson interval."""
    scores, n_failed = _valid(mated, score_type)
    k = int(np.count_nonzero(scores <= oriented_tau(tau, score_type)))
    return rate(k, len(scores), confidence=confidence, n_failed=n_failed)


def equal_error_rate(
    mated: np.ndarray, nonmated: np.ndarray, *, score_type: str = "similarity"
) -> EqualErrorRate:
    """The EER over all observed scores as thresholds."""
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


def _valid(scores: np.ndarray, score_type: str) -> tuple[np.ndarray, int]:
    turned = oriented(scores, score_type).ravel()
    failed = np.isnan(turned)
    valid = turned[~failed]
    if not len(valid):
        raise EvaluationError("no score: expected at least one comparison that did not fail")
    return valid, int(failed.sum())
