r"""Vulnerability to morphing attacks: the MMPMR family and its relatives.

With morphs m, contributing subjects n, probes i, scores S turned so that larger means more alike,
and a match iff :math:`S > \tau`:

.. math::
    \mathrm{MMPMR} &= \tfrac1M \sum_m 1\{\min_n S_m^n > \tau\} \\
    \mathrm{MinMax} &= \tfrac1M \sum_m 1\{\min_n \max_i S_m^{n,i} > \tau\} \\
    \mathrm{ProdAvg} &= \tfrac1M \sum_m \prod_n \tfrac1{I_m^n} \sum_i 1\{S_m^{n,i} > \tau\} \\
    \mathrm{FMMPMR} &= \tfrac1{MA} \sum_{m,p} 1\{S_m^{n,p} > \tau \; \forall n\} \\
    \mathrm{RMMR} &= 1 + \mathrm{MMPMR} - (1 - \mathrm{FNMR}) = \mathrm{MMPMR} + \mathrm{FNMR}

IAPMR is the share of single morph-subject comparisons that match. MinMax grows with the number of
probes and flatters the attack; ProdAvg does not. A failed comparison (NaN) is a non-match and is
counted apart. FMMPMR pairs the p-th probe of one subject with the p-th of the other, in the order
of the probes' ids; that rule is this library's, publications seldom state theirs.

Paper: eq. 5.2 is MMPMR.

References:
    | Biometric Systems under Morphing Attacks: Assessment of Morphing Techniques and
      Vulnerability Reporting (Scherhag et al., BIOSIG 2017)
    | https://doi.org/10.23919/BIOSIG.2017.8053499
    | Face Morphing Attack Generation and Detection: A Comprehensive Survey (Venkatesh et al., 2021)
    | https://arxiv.org/abs/2011.02045
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import oriented_tau
from adjointdeis.evaluation.errors import EvaluationError, ScoreError
from adjointdeis.evaluation.groups import MorphScores, group
from adjointdeis.evaluation.rates import Rate, rate, sum_of_rates

VARIANTS = ("MMPMR", "MinMax", "ProdAvg", "FMMPMR", "IAPMR")


def numerators(groups: MorphScores, variant: str, taus: np.ndarray) -> np.ndarray:
    """Shape (T, M): each morph's contribution at each threshold; the metric is their sum over
    the sum of `denominators`.

    Args:
        groups: Scores of one attack on one system.
        variant: One of `VARIANTS`.
        taus: Shape (T,), for scores where larger is more alike.

    Raises:
        EvaluationError: unknown variant.
        ScoreError: MMPMR of several probes, or FMMPMR of unequal numbers of probes.
    """
    taus = np.atleast_1d(np.asarray(taus, dtype=np.float64))
    return _variant(variant)(groups, taus)


def denominators(groups: MorphScores, variant: str) -> np.ndarray:
    """Shape (M,): one per morph, except for IAPMR, which counts comparisons."""
    _variant(variant)
    if variant == "IAPMR":
        return np.add.reduceat(groups.probes, groups.morph_start).astype(np.float64)
    return np.ones(len(groups))


def vulnerability(
    groups: MorphScores, tau: float, variant: str = "MMPMR", *, confidence: float = 0.95
) -> Rate:
    """One variant of one attack on one system.

    Args:
        groups: Scores of one attack on one system, by morph and subject.
        tau: Threshold, for scores where larger is more alike.
        variant: One of `VARIANTS`.
        confidence: Level of the interval, in (0, 1).
    """
    if math.isnan(tau):
        raise EvaluationError("threshold nan: expected a number")
    k = float(numerators(groups, variant, np.array([tau])).sum())
    n = int(denominators(groups, variant).sum())
    k = round(k) if abs(k - round(k)) < 1e-9 else k
    return rate(k, n, confidence=confidence, n_failed=groups.n_failed)


def mmpmr(
    scores: np.ndarray,
    morph: np.ndarray,
    subject: np.ndarray,
    tau: float,
    *,
    probe: np.ndarray | None = None,
    variant: str = "MMPMR",
    score_type: str = "similarity",
    confidence: float = 0.95,
) -> Rate:
    """A variant of MMPMR from arrays, one entry per comparison.

    Args:
        scores: shape (R,), NaN for a failed comparison.
        morph, subject, probe: shape (R,), labels; `probe` names the attempts that FMMPMR pairs.
        tau: the threshold in the scores' own direction.
        variant: `MMPMR` (one probe per subject), `MinMax`, `ProdAvg`, `FMMPMR` or `IAPMR`.
        score_type: similarity, or dissimilarity, where a match lies below tau.
        confidence: level of the interval, in (0, 1).

    Raises:
        ScoreError: shapes that differ, repeats, or data that the variant is not defined on.
    """
    if variant == "FMMPMR" and probe is None:
        raise ScoreError("FMMPMR pairs attempts and needs the probe of every comparison")
    groups = group(scores, morph, subject, probe, score_type=score_type)
    return vulnerability(groups, oriented_tau(tau, score_type), variant, confidence=confidence)


def minmax_mmpmr(*args: Any, **options: Any) -> Rate:
    """`mmpmr` with the variant MinMax."""
    return mmpmr(*args, variant="MinMax", **options)


def prodavg_mmpmr(*args: Any, **options: Any) -> Rate:
    """`mmpmr` with the variant ProdAvg."""
    return mmpmr(*args, variant="ProdAvg", **options)


def fmmpmr(*args: Any, **options: Any) -> Rate:
    """`mmpmr` with the variant FMMPMR."""
    return mmpmr(*args, variant="FMMPMR", **options)


def iapmr(*args: Any, **options: Any) -> Rate:
    """`mmpmr` with the variant IAPMR, the share of single comparisons accepted."""
    return mmpmr(*args, variant="IAPMR", **options)


def rmmr(attack: Rate, fnmr: Rate) -> Rate:
    """RMMR = MMPMR + FNMR of the same system and threshold; may exceed 1.

    Papers up to September 2017 may mean TMR - MMPMR by RMNMR; this is not that.

    Args:
        attack: MMPMR, or one of its variants.
        fnmr: False non-match rate.
    """
    return sum_of_rates(attack, fnmr)


def mmpmr_curve(groups: MorphScores, taus: np.ndarray) -> np.ndarray:
    """MinMax-MMPMR (MMPMR with one probe) at many thresholds in one pass, shape of `taus`.

    Args:
        groups: Scores of one attack on one system.
        taus: Thresholds, any shape.
    """
    if np.isnan(taus).any():
        raise EvaluationError("a threshold is nan: expected numbers")
    ordered = np.sort(groups.min_of_best)
    below = np.searchsorted(ordered, np.asarray(taus, dtype=np.float64), side="right")
    return 1.0 - below / len(ordered)


def _mmpmr(groups: MorphScores, taus: np.ndarray) -> np.ndarray:
    if (groups.probes > 1).any():
        raise ScoreError(
            f"MMPMR takes one probe per subject, found up to {int(groups.probes.max())}; "
            "choose MinMax or ProdAvg"
        )
    return _minmax(groups, taus)


def _minmax(groups: MorphScores, taus: np.ndarray) -> np.ndarray:
    return (groups.min_of_best[None, :] > taus[:, None]).astype(np.float64)


def _prodavg(groups: MorphScores, taus: np.ndarray) -> np.ndarray:
    shares = groups.accepted(taus) / groups.probes
    return np.multiply.reduceat(shares, groups.morph_start, axis=1)


def _fmmpmr(groups: MorphScores, taus: np.ndarray) -> np.ndarray:
    return np.stack([(groups.paired > tau).mean(axis=1) for tau in taus])


def _iapmr(groups: MorphScores, taus: np.ndarray) -> np.ndarray:
    return np.add.reduceat(groups.accepted(taus), groups.morph_start, axis=1).astype(np.float64)


_NUMERATORS: dict[str, Callable[[MorphScores, np.ndarray], np.ndarray]] = {
    "MMPMR": _mmpmr,
    "MinMax": _minmax,
    "ProdAvg": _prodavg,
    "FMMPMR": _fmmpmr,
    "IAPMR": _iapmr,
}


def _variant(name: str) -> Callable[[MorphScores, np.ndarray], np.ndarray]:
    if name not in _NUMERATORS:
        raise EvaluationError(f"variant {name!r}: expected one of {', '.join(VARIANTS)}")
    return _NUMERATORS[name]
