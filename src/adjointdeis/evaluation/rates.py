r"""A rate with its count and interval, and the two binomial intervals.

Wilson: centre :math:`(p + z^2/2n) / (1 + z^2/n)`, half-width
:math:`z \sqrt{p(1-p)/n + z^2/4n^2} / (1 + z^2/n)`. Clopper-Pearson: the quantiles
:math:`B(\alpha/2; k, n-k+1)` and :math:`B(1-\alpha/2; k+1, n-k)` of the beta distribution; never
covers less than the nominal share, at the price of width.

References:
    | Interval Estimation for a Binomial Proportion (Brown, Cai and DasGupta, 2001)
    | https://doi.org/10.1214/ss/1009213286
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONDITIONAL = (
    "Wilson interval for other comparisons of these subjects at this threshold; it ignores that "
    "comparisons share subjects and that the threshold is estimated, so it is too narrow for new "
    "subjects"
)
_SUBJECTS = (
    "subject (vertex) bootstrap percentile interval for a new sample of subjects, {tau}, and never "
    "narrower than the exact interval of as many morphs as share no subject"
)
NEW_SUBJECTS = (
    _SUBJECTS.format(tau="threshold re-estimated in every replicate") + "; tends to be too wide"
)
NEW_SUBJECTS_FIXED_TAU = (
    _SUBJECTS.format(tau="at this very threshold") + "; leaves out the threshold's own uncertainty"
)
EXACT = "Clopper-Pearson interval, exact for independent comparisons"


@dataclass(frozen=True)
class Rate:
    """A share k of n with the interval [lo, hi] and what the interval means.

    Attributes:
        k: how many; a whole number except for ProdAvg-MMPMR and similar means of shares, where
            it is the sum of the shares.
        n: out of how many.
        value: k / n in [0, 1] (RMMR: up to 2); NaN when n is 0.
        lo, hi: the ends of the interval.
        confidence: its nominal level.
        meaning: what the interval covers, in words.
        n_failed: how many of the comparisons behind it failed to acquire or to enrol; they are
            counted as non-matches in k and apart here.
    """

    k: float
    n: int
    value: float
    lo: float
    hi: float
    confidence: float = 0.95
    meaning: str = CONDITIONAL
    n_failed: int = 0

    @property
    def interval(self) -> tuple[float, float]:
        """(lo, hi)."""
        return self.lo, self.hi

    @property
    def percent(self) -> float:
        """The value in percent."""
        return 100.0 * self.value

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        k = f"{self.k:g}" if float(self.k).is_integer() else f"{self.k:.2f}"
        return f"{self.percent:.2f}% ({k}/{self.n}) [{100 * self.lo:.2f}, {100 * self.hi:.2f}]%"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; NaN becomes None."""
        values = asdict(self)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def rate(k: float, n: int, *, confidence: float = 0.95, n_failed: int = 0) -> Rate:
    """A rate with its Wilson interval; k may be a sum of shares, then Wilson is conservative.

    Args:
        k: Successes, or a sum of shares, in [0, n].
        n: Trials.
        confidence: Level of the interval, in (0, 1).
        n_failed: Failed comparisons among the trials.
    """
    lo, hi = wilson(k, n, confidence)
    value = float(k) / n if n else math.nan
    k = int(k) if float(k).is_integer() else float(k)
    return Rate(k, int(n), value, lo, hi, confidence, CONDITIONAL, int(n_failed))


def wilson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of k out of n; (0, 1) when n is 0.

    Args:
        k: Successes, in [0, n].
        n: Trials.
        confidence: Level of the interval, in (0, 1).
    """
    _check(k, n, confidence)
    if n == 0:
        return 0.0, 1.0
    from scipy.special import ndtri

    z = float(ndtri(0.5 + confidence / 2))
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    lo = 0.0 if k == 0 else max(0.0, centre - half)
    hi = 1.0 if k == n else min(1.0, centre + half)
    return lo, hi


def clopper_pearson(k: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of k out of n by beta quantiles; (0, 1) when n is 0.

    k may be no whole number: a share times an effective number of trials.

    Args:
        k: Successes, in [0, n].
        n: Trials.
        confidence: Level of the interval, in (0, 1).
    """
    _check(k, n, confidence)
    if n == 0:
        return 0.0, 1.0
    from scipy.special import betaincinv

    tail = (1 - confidence) / 2
    lo = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    hi = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - tail))
    return lo, hi


def sum_of_rates(a: Rate, b: Rate) -> Rate:
    r"""a + b of two independent rates, with the MOVER interval.

    .. math:: lo = a + b - \sqrt{(a - lo_a)^2 + (b - lo_b)^2}, \quad hi \text{ alike.}

    References:
        | Construction of confidence limits about effect measures (Zou and Donner, 2008)
        | https://doi.org/10.1002/sim.3095
    """
    value = a.value + b.value
    lo = value - math.hypot(a.value - a.lo, b.value - b.lo)
    hi = value + math.hypot(a.hi - a.value, b.hi - b.value)
    # k / n keeps the attack's denominator, so that value = k / n still holds.
    k = value * a.n
    meaning = f"MOVER sum of two intervals; {CONDITIONAL}"
    return Rate(
        k, a.n, value, max(0.0, lo), min(2.0, hi), a.confidence, meaning, a.n_failed + b.n_failed
    )


def _check(k: float, n: int, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence!r}: expected a number between 0 and 1")
    if n < 0 or not -1e-9 <= k <= n + 1e-9 or not np.isfinite(k):
        raise ValueError(f"k={k!r} of n={n!r}: expected 0 <= k <= n")


def sample_notes(
    rows: Sequence[Mapping[str, Any]], attack: Callable[[str], str] = str
) -> list[str]:
    """How many people are behind rows of `evaluate`, and where attacks morph different pairs.

    Args:
        rows: The rows of one table; those of older results say nothing of it.
        attack: The printed name of an attack.
    """
    people = sorted({row["n_subjects"] for row in rows if row.get("n_subjects")})
    ends = " to ".join(str(n) for n in dict.fromkeys((*people[:1], *people[-1:])))
    notes = [f"N counts morphs, of {ends} people."] if people else []
    groups: dict[Any, dict[str, dict[str, int]]] = {}
    for row in rows:
        if row.get("pairs"):
            own = groups.setdefault(row.get("group"), {}).setdefault(row["pairs"], {})
            own[attack(row["attack"])] = row["n"]
    if differing := [own for own in groups.values() if len(own) > 1]:
        sets = "; ".join(
            ", ".join(f"{name} {n}" for name, n in own.items()) for own in differing[0].values()
        )
        notes.append(
            f"Not the same pairs of people: {sets}. Such rates do not say which attack is "
            "stronger; the paired test does, on the pairs in common."
        )
    several = {
        attack(row["attack"]): f"{row['n']} of {row['n_pairs']} pairs"
        for row in rows
        if row["n"] > row.get("n_pairs", row["n"])
    }
    if several:
        told = ", ".join(f"{name} {morphs}" for name, morphs in several.items())
        notes.append(
            f"Several morphs of one pair: {told}. Where these are two runs of one attack, give the "
            "two different names."
        )
    return notes
