"""The subject bootstrap against a loop that draws subjects and re-does everything."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adjointdeis.evaluation import EvaluationError, clopper_pearson, group, vulnerability
from adjointdeis.evaluation.simulate import DyadicModel, simulate
from adjointdeis.evaluation.thresholds import allowed_false_matches
from adjointdeis.evaluation.uncertainty import (
    bootstrap_fnmr,
    bootstrap_rates,
    bootstrap_thresholds,
    covering_interval,
    draw_subjects,
    independent_morphs,
    morph_weights,
    percentile_interval,
)


def study(seed=0, n_subjects=12, n_morphs=20, decimals=2):
    """A small study; rounded scores make ties."""
    s = simulate(DyadicModel(), n_subjects=n_subjects, n_morphs=n_morphs, seed=seed)
    names = np.array([f"s{i:02d}" for i in range(n_subjects)])
    morph = np.repeat(np.arange(n_morphs), 2)
    groups = group(s.morph_scores.round(decimals).ravel(), morph, names[s.morph_pairs].ravel())
    return s.impostor_scores.round(decimals), names[s.impostor_pairs], groups, names


def weighted_threshold(scores, weights, fmr):
    """Repeats every score as often as it weighs and takes the plain order statistic."""
    repeated = np.sort(np.repeat(scores, weights))[::-1]
    return repeated[allowed_false_matches(len(repeated), fmr)]


@pytest.mark.parametrize("fmr", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9])
def test_thresholds_equal_repeating_the_comparisons(fmr):
    scores, pairs, _, names = study()
    draws = draw_subjects(names, replicates=40, seed=1)
    taus = bootstrap_thresholds(draws, scores, pairs[:, 0], pairs[:, 1], fmr)
    for counts, tau in zip(draws.counts, taus, strict=True):
        times = dict(zip(draws.subjects, counts, strict=True))
        weights = np.array([times[i] * times[j] for i, j in pairs])
        assert tau == weighted_threshold(scores, weights, fmr)
        assert weights[scores > tau].sum() <= fmr * weights.sum() + 1e-9


@given(st.integers(0, 50), st.floats(0, 0.99))
@settings(max_examples=20)
def test_thresholds_at_any_target(seed, fmr):
    scores, pairs, _, names = study(seed, n_subjects=6, n_morphs=5, decimals=1)
    draws = draw_subjects(names, replicates=5, seed=seed)
    taus = bootstrap_thresholds(draws, scores, pairs[:, 0], pairs[:, 1], fmr)
    for counts, tau in zip(draws.counts, taus, strict=True):
        times = dict(zip(draws.subjects, counts, strict=True))
        weights = np.array([times[i] * times[j] for i, j in pairs])
        if weights.sum() == 0:
            assert np.isnan(tau)
        else:
            assert tau == weighted_threshold(scores, weights, fmr)


@pytest.mark.parametrize("variant", ["MMPMR", "ProdAvg", "IAPMR"])
def test_rates_equal_repeating_the_morphs(variant):
    _, _, groups, names = study()
    draws = draw_subjects(names, replicates=30, seed=2)
    taus = np.linspace(0.2, 0.3, 30)
    values = bootstrap_rates(draws, groups, variant, taus)
    pairs = np.split(groups.subjects, groups.morph_start[1:])
    rows = np.split(groups.scores, groups.morph_start[1:])
    for counts, tau, value in zip(draws.counts, taus, values, strict=True):
        times = dict(zip(draws.subjects, counts, strict=True))
        scores, morph = [], []
        for pair, scored in zip(pairs, rows, strict=True):
            for _ in range(times[pair[0]] * times[pair[1]]):
                morph += [len(scores)] * 2
                scores.append(scored)
        repeated = group(np.concatenate(scores), np.array(morph), np.tile([0, 1], len(scores)))
        assert value == pytest.approx(vulnerability(repeated, tau, variant).value, abs=1e-12)


def test_fnmr_weighs_by_subject():
    draws = draw_subjects(["a", "b", "c"], replicates=20, seed=0)
    values = bootstrap_fnmr(draws, np.array([0.1, 0.9, np.nan]), np.array(["a", "b", "c"]), 0.5)
    with np.errstate(invalid="ignore"):
        expected = draws.counts[:, 0] / (draws.counts[:, 0] + draws.counts[:, 1])
    assert np.allclose(values, expected, equal_nan=True)


def test_draws_are_multinomial_and_seeded():
    draws = draw_subjects(["b", "a", "c", "a"], replicates=500, seed=7)
    assert draws.subjects.tolist() == ["a", "b", "c"]
    assert (draws.counts.sum(axis=1) == 3).all()
    assert abs(draws.counts.mean() - 1) < 1e-12
    again = draw_subjects(["c", "b", "a"], replicates=500, seed=7)
    assert np.array_equal(draws.counts, again.counts)


def test_strata_keep_their_sizes():
    draws = draw_subjects(["m1", "i1"], ["a", "b", "c"], replicates=50, seed=0)
    own = np.isin(draws.subjects, ["m1", "i1"])
    assert (draws.counts[:, own].sum(axis=1) == 2).all()
    assert (draws.counts[:, ~own].sum(axis=1) == 3).all()
    with pytest.raises(EvaluationError, match="two strata"):
        draw_subjects(["a"], ["a", "b"], replicates=1, seed=0)


def test_morph_weight_is_the_product_of_its_subjects():
    _, _, groups, names = study()
    draws = draw_subjects(names, replicates=3, seed=0)
    at = draws.index(groups.subjects).reshape(-1, 2)
    expected = draws.counts[:, at[:, 0]] * draws.counts[:, at[:, 1]]
    assert np.array_equal(morph_weights(draws, groups), expected)


def test_replicate_without_a_comparison_is_left_out():
    draws = draw_subjects(["a", "b"], replicates=200, seed=0)
    taus = bootstrap_thresholds(draws, np.array([0.5]), np.array(["a"]), np.array(["b"]), 0.1)
    both = (draws.counts > 0).all(axis=1)
    assert np.isnan(taus[~both]).all() and (taus[both] == 0.5).all()
    groups = group(np.array([0.9, 0.9]), np.array([0, 0]), np.array(["a", "b"]))
    values = bootstrap_rates(draws, groups, "MMPMR", taus)
    assert percentile_interval(values) == (1.0, 1.0)
    with pytest.raises(EvaluationError, match="too few subjects"):
        percentile_interval(np.array([np.nan]))


def test_unknown_subject():
    draws = draw_subjects(["a", "b"], replicates=2, seed=0)
    with pytest.raises(EvaluationError, match="subject z is not among"):
        draws.index(np.array(["a", "z"]))
    with pytest.raises(EvaluationError, match="expected at least 1"):
        draw_subjects(["a"], replicates=0, seed=0)


def test_morphs_that_share_no_subject_are_counted():
    def of(pairs):
        morph = np.repeat(np.arange(len(pairs)), 2)
        return independent_morphs(group(np.zeros(2 * len(pairs)), morph, np.ravel(pairs)))

    assert of([(0, 1), (2, 3), (4, 5)]) == 3
    assert of([(0, i) for i in range(1, 9)]) == 1  # a star: one person in every morph
    assert of([(0, 1), (1, 2), (2, 3)]) == 2  # a path: its ends, not its middle
    every = [(i, j) for i in range(8) for j in range(i)]
    assert of(every) == 4


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_interval_does_not_collapse_at_the_edges(value):
    lo, hi = covering_interval(np.full(50, value), value, 20)
    assert (lo, hi) == clopper_pearson(20 * value, 20) and hi - lo > 0.1


def test_the_interval_is_the_wider_end_on_each_side():
    values = np.linspace(0.2, 0.8, 1001)
    assert covering_interval(values, 0.5, 10_000) == percentile_interval(values)
    lo, hi = covering_interval(values, 0.5, 4)
    assert (lo, hi) == clopper_pearson(2, 4) and lo < 0.2 and hi > 0.8
