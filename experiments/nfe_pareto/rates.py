"""From trajectories to MMPMR: intervals over subjects, seeds averaged, paired differences."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from adjointdeis.evaluation.groups import MorphScores, group
from adjointdeis.evaluation.metrics import numerators
from adjointdeis.evaluation.uncertainty import (
    SubjectDraws,
    bootstrap_rates,
    draw_subjects,
    percentile_interval,
)
from adjointdeis.faces.datasets.pairs import MorphPair
from experiments.nfe_pareto.study import Setting, Study

POLICIES = ("other", "source")
REPLICATES = 2000


@dataclass(frozen=True)
class Point:
    """MMPMR of one moment of an attack under one judge and probe policy.

    Attributes:
        k: Accepted morphs, one number per seed.
        n: Of how many.
        replicates: The mean over seeds in every bootstrap replicate, with shape (R).
    """

    k: tuple[int, ...]
    n: int
    replicates: np.ndarray

    @property
    def value(self) -> float:
        """Mean over the seeds."""
        return sum(self.k) / len(self.k) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """95% for a new sample of subjects, at this threshold."""
        return percentile_interval(self.replicates)

    def gain(self, other: "Point") -> tuple[float, float, float]:
        """By how much it exceeds another point on the same pairs, with the paired interval."""
        return (
            self.value - other.value,
            *percentile_interval(self.replicates - other.replicates),
        )


@dataclass(frozen=True, eq=False)
class Curve:
    """Every iterate of one attack.

    Attributes:
        setting: With the first seed.
        runs: Rows by step, one list per seed.
        judged: The benchmark's part of it.
    """

    setting: Setting
    runs: Sequence[Sequence[dict[str, Any]]]
    judged: "Judged"

    def on(self, pairs: Iterable[MorphPair]) -> "Curve":
        """The same attack on some of its pairs; itself where these are all of them."""
        ids = {pair.morph_id for pair in pairs}
        if ids == {pair.morph_id for pair in self.judged.pairs}:
            return self
        return Curve(self.setting, self.runs, self.judged.only(ids))

    @property
    def name(self) -> str:
        """Without the seed."""
        return self.setting.name

    @property
    def steps(self) -> range:
        """Gradient steps before each iterate."""
        return range(min(len(rows) for rows in self.runs))

    def loss(self, step: int) -> float:
        """Mean identity loss over pairs and seeds."""
        return float(np.mean([rows[step]["loss"] for rows in self.runs]))

    def point(self, step: int, key: str) -> Point:
        """MMPMR after ``step`` gradient steps, by "judge/policy"."""
        return self.judged.point([rows[step]["scores"][key] for rows in self.runs], key)

    def stopped(self, similarity: float) -> tuple[float, dict[str, Point]]:
        """Mean evaluations and MMPMR if every pair stops at the first iterate that the guiding
        network finds this similar to both sources, and at the last one otherwise."""
        chosen = [_first_similar(rows, similarity) for rows in self.runs]
        nfe = float(np.mean([[self.setting.nfe(step) for step in steps] for steps in chosen]))
        points = {
            key: self.judged.point(
                [
                    [rows[step]["scores"][key][pair] for pair, step in enumerate(steps)]
                    for rows, steps in zip(self.runs, chosen, strict=True)
                ],
                key,
            )
            for key in self.judged.keys
        }
        return nfe, points


class Judged:
    """Pairs, judges and bootstrap; ``only`` keeps some of the pairs.

    Args:
        study: Networks and faces.
        pairs: Whose scores there are, in their order.
        only: Morph ids; None takes all.
    """

    def __init__(
        self, study: Study, pairs: Sequence[MorphPair], only: Iterable[str] | None = None
    ) -> None:
        self._all, self._study = tuple(pairs), study
        wanted = {pair.morph_id for pair in pairs} if only is None else set(only)
        self._kept = np.array([pair.morph_id in wanted for pair in pairs])
        self.pairs = [pair for pair in pairs if pair.morph_id in wanted]
        self.thresholds = study.thresholds
        self.judges = [judge.name for judge in study.judges]
        self.keys = [f"{judge}/{policy}" for judge in self.judges for policy in POLICIES]

    def only(self, ids: Iterable[str]) -> "Judged":
        """The same scores, some of the pairs."""
        return Judged(self._study, self._all, ids)

    @cached_property
    def draws(self) -> SubjectDraws:
        """The same resampled subjects for every attack, so that differences are paired."""
        subjects = [s for pair in self.pairs for s in (pair.subject_a, pair.subject_b)]
        return draw_subjects(subjects, replicates=REPLICATES, seed=0)

    def groups(self, scores: Sequence[Sequence[float]]) -> MorphScores:
        """Similarities of every pair's morph to both of its subjects, with shape (pairs, 2)."""
        return group(
            np.asarray(scores)[self._kept].ravel(),
            np.repeat([pair.morph_id for pair in self.pairs], 2),
            np.array([s for pair in self.pairs for s in (pair.subject_a, pair.subject_b)]),
        )

    def point(self, scores_of_seeds: Sequence[Sequence[Sequence[float]]], key: str) -> Point:
        """The rate under one judge, averaged over seeds."""
        tau = self.thresholds[key.split("/")[0]]
        counts, replicates = [], np.zeros(REPLICATES)
        for scores in scores_of_seeds:
            found = self.groups(scores)
            counts.append(int(numerators(found, "MMPMR", np.array([tau])).sum()))
            replicates += bootstrap_rates(self.draws, found, "MMPMR", tau)
        return Point(tuple(counts), len(self.pairs), replicates / len(scores_of_seeds))


def curves(
    study: Study, runs: Iterable[tuple[Setting, Sequence[dict[str, Any]], Sequence[MorphPair]]]
) -> list[Curve]:
    """One curve per attack; runs that differ in their seed alone become one."""
    merged: dict[tuple[Setting, tuple[MorphPair, ...]], list[Sequence[dict[str, Any]]]] = {}
    judged: dict[tuple[MorphPair, ...], Judged] = {}
    for setting, rows, pairs in runs:
        key = tuple(pairs)
        judged.setdefault(key, Judged(study, key))
        merged.setdefault((replace(setting, seed=0), key), []).append(rows)
    return [Curve(setting, found, judged[key]) for (setting, key), found in merged.items()]


def passes(curve: Curve, base: Curve, policy: str) -> int | None:
    """Least evaluations from which on no judge's rate is below the last one of ``base``."""
    keys = [key for key in curve.judged.keys if key.endswith(policy)]
    base = base.on(curve.judged.pairs)
    goal = {key: base.point(base.steps[-1], key).value for key in keys}
    least = None
    for step in reversed(curve.steps):
        if any(curve.point(step, key).value < goal[key] for key in keys):
            break
        least = curve.setting.nfe(step)
    return least


def _first_similar(rows: Sequence[dict[str, Any]], similarity: float) -> list[int]:
    similar = np.array([1 - np.asarray(row["distance"]).max(1) >= similarity for row in rows])
    return np.where(similar.any(0), similar.argmax(0), len(rows) - 1).tolist()
