"""Operating points: the threshold of each recogniser, given or estimated, and its replicates."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    """A system's threshold under one impostor policy.

    Attributes:
        record: The threshold.
        redrawn: Shape (B,), the threshold of every bootstrap replicate, oriented like the scores;
            None where it cannot be estimated anew.
    """

    record: ThresholdRecord
    redrawn: np.ndarray | None

    @property
    def taus(self) -> np.ndarray | float:
        """The thresholds of the bootstrap: one for each replicate, or the fixed one."""
        return self.record.oriented if self.redrawn is None else self.redrawn

    @property
    def bootstrap_tau(self) -> str:
        """`re-estimated` or `fixed`."""
        return TAU_FIXED if self.redrawn is None else TAU_REESTIMATED


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
    found = _estimates(table, system, fmr, impostor_policies, subjects, confidence, **stated)
    return [record for record, _ in found]


def distinct(values: Any) -> list[Any]:
    """Each value once, in order; one text or number is a list of one."""
    listed = [values] if isinstance(values, str | int | float) else list(values)
    return list(dict.fromkeys(listed))


def some(name: str, values: Any, usual: str) -> list[Any]:
    """`distinct` values of a setting without which there is nothing to evaluate.

    Args:
        name, values: The setting, as the user gave it.
        usual: What it usually is, for the message.

    Raises:
        EvaluationError: It is empty or None.
    """
    found = [] if values is None else distinct(values)
    if not found:
        raise EvaluationError(f"{name}={values!r}: expected one value or more, as {name}={usual}")
    return found


def conditions(table: ScoreTable, system: str) -> dict[str, str]:
    """What the table's metadata state: model_fingerprint and alignment of a system, data_set."""
    known = table.metadata.get("systems", {})
    stated = dict(known.get(system, {})) if isinstance(known, Mapping) else {}
    stated["data_set"] = table.metadata.get("data_set")
    wanted = ("model_fingerprint", "alignment", "data_set")
    return {k: str(stated[k]) for k in wanted if stated.get(k)}


def morph_rows(table: ScoreTable) -> ScoreTable:
    """The comparisons of morphs; without any, a ScoreError."""
    morphs = table.select(kind="morph")
    if not len(morphs):
        raise ScoreError(f"{table.source or 'scores'}: no row of kind 'morph' to evaluate")
    return morphs


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


@dataclass(eq=False)
class ThresholdSource:
    """Where the thresholds of a table come from: records of others, or its own impostors.

    Args:
        table: Comparisons; estimates and replicates come from its `nonmated` rows.
        records: Thresholds to use, of any systems; None estimates them.
        subjects: Sex and group of each subject, for the policies that need them.
        replicates, seed: Of the subject bootstrap, which 0 leaves out.
        confidence: Level of the interval of the realised FMR.

    Attributes:
        draws: The bootstrap's; None without it.
    """

    table: ScoreTable
    records: Iterable[ThresholdRecord] | None
    subjects: Subjects | None
    replicates: int
    seed: int
    confidence: float
    draws: SubjectDraws | None = field(init=False)

    def __post_init__(self) -> None:
        self.records = None if self.records is None else list(self.records)
        self.draws = self._draws() if self.replicates else None

    def _draws(self) -> SubjectDraws:
        """Bootstrap draws over all people of the table.

        Where the impostor pairs and the morphs share no person, the two groups are drawn apart, for
        then they are two samples; otherwise they are drawn as one.
        """
        morph = np.unique(self.table.select(kind="morph")["subject_id"])
        pairs = self.table.select(kind="nonmated")
        impostor = np.unique(np.concatenate([pairs["subject_id"], pairs["ref_subject_id"]]))
        mated = np.unique(self.table.select(kind="mated")["subject_id"])
        everyone = np.unique(np.concatenate([morph, impostor, mated]))
        everyone = everyone[everyone != ""]
        if np.intersect1d(morph, impostor).size:
            strata = [everyone]
        else:
            strata = [morph, np.setdiff1d(everyone, morph)]
        return draw_subjects(*strata, replicates=self.replicates, seed=self.seed)

    def points(
        self, system: str, fmr: Sequence[float], policies: Sequence[str]
    ) -> list[OperatingPoint]:
        """A system's thresholds: those given for it, checked, or estimates.

        Args:
            system: Name of the recogniser.
            fmr: Target false match rates, as shares; ignored where there are records.
            policies: Impostor policies, likewise.

        Raises:
            PolicyError: no record of this system, or impostors that a policy cannot select.
            ThresholdMismatch: a record made under another model, alignment or direction.
        """
        _require_order(self.table, system)
        if self.records is None:
            estimates = _estimates(
                self.table, system, fmr, policies, self.subjects, self.confidence
            )
            return [
                OperatingPoint(record, self._redrawn(found, record.target_fmr))
                for record, found in estimates
            ]
        own = self._records_of(system, self.records)
        stated = {"score_type": self.table.direction(system), **conditions(self.table, system)}
        return [
            OperatingPoint(record.require(**stated), self._redrawn_again(record, system))
            for record in own
        ]

    def point(self, system: str, fmr: float, policy: str) -> OperatingPoint:
        """The one of `points` at an FMR.

        Raises:
            EvaluationError: no record at this FMR.
        """
        for point in self.points(system, (fmr,), (policy,)):
            if point.record.target_fmr == fmr:
                return point
        raise EvaluationError(f"no threshold record of {system!r} at FMR {fmr:g}")

    def _records_of(self, system: str, records: Iterable[ThresholdRecord]) -> list[ThresholdRecord]:
        """The records of one system, one for each policy and FMR."""
        nameless = [record for record in records if not record.model]
        if nameless and len(systems := self.table.unique("system", kind="morph")) > 1:
            raise PolicyError(
                f"a threshold record at FMR {nameless[0].target_fmr:g} names no model, and the "
                f"table has {', '.join(systems)}: a threshold belongs to one recogniser, state "
                '"model" in its file'
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
            known = ", ".join(sorted({record.model for record in records})) or "nobody"
            raise PolicyError(
                f"no threshold record for system {system!r}; the records are of {known}"
            )
        return own

    def _redrawn(self, found: Impostors, fmr: float) -> np.ndarray | None:
        if self.draws is None or not found.people_known:
            return None
        return bootstrap_thresholds(self.draws, found.oriented, found.subject, found.other, fmr)

    def _redrawn_again(self, record: ThresholdRecord, system: str) -> np.ndarray | None:
        """Replicates of a given threshold, if the table has the very comparisons behind it."""
        if not record.impostor_hash:
            return None
        try:
            found = impostors(self.table, system, record.impostor_policy or "all", self.subjects)
        except PolicyError:
            return None
        same = found.fingerprint == record.impostor_hash
        return self._redrawn(found, record.target_fmr) if same else None


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


def _estimates(
    table: ScoreTable,
    system: str,
    fmr: Sequence[float],
    policies: Sequence[str],
    subjects: Subjects | None,
    confidence: float,
    **stated: Any,
) -> Iterator[tuple[ThresholdRecord, Impostors]]:
    """The record of every policy and FMR, and the impostors behind it."""
    fmr = some("fmr", fmr, "[0.001]")
    for policy in some("impostor_policies", policies, "['all']"):
        found = impostors(table, system, policy, subjects)
        labels = {
            "model": system,
            "impostor_policy": policy,
            "impostor_set": str(table.metadata.get("impostor_set", "")),
            **conditions(table, system),
            **stated,
        }
        for target in fmr:
            record = threshold_at_fmr(
                found.scores,
                target,
                score_type=found.score_type,
                confidence=confidence,
                impostor_hash=found.fingerprint,
                people=(found.subject, found.other) if found.people_known else None,
                **labels,
            )
            _refuse_saturated(table, system, record, found)
            yield record, found


def _refuse_saturated(
    table: ScoreTable, system: str, record: ThresholdRecord, found: Impostors
) -> None:
    """Refuses a threshold that is the highest score of all, which impostors share: none matches."""
    shared = int(np.count_nonzero(found.oriented == record.oriented))
    others = table.select(system=system, kind=("mated", "morph")).oriented
    if shared > 1 and len(others) and not (others > record.oriented).any():
        raise ScoreError(
            f"{table.source or 'scores'}: system {system!r}: {shared} of {len(found.oriented)} "
            f"impostor comparisons have its best score of all, {record.value:g}, so that at FMR "
            f"{record.target_fmr:g} nothing matches, genuine or morph: the scores are cut off or "
            "rounded; write them as the recogniser gives them, or ask a larger --fmr"
        )
