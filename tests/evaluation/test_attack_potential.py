"""MAP and G-MAP against loops over their definitions and by their identities."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from adjointdeis.evaluation import (
    EvaluationError,
    ScoreError,
    ScoreTable,
    concatenate,
    estimate_thresholds,
    group,
    vulnerability,
)
from adjointdeis.evaluation.attack_potential import (
    attack_potential,
    bootstrap_attack_potential,
    generalised_attack_potential,
)
from adjointdeis.evaluation.generality import evaluate_attack_potential, evaluate_generality
from adjointdeis.evaluation.uncertainty import draw_subjects


@st.composite
def scored(draw, n_systems=None):
    """Systems x morphs x 2 subjects x probes on a coarse grid."""
    shape = (
        n_systems or draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        2,
        draw(st.integers(1, 4)),
    )
    values = draw(st.lists(st.integers(-2, 2), min_size=1, max_size=40))
    return np.resize(np.array(values, dtype=float), shape)


def grouped(scores):
    m, n, i = np.indices(scores.shape[1:]).reshape(3, -1)
    return {f"f{f}": group(scores[f].ravel(), m, n, i) for f in range(len(scores))}


@given(scored(), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
def test_equals_the_definition(scores, tau):
    groups = grouped(scores)
    found = attack_potential(groups, dict.fromkeys(groups, tau))
    n_systems, n_morphs, _, n_probes = scores.shape
    assert found.counts.shape == (n_probes, n_systems)
    for r in range(1, n_probes + 1):
        for c in range(1, n_systems + 1):
            k = 0
            for m in range(n_morphs):
                passed = sum(
                    min((scores[f, m, n] > tau).sum() for n in range(2)) >= r
                    for f in range(n_systems)
                )
                k += passed >= c
            assert found.counts[r - 1, c - 1] == k
            assert found.rate(r, c).k == k


@given(scored(n_systems=1), st.sampled_from([-1.0, 0.0, 1.0]))
def test_first_entry_of_one_recogniser_is_minmax(scores, tau):
    groups = grouped(scores)
    expected = vulnerability(groups["f0"], tau, "MinMax")
    assert attack_potential(groups, {"f0": tau}).rate(1, 1) == expected


@given(scored(), st.sampled_from([-1.0, 0.0, 1.0]))
def test_falls_with_robustness_and_generality(scores, tau):
    groups = grouped(scores)
    counts = attack_potential(groups, dict.fromkeys(groups, tau)).counts
    assert (np.diff(counts, axis=0) <= 0).all()
    assert (np.diff(counts, axis=1) <= 0).all()


@given(scored(), st.sampled_from([-1.0, 0.0, 1.0]))
def test_gmap_equals_the_definition(scores, tau):
    attacks = {"one": grouped(scores), "two": grouped(scores + 1)}
    taus = dict.fromkeys(attacks["one"], tau)
    for name, aggregate in (("min", min), ("mean", np.mean), ("max", max)):
        expected = np.mean(
            [
                aggregate([np.mean((shifted[f] > tau).all(axis=1)) for f in range(len(scores))])
                for shifted in (scores, scores + 1)
            ]
        )
        found = generalised_attack_potential(attacks, taus, over_systems=name)
        assert found == pytest.approx(expected)


def test_gmap_folds_failure_to_acquire_in_once():
    scores = np.ones((1, 4, 2, 2))
    taus = {"f0": 0.0}
    assert generalised_attack_potential({"d": grouped(scores)}, taus) == 1.0
    stated = generalised_attack_potential({"d": grouped(scores)}, taus, ftar={"f0": [0.5, 0.0]})
    assert stated == 0.75
    failed = scores.copy()
    failed[0, 0, 0, 0] = failed[0, 1, 1, 0] = np.nan
    # Half of the attempts 0 failed: (1/2 + 1) / 2, as with the stated rate.
    assert generalised_attack_potential({"d": grouped(failed)}, taus) == 0.75
    with pytest.raises(EvaluationError, match="give one"):
        generalised_attack_potential({"d": grouped(failed)}, taus, ftar={"f0": 0.1})
    with pytest.raises(EvaluationError, match="over_systems 'median'"):
        generalised_attack_potential({"d": grouped(scores)}, taus, over_systems="median")


def test_systems_must_have_scored_the_same_morphs():
    one = grouped(np.zeros((1, 3, 2, 1)))["f0"]
    two = grouped(np.zeros((1, 2, 2, 1)))["f0"]
    with pytest.raises(ScoreError, match="scored other morphs"):
        attack_potential({"x": one, "y": two}, {"x": 0.0, "y": 0.0})
    with pytest.raises(EvaluationError, match=r"MAP\[2, 1\]: r is 1\.\.1"):
        attack_potential({"x": one}, {"x": 0.0}).rate(2, 1)


def test_bootstrap_equals_the_weighted_definition():
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(3, 10, 2, 2))
    pairs = np.array([generator.choice(6, 2, replace=False) for _ in range(10)])
    m, n, i = np.indices(scores.shape[1:]).reshape(3, -1)
    groups = {f"f{f}": group(scores[f].ravel(), m, pairs[m, n], i) for f in range(3)}
    draws = draw_subjects(np.unique(pairs), replicates=15, seed=0)
    taus = {name: generator.normal(size=15) / 4 for name in groups}
    values = bootstrap_attack_potential(draws, groups, taus)
    for b in range(15):
        times = dict(zip(draws.subjects, draws.counts[b], strict=True))
        w = np.array([times[a] * times[c] for a, c in pairs])
        for r in (1, 2):
            for c in (1, 2, 3):
                passed = sum(
                    ((scores[f] > taus[f"f{f}"][b]).sum(axis=2).min(axis=1) >= r).astype(int)
                    for f in range(3)
                )
                expected = (w * (passed >= c)).sum() / w.sum()
                assert values[b, r - 1, c - 1] == pytest.approx(expected)


def test_rows_carry_labels_and_intervals(table):
    rows = evaluate_attack_potential(table, fmr=0.01, replicates=100)
    labels = "attack systems probe_policy impostor_policy fmr_target r c k n value"
    ends = "wilson_lo wilson_hi bootstrap_lo bootstrap_hi bootstrap_tau confidence n_failed"
    assert all(list(row) == f"{labels} {ends}".split() for row in rows)
    assert len(rows) == 2 * 2 * 1 * 3
    for row in rows:
        assert row["bootstrap_lo"] <= row["value"] <= row["bootstrap_hi"]
        assert row["bootstrap_tau"] == "re-estimated"
    one = evaluate_attack_potential(table, fmr=0.01, systems=["adaface"], replicates=0)
    assert {(row["r"], row["c"]) for row in one} == {(1, 1)}


def test_generality_rows_average_over_attacks(table):
    rows = evaluate_generality(table, fmr=0.01)
    assert [row["probe_policy"] for row in rows] == ["other", "source"]
    systems = table.unique("system", kind="morph")
    records = {s: estimate_thresholds(table, s, (0.01,))[0] for s in systems}
    for row in rows:
        by_system = []
        for system, record in records.items():
            # By hand: with one probe a subject, the share of morphs whose every score matches.
            shares = []
            for attack in row["attacks"]:
                own = table.select(
                    kind="morph", system=system, attack=attack, probe_policy=row["probe_policy"]
                )
                matched: dict[str, bool] = {}
                for morph, score in zip(own["morph_id"], own["score"], strict=True):
                    matched[morph] = matched.get(morph, True) and bool(record.matches(score))
                shares.append(np.mean(list(matched.values())))
            by_system.append(shares)
        per_attack = np.array(by_system)
        for over, take in (("min", np.min), ("mean", np.mean), ("max", np.max)):
            assert row[over] == pytest.approx(take(per_attack, axis=0).mean(), abs=1e-12)
        failed = table.select(kind="morph", probe_policy=row["probe_policy"])["status"] != "ok"
        assert row["n_failed"] == failed.sum() > 0


def test_the_worst_case_is_no_attack_and_ragged_probes_have_no_generality(table):
    rows = table.select(kind="morph", attack="weak").to_rows()
    bound = ScoreTable.from_rows([row | {"attack": "worst-case"} for row in rows])
    with_bound = evaluate_generality(concatenate([table, bound]), fmr=0.01)
    assert with_bound == evaluate_generality(table, fmr=0.01)
    extra = next(r for r in rows if r["probe_policy"] == "other") | {"probe_id": "one more"}
    ragged = concatenate([table, ScoreTable.from_rows([*rows, extra])])
    other, source = evaluate_generality(ragged, fmr=0.01)
    assert other["min"] is None and source["min"] is not None
