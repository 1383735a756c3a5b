r"""Morphing attack detection: MACER, BSCER, D-EER and the operating points between them.

A detector's score says how much an image looks like a morph; an image is called a morph iff
:math:`S > \tau` (scores where high means bona fide are negated first, see `higher_is`). Then

.. math::
    \mathrm{MACER}_d(\tau) = \#\{\text{morphs of attack } d : S \le \tau\} / N_d, \qquad
    \mathrm{BSCER}(\tau) = \#\{\text{bona fide} : S > \tau\} / N_{BF}

MACER is reported per attack and its headline is the maximum over attacks, never the average: a
detector is as good as its worst case. The older names APCER and BPCER (ISO/IEC 30107-3) are
aliases here; NIST FATE MORPH changed names in 2025. Images that the detector could not process
(NaN) are left out of both rates and counted apart.

References:
    | ISO/IEC 20059:2025, Methodologies to evaluate the resistance of biometric systems to morphing
    | https://www.iso.org/standard/86084.html
    | NIST FATE MORPH
    | https://pages.nist.gov/frvt/html/frvt_morph.html
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from adjointdeis.evaluation.columns import as_scores
from adjointdeis.evaluation.errors import DetectionError
from adjointdeis.evaluation.rates import Rate, rate
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable
from adjointdeis.evaluation.thresholds import allowed_false_matches

HIGHER_IS = ("morph", "bonafide")
WORST = "max over attacks"


@dataclass(frozen=True, eq=False)
class DetectionScores:
    """One detector's scores of bona fide images and of the morphs of every attack.

    Args:
        bona_fide: shape (N_BF,); NaN where the detector failed.
        attacks: attack -> shape (N_d,).
        higher_is: what a high score says, `morph` or `bonafide`. There is no default, for half of
            the published detectors have it one way and half the other.

    Raises:
        DetectionError: unknown direction, or no usable score on either side.
    """

    bona_fide: np.ndarray
    attacks: Mapping[str, np.ndarray]
    higher_is: str
    _bona: np.ndarray = field(init=False, repr=False)
    _morph: dict[str, np.ndarray] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.higher_is not in HIGHER_IS:
            raise DetectionError(f"higher_is {self.higher_is!r}: expected {' or '.join(HIGHER_IS)}")
        sign = 1.0 if self.higher_is == "morph" else -1.0
        object.__setattr__(self, "_bona", _sorted(self.bona_fide, sign, BONA_FIDE))
        if not self.attacks:
            raise DetectionError("no attack: expected the scores of at least one")
        morph = {name: _sorted(scores, sign, name) for name, scores in self.attacks.items()}
        object.__setattr__(self, "_morph", morph)

    @classmethod
    def from_table(cls, table: ScoreTable, system: str) -> "DetectionScores":
        """From `mad` rows; score_type `similarity` means that a high score says "morph"."""
        rows = table.select(kind="mad", system=system)
        if not len(rows):
            raise DetectionError(f"{table.source or 'scores'}: no mad row of system {system!r}")
        scores = np.where(rows["status"] == "ok", rows["score"], np.nan)
        bona = np.isin(rows["attack"], ("", BONA_FIDE))
        attacks = {str(a): scores[rows["attack"] == a] for a in np.unique(rows["attack"][~bona])}
        for there, what in ((bona.any(), "bona fide image"), (attacks, "attack")):
            if not there:
                raise DetectionError(
                    f"no {what} of detector {system!r}, and error rates take both; a bona fide "
                    f"image has the attack {BONA_FIDE!r}, in a detection.csv the label bona_fide"
                )
        direction = "morph" if rows["score_type"][0] == "similarity" else "bonafide"
        return cls(scores[bona], attacks, direction)

    @property
    def n_failed(self) -> dict[str, int]:
        """Images without a score: `bonafide` and every attack."""
        found = {BONA_FIDE: int(np.isnan(as_scores(self.bona_fide)).sum())}
        for name, scores in self.attacks.items():
            found[name] = int(np.isnan(as_scores(scores)).sum())
        return found

    def macer(self, tau: float, attack: str, confidence: float = 0.95) -> Rate:
        """MACER of one attack at tau, in the scores' own direction.

        Args:
            tau: Threshold.
            attack: Whose morphs.
            confidence: Level of the interval, in (0, 1).
        """
        scores = self._of(attack)
        missed = int(np.searchsorted(scores, self._turned(tau), side="right"))
        failed = self.n_failed[attack]
        return rate(missed, len(scores), confidence=confidence, n_failed=failed)

    def macer_per_attack(self, tau: float, confidence: float = 0.95) -> dict[str, Rate]:
        """MACER of every attack at tau."""
        return {attack: self.macer(tau, attack, confidence) for attack in self._morph}

    def macer_max(self, tau: float, confidence: float = 0.95) -> tuple[str, Rate]:
        """The attack with the largest MACER at tau, and that MACER: the headline."""
        found = self.macer_per_attack(tau, confidence)
        worst = max(found, key=lambda attack: found[attack].value)
        return worst, found[worst]

    def bscer(self, tau: float, confidence: float = 0.95) -> Rate:
        """BSCER at tau, in the scores' own direction."""
        below = int(np.searchsorted(self._bona, self._turned(tau), side="right"))
        flagged = len(self._bona) - below
        failed = self.n_failed[BONA_FIDE]
        return rate(flagged, len(self._bona), confidence=confidence, n_failed=failed)

    def tau_at_macer(self, target: float, attack: str | None = None) -> float:
        """The largest threshold with MACER <= target, for one attack or, with None, for each.

        Conservative with ties: the realised MACER never exceeds the target.
        """
        _check_share(target)
        names = self._morph if attack is None else (attack,)
        taus = []
        for name in names:
            scores = self._of(name)
            allowed = allowed_false_matches(len(scores), target)
            edge = scores[min(allowed, len(scores) - 1)]
            taus.append(np.nextafter(edge, -np.inf))
        return self._turned(float(min(taus)))

    def tau_at_bscer(self, target: float) -> float:
        """The smallest threshold with BSCER <= target."""
        _check_share(target)
        n = len(self._bona)
        return self._turned(float(self._bona[n - 1 - allowed_false_matches(n, target)]))

    def bscer_at_macer(
        self, target: float, attack: str | None = None, confidence: float = 0.95
    ) -> Rate:
        """Share of bona fide images refused at the threshold that misses `target` of the morphs.

        BSCER10, BSCER20 and BSCER100 are those at a MACER of 10%, 5% and 1%.

        Args:
            target: MACER, a share.
            attack: Whose morphs are missed; None takes the attack that is missed most.
            confidence: Level of the interval, in (0, 1).
        """
        return self.bscer(self.tau_at_macer(target, attack), confidence)

    def macer_at_bscer(self, target: float, attack: str, confidence: float = 0.95) -> Rate:
        """MACER of one attack at BSCER 10% or 1%, as NIST reports.

        Args:
            target: BSCER, a share in [0, 1).
            attack: Whose morphs.
            confidence: Level of the interval, in (0, 1).
        """
        return self.macer(self.tau_at_bscer(target), attack, confidence)

    def det(self, attack: str | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(taus, MACER, BSCER), each shape (T,), over all distinct scores; taus ascend.

        With `attack=None` MACER is the maximum over attacks at each threshold. Plot both on
        normal-deviate axes (`scipy.special.ndtri`).
        """
        names = list(self._morph) if attack is None else [attack]
        pooled = np.unique(np.concatenate([self._bona, *(self._of(name) for name in names)]))
        taus = np.concatenate([[np.nextafter(pooled[0], -np.inf)], pooled])
        macer = np.max(
            [np.searchsorted(self._of(n), taus, side="right") / len(self._of(n)) for n in names],
            axis=0,
        )
        bscer = 1.0 - np.searchsorted(self._bona, taus, side="right") / len(self._bona)
        if self.higher_is == "bonafide":
            return -taus[::-1], macer[::-1], bscer[::-1]
        return taus, macer, bscer

    def d_eer(self, attack: str | None = None) -> tuple[float, float]:
        """(detection equal error rate, its threshold): where MACER and BSCER are closest."""
        taus, macer, bscer = self.det(attack)
        at = int(np.argmin(np.abs(macer - bscer)))
        return float((macer[at] + bscer[at]) / 2), float(taus[at])

    # The names of ISO/IEC 30107-3, which older papers use for the same counts.
    apcer = macer
    apcer_max = macer_max
    bpcer = bscer
    bpcer_at_apcer = bscer_at_macer
    apcer_at_bpcer = macer_at_bscer

    def _of(self, attack: str) -> np.ndarray:
        if attack not in self._morph:
            raise DetectionError(f"attack {attack!r}: expected one of {', '.join(self._morph)}")
        return self._morph[attack]

    def _turned(self, tau: float) -> float:
        if math.isnan(tau):
            raise DetectionError("threshold nan: expected a number")
        return tau if self.higher_is == "morph" else -tau


def _sorted(scores: np.ndarray, sign: float, name: str) -> np.ndarray:
    scores = as_scores(scores).ravel()
    if np.isinf(scores).any():
        raise DetectionError(f"{name}: a score is infinite; mark a failure with NaN")
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        raise DetectionError(f"{name}: no score that did not fail")
    return np.sort(sign * scores)


def _check_share(target: float) -> None:
    if not 0 <= target < 1:
        raise DetectionError(f"error rate {target!r}: expected a share, 0 <= rate < 1")
