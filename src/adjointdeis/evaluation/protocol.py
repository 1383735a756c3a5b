"""From a table of scores to rows of results: every combination of attack, system and policy.

A row states everything a reader needs to doubt it: probe policy, impostor policy, variant, target
and realised FMR with counts, k of N, both intervals and what the bootstrap did with the threshold.
`INTERVALS` says in words what the intervals mean.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import codes, oriented_tau
from adjointdeis.evaluation.errors import EvaluationError, ScoreError
from adjointdeis.evaluation.groups import MorphScores, group_table
from adjointdeis.evaluation.metrics import VARIANTS, rmmr, vulnerability
from adjointdeis.evaluation.operating import (
    OperatingPoint,
    ThresholdSource,
    chosen,
    distinct,
    morph_rows,
)
from adjointdeis.evaluation.rates import (
    CONDITIONAL,
    NEW_SUBJECTS,
    NEW_SUBJECTS_FIXED_TAU,
    Rate,
    sum_of_rates,
)
from adjointdeis.evaluation.scores import ScoreTable, concatenate
from adjointdeis.evaluation.subjects import Subjects, age_band
from adjointdeis.evaluation.thresholds import ThresholdRecord
from adjointdeis.evaluation.uncertainty import (
    SubjectDraws,
    bootstrap_fnmr,
    bootstrap_rates,
    covering_interval,
    independent_morphs,
    percentile_interval,
)
from adjointdeis.evaluation.verification import false_non_match_rate

WORST_CASE = "worst-case"
RMMR_PREFIX = "RMMR-"
# Those that count morphs; of the IAPMR, which counts comparisons, the sum with the FNMR is the
# RIAPAR of ISO/IEC 30107-3, 1 + IAPAR - (1 - FNMR).
RMMR_VARIANTS = ("MMPMR", "MinMax", "ProdAvg", "FMMPMR")
ALL_VARIANTS = (*VARIANTS, *(RMMR_PREFIX + v for v in (*RMMR_VARIANTS, "IAPMR")))
SYNONYMS = {"IAPAR": "IAPMR", "RIAPAR": "RMMR-IAPMR", "RMMR": "RMMR-MMPMR"}
INTERVALS = {
    "wilson": CONDITIONAL,
    "bootstrap, tau re-estimated": NEW_SUBJECTS,
    "bootstrap, tau fixed": NEW_SUBJECTS_FIXED_TAU,
}
ROW_KEYS = (
    "attack",
    "system",
    "probe_policy",
    "impostor_policy",
    "variant",
    "fmr_target",
    "tau",
    "score_type",
    "alignment",
    "fmr_realised",
    "impostors_k",
    "impostors_n",
    "rule_of_30",
    "k",
    "n",
    "value",
    "wilson_lo",
    "wilson_hi",
    "bootstrap_lo",
    "bootstrap_hi",
    "bootstrap_tau",
    "bootstrap_replicates",
    "confidence",
    "n_fta",
    "n_fte",
    "fnmr",
    "fnmr_k",
    "fnmr_n",
    "bound",
    "share_of_bound",
    "n_independent",
    "tau_strictest",
    "k_strictest",
    "n_subjects",
    "n_pairs",
    "pairs",
)
SHARES = ("fmr_target", "confidence", "wilson_lo", "wilson_hi", "bootstrap_lo", "bootstrap_hi")
# Keys that rows of older results lack.
LATER_ROW_KEYS = ROW_KEYS[-6:]


def impossible_number(row: Mapping[str, Any]) -> str | None:
    """What in a row no evaluation can have counted, behind its key; None where nothing is.

    Args:
        row: Of :func:`evaluate`, perhaps from a stranger's file; its numbers are finite.
    """
    # Of a sum of two rates neither holds.
    if row["variant"].startswith(RMMR_PREFIX):
        return None
    for key in SHARES:
        if row[key] is not None and not 0 <= row[key] <= 1:
            return f"{key}: {row[key]!r}, expected a share, 0 to 1"
    k, n, value = row["k"], row["n"], row["value"]
    if not 0 <= k <= n:
        return f"k: {k!r} of n={n!r}, expected 0 to n"
    if n and (value is None or not math.isclose(value, k / n, rel_tol=1e-9, abs_tol=1e-12)):
        return f"value: {value!r} is not k/n = {k!r}/{n!r}"
    return None


def evaluate(
    table: ScoreTable,
    thresholds: Iterable[ThresholdRecord] | None = None,
    *,
    fmr: Sequence[float] = (0.001,),
    impostor_policies: Sequence[str] = ("all",),
    probe_policies: Sequence[str] | None = None,
    attacks: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    variants: Sequence[str] | None = None,
    subjects: Subjects | None = None,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Evaluates every attack on every system under every policy.

    Args:
        table: `morph` rows, `nonmated` rows for thresholds, `mated` rows for FNMR and RMMR.
            `metadata["systems"][system]` may state `model_fingerprint` and `alignment`.
        thresholds: records to use instead of estimating; one per system (its `model`), target FMR
            and impostor policy. `fmr` and `impostor_policies` are then ignored.
        fmr: target false match rates, as shares.
        impostor_policies: of `policies.IMPOSTOR_POLICIES`; all but `all` need `subjects`.
        probe_policies, attacks, systems: what to evaluate; None takes what the table has.
        variants: of `ALL_VARIANTS`; None is MMPMR with one probe per subject, else MinMax and
            ProdAvg.
        subjects: sex and group of each subject, for the policies that need them.
        replicates: of the subject bootstrap; 0 leaves it out.
        seed: of the bootstrap.
        confidence: level of the intervals, in (0, 1).

    Returns:
        dictionaries with the keys `ROW_KEYS`, JSON-ready; shares in [0, 1], None where unknown.
        `tau` is in the direction of the scores. `n_fta` and `n_fte` count comparisons of morphs.
        `n_subjects` is how many people the n morphs are of, in `n_pairs` pairs (an attack may have
        several morphs of one); `pairs` is a hash of these, equal where two rates are of the same.

    Raises:
        ScoreError, PolicyError, ThresholdMismatch, EvaluationError: see the parts.
    """
    morphs = morph_rows(table)
    attacks = chosen(morphs, "attack", attacks)
    systems = chosen(morphs, "system", systems)
    policies = chosen(morphs, "probe_policy", probe_policies)
    if variants is not None:
        variants = distinct(SYNONYMS.get(variant, variant) for variant in distinct(variants))
    for variant in variants or ():
        if variant not in ALL_VARIANTS:
            raise EvaluationError(f"variant {variant!r}: expected {', '.join(ALL_VARIANTS)}")
    source = ThresholdSource(table, thresholds, subjects, replicates, seed, confidence)
    rows = []
    for system in systems:
        points = source.points(system, fmr, impostor_policies)
        mated = table.select(kind="mated", system=system)
        for attack in attacks:
            for policy in policies:
                cell = morphs.select(attack=attack, system=system, probe_policy=policy)
                if not len(cell):
                    continue
                groups = group_table(cell, attack=attack, system=system, probe_policy=policy)
                labels: dict[str, Any] = {"attack": attack, "system": system}
                labels |= {"probe_policy": policy, **_pairs(groups)}
                labels["n_subjects"] = len(set(groups.subjects.tolist()))
                labels["n_fta"] = int((cell["status"] == "fta").sum())
                labels["n_fte"] = int((cell["status"] == "fte").sum())
                for point in points:
                    for variant in variants or _default_variants(groups):
                        row = _row(groups, mated, point, variant, source.draws, confidence)
                        rows.append({**labels, **row})
    if not rows:
        raise ScoreError("no morph row for the chosen attacks, systems and probe policies")
    _add_bounds(rows)
    return [{key: row[key] for key in ROW_KEYS} for row in rows]


def _default_variants(groups: MorphScores) -> tuple[str, ...]:
    return ("MMPMR",) if int(groups.probes.max()) == 1 else ("MinMax", "ProdAvg")


def _row(
    groups: MorphScores,
    mated: ScoreTable,
    point: OperatingPoint,
    variant: str,
    draws: SubjectDraws | None,
    confidence: float,
) -> dict[str, Any]:
    record = point.record
    tau = record.oriented
    base = variant.removeprefix(RMMR_PREFIX)
    result = attack = vulnerability(groups, tau, base, confidence=confidence)
    strictest = _at_strictest(groups, record, base)
    independent = independent_morphs(groups)
    fnmr: Rate | None = None
    if len(mated) and np.isfinite(mated.oriented).any():
        fnmr = false_non_match_rate(mated.oriented, tau, confidence=confidence)
    if variant != base:
        if fnmr is None:
            raise ScoreError(f"{variant} needs mated rows of the system, the table has none")
        result = rmmr(result, fnmr)
    lo = hi = None
    if draws is not None:
        values = bootstrap_rates(draws, groups, base, point.taus)
        lo, hi = covering_interval(values, attack.value, independent, confidence)
        if fnmr is not None and variant != base:
            misses = bootstrap_fnmr(draws, mated.oriented, mated["subject_id"], point.taus)
            people = len(np.unique(mated["subject_id"][~np.isnan(mated.oriented)]))
            ends = covering_interval(misses, fnmr.value, people, confidence)
            both = percentile_interval(values + misses, confidence)
            apart = sum_of_rates(
                replace(attack, lo=lo, hi=hi), replace(fnmr, lo=ends[0], hi=ends[1])
            )
            lo, hi = min(both[0], apart.lo), max(both[1], apart.hi)
    return {
        "impostor_policy": record.impostor_policy or "unstated",
        "variant": variant,
        "fmr_target": record.target_fmr,
        "tau": record.value,
        "score_type": record.score_type,
        "alignment": record.alignment or None,
        "fmr_realised": record.realised_fmr,
        "impostors_k": record.k,
        "impostors_n": record.n,
        "rule_of_30": record.rule_of_30,
        "k": result.k,
        "n": result.n,
        "value": None if math.isnan(result.value) else result.value,
        "wilson_lo": result.lo,
        "wilson_hi": result.hi,
        "bootstrap_lo": lo,
        "bootstrap_hi": hi,
        "bootstrap_tau": None if draws is None else point.bootstrap_tau,
        "bootstrap_replicates": 0 if draws is None else len(draws),
        "confidence": confidence,
        "fnmr": None if fnmr is None else fnmr.value,
        "fnmr_k": None if fnmr is None else fnmr.k,
        "fnmr_n": None if fnmr is None else fnmr.n,
        "n_independent": independent,
        "tau_strictest": record.value_strictest,
        "k_strictest": strictest if variant == base else None,
    }


def _at_strictest(groups: MorphScores, record: ThresholdRecord, variant: str) -> float | None:
    """k at the strictest threshold with the record's false matches, the end against the attack."""
    if record.value_strictest is None:
        return None
    # Just below that impostor score: it still matches, and a morph of the same score does too.
    tau = np.nextafter(oriented_tau(record.value_strictest, record.score_type), -np.inf)
    return vulnerability(groups, float(tau), variant).k


def _pairs(groups: MorphScores) -> dict[str, Any]:
    """How many pairs of people the morphs are of, and a hash of them."""
    pairs = sorted({"\x1f".join(sorted(map(str, people))) for people in groups.people})
    joined = hashlib.sha256("\n".join(pairs).encode()).hexdigest()[:16]
    return {"n_pairs": len(pairs), "pairs": joined}


def _add_bounds(rows: list[dict[str, Any]]) -> None:
    """Adds the worst-case morph's rate where it was scored on the very same pairs of subjects."""
    labels = ("system", "probe_policy", "impostor_policy", "variant", "fmr_target", "pairs", "n")
    bounds = {
        tuple(row[k] for k in labels): row["value"] for row in rows if row["attack"] == WORST_CASE
    }
    for row in rows:
        bound = bounds.get(tuple(row[k] for k in labels))
        row["bound"] = bound
        row["share_of_bound"] = row["value"] / bound if bound else None


def evaluate_by(
    table: ScoreTable,
    subjects: Subjects,
    covariate: str,
    thresholds: Sequence[ThresholdRecord],
    **options: Any,
) -> list[dict[str, Any]]:
    """`evaluate` for the morphs whose subjects all share a sex, a group or an age band.

    The thresholds are those of everybody, so that groups are judged alike; counts and intervals
    are each group's own. Morphs across groups are in none.

    Args:
        table: As for `evaluate`.
        subjects: Covariates of every subject of a morph.
        covariate: `sex`, `group` or `age` (bands of ten years).
        thresholds: one per system, FMR and impostor policy.
        options: of `evaluate`.

    Returns:
        rows of `evaluate` with `group`, such as ``sex: female``; a group without a morph is absent.
    """
    morphs = table.select(kind="morph")
    values = subjects.values(morphs["subject_id"], covariate)
    if covariate == "age":
        values = np.array([age_band(value) for value in values.tolist()])
    morph, n = codes(morphs["attack"], morphs["morph_id"])
    rows = []
    for value in np.unique(values).tolist():
        within = np.bincount(morph, values != value, minlength=n)[morph] == 0
        if not within.any():
            continue
        own = morphs.where(within)
        people = np.unique(own["subject_id"])
        rest = table.where(
            (table["kind"] == "nonmated")
            | ((table["kind"] == "mated") & np.isin(table["subject_id"], people))
        )
        found = evaluate(concatenate([own, rest]), thresholds, **options)
        rows += [{"group": f"{covariate}: {value}", **row} for row in found]
    return rows
