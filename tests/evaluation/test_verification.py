"""FMR, FNMR and EER by hand and by brute force."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adjointdeis.evaluation import (
    EvaluationError,
    equal_error_rate,
    false_match_rate,
    false_non_match_rate,
)

scores = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=30).map(np.array)


def test_by_hand():
    r = false_match_rate(np.array([0.1, 0.5, 0.6, np.nan]), 0.5)
    assert (r.k, r.n, r.n_failed) == (1, 3, 1)
    r = false_non_match_rate(np.array([0.1, 0.5, 0.6]), 0.5)
    assert (r.k, r.n) == (2, 3)
    distances = np.array([0.1, 0.5, 0.6])
    assert false_match_rate(distances, 0.5, score_type="dissimilarity").k == 1
    assert false_non_match_rate(distances, 0.5, score_type="dissimilarity").k == 2


@given(scores, scores)
def test_eer_is_the_closest_crossing_of_all_thresholds(mated, nonmated):
    found = equal_error_rate(mated, nonmated)
    candidates = [-9.0, *mated, *nonmated]
    gaps = [abs((nonmated > t).mean() - (mated <= t).mean()) for t in candidates]
    assert abs(found.fmr - found.fnmr) == pytest.approx(min(gaps), abs=1e-12)
    assert found.fmr == pytest.approx((nonmated > found.tau).mean(), abs=1e-12)
    assert found.fnmr == pytest.approx((mated <= found.tau).mean(), abs=1e-12)
    assert found.value == pytest.approx((found.fmr + found.fnmr) / 2, abs=1e-12)


@given(scores, scores)
def test_eer_of_distances_mirrors(mated, nonmated):
    one = equal_error_rate(mated, nonmated)
    two = equal_error_rate(-mated, -nonmated, score_type="dissimilarity")
    assert (one.value, one.tau) == (two.value, -two.tau)


def test_separated_scores_have_no_error():
    assert equal_error_rate(np.array([2.0, 3.0]), np.array([0.0, 1.0])).value == 0.0


def test_no_score():
    with pytest.raises(EvaluationError, match="no score"):
        false_match_rate(np.array([np.nan]), 0.1)
