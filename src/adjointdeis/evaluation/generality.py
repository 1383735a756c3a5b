"""Rows of MAP[r, c] from a table of scores, with the labels and intervals of `protocol`."""

from collections.abc import Iterable, Sequence
from typing import Any

from .attack_potential import attack_potential, bootstrap_attack_potential
from .errors import EvaluationError
from .groups import group_table
from .protocol import TAU_FIXED, TAU_REESTIMATED, chosen, draw_for, operating_points
from .scores import ScoreTable
from .subjects import Subjects
from .thresholds import ThresholdRecord
from .uncertainty import percentile_interval

MAP_ROW_KEYS = (
    "attack",
    "systems",
    "probe_policy",
    "impostor_policy",
    "fmr_target",
    "r",
    "c",
    "k",
    "n",
    "value",
    "wilson_lo",
    "wilson_hi",
    "bootstrap_lo",
    "bootstrap_hi",
    "bootstrap_tau",
    "confidence",
    "n_failed",
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

    Args are those of `evaluate`; `attempts` is R of `attack_potential`.

    Raises:
        EvaluationError: when a system has no threshold at this FMR and policy.
    """
    morphs = table.select(kind="morph")
    attacks = chosen(morphs, "attack", attacks)
    systems = chosen(morphs, "system", systems)
    policies = chosen(morphs, "probe_policy", probe_policies)
    draws = draw_for(table, replicates, seed) if replicates else None
    records = None if thresholds is None else list(thresholds)
    points = {}
    for system in systems:
        found = operating_points(
            table, system, records, (fmr,), (impostor_policy,), subjects, draws, confidence
        )
        wanted = [p for p in found if p.record.target_fmr == fmr]
        if not wanted:
            raise EvaluationError(f"no threshold record of {system!r} at FMR {fmr:g}")
        points[system] = wanted[0]
    taus = {s: p.record.oriented for s, p in points.items()}
    replicate_taus = {s: taus[s] if p.taus is None else p.taus for s, p in points.items()}
    fixed = any(p.taus is None for p in points.values())
    rows = []
    for attack in attacks:
        for policy in policies:
            if not len(morphs.select(attack=attack, probe_policy=policy)):
                continue
            groups = {
                s: group_table(morphs, attack=attack, system=s, probe_policy=policy)
                for s in systems
            }
            matrix = attack_potential(groups, taus, attempts)
            values = None
            if draws is not None:
                values = bootstrap_attack_potential(draws, groups, replicate_taus, attempts)
            n_rows, n_columns = matrix.counts.shape
            for r in range(1, n_rows + 1):
                for c in range(1, n_columns + 1):
                    cell = matrix.rate(r, c, confidence)
                    lo = hi = None
                    if values is not None:
                        lo, hi = percentile_interval(values[:, r - 1, c - 1], confidence)
                    tau = TAU_FIXED if fixed else TAU_REESTIMATED
                    numbers = (r, c, cell.k, cell.n, cell.value, cell.lo, cell.hi, lo, hi)
                    labels = (attack, list(systems), policy, impostor_policy, fmr)
                    tail = (None if draws is None else tau, confidence, cell.n_failed)
                    row = (*labels, *numbers, *tail)
                    rows.append(dict(zip(MAP_ROW_KEYS, row, strict=True)))
    return rows
