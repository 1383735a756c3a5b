"""Operating points: the threshold of each recogniser, given or estimated, and its replicates."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adjointdeis.evaluation.errors import EvaluationError, PolicyError, ScoreError
from adjointdeis.evaluation.policies import Impostors, impostors
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.subjects import Subjects
from adjointdeis.evaluation.thresholds import ThresholdRecord, threshold_at_fmr
from adjointdeis.evaluation.uncertainty import SubjectDraws, bootstrap_thresholds, draw_subjects
from adjointdeis.texts import canonical

TAU_REESTIMATED = "re-estimated"
TAU_FIXED = "fixed"


class DirectionWarning(UserWarning):
    """Genuine comparisons lie below impostors, though it may be chance."""


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """A system's threshold under one impostor policy, with its bootstrap replicates."""

    record: ThresholdRecord
    taus: np.ndarray | None

    @property
    def bootstrap_tau(self) -> str:
        """`re-estimated` or `fixed`."""
        return TAU_FIXED if self.taus is None else TAU_REESTIMATED


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
    """Threshold records of one system, labelled from the table's metadata and `stated`.

    Args:
        table: Comparisons, of which the `nonmated` rows count.
        system: Name of the recogniser.
        fmr: Target false match rates, as shares.
        impostor_policies: Of `IMPOSTOR_POLICIES`; all but `all` need `subjects`.
        subjects: Sex and group of each subject.
        confidence: Level of the interval of the realised FMR.
        stated: Fields of `ThresholdRecord` that the table does not say.
    """
    _require_order(table, system)
    return [
        _estimate(impostors(table, system, policy, subjects), table, system, policy, target,
                  confidence, stated)
        for policy in distinct(impostor_policies)
        for target in distinct(fmr)
    ]  # fmt: skip


def distinct(values: Any) -> list[Any]:
    """Each value once, in order; one text or number is a list of one."""
    listed = [values] if isinstance(values, str | int | float) else list(values)
    return list(dict.fromkeys(listed))


def conditions(table: ScoreTable, system: str) -> dict[str, str]:
    """What the table's metadata state: model_fingerprint and alignment of a system, data_set."""
    known = table.metadata.get("systems", {})
    stated = dict(known.get(system, {})) if isinstance(known, Mapping) else {}
    stated["data_set"] = table.metadata.get("data_set")
    wanted = ("model_fingerprint", "alignment", "data_set")
    return {k: str(stated[k]) for k in wanted if stated.get(k)}


def draw_for(table: ScoreTable, replicates: int, seed: int) -> SubjectDraws:
    """Bootstrap draws over all people of a table.

    Args:
        table: Comparisons that name their people.
        replicates: How many draws.
        seed: Seed of the draws.

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
    """The wanted values of a column, or all it has; an absent value raises EvaluationError.

    Args:
        table: Comparisons.
        column: Such as `system` or `attack`.
        wanted: Values of it; None for all that the table has.
    """
    present = table.unique(column)
    wanted = None if wanted is None else distinct(map(canonical, distinct(wanted)))
    for value in wanted or ():
        if value not in present:
            raise EvaluationError(
                f"{column} {value!r} is not in the table; it has {', '.join(present)}"
            )
    return present if wanted is None else list(wanted)


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

    Args:
        table: Comparisons; estimates and replicates come from its `nonmated` rows.
        system: Name of the recogniser.
        records: Thresholds to use, of any systems; None estimates them.
        fmr: Target false match rates, as shares; ignored where `records` are given.
        policies: Impostor policies, likewise.
        subjects: Sex and group of each subject, for the policies that need them.
        draws: Bootstrap draws of the people; None gives no replicates.
        confidence: Level of the interval of the realised FMR.

    Raises:
        PolicyError: no record of this system, or impostors that a policy cannot select.
        ThresholdMismatch: a record made under another model, alignment or direction.
    """
    _require_order(table, system)
    if records is None:
        points = []
        for policy in distinct(policies):
            found = impostors(table, system, policy, subjects)
            for target in distinct(fmr):
                record = _estimate(found, table, system, policy, target, confidence, {})
                points.append(OperatingPoint(record, _replicate_taus(draws, found, target)))
        return points
    nameless = [record for record in records if not record.model]
    if nameless and len(table.unique("system", kind="morph")) > 1:
        raise PolicyError(
            f"a threshold record at FMR {nameless[0].target_fmr:g} names no model, and the table "
            f"has {', '.join(table.unique('system', kind='morph'))}: a threshold belongs to one "
            'recogniser, state "model" in its file'
        )
    own = distinct(record for record in records if record.model in ("", system))
    met: dict[tuple[str, float], ThresholdRecord] = {}
    for record in own:
        at = (record.impostor_policy, record.target_fmr)
        if met.setdefault(at, record) is not record:
            raise PolicyError(
                f"two threshold records of {system!r}, impostors {at[0] or 'unstated'}, at FMR "
                f"{at[1]:g}: {met[at].value:g} and {record.value:g}; keep one"
            )
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


def operating_point(
    table: ScoreTable,
    system: str,
    records: Sequence[ThresholdRecord] | None,
    fmr: float,
    policy: str,
    subjects: Subjects | None,
    draws: SubjectDraws | None,
    confidence: float,
) -> OperatingPoint:
    """The one of `operating_points` at an FMR.

    Args:
        table, system, records, subjects, draws, confidence: As for `operating_points`.
        fmr: Target false match rate, a share.
        policy: Impostor policy.

    Raises:
        EvaluationError: no record at this FMR.
    """
    found = operating_points(table, system, records, (fmr,), (policy,), subjects, draws, confidence)
    for point in found:
        if point.record.target_fmr == fmr:
            return point
    raise EvaluationError(f"no threshold record of {system!r} at FMR {fmr:g}")


def _require_order(table: ScoreTable, system: str) -> None:
    """Refuses scores whose genuine comparisons lie clearly below the impostors'.

    Nearly always the stated direction is the wrong one: distances taken for similarities. Warns
    where it may be chance. The test is Mann-Whitney's at three standard deviations.

    Raises:
        ScoreError: naming the system.
    """
    own = table.select(system=system)
    sides = [own.select(kind=kind).oriented for kind in ("mated", "nonmated")]
    mated, nonmated = (np.sort(side[~np.isnan(side)]) for side in sides)
    n, m = len(mated), len(nonmated)
    if not n or not m:
        return
    below = np.searchsorted(nonmated, mated, side="left").sum()
    ties = np.searchsorted(nonmated, mated, side="right").sum() - below
    share = float(below + ties / 2) / (n * m)
    if share >= 0.5:
        return
    message = (
        f"system {system!r}: of {n} mated and {m} nonmated comparisons the mated one is more alike "
        f"in {100 * share:.0f}% of the couples only; is score_type {table.direction(system)!r} the "
        "wrong direction?"
    )
    if (0.5 - share) > 3 * math.sqrt((n + m + 1) / (12 * n * m)):
        raise ScoreError(f"{table.source or 'scores'}: {message}")
    warnings.warn(message, DirectionWarning, stacklevel=3)


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
        people=(found.subject, found.other) if found.people_known else None,
        **labels,
    )


def _replicate_taus(draws: SubjectDraws | None, found: Impostors, fmr: float) -> np.ndarray | None:
    if draws is None or not found.people_known:
        return None
    return bootstrap_thresholds(draws, found.oriented, found.subject, found.other, fmr)
