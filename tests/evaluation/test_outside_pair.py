"""Thresholds from people outside the pair, against a case worked by hand."""

import pytest

from adjointdeis.evaluation import ScoreTable
from adjointdeis.evaluation.outside_pair import decisions_outside_pair


def impostor(one: str, two: str, score: float) -> dict[str, object]:
    return {
        "kind": "nonmated",
        "subject_id": one,
        "ref_subject_id": two,
        "system": "judge",
        "score": score,
        "score_type": "similarity",
        "status": "ok",
    }


def morph(name: str, subject: str, score: float | None, policy: str = "source"):
    return {
        "kind": "morph",
        "morph_id": name,
        "attack": "dim_a",
        "subject_id": subject,
        "probe_id": f"{subject}_03",
        "system": "judge",
        "score": score,
        "score_type": "similarity",
        "status": "fta" if score is None else "ok",
        "probe_policy": policy,
    }


def test_by_hand() -> None:
    # At FMR 0 the threshold is the largest impostor score: .9, of a and b; without them .5.
    rows = [
        impostor("a", "b", 0.9),
        impostor("a", "c", 0.6),
        impostor("c", "d", 0.5),
        impostor("d", "e", 0.2),
        morph("a_b", "a", 0.8),  # accepted only by the threshold of others
        morph("a_b", "b", 0.7),
        morph("c_d", "c", 0.8),  # without c and d it is .9 still
        morph("c_d", "d", 0.7),
        morph("a_b", "a", 0.4, "other"),  # accepted by neither
        morph("a_b", "b", 0.7, "other"),
        morph("c_d", "c", None, "other"),  # a failure to acquire is no match
        morph("c_d", "d", 0.99, "other"),
    ]
    found = decisions_outside_pair(ScoreTable.from_rows(rows), 0.0)["judge"]
    assert found["decisions"] == 4 and found["changed"] == 1
    assert found["everybody"] == found["highest"] == pytest.approx(0.9)
    assert found["lowest"] == pytest.approx(0.5)
