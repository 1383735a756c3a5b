"""Bona fide comparisons: every neutral image against every smiling one."""

from types import SimpleNamespace

import numpy as np

from adjointdeis.harness.scoring import _bona_fide


def test_neutral_is_compared_with_smiling_and_failures_stay() -> None:
    probes = {
        "source": np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, np.nan]]),
        "other": np.array([[0.8, 0.6], [0.0, 2.0], [1.0, 0.0]]),
    }
    system = SimpleNamespace(
        name="dot", score_type="similarity", compare=lambda a, b: (a * b).sum(-1)
    )
    rows = _bona_fide(system, probes, ("a", "b", "c"))
    found = {(r["ref_id"], r["probe_id"]): r for r in rows}
    assert len(rows) == len(found) == 9
    expected = {
        ("a_03", "a_08"): 0.8, ("a_03", "b_08"): 0.0, ("a_03", "c_08"): 1.0,
        ("b_03", "a_08"): 0.6, ("b_03", "b_08"): 2.0, ("b_03", "c_08"): 0.0,
    }  # fmt: skip
    assert {key: found[key]["score"] for key in expected} == expected
    for (reference, probe), row in found.items():
        assert row["kind"] == ("mated" if reference[0] == probe[0] else "nonmated")
        assert (row["ref_subject_id"], row["subject_id"]) == (reference[0], probe[0])
        failed = reference == "c_03"
        assert (row["status"], row["score"] is None) == ("fta" if failed else "ok", failed)
