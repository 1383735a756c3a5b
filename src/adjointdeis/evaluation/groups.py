"""Scores of morphs grouped by morph and contributing subject: the shape all metrics work on."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adjointdeis.evaluation.columns import as_scores, codes, oriented, text_column, two_spellings
from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.texts import LOOKALIKE


@dataclass(frozen=True, eq=False)
class MorphScores:
    """Scores of M morphs, sorted by (morph, subject, probe), so that row order never matters.

    Build it with `group` or `group_table`.

    Attributes:
        scores: shape (R,), turned so that larger means more alike; -inf where a comparison failed.
        pair_start: shape (P,), where each (morph, subject) begins in `scores`.
        morph_start: shape (M,), where each morph begins among the pairs.
        morphs: shape (M,), the morphs' labels.
        subjects: shape (P,), the subjects' labels.
        n_failed: how many of the R comparisons failed.
    """

    scores: np.ndarray
    pair_start: np.ndarray
    morph_start: np.ndarray
    morphs: np.ndarray
    subjects: np.ndarray
    n_failed: int = 0

    def __len__(self) -> int:
        return len(self.morphs)

    @cached_property
    def probes(self) -> np.ndarray:
        """Shape (P,): how many probes each subject of each morph has."""
        return np.diff(self.pair_start, append=len(self.scores))

    @cached_property
    def n_subjects(self) -> np.ndarray:
        """Shape (M,): how many subjects contribute to each morph."""
        return np.diff(self.morph_start, append=len(self.subjects))

    @cached_property
    def people(self) -> list[list[str]]:
        """The subjects of each morph, M lists."""
        return [part.tolist() for part in np.split(self.subjects, self.morph_start[1:])]

    @cached_property
    def best(self) -> np.ndarray:
        """Shape (P,): max_i S_m^{n,i}."""
        return np.maximum.reduceat(self.scores, self.pair_start)

    @cached_property
    def min_of_best(self) -> np.ndarray:
        """Shape (M,): min_n max_i S_m^{n,i}; the morph matches all subjects iff it is above tau."""
        return np.minimum.reduceat(self.best, self.morph_start)

    @cached_property
    def paired(self) -> np.ndarray:
        """Shape (M, A) when every morph has A attempts: min_n S_m^{n,p} at attempt p.

        Attempt p of a subject is its p-th probe in the order of the probes' ids.

        Raises:
            ScoreError: when the subjects have unequal numbers of probes.
        """
        if (self.probes != self.probes[0]).any():
            raise ScoreError(
                "paired attempts need the same number of probes for every subject of every morph; "
                f"found {int(self.probes.min())} to {int(self.probes.max())}"
            )
        by_pair = self.scores.reshape(len(self.probes), int(self.probes[0]))
        return np.minimum.reduceat(by_pair, self.morph_start, axis=0)

    def accepted(self, taus: np.ndarray) -> np.ndarray:
        """Shape (T, P): how many probes of each subject match at each threshold."""
        hits = self.scores[None, :] > np.asarray(taus, dtype=np.float64).reshape(-1, 1)
        return np.add.reduceat(hits, self.pair_start, axis=1, dtype=np.int32)

    def accepted_by_all(self, taus: np.ndarray) -> np.ndarray:
        """Shape (T, M): min_n of the number of matching probes."""
        return np.minimum.reduceat(self.accepted(taus), self.morph_start, axis=1)


def group(
    scores: np.ndarray,
    morph: np.ndarray,
    subject: np.ndarray,
    probe: np.ndarray | None = None,
    *,
    score_type: str = "similarity",
) -> MorphScores:
    """Groups comparisons of one attack and one system.

    Args:
        scores: shape (R,), raw scores; NaN marks a failed comparison, a non-match.
        morph, subject, probe: shape (R,), labels of any sortable type; without `probe` the
            attempts of a subject are ordered by their score, which only paired attempts notice.
        score_type: `similarity` or `dissimilarity`.

    Raises:
        ScoreError: no row, unequal lengths, a repeated (morph, subject, probe), a morph of one
            subject, an infinite score or an unknown direction.
    """
    turned = oriented(scores, score_type).ravel()
    scores = as_scores(scores).ravel()
    morph, subject = _labels(morph), _labels(subject)
    if not len(scores) == len(morph) == len(subject):
        raise ScoreError(
            f"{len(scores)} scores, {len(morph)} morphs and {len(subject)} subjects: "
            "expected one morph and one subject for every score"
        )
    if not len(scores):
        raise ScoreError("no comparison of a morph")
    for name, labels in (("morph", morph), ("subject", subject)):
        absent = labels == "" if labels.dtype.kind in "UO" else labels != labels
        if absent.any():
            raise ScoreError(f"comparison {int(np.argmax(absent))} has no {name}")
    if subject.dtype.kind in "UO" and (found := two_spellings(subject, {})):
        raise ScoreError(
            f"subjects {found[0]!r} and {found[1]!r} differ in {LOOKALIKE} only; write one person "
            "one way"
        )
    failed = np.isnan(scores)
    turned = np.where(failed, -np.inf, turned)
    morph_code, n_morphs = codes(morph)
    pair_code, n_pairs = codes(morph_code, subject)
    if probe is None:
        order = np.lexsort((turned, pair_code))
    else:
        probe = _labels(probe)
        attempt, n_attempts = codes(pair_code, probe)
        if n_attempts != len(scores):
            repeated = int(np.flatnonzero(np.bincount(attempt)[attempt] > 1)[0])
            raise ScoreError(
                f"morph {morph[repeated]!s}, subject {subject[repeated]!s}, probe "
                f"{probe[repeated]!s} appears more than once"
            )
        order = np.argsort(attempt)
    pair_start = np.searchsorted(pair_code[order], np.arange(n_pairs))
    first = order[pair_start]
    morph_start = np.searchsorted(morph_code[first], np.arange(n_morphs))
    alone = np.diff(morph_start, append=n_pairs) < 2
    if alone.any():
        name = morph[first][morph_start][alone][0]
        raise ScoreError(
            f"morph {name!s} has probes of one subject only; a morph needs every contributing one"
        )
    return MorphScores(
        scores=turned[order],
        pair_start=pair_start,
        morph_start=morph_start,
        morphs=morph[first][morph_start],
        subjects=subject[first],
        n_failed=int(failed.sum()),
    )


def group_table(table: ScoreTable, *, attack: str, system: str, probe_policy: str) -> MorphScores:
    """Groups the `morph` rows of one attack, system and probe policy.

    Args:
        table: Comparisons of any kind.
        attack: Name of the attack.
        system: Name of the recogniser.
        probe_policy: `source` or `other`, see `policies`.

    Raises:
        ScoreError: when the table has no such row.
    """
    rows = table.select(kind="morph", attack=attack, system=system, probe_policy=probe_policy)
    if not len(rows):
        raise ScoreError(
            f"{table.source or 'scores'}: no morph row of attack {attack!r}, system {system!r}, "
            f"probe policy {probe_policy!r}"
        )
    # A morph of several references or a probe of several captures keeps them apart as attempts.
    attempt, _ = codes(rows["probe_id"], rows["ref_id"])
    return group(rows.oriented, rows["morph_id"], rows["subject_id"], attempt)


def _labels(values: np.ndarray) -> np.ndarray:
    """Shape (R,); text in its canonical spelling, labels of another kind as they are."""
    array = np.asarray(values).ravel()
    return text_column(array) if array.dtype.kind in "UO" else array
