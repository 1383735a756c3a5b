"""The MMPMR family against loops over its definitions, by hand, and by its identities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from adjointdeis.evaluation import (
    EvaluationError,
    ScoreError,
    false_match_rate,
    false_non_match_rate,
    fmmpmr,
    group,
    iapmr,
    minmax_mmpmr,
    mmpmr,
    mmpmr_curve,
    prodavg_mmpmr,
    rmmr,
    threshold_at_fmr,
    vulnerability,
)
from adjointdeis.evaluation.metrics import VARIANTS

# Scores on a coarse grid, so that ties with the threshold are common; None is a failed capture.
score = st.one_of(st.integers(-3, 3).map(float), st.none())


@st.composite
def comparisons(draw, probes=None):
    """(scores, morph, subject, probe) of up to five morphs of two or three subjects."""
    rows = []
    for m in range(draw(st.integers(1, 5))):
        for n in range(draw(st.integers(2, 3))):
            for i in range(probes or draw(st.integers(1, 4))):
                value = draw(score)
                rows.append((np.nan if value is None else value, f"m{m}", f"s{n}", i))
    scores, morph, subject, probe = (np.array(c) for c in zip(*rows, strict=True))
    return scores, morph, subject, probe


taus = st.sampled_from([-3.0, -1.5, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0])


def by_definition(scores, morph, subject, probe, tau):
    """Every variant by loops over the sums in the definitions."""
    nested = {}
    for s, m, n, i in zip(scores, morph, subject, probe, strict=True):
        nested.setdefault(m, {}).setdefault(n, {})[i] = bool(s > tau)
    total = len(nested)
    result = {
        "MinMax": sum(all(any(p.values()) for p in n.values()) for n in nested.values()) / total,
        "ProdAvg": sum(
            np.prod([np.mean(list(p.values())) for p in n.values()]) for n in nested.values()
        )
        / total,
        "IAPMR": np.mean([hit for n in nested.values() for p in n.values() for hit in p.values()]),
    }
    sizes = {len(p) for n in nested.values() for p in n.values()}
    if len(sizes) == 1:
        attempts = range(sizes.pop())
        result["FMMPMR"] = np.mean(
            [all(p[i] for p in n.values()) for n in nested.values() for i in attempts]
        )
        if len(attempts) == 1:
            result["MMPMR"] = result["MinMax"]
    return result


@given(comparisons(), taus)
@settings(max_examples=120)
def test_ragged_probes_equal_the_definitions(rows, tau):
    groups = group(*rows)
    for variant, expected in by_definition(*rows, tau).items():
        assert vulnerability(groups, tau, variant).value == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 3).flatmap(lambda i: comparisons(probes=i)), taus)
def test_equal_probes_equal_the_definitions(rows, tau):
    groups = group(*rows)
    for variant, expected in by_definition(*rows, tau).items():
        assert vulnerability(groups, tau, variant).value == pytest.approx(expected, abs=1e-12)


@given(comparisons(probes=1), taus)
def test_all_variants_are_equal_with_one_probe(rows, tau):
    groups = group(*rows)
    values = {v: vulnerability(groups, tau, v).value for v in VARIANTS if v != "IAPMR"}
    assert len({round(v, 12) for v in values.values()}) == 1


@given(comparisons(), taus)
def test_minmax_is_at_least_prodavg(rows, tau):
    groups = group(*rows)
    minmax = vulnerability(groups, tau, "MinMax").value
    assert minmax >= vulnerability(groups, tau, "ProdAvg").value - 1e-12


@given(comparisons(probes=2), taus)
def test_iapmr_and_minmax_bound_fmmpmr(rows, tau):
    groups = group(*rows)
    paired = vulnerability(groups, tau, "FMMPMR").value
    assert vulnerability(groups, tau, "MinMax").value >= paired
    # Subjects weigh alike within a morph of equal probes only if morphs have equal subjects.
    if len(set(groups.n_subjects)) == 1:
        assert vulnerability(groups, tau, "IAPMR").value >= paired - 1e-12


@given(comparisons(probes=2), st.tuples(taus, taus))
def test_monotone_in_the_threshold(rows, pair):
    groups = group(*rows)
    low, high = sorted(pair)
    for variant in ("MinMax", "ProdAvg", "FMMPMR", "IAPMR"):
        above = vulnerability(groups, high, variant).value
        assert vulnerability(groups, low, variant).value >= above - 1e-12


@given(comparisons(), taus, st.randoms())
def test_invariant_to_row_order(rows, tau, random):
    order = list(range(len(rows[0])))
    random.shuffle(order)
    one, two = group(*rows), group(*(column[order] for column in rows))
    for variant in ("MinMax", "ProdAvg", "IAPMR"):
        assert vulnerability(one, tau, variant) == vulnerability(two, tau, variant)


@given(comparisons(), taus)
def test_dissimilarities_mirror(rows, tau):
    scores, *labels = rows
    similar = minmax_mmpmr(scores, *labels[:2], tau, probe=labels[2])
    distant = minmax_mmpmr(-scores, *labels[:2], -tau, probe=labels[2], score_type="dissimilarity")
    assert similar == distant


@given(comparisons(), st.lists(taus, min_size=1, max_size=8))
def test_curve_is_minmax_at_every_threshold(rows, points):
    groups = group(*rows)
    expected = [vulnerability(groups, tau, "MinMax").value for tau in points]
    assert np.allclose(mmpmr_curve(groups, np.array(points)), expected)


@given(comparisons(), st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=20), taus)
def test_rmmr_is_mmpmr_plus_fnmr(rows, mated, tau):
    for variant in ("MinMax", "ProdAvg"):
        attack = vulnerability(group(*rows), tau, variant)
        fnmr = false_non_match_rate(np.array(mated), tau)
        total = rmmr(attack, fnmr)
        # The definition: 1 + MMPMR - (1 - FNMR).
        assert total.value == pytest.approx(1 + attack.value - (1 - fnmr.value), abs=1e-12)
        assert total.n_failed == attack.n_failed


def example():
    """Two morphs of two subjects with two probes, threshold 0.5.

    m1: a matches on both, b on the second; m2: a on the first, b on none.
    """
    scores = np.array([0.6, 0.7, 0.4, 0.9, 0.8, 0.1, 0.2, 0.5])
    morph = np.repeat(["m1", "m2"], 4)
    subject = np.tile(["a", "a", "b", "b"], 2)
    probe = np.tile(["1", "2"], 4)
    return scores, morph, subject, probe


def test_by_hand():
    scores, morph, subject, probe = example()
    args = (scores, morph, subject, 0.5)
    assert minmax_mmpmr(*args, probe=probe).value == 1 / 2
    # m1: 2/2 * 1/2, m2: 1/2 * 0/2.
    assert prodavg_mmpmr(*args, probe=probe).value == (0.5 + 0.0) / 2
    # Attempts (m1,1): a yes b no; (m1,2): both; m2: none.
    assert fmmpmr(*args, probe=probe).value == 1 / 4
    assert iapmr(*args, probe=probe).value == 4 / 8
    assert (iapmr(*args, probe=probe).k, iapmr(*args, probe=probe).n) == (4, 8)


def test_a_score_at_the_threshold_does_not_match():
    args = (np.array([0.5, 0.6]), np.array(["m", "m"]), np.array(["a", "b"]))
    assert mmpmr(*args, 0.5).k == 0
    assert mmpmr(*args, np.nextafter(0.5, 0)).k == 1


def test_failures_are_non_matches_counted_apart():
    args = (np.array([np.nan, 0.9, 0.9, 0.9]), np.array([1, 1, 2, 2]), np.array(["a", "b"] * 2))
    r = mmpmr(*args, 0.5)
    assert (r.k, r.n, r.n_failed) == (1, 2, 1)


def test_mmpmr_of_several_probes_is_refused():
    scores, morph, subject, probe = example()
    with pytest.raises(ScoreError, match="MMPMR takes one probe per subject, found up to 2"):
        mmpmr(scores, morph, subject, 0.5, probe=probe)


def test_fmmpmr_needs_paired_attempts():
    scores, morph, subject, probe = example()
    with pytest.raises(ScoreError, match="needs the probe of every comparison"):
        fmmpmr(scores, morph, subject, 0.5)
    keep = np.arange(8) != 3
    with pytest.raises(ScoreError, match=r"same number of probes .* found 1 to 2"):
        fmmpmr(scores[keep], morph[keep], subject[keep], 0.5, probe=probe[keep])


def test_bad_groups():
    with pytest.raises(ScoreError, match="appears more than once"):
        group(np.ones(2), np.array([1, 1]), np.array([1, 1]), np.array([1, 1]))
    with pytest.raises(ScoreError, match="no comparison of a morph"):
        group(np.empty(0), np.empty(0), np.empty(0))
    with pytest.raises(ScoreError, match="2 scores, 1 morphs"):
        group(np.ones(2), np.array([1]), np.array([1, 1]))
    with pytest.raises(EvaluationError, match="variant 'AMPMR'"):
        vulnerability(group(*example()), 0.5, "AMPMR")


PAIR = {"morph": ["m", "m"], "subject": ["a", "b"]}


@pytest.mark.parametrize(
    ("scores", "changes", "message"),
    [
        ([0.4, 0.6], {"score_type": "distance"}, "score_type 'distance': expected similarity"),
        ([0.4, 0.6], {"tau": math.nan}, "threshold nan"),
        ([0.4, 0.6], {"tau": math.inf}, "threshold inf"),
        ([0.4, math.inf], {}, "a score is infinite"),
        ([0.4, -math.inf], {}, "a score is infinite"),
        ([0.4, 0.6], {"subject": ["a", "a"], "probe": [1, 2]}, "probes of one subject only"),
    ],
)
def test_array_functions_refuse_what_would_give_a_wrong_number(scores, changes, message):
    arguments = {**PAIR, "tau": 0.3, **changes}
    for function in (mmpmr, minmax_mmpmr, prodavg_mmpmr, iapmr):
        with pytest.raises(ScoreError, match=message):
            function(np.array(scores), **arguments)
    if "subject" not in changes:
        options = {k: v for k, v in arguments.items() if k in ("tau", "score_type")}
        for function in (false_match_rate, false_non_match_rate):
            with pytest.raises(ScoreError, match=message):
                function(np.array(scores), **options)
        if "tau" not in changes:
            options.pop("tau")
            with pytest.raises(ScoreError, match=message):
                threshold_at_fmr(np.array(scores), 0.1, **options)


@pytest.mark.parametrize("spelling", ["Zoe\u0301", "Ｚｏé"])
def test_two_spellings_of_a_contributor_are_one_subject(spelling):
    with pytest.raises(ScoreError, match="probes of one subject only"):
        mmpmr(np.array([0.9, 0.8]), ["m", "m"], ["Zoé", spelling], 0.5, probe=[1, 2])
