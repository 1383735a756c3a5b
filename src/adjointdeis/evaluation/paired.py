r"""Is one attack stronger than another on the same pairs of subjects? Paired tests and differences.

Two Wilson intervals must never be compared for this: both attacks morph the same people, so their
successes are correlated. McNemar's exact test looks only at the pairs on which the attacks differ:
with b pairs won by the first alone and c by the second alone, :math:`b \sim
\mathrm{Binomial}(b + c, 1/2)` under no difference. It treats pairs as independent; the paired
subject bootstrap of the difference does not. Over several recognisers, adjust with `holm`.

References:
    | A simple sequentially rejective multiple test procedure (Holm, 1979)
    | https://www.jstor.org/stable/4615733
    | Note on the sampling error of the difference between correlated proportions (McNemar, 1947)
    | https://doi.org/10.1007/BF02295996
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from adjointdeis.evaluation.errors import EvaluationError, ScoreError
from adjointdeis.evaluation.groups import MorphScores, group_table
from adjointdeis.evaluation.metrics import numerators
from adjointdeis.evaluation.operating import ThresholdSource, chosen, morph_rows
from adjointdeis.evaluation.rates import clopper_pearson
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.subjects import Subjects
from adjointdeis.evaluation.thresholds import ThresholdRecord
from adjointdeis.evaluation.uncertainty import (
    bootstrap_rates,
    independent_morphs,
    percentile_interval,
)


@dataclass(frozen=True)
class PairedComparison:
    """Attack `first` against `second` on the same pairs, one system and one threshold.

    Attributes:
        n: pairs in common, of n_first and n_second.
        both, first_only, second_only, neither: how they came out.
        difference: rate of the first minus rate of the second, in [-1, 1].
        lo, hi: paired subject-bootstrap interval of the difference.
        p_value: exact two-sided McNemar; p_holm: adjusted over the systems compared together.
        probe_policy, impostor_policy, fmr_target, tau: under what, and at which threshold.
    """

    first: str
    second: str
    system: str
    variant: str
    n: int
    both: int
    first_only: int
    second_only: int
    neither: int
    difference: float
    lo: float | None
    hi: float | None
    p_value: float
    p_holm: float | None = None
    n_first: int = 0
    n_second: int = 0
    probe_policy: str = ""
    impostor_policy: str = ""
    fmr_target: float | None = None
    tau: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """The two-sided exact p-value; 1 when the attacks never differ.

    Args:
        first_only: Pairs on which the first attack alone succeeds.
        second_only: Pairs on which the second alone does.
    """
    if min(first_only, second_only) < 0:
        raise EvaluationError("counts of discordant pairs must not be negative")
    n = first_only + second_only
    if n == 0:
        return 1.0
    from scipy.special import bdtr

    return float(min(1.0, 2.0 * bdtr(min(first_only, second_only), n, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p-values in the order given; controls the family-wise error rate.

    Args:
        p_values: Of the tests of one family, in [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.size and not ((p >= 0) & (p <= 1)).all():
        raise EvaluationError("p-values must lie in [0, 1]")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * (len(p) - np.arange(len(p)))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return adjusted.tolist()


def in_common(first: MorphScores, second: MorphScores) -> tuple[MorphScores, MorphScores]:
    """Both attacks restricted to the pairs that both have, in one order.

    Morphs are matched by the set of their subjects.

    Raises:
        ScoreError: when an attack has two morphs of one pair, or there is no common pair.
    """
    keys = [_keys(first), _keys(second)]
    common = sorted(set(keys[0]) & set(keys[1]))
    if not common:
        raise ScoreError("the two attacks have no pair of subjects in common")
    one, two = ([own[key] for key in common] for own in keys)
    return _take(first, one), _take(second, two)


def compare_attacks(
    table: ScoreTable,
    first: str,
    second: str,
    thresholds: Sequence[ThresholdRecord] | None = None,
    *,
    probe_policy: str,
    impostor_policy: str = "all",
    fmr: float = 0.001,
    systems: Sequence[str] | None = None,
    variant: str = "MinMax",
    subjects: Subjects | None = None,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[PairedComparison]:
    """Compares two attacks on every system that scored both, Holm-adjusted over the systems.

    Args:
        table: `morph` rows of both attacks on the same pairs.
        first, second: Names of the attacks; the difference is first minus second.
        probe_policy: Against which image: source, or another one.
        fmr, impostor_policy: One target and one policy, which every system's threshold has.
        systems: Which; None takes those that scored both.
        variant: `MMPMR` or `MinMax`: McNemar's test needs a yes or no for every pair.
        thresholds, subjects, replicates, seed, confidence: As for `evaluate`.
    """
    if variant not in ("MMPMR", "MinMax"):
        raise EvaluationError(f"variant {variant!r}: a paired test takes MMPMR or MinMax")
    source = ThresholdSource(table, thresholds, subjects, replicates, seed, confidence)
    morphs = morph_rows(table)
    morphs = morphs.select(probe_policy=chosen(morphs, "probe_policy", [probe_policy]))
    first, second = chosen(morphs, "attack", [first])[0], chosen(morphs, "attack", [second])[0]
    both = [set(morphs.unique("system", attack=attack)) for attack in (first, second)]
    if systems is None and not (systems := sorted(both[0] & both[1])):
        raise ScoreError(
            f"{table.source or 'scores'}: no system scored both {first!r} and {second!r} with "
            f"probes {probe_policy!r}"
        )
    found = []
    for system in chosen(morphs, "system", systems):
        point = source.point(system, fmr, impostor_policy)
        tau = np.array([point.record.oriented])
        sides = [
            group_table(table, attack=attack, system=system, probe_policy=probe_policy)
            for attack in (first, second)
        ]
        one, two = in_common(*sides)
        a, b = (numerators(g, variant, tau)[0] > 0.5 for g in (one, two))
        only, difference = (int((a & ~b).sum()), int((b & ~a).sum())), float(a.mean() - b.mean())
        lo = hi = None
        if source.draws is not None:
            rates = [bootstrap_rates(source.draws, g, variant, point.taus) for g in (one, two)]
            lo, hi = percentile_interval(rates[0] - rates[1], confidence)
            if lo == hi or not any(only):
                # Where the attacks never differ, no replicate at this threshold can: what is left
                # to say is how rare a difference may be, exactly, among pairs that share nobody.
                n = independent_morphs(one)
                rare = clopper_pearson(0, n, confidence)[1]
                lo, hi = max(-1.0, min(lo, difference - rare)), min(1.0, max(hi, difference + rare))
        found.append(
            PairedComparison(
                first=first,
                second=second,
                system=system,
                variant=variant,
                n=len(one),
                both=int((a & b).sum()),
                first_only=only[0],
                second_only=only[1],
                neither=int((~a & ~b).sum()),
                difference=difference,
                lo=lo,
                hi=hi,
                p_value=mcnemar_exact(*only),
                n_first=len(sides[0]),
                n_second=len(sides[1]),
                probe_policy=probe_policy,
                impostor_policy=point.record.impostor_policy or "unstated",
                fmr_target=point.record.target_fmr,
                tau=point.record.value,
            )
        )
    adjusted = holm([c.p_value for c in found])
    return [replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True)]


def _keys(groups: MorphScores) -> dict[tuple[str, ...], int]:
    keys: dict[tuple[str, ...], int] = {}
    for at, people in enumerate(groups.people):
        key = tuple(sorted(map(str, people)))
        if key in keys:
            raise ScoreError(
                f"two morphs of the subjects {', '.join(key)}; a paired test takes one"
            )
        keys[key] = at
    return keys


def _take(groups: MorphScores, morphs: Sequence[int]) -> MorphScores:
    of_morph = np.split(np.arange(len(groups.subjects)), groups.morph_start[1:])
    of_pair = np.split(groups.scores, groups.pair_start[1:])
    pairs = np.concatenate([of_morph[m] for m in morphs])
    scores = np.concatenate([of_pair[p] for p in pairs])
    probes, sizes = groups.probes[pairs], groups.n_subjects[morphs]
    return MorphScores(
        scores=scores,
        pair_start=np.cumsum(probes) - probes,
        morph_start=np.cumsum(sizes) - sizes,
        morphs=groups.morphs[morphs],
        subjects=groups.subjects[pairs],
        n_failed=int(np.isneginf(scores).sum()),
    )
