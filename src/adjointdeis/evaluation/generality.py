"""Rows of MAP[r, c] and G-MAP from a table of scores, with the labels of `protocol`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from adjointdeis.evaluation.attack_potential import (
    AGGREGATIONS,
    attack_potential,
    bootstrap_attack_potential,
    generalised_attack_potential,
)
from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.groups import MorphScores, group_table
from adjointdeis.evaluation.operating import (
    TAU_FIXED,
    TAU_REESTIMATED,
    ThresholdSource,
    chosen,
    morph_rows,
)
from adjointdeis.evaluation.protocol import WORST_CASE
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.subjects import Subjects
from adjointdeis.evaluation.thresholds import ThresholdRecord
from adjointdeis.evaluation.uncertainty import (
    bootstrap_rates,
    covering_interval,
    independent_morphs,
)


def evaluate_attack_potential(
    table: ScoreTable,
    thresholds: Iterable[ThresholdRecord] | None = None,
    *,
    fmr: float = 0.001,
    impostor_policy: str = "all",
    attacks: Sequence[str] | None = None,
    systems: Sequence[str] | None = None,
    probe_policies: Sequence[str] | None = None,
    subjects: Subjects | None = None,
    attempts: int | None = None,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """MAP[r, c] of every attack and probe policy over all systems, one row per (r, c).

    Args:
        table: `morph` rows of several systems, and `nonmated` rows where thresholds are estimated.
        fmr, impostor_policy: One target and one policy, which every system's threshold has.
        attempts: R, the number of rows; None is the smallest number of probes of any subject.
        thresholds, attacks, systems, probe_policies, subjects: As for `evaluate`.
        replicates, seed, confidence: As for `evaluate`.

    Returns:
        attack, systems, probe_policy, impostor_policy, fmr_target, r, c, the numbers of the cell as
        `evaluate` gives them (k, n, value, both intervals, bootstrap_tau, confidence) and n_failed.

    Raises:
        EvaluationError: when a system has no threshold at this FMR and policy.
    """
    morphs = morph_rows(table)
    attacks = chosen(morphs, "attack", attacks)
    systems = chosen(morphs, "system", systems)
    policies = chosen(morphs, "probe_policy", probe_policies)
    source = ThresholdSource(table, thresholds, subjects, replicates, seed, confidence)
    points = {system: source.point(system, fmr, impostor_policy) for system in systems}
    tau = None
    if source.draws is not None:
        fixed = any(point.redrawn is None for point in points.values())
        tau = TAU_FIXED if fixed else TAU_REESTIMATED
    rows = []
    for attack in attacks:
        for policy in policies:
            if not len(morphs.select(attack=attack, probe_policy=policy)):
                continue
            groups = {
                s: group_table(morphs, attack=attack, system=s, probe_policy=policy)
                for s in systems
            }
            taus = {system: point.record.oriented for system, point in points.items()}
            matrix = attack_potential(groups, taus, attempts)
            independent = independent_morphs(groups[systems[0]])
            values = None
            if source.draws is not None:
                redrawn = {system: point.taus for system, point in points.items()}
                values = bootstrap_attack_potential(source.draws, groups, redrawn, attempts)
            n_rows, n_columns = matrix.counts.shape
            for r in range(1, n_rows + 1):
                for c in range(1, n_columns + 1):
                    cell = matrix.rate(r, c, confidence)
                    lo = hi = None
                    if values is not None:
                        own = values[:, r - 1, c - 1]
                        lo, hi = covering_interval(own, cell.value, independent, confidence)
                    rows.append(
                        {
                            "attack": attack,
                            "systems": list(systems),
                            "probe_policy": policy,
                            "impostor_policy": impostor_policy,
                            "fmr_target": fmr,
                            "r": r,
                            "c": c,
                            "k": cell.k,
                            "n": cell.n,
                            "value": cell.value,
                            "wilson_lo": cell.lo,
                            "wilson_hi": cell.hi,
                            "bootstrap_lo": lo,
                            "bootstrap_hi": hi,
                            "bootstrap_tau": tau,
                            "confidence": confidence,
                            "n_failed": cell.n_failed,
                        }
                    )
    return rows


def evaluate_generality(
    table: ScoreTable,
    thresholds: Iterable[ThresholdRecord] | None = None,
    *,
    fmr: float = 0.001,
    impostor_policy: str = "all",
    subjects: Subjects | None = None,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """G-MAP over all attacks, one row per probe policy: minimum, mean and maximum over systems.

    The worst-case bound is no attack and is left out. Failures in the scores count as non-matches.

    Args:
        table: `morph` rows of several attacks and systems, and `nonmated` rows.
        fmr, impostor_policy: One target and one policy, which every system's threshold has.
        thresholds, subjects, replicates, seed, confidence: As for `evaluate`.

    Returns:
        probe_policy, impostor_policy, fmr_target, attacks, systems, min, mean, max with the ends
        of their intervals (min_lo, min_hi, ...), n_failed; the shares are None where some subject
        has another number of probes, for G-MAP pairs them.

    Raises:
        EvaluationError: when a system has no threshold at this FMR and policy.
    """
    morphs = morph_rows(table)
    systems = chosen(morphs, "system", None)
    attacks = [a for a in chosen(morphs, "attack", None) if a != WORST_CASE]
    source = ThresholdSource(table, thresholds, subjects, replicates, seed, confidence)
    points = {system: source.point(system, fmr, impostor_policy) for system in systems}
    taus = {system: point.record.oriented for system, point in points.items()}
    rows = []
    for policy in chosen(morphs, "probe_policy", None):
        groups: dict[str, dict[str, MorphScores]] = {
            attack: {
                s: group_table(morphs, attack=attack, system=s, probe_policy=policy)
                for s in systems
            }
            for attack in attacks
            if len(morphs.select(attack=attack, probe_policy=policy))
        }
        row: dict[str, Any] = {
            "probe_policy": policy,
            "impostor_policy": impostor_policy,
            "fmr_target": fmr,
            "attacks": list(groups),
            "systems": systems,
        }
        for over in AGGREGATIONS:
            row[over] = row[f"{over}_lo"] = row[f"{over}_hi"] = None
            try:
                row[over] = generalised_attack_potential(groups, taus, over_systems=over)
            except ScoreError:
                continue
            if source.draws is not None:
                drawn = []
                for own in groups.values():
                    rates = [
                        bootstrap_rates(source.draws, g, "FMMPMR", points[s].taus)
                        for s, g in own.items()
                    ]
                    drawn.append(AGGREGATIONS[over](rates, axis=0))
                n = min(independent_morphs(own[systems[0]]) for own in groups.values())
                ends = covering_interval(np.mean(drawn, axis=0), row[over], n, confidence)
                row[f"{over}_lo"], row[f"{over}_hi"] = ends
        failed = [g.n_failed for own in groups.values() for g in own.values()]
        rows.append({**row, "n_failed": sum(failed)})
    return rows
