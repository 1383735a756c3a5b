"""Threshold records: conservative with ties, refused under other conditions, exact on disk."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adjointdeis.evaluation import (
    EvaluationError,
    ThresholdMismatch,
    ThresholdRecord,
    read_thresholds,
    threshold_at_fmr,
)
from adjointdeis.evaluation.thresholds import allowed_false_matches, relabelled, rule_of_30

# Few distinct values, so that ties are the rule.
tied = st.lists(st.integers(-4, 4), min_size=1, max_size=60)
targets = st.floats(0, 0.999)


@given(tied, targets, st.sampled_from(["similarity", "dissimilarity"]))
def test_realised_fmr_never_exceeds_the_target(scores, fmr, score_type):
    scores = np.array(scores, dtype=float)
    record = threshold_at_fmr(scores, fmr, score_type=score_type)
    assert record.realised_fmr <= fmr
    assert record.k == record.matches(scores).sum()
    assert record.realised_fmr == record.k / len(scores)


@given(tied, targets)
def test_no_smaller_observed_threshold_is_within_the_target(scores, fmr):
    scores = np.array(scores, dtype=float)
    tau = threshold_at_fmr(scores, fmr).value
    for lower in np.unique(scores[scores < tau]):
        assert (scores > lower).mean() > fmr


@given(tied, targets, st.randoms())
def test_invariant_to_order(scores, fmr, random):
    shuffled = list(scores)
    random.shuffle(shuffled)
    assert threshold_at_fmr(np.array(scores), fmr) == threshold_at_fmr(np.array(shuffled), fmr)


@given(tied, targets)
def test_dissimilarity_is_the_mirror_image(scores, fmr):
    scores = np.array(scores, dtype=float)
    mirrored = threshold_at_fmr(-scores, fmr, score_type="dissimilarity")
    record = threshold_at_fmr(scores, fmr)
    assert mirrored.value == -record.value
    assert mirrored.oriented == record.oriented
    assert (mirrored.k, mirrored.n) == (record.k, record.n)


def test_hand_computed():
    scores = np.arange(10.0)
    record = threshold_at_fmr(scores, 0.25)
    # floor(0.25 * 10) = 2: the third largest is 7, and 8 and 9 match.
    assert (record.value, record.k, record.n, record.realised_fmr) == (7.0, 2, 10, 0.2)


def test_frll_sized_set_gives_ten_false_matches_not_eleven():
    scores = np.random.default_rng(0).normal(size=10302)
    record = threshold_at_fmr(scores, 0.001)
    assert record.k == 10
    linear = np.quantile(scores, 0.999)
    assert (scores > linear).sum() == 11
    assert record.fmr_lo == pytest.approx(0.00047, abs=5e-6)


@given(st.integers(1, 20000), st.integers(1, 20000))
def test_allowed_false_matches_is_free_of_rounding(n, k):
    k = min(k, n - 1)
    assert allowed_false_matches(n, k / n) == k
    # Just below it, where fmr * n may be rounded up to k.
    assert allowed_false_matches(n, np.nextafter(k / n, 0.0)) == max(k - 1, 0)


def test_allowed_false_matches_of_many_sets():
    assert allowed_false_matches(np.array([0.0, 9.0, 100.0, 10302.0]), 0.29).tolist() == [
        0, 2, 29, 2987,
    ]  # fmt: skip


def test_failures_are_left_out_and_counted():
    record = threshold_at_fmr(np.array([1.0, np.nan, 2.0, 3.0, np.nan]), 0.34)
    assert (record.n, record.n_failed, record.value) == (3, 2, 2.0)
    assert not record.matches(np.array([np.nan]))[0]


@pytest.mark.parametrize("fmr", [-0.1, 1.0, 5.0, math.nan])
def test_fmr_out_of_range(fmr):
    with pytest.raises(EvaluationError, match="expected a share"):
        threshold_at_fmr(np.arange(5.0), fmr)


def test_bad_scores():
    with pytest.raises(EvaluationError, match="no impostor score"):
        threshold_at_fmr(np.array([np.nan]), 0.1)
    with pytest.raises(EvaluationError, match="a score is infinite"):
        threshold_at_fmr(np.array([1.0, np.inf]), 0.1)
    with pytest.raises(EvaluationError, match="score_type 'cosine'"):
        threshold_at_fmr(np.array([1.0]), 0.1, score_type="cosine")


@pytest.fixture
def record():
    return threshold_at_fmr(
        np.random.default_rng(1).normal(size=500),
        0.01,
        model="arcface",
        model_fingerprint="ab" * 32,
        alignment="ffhq-resize112",
        impostor_policy="same-sex",
        impostor_set="mini",
    )


@pytest.mark.parametrize(
    "conditions",
    [
        {"alignment": "arcface-5pt"},
        {"model_fingerprint": "cd" * 32},
        {"model": "adaface"},
        {"score_type": "dissimilarity"},
        {"impostor_policy": "all"},
    ],
)
def test_record_is_refused_under_other_conditions(record, conditions):
    (name, value), *_ = conditions.items()
    with pytest.raises(
        ThresholdMismatch, match=f"made with {name} .*but the scores have {value!r}"
    ):
        record.require(**conditions)


def test_record_without_the_label_is_refused_too(record):
    with pytest.raises(ThresholdMismatch, match="'unstated'"):
        replace(record, alignment="").require(alignment="arcface-5pt")


def test_record_is_accepted_under_its_own_conditions(record):
    assert record.require(alignment="ffhq-resize112", model="arcface") is record
    assert record.require() is record


def test_round_trip_on_disk(record, tmp_path):
    record.write(tmp_path / "tau.json")
    assert ThresholdRecord.read(tmp_path / "tau.json") == record
    (tmp_path / "list.json").write_text(json.dumps([record.to_dict()] * 2))
    assert read_thresholds(tmp_path / "list.json") == [record, record]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other/1"}, "schema 'other/1'"),
        ({"vlaue": 1}, "unknown key 'vlaue'"),
        ({"value": "0.3"}, "value '0.3', expected a number"),
        ({"score_type": "x"}, "score_type 'x'"),
    ],
)
def test_malformed_files_name_the_file_and_key(record, tmp_path, change, message):
    path = tmp_path / "tau.json"
    path.write_text(json.dumps(record.to_dict() | change))
    with pytest.raises(EvaluationError, match=message):
        read_thresholds(path)


def test_unreadable_files(tmp_path):
    with pytest.raises(EvaluationError, match="no such file"):
        read_thresholds(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(EvaluationError, match=r"bad\.json:1: not JSON"):
        read_thresholds(tmp_path / "bad.json")
    (tmp_path / "missing.json").write_text('{"schema": "adjointdeis-threshold/1"}')
    with pytest.raises(EvaluationError, match="key 'value' is missing"):
        read_thresholds(tmp_path / "missing.json")


def test_rule_of_30():
    assert rule_of_30(10, 10302, 0.001).startswith("not met: 10 false matches of 10,302")
    assert "30,000 independent" in rule_of_30(10, 10302, 0.001)
    assert rule_of_30(30, 30000, 0.001).startswith("met: 30")
    # The rule of three: none of 3,000 bounds the rate at 0.1%.
    assert "below 0.001 at 95%" in rule_of_30(0, 3000, 0.001)


def test_literal_says_that_it_has_no_provenance():
    record = ThresholdRecord.literal(0.29908442, target_fmr=0.001, model="elasticface")
    assert record.realised_fmr is None
    assert "literal" in record.rule
    assert record.matches(np.array([0.3, 0.2])).tolist() == [True, False]


def test_labels_can_be_added_but_numbers_cannot(record):
    assert relabelled(record, note="x").note == "x"
    with pytest.raises(EvaluationError, match="'value' is a result"):
        relabelled(record, value=0.1)


def test_infinite_threshold_is_refused():
    with pytest.raises(EvaluationError, match="expected a finite number"):
        ThresholdRecord(value=math.inf, score_type="similarity", rule="", target_fmr=0.1)


@pytest.mark.parametrize(
    ("key", "value"), [("model", 7), ("alignment", None), ("k", "ten"), ("value", True), ("n", [1])]
)
def test_a_key_of_another_type_is_named(key, value):
    record = threshold_at_fmr(np.arange(100.0), 0.1).to_dict()
    with pytest.raises(EvaluationError, match=f"{key} .*expected"):
        ThresholdRecord.from_dict(record | {key: value})
    assert ThresholdRecord.from_dict(record).to_dict() == record
