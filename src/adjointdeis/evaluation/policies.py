"""Which comparisons count: probe policies of morphs, impostor policies of thresholds.

Probe policy `source` compares a morph with the very image it was made from, `other` with another
image of the subject; the first flatters the attack. Impostor policy `all` takes every pair of
people, `same-sex` and `same-sex-and-group` the pairs that an impostor would try; the first gives
the loosest threshold. Tens of percentage points of MMPMR hang on the two, so every row names both.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from adjointdeis.evaluation.columns import codes
from adjointdeis.evaluation.errors import PolicyError, ScoreError
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.subjects import Subjects

IMPOSTOR_POLICIES = ("all", "same-sex", "same-sex-and-group")
_COVARIATES = {"all": (), "same-sex": ("sex",), "same-sex-and-group": ("sex", "group")}


@dataclass(frozen=True, eq=False)
class Impostors:
    """Impostor comparisons of one system under one policy.

    Attributes:
        scores: shape (N_I,), raw; NaN where the comparison failed.
        oriented: shape (N_I,), larger is more alike.
        subject, other: shape (N_I,), the two people; `other` is empty text where unknown.
        score_type: the direction of `scores`.
        fingerprint: SHA-256 of the comparisons.
    """

    scores: np.ndarray
    oriented: np.ndarray
    subject: np.ndarray
    other: np.ndarray
    score_type: str
    fingerprint: str

    @property
    def people_known(self) -> bool:
        """Whether both people of every comparison are named, as the subject bootstrap needs."""
        return bool(((self.subject != "") & (self.other != "")).all())


def require_policy(policy: str, subjects: Subjects | None, people: Iterable[str]) -> None:
    """Checks a policy before anything expensive: it is known, and people have its covariates.

    Args:
        policy: Impostor policy.
        subjects: Sex and group by subject; None where there is no such table.
        people: Ids of those who will be compared.

    Raises:
        PolicyError: unknown policy, no subjects table, or a person without the covariate.
    """
    if policy not in _COVARIATES:
        raise PolicyError(f"impostor policy {policy!r}: expected {', '.join(IMPOSTOR_POLICIES)}")
    if _COVARIATES[policy] and subjects is None:
        raise PolicyError(
            f"impostor policy {policy!r} needs the people's {' and '.join(_COVARIATES[policy])}: "
            "a table subject_id,sex,group (--subjects FILE, or subjects.csv beside the faces)"
        )
    for covariate in _COVARIATES[policy]:
        assert subjects is not None
        subjects.values(np.array(list(people)), covariate)


def _counted_twice(rows: ScoreTable) -> np.ndarray:
    """Shape (N_I,): comparisons whose mirror image, the same two captures with the same score, is
    listed before; a symmetric comparison is one comparison in either order."""
    index, _ = codes(
        np.concatenate([rows["subject_id"], rows["ref_subject_id"]]),
        np.concatenate([rows["probe_id"], rows["ref_id"]]),
    )
    probe, reference = np.split(index, 2)
    named = (rows["probe_id"] != "") & (rows["ref_id"] != "")
    key, _ = codes(np.minimum(probe, reference), np.maximum(probe, reference), rows["score"])
    first = np.unique(key, return_index=True)[1]
    again = np.ones(len(rows), dtype=bool)
    again[first] = False
    return again & named & (rows["status"] == "ok")


def refuse_unmatched_ids(table: ScoreTable) -> None:
    """Refuses impostor comparisons of two groups without one id in common and no mated comparison.

    Nearly always the two sides spell the same people differently (`001` and `001_08`), and every
    genuine comparison passes for an impostor. `"two_groups": true` in the metadata says that they
    are different people.

    Raises:
        ScoreError: naming an id of each side.
    """
    if table.metadata.get("two_groups") is True:
        return
    for system in table.unique("system", kind="nonmated"):
        rows = table.select(kind="nonmated", system=system)
        sides = [set(map(str, np.unique(rows[name]))) for name in ("subject_id", "ref_subject_id")]
        one, two = (sorted(side - {""}) for side in sides)
        apart = len(one) > 1 and len(two) > 1 and sides[0].isdisjoint(sides[1])
        if apart and not len(table.select(kind="mated", system=system)):
            raise ScoreError(
                f"{rows.place(0)}: no mated comparison of system {system!r}, and no id is on both "
                f"sides ({one[0]!r} among the probes, {two[0]!r} among the references): write one "
                'person one way on both sides; if they are two groups of people, state "two_groups"'
                ": true in the sidecar JSON"
            )


def impostors(
    table: ScoreTable, system: str, policy: str = "all", subjects: Subjects | None = None
) -> Impostors:
    """Selects the nonmated comparisons of one system by policy.

    Args:
        table: Comparisons of any kind.
        system: Name of the recogniser.
        policy: One of `IMPOSTOR_POLICIES`.
        subjects: Sex and group of each subject; needed by all policies but `all`.

    Raises:
        PolicyError: unknown policy; no nonmated row; a policy that needs covariates without a
            subjects table, without ref_subject_id, or that leaves no comparison.
    """
    require_policy(policy, subjects, ())
    rows = table.select(kind="nonmated", system=system)
    if not len(rows):
        raise PolicyError(
            f"{table.source or 'scores'}: no nonmated row of system {system!r}; add impostor "
            "comparisons or give a threshold record"
        )
    refuse_unmatched_ids(table)
    if _COVARIATES[policy]:
        unknown = (rows["subject_id"] == "") | (rows["ref_subject_id"] == "")
        if unknown.any():
            raise PolicyError(
                f"{rows.place(int(np.argmax(unknown)))}: impostor policy {policy!r} needs "
                "subject_id and ref_subject_id in every nonmated row"
            )
    keep = np.ones(len(rows), dtype=bool)
    for covariate in _COVARIATES[policy]:
        assert subjects is not None
        keep &= subjects.values(rows["subject_id"], covariate) == subjects.values(
            rows["ref_subject_id"], covariate
        )
    if not keep.any():
        raise PolicyError(f"impostor policy {policy!r} leaves no comparison of system {system!r}")
    rows = rows.where(keep)
    rows = rows.where(~_counted_twice(rows))
    return Impostors(
        scores=np.where(rows["status"] == "ok", rows["score"], np.nan),
        oriented=rows.oriented,
        subject=rows["subject_id"],
        other=rows["ref_subject_id"],
        score_type=str(rows["score_type"][0]),
        fingerprint=rows.fingerprint(),
    )
