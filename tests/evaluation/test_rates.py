"""Binomial intervals against scipy, and what a rate says about itself."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from adjointdeis.evaluation import clopper_pearson, rate, wilson
from adjointdeis.evaluation.rates import sum_of_rates

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.95, 0.99]))
def test_intervals_equal_scipy(count, confidence):
    k, n = count
    test = binomtest(k, n)
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = test.proportion_ci(confidence, method=method)
        assert np.allclose(ours(k, n, confidence), (theirs.low, theirs.high), atol=1e-9)


@given(counts)
def test_intervals_hold_the_value_and_mirror(count):
    k, n = count
    for interval in (wilson, clopper_pearson):
        lo, hi = interval(k, n)
        assert 0 <= lo <= k / n <= hi <= 1
        assert np.allclose(interval(n - k, n), (1 - hi, 1 - lo), atol=1e-9)


def test_published_fmr_intervals():
    """Ten of 10,302 impostors: 0.047 to 0.178%; three of 3,000: 0.021 to 0.292%."""
    assert np.allclose(100 * np.array(clopper_pearson(10, 10302)), [0.047, 0.178], atol=6e-4)
    assert np.allclose(100 * np.array(clopper_pearson(3, 3000)), [0.021, 0.292], atol=6e-4)


def test_no_trial_gives_no_information():
    assert wilson(0, 0) == (0.0, 1.0)
    assert clopper_pearson(0, 0) == (0.0, 1.0)
    assert math.isnan(rate(0, 0).value)
    assert rate(0, 0).to_dict()["value"] is None


def test_impossible_counts_are_refused():
    for k, n in ((-1, 5), (6, 5), (float("nan"), 5)):
        with pytest.raises(ValueError, match="expected 0 <= k <= n"):
            wilson(k, n)
    with pytest.raises(ValueError, match="confidence 95"):
        wilson(1, 2, 95)


def test_text_has_count_and_interval():
    assert str(rate(442, 489)) == "90.39% (442/489) [87.45, 92.69]%"
    assert str(rate(1.5, 3)).startswith("50.00% (1.50/3)")
    assert "share subjects" in rate(1, 2).meaning


def test_sum_of_rates_adds_and_widens():
    a, b = rate(80, 100), rate(10, 100)
    total = sum_of_rates(a, b)
    assert total.value == pytest.approx(0.9)
    assert total.k / total.n == pytest.approx(total.value)
    assert total.hi - total.lo > max(a.hi - a.lo, b.hi - b.lo)
