"""Morphs that pass recogniser and detector, counted by hand."""

import numpy as np
import pytest

from adjointdeis.evaluation import ScoreTable, group
from adjointdeis.evaluation.passing import passing

PAIRS = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]


def detected(scores, bona=None, pairs=PAIRS, attack="x"):
    bona = np.arange(10) / 10 if bona is None else bona
    base = {"kind": "mad", "system": "d", "score_type": "similarity"}
    rows = [
        {**base, "attack": "bonafide", "ref_id": f"i{k}", "subject_id": f"p{k}", "score": s}
        for k, s in enumerate(bona)
    ]
    rows += [
        {**base, "attack": attack, "morph_id": f"m{k}", "ref_id": f"m{k}", "subject_id": one,
         "ref_subject_id": two, "score": s, "status": "fta" if s is None else "ok"}
        for k, ((one, two), s) in enumerate(zip(pairs, scores, strict=True))
    ]  # fmt: skip
    return ScoreTable.from_rows(rows)


def recognised(best):
    """One comparison with each person of every pair; the second always matches better."""
    rows = [(m, s, v + 0.1 * k) for m, (pair, v) in enumerate(zip(PAIRS, best, strict=True))
            for k, s in enumerate(pair)]  # fmt: skip
    morph, subject, score = zip(*rows, strict=True)
    return group(np.array(score), np.array([f"m{m}" for m in morph]), np.array(subject))


def test_both_must_be_passed():
    # Matches: the first three. BSCER 10% of ten images: one flagged, so the threshold is 0.8.
    groups = recognised([0.9, 0.8, 0.7, 0.1])
    found = passing(groups, 0.5, detected([0.9, 0.8, 0.5, 0.2]), "x", replicates=50)
    # The first is flagged; the second lies at the threshold and is let through; the last passes the
    # detector alone.
    assert (found["k"], found["n"], found["matched"]) == (2, 4, 3)
    assert found["lo"] <= found["value"] == 0.5 <= found["hi"]
    exact = passing(groups, 0.5, detected([0.9, 0.8, 0.5, 0.2]), "x", replicates=0)
    assert found["lo"] <= exact["lo"] and exact["hi"] <= found["hi"]


def test_a_match_at_the_threshold_is_none():
    found = passing(recognised([0.5, 0.6, 0.6, 0.6]), 0.5, detected([0.0] * 4), "x", replicates=0)
    assert found["matched"] == 3


def test_people_in_either_order_and_failures():
    pairs = [(b, a) for a, b in PAIRS]
    scores = [0.0, None, 0.0, 0.0]
    found = passing(recognised([0.9] * 4), 0.5, detected(scores, pairs=pairs), "x", replicates=0)
    assert (found["k"], found["n"]) == (3, 4)


@pytest.mark.parametrize(
    "table",
    [
        detected([0.0] * 4, bona=np.arange(9) / 10),
        detected([0.0] * 4, attack="y"),
        detected([0.0] * 4, pairs=[("", "")] * 4),
        detected([0.0] * 4, pairs=[("a", "b")] * 4),
    ],
    ids=["too few bona fide", "another attack", "nobody named", "several morphs of a pair"],
)
def test_no_rate_where_there_is_none(table):
    assert passing(recognised([0.9] * 4), 0.5, table, "x", replicates=0) is None
