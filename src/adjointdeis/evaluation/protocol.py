"""From a table of scores to rows of results: every combination of attack, system and policy.

A row states everything a reader needs to doubt it: probe policy, impostor policy, variant, target
and realised FMR with counts, k of N, both intervals and what the bootstrap did with the threshold.
`INTERVALS` says in words what the intervals mean.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adjointdeis.evaluation.errors import EvaluationError, PolicyError, ScoreError
from adjointdeis.evaluation.groups import MorphScores, group_table
from adjointdeis.evaluation.metrics import VARIANTS, rmmr, vulnerability
from adjointdeis.evaluation.policies import Impostors, impostors
from adjointdeis.evaluation.rates import CONDITIONAL, NEW_SUBJECTS, NEW_SUBJECTS_FIXED_TAU, Rate
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.subjects import Subjects
from adjointdeis.evaluation.thresholds import ThresholdRecord, threshold_at_fmr
from adjointdeis.evaluation.uncertainty import (
    SubjectDraws,
    bootstrap_fnmr,
    bootstrap_rates,
    bootstrap_thresholds,
    draw_subjects,
    percentile_interval,
)
from adjointdeis.evaluation.verification import false_non_match_rate

WORST_CASE = "worst-case"
RMMR_PREFIX = "RMMR-"
# Those that count morphs; the IAPMR counts comparisons, and no sum with an FNMR is defined for it.
RMMR_VARIANTS = ("MMPMR", "MinMax", "ProdAvg", "FMMPMR")
ALL_VARIANTS = (*VARIANTS, *(RMMR_PREFIX + v for v in RMMR_VARIANTS))
TAU_REESTIMATED = "re-estimated"
TAU_FIXED = "fixed"
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
)


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """A system's threshold under one impostor policy, with its bootstrap replicates."""

    record: ThresholdRecord
    taus: np.ndarray | None

    @property
    def bootstrap_tau(self) -> str:
        """`re-estimated` or `fixed`."""
        return TAU_FIXED if self.taus is None else TAU_REESTIMATED


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
        replicates: of the subject bootstrap; 0 leaves it out.
        seed: of the bootstrap.

    Returns:
        dictionaries with the keys `ROW_KEYS`, JSON-ready; shares in [0, 1], None where unknown.
        `tau` is in the direction of the scores. `n_fta` and `n_fte` count comparisons of morphs.

    Raises:
        ScoreError, PolicyError, ThresholdMismatch, EvaluationError: see the parts.
    """
    morphs = table.select(kind="morph")
    if not len(morphs):
        raise ScoreError(f"{table.source or 'scores'}: no row of kind 'morph' to evaluate")
    attacks = chosen(morphs, "attack", attacks)
    systems = chosen(morphs, "system", systems)
    policies = chosen(morphs, "probe_policy", probe_policies)
    for variant in variants or ():
        if variant not in ALL_VARIANTS:
            raise EvaluationError(f"variant {variant!r}: expected {', '.join(ALL_VARIANTS)}")
    draws = draw_for(table, replicates, seed) if replicates else None
    records = None if thresholds is None else list(thresholds)
    rows = []
    for system in systems:
        points = operating_points(
            table, system, records, fmr, impostor_policies, subjects, draws, confidence
        )
        mated = table.select(kind="mated", system=system)
        for attack in attacks:
            for policy in policies:
                cell = morphs.select(attack=attack, system=system, probe_policy=policy)
                if not len(cell):
                    continue
                groups = group_table(cell, attack=attack, system=system, probe_policy=policy)
                labels: dict[str, Any] = {"attack": attack, "system": system}
                labels["probe_policy"] = policy
                labels["n_fta"] = int((cell["status"] == "fta").sum())
                labels["n_fte"] = int((cell["status"] == "fte").sum())
                for point in points:
                    for variant in variants or _default_variants(groups):
                        row = _row(groups, mated, point, variant, draws, confidence)
                        rows.append({**labels, **row, "_subjects": _pairs(groups)})
    if not rows:
        raise ScoreError("no morph row for the chosen attacks, systems and probe policies")
    _add_bounds(rows)
    return [{key: row[key] for key in ROW_KEYS} for row in rows]


def estimate_thresholds(
    table: ScoreTable,
    system: str,
    fmr: Sequence[float] = (0.001,),
    impostor_policies: Sequence[str] = ("all",),
    subjects: Subjects | None = None,
    *,
    confidence: float = 0.95,
    **stated: Any,
) -> list[ThresholdRecord]:
    """Threshold records of one system, labelled from the table's metadata and `stated`."""
    return [
        _estimate(impostors(table, system, policy, subjects), table, system, policy, target,
                  confidence, stated)
        for policy in impostor_policies
        for target in fmr
    ]  # fmt: skip


def conditions(table: ScoreTable, system: str) -> dict[str, str]:
    """What the table's metadata state: model_fingerprint and alignment of a system, data_set."""
    known = table.metadata.get("systems", {})
    stated = dict(known.get(system, {})) if isinstance(known, Mapping) else {}
    stated["data_set"] = table.metadata.get("data_set")
    wanted = ("model_fingerprint", "alignment", "data_set")
    return {k: str(stated[k]) for k in wanted if stated.get(k)}


def draw_for(table: ScoreTable, replicates: int, seed: int) -> SubjectDraws:
    """Bootstrap draws over all people of a table.

    Where the impostor pairs and the morphs share no person, the two groups are drawn apart, for
    then they are two samples; otherwise they are drawn as one.
    """
    morph = np.unique(table.select(kind="morph")["subject_id"])
    pairs = table.select(kind="nonmated")
    impostor = np.unique(np.concatenate([pairs["subject_id"], pairs["ref_subject_id"]]))
    mated = np.unique(table.select(kind="mated")["subject_id"])
    everyone = np.unique(np.concatenate([morph, impostor, mated]))
    everyone = everyone[everyone != ""]
    if np.intersect1d(morph, impostor).size:
        return draw_subjects(everyone, replicates=replicates, seed=seed)
    rest = np.setdiff1d(everyone, morph)
    return draw_subjects(morph, rest, replicates=replicates, seed=seed)


def chosen(table: ScoreTable, column: str, wanted: Sequence[str] | None) -> list[str]:
    """The wanted values of a column, or all it has; an absent value raises EvaluationError."""
    present = table.unique(column)
    for value in wanted or ():
        if value not in present:
            raise EvaluationError(
                f"{column} {value!r} is not in the table; it has {', '.join(present)}"
            )
    return present if wanted is None else list(wanted)


def _default_variants(groups: MorphScores) -> tuple[str, ...]:
    return ("MMPMR",) if int(groups.probes.max()) == 1 else ("MinMax", "ProdAvg")


def operating_points(
    table: ScoreTable,
    system: str,
    records: Sequence[ThresholdRecord] | None,
    fmr: Sequence[float],
    policies: Sequence[str],
    subjects: Subjects | None,
    draws: SubjectDraws | None,
    confidence: float,
) -> list[OperatingPoint]:
    """A system's thresholds: those given for it, checked, or estimates from the table.

    Raises:
        PolicyError: no record of this system, or impostors that a policy cannot select.
        ThresholdMismatch: a record made under another model, alignment or direction.
    """
    if records is None:
        points = []
        for policy in policies:
            found = impostors(table, system, policy, subjects)
            for target in fmr:
                record = _estimate(found, table, system, policy, target, confidence, {})
                points.append(OperatingPoint(record, _replicate_taus(draws, found, target)))
        return points
    own = [record for record in records if record.model in ("", system)]
    if not own:
        known = ", ".join(sorted({record.model for record in records}))
        raise PolicyError(f"no threshold record for system {system!r}; the records are of {known}")
    stated = {"score_type": table.direction(system), **conditions(table, system)}
    points = []
    for record in own:
        record.require(**stated)
        taus = None
        if len(table.select(kind="nonmated", system=system)) and record.impostor_hash:
            policy = record.impostor_policy or "all"
            try:
                found = impostors(table, system, policy, subjects)
            except PolicyError:
                found = None
            # Only the very comparisons behind the record may stand in for its uncertainty.
            if found is not None and found.fingerprint == record.impostor_hash:
                taus = _replicate_taus(draws, found, record.target_fmr)
        points.append(OperatingPoint(record, taus))
    return points


def _estimate(
    found: Impostors,
    table: ScoreTable,
    system: str,
    policy: str,
    target: float,
    confidence: float,
    stated: Mapping[str, Any],
) -> ThresholdRecord:
    labels = {
        "model": system,
        "impostor_policy": policy,
        "impostor_set": str(table.metadata.get("impostor_set", "")),
        **conditions(table, system),
        **stated,
    }
    return threshold_at_fmr(
        found.scores,
        target,
        score_type=found.score_type,
        confidence=confidence,
        impostor_hash=found.fingerprint,
        **labels,
    )


def _replicate_taus(draws: SubjectDraws | None, found: Impostors, fmr: float) -> np.ndarray | None:
    if draws is None or not found.people_known:
        return None
    return bootstrap_thresholds(draws, found.oriented, found.subject, found.other, fmr)


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
    result = vulnerability(groups, tau, base, confidence=confidence)
    fnmr: Rate | None = None
    if len(mated) and np.isfinite(mated.oriented).any():
        fnmr = false_non_match_rate(mated.oriented, tau, confidence=confidence)
    if variant != base:
        if fnmr is None:
            raise ScoreError(f"{variant} needs mated rows of the system, the table has none")
        result = rmmr(result, fnmr)
    lo = hi = None
    if draws is not None:
        taus: np.ndarray | float = tau if point.taus is None else point.taus
        values = bootstrap_rates(draws, groups, base, taus)
        if variant != base:
            values = values + bootstrap_fnmr(draws, mated.oriented, mated["subject_id"], taus)
        lo, hi = percentile_interval(values, confidence)
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
    }


def _pairs(groups: MorphScores) -> tuple[str, ...]:
    parts = np.split(groups.subjects, groups.morph_start[1:])
    return tuple(sorted("\x1f".join(sorted(map(str, part))) for part in parts))


def _add_bounds(rows: list[dict[str, Any]]) -> None:
    """Adds the worst-case morph's rate where it was scored on the very same pairs of subjects."""
    labels = ("system", "probe_policy", "impostor_policy", "variant", "fmr_target", "_subjects")
    bounds = {
        tuple(row[k] for k in labels): row["value"] for row in rows if row["attack"] == WORST_CASE
    }
    for row in rows:
        bound = bounds.get(tuple(row[k] for k in labels))
        row["bound"] = bound
        row["share_of_bound"] = row["value"] / bound if bound else None
