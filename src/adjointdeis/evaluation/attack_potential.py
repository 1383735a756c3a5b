r"""Morphing attack potential over several recognisers and attempts: MAP[r, c] and G-MAP.

.. math::
    \mathrm{MAP}[r, c] = \frac1M \sum_m 1\Big\{ \#\big\{ f : \min_n \sum_i
    1[S_{m,n,i}^f > \tau_f] \ge r \big\} \ge c \Big\}

is the share of morphs with which every contributing subject gets in at least r times at at least c
recognisers: r is robustness, c generality. With one recogniser MAP[1, 1] is MinMax-MMPMR.

.. math::
    \mathrm{G\text{-}MAP} = \frac1{|D|} \sum_d \operatorname*{agg}_l \frac1{|P||M_d|}
    \sum_{i,j} 1\{S_{n,i}^{j} > \tau_l \; \forall n\} \, (1 - \mathrm{FTAR}(i, l))

averages over attack types d and paired attempts i; `agg` over recognisers l is the minimum unless
asked otherwise. Publications differ in that aggregation: name it beside the number.

References:
    | Morphing Attack Potential (Ferrara, Franco, Maltoni and Busch, 2022)
    | https://arxiv.org/abs/2204.13374
    | ISO/IEC 20059:2025, Methodologies to evaluate the resistance of biometric systems to morphing
    | https://www.iso.org/standard/86084.html
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adjointdeis.evaluation.errors import EvaluationError, ScoreError
from adjointdeis.evaluation.groups import MorphScores
from adjointdeis.evaluation.rates import Rate, rate
from adjointdeis.evaluation.uncertainty import SubjectDraws, morph_weights

AGGREGATIONS = {"min": np.min, "mean": np.mean, "max": np.max}


@dataclass(frozen=True, eq=False)
class AttackPotential:
    """The matrix MAP[r, c] with its counts.

    Attributes:
        counts: shape (R, C), morphs that reach (r, c); row 0 is r = 1, column 0 is c = 1.
        n: number of morphs.
        systems: the recognisers, whose order does not matter.
        n_failed: failed comparisons over all systems, counted as non-matches.
    """

    counts: np.ndarray
    n: int
    systems: tuple[str, ...]
    n_failed: int = 0

    @property
    def values(self) -> np.ndarray:
        """Shape (R, C), shares in [0, 1]."""
        return self.counts / self.n

    def rate(self, r: int, c: int, confidence: float = 0.95) -> Rate:
        """MAP[r, c] with its Wilson interval.

        Args:
            r: How many attempts of each subject must be accepted, 1 or more.
            c: By how many recognisers, 1 or more.
            confidence: Of the interval.

        Raises:
            EvaluationError: when r or c is outside the matrix.
        """
        rows, columns = self.counts.shape
        if not (1 <= r <= rows and 1 <= c <= columns):
            raise EvaluationError(f"MAP[{r}, {c}]: r is 1..{rows}, c is 1..{columns}")
        k = int(self.counts[r - 1, c - 1])
        return rate(k, self.n, confidence=confidence, n_failed=self.n_failed)


def attack_potential(
    groups: Mapping[str, MorphScores], taus: Mapping[str, float], attempts: int | None = None
) -> AttackPotential:
    """MAP of one attack over the systems in `groups`.

    Args:
        groups: the same morphs and subjects scored by every system.
        taus: each system's oriented threshold.
        attempts: R, the number of rows; None is the smallest number of probes of any subject. All
            probes count towards r, also those beyond R.

    Raises:
        ScoreError: when the systems scored other morphs or subjects.
    """
    systems = _same_morphs(groups)
    (hits,) = _hits(groups, {system: np.array([tau]) for system, tau in taus.items()}, attempts)
    return AttackPotential(
        counts=hits.sum(axis=-1),
        n=len(groups[systems[0]]),
        systems=systems,
        n_failed=sum(groups[s].n_failed for s in systems),
    )


def bootstrap_attack_potential(
    draws: SubjectDraws,
    groups: Mapping[str, MorphScores],
    taus: Mapping[str, np.ndarray | float],
    attempts: int | None = None,
) -> np.ndarray:
    """Shape (B, R, C): MAP in every replicate of the subject bootstrap.

    Args:
        draws: Multiplicities of the subjects.
        groups, attempts: As for `attack_potential`.
        taus: each system's thresholds, shape (B,), or one fixed threshold; oriented.
    """
    systems = _same_morphs(groups)
    weights = morph_weights(draws, groups[systems[0]])
    every = {system: np.broadcast_to(taus[system], len(draws)) for system in systems}
    values = []
    for start in range(0, len(draws), 128):
        part = slice(start, start + 128)
        hits = _hits(groups, {system: tau[part] for system, tau in every.items()}, attempts)
        w = weights[part]
        with np.errstate(invalid="ignore", divide="ignore"):
            values.append(np.einsum("brcm,bm->brc", hits, w) / w.sum(axis=1)[:, None, None])
    return np.concatenate(values)


def _hits(
    groups: Mapping[str, MorphScores], taus: Mapping[str, np.ndarray], attempts: int | None
) -> np.ndarray:
    """Whether each morph reaches (r, c) at each threshold, shape (T, R, C, M)."""
    rows = attempts or min(int(own.probes.min()) for own in groups.values())
    reached = np.stack([own.accepted_by_all(taus[system]) for system, own in groups.items()])
    at_r = reached[None] >= np.arange(1, rows + 1).reshape(-1, 1, 1, 1)
    n_systems = at_r.sum(axis=1)
    hits = n_systems[:, None] >= np.arange(1, len(groups) + 1).reshape(1, -1, 1, 1)
    return np.moveaxis(hits, 2, 0)


def generalised_attack_potential(
    attacks: Mapping[str, Mapping[str, MorphScores]],
    taus: Mapping[str, float],
    *,
    over_systems: str = "min",
    ftar: Mapping[str, float | Sequence[float]] | None = None,
) -> float:
    """G-MAP over attack types and systems, in [0, 1].

    Args:
        attacks: attack -> system -> scores, paired attempts of equal number within an attack.
        taus: each system's oriented threshold.
        over_systems: `min` (the strongest defender, the default), `mean` or `max`.
        ftar: failure-to-acquire rate of each system, one number or one per attempt, measured
            elsewhere. None: failures in the scores themselves count as non-matches, which equals
            the share matched among the acquired times (1 - FTAR) of these very comparisons.

    Raises:
        EvaluationError: unknown aggregation, or `ftar` given while the scores hold failures too,
            which would count them twice.
        ScoreError: unequal numbers of attempts, or systems that scored other morphs.
    """
    if over_systems not in AGGREGATIONS:
        raise EvaluationError(f"over_systems {over_systems!r}: expected {', '.join(AGGREGATIONS)}")
    if not attacks:
        raise EvaluationError("G-MAP needs at least one attack")
    per_attack = []
    for by_system in attacks.values():
        shares = []
        for system in _same_morphs(by_system):
            groups = by_system[system]
            per_attempt = (groups.paired > taus[system]).mean(axis=0)
            if ftar is not None:
                if groups.n_failed:
                    raise EvaluationError(
                        f"system {system!r} has failed comparisons and a separate FTAR; give one"
                    )
                per_attempt = per_attempt * (1.0 - np.asarray(ftar[system], dtype=np.float64))
            shares.append(per_attempt.mean())
        per_attack.append(AGGREGATIONS[over_systems](shares))
    return float(np.mean(per_attack))


def _same_morphs(groups: Mapping[str, MorphScores]) -> tuple[str, ...]:
    systems = tuple(groups)
    if not systems:
        raise EvaluationError("no system to compute the attack potential over")
    first = groups[systems[0]]
    for system in systems[1:]:
        other = groups[system]
        if not (
            np.array_equal(first.morphs, other.morphs)
            and np.array_equal(first.subjects, other.subjects)
        ):
            raise ScoreError(
                f"systems {systems[0]!r} and {system!r} scored other morphs or subjects; "
                "the attack potential needs the same ones"
            )
    return systems
