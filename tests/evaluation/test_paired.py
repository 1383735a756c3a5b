"""Paired tests: McNemar against scipy, Holm by hand, differences tighter than separate rates."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from adjointdeis.evaluation import EvaluationError, ScoreError, ScoreTable, group
from adjointdeis.evaluation.paired import compare_attacks, holm, in_common, mcnemar_exact
from adjointdeis.evaluation.tables import paired_table

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_exact_binomial_test(b, c):
    expected = binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
    assert mcnemar_exact(b, c) == pytest.approx(expected, abs=1e-12)
    assert mcnemar_exact(b, c) == mcnemar_exact(c, b)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    with pytest.raises(EvaluationError, match=r"\[0, 1\]"):
        holm([1.5])


@given(p_values)
def test_holm_lies_between_raw_and_bonferroni(p):
    adjusted = holm(p)
    for raw, new in zip(p, adjusted, strict=True):
        assert raw <= new <= min(1.0, raw * len(p)) + 1e-12 or new == max(adjusted)
        assert new >= raw
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_comparison_counts_pairs_by_brute_force(table):
    found = compare_attacks(table, "strong", "weak", probe_policy="other", fmr=0.01, replicates=200)
    assert [c.system for c in found] == ["adaface", "arcface", "elasticface"]
    for c in found:
        record = np.sort(table.select(kind="nonmated", system=c.system)["score"])[::-1]
        tau = record[int(0.01 * len(record))]
        outcome = {}
        for attack in ("strong", "weak"):
            cell = table.select(kind="morph", attack=attack, system=c.system, probe_policy="other")
            for morph, score in zip(cell["morph_id"], cell.oriented, strict=True):
                hits = outcome.setdefault(morph, {}).setdefault(attack, [])
                hits.append(bool(score > tau))
        both = [(all(o["strong"]), all(o["weak"])) for o in outcome.values()]
        counts = [both.count(x) for x in ((1, 1), (1, 0), (0, 1), (0, 0))]
        assert [c.both, c.first_only, c.second_only, c.neither] == counts
        assert c.difference == pytest.approx((c.first_only - c.second_only) / c.n)
        assert c.lo <= c.difference <= c.hi
        assert c.p_value == mcnemar_exact(c.first_only, c.second_only)
    assert [c.p_holm for c in found] == holm([c.p_value for c in found])


def test_an_attack_does_not_differ_from_itself(table):
    for c in compare_attacks(table, "weak", "weak", probe_policy="source", replicates=50):
        assert (c.difference, c.p_value) == (0.0, 1.0)
        # Where two attacks never differed, how rare a difference may be is all that is known.
        assert c.lo == -c.hi < 0


def test_no_difference_is_never_sure_in_one_direction(table):
    """Replicates whose threshold moves may differ one way only: [-2, +0] of 30 equal pairs."""
    rows = table.select(kind=("morph", "nonmated"), system="arcface").to_rows()
    asked = {"probe_policy": "source", "fmr": 0.05, "replicates": 200}
    tau = compare_attacks(ScoreTable.from_rows(rows), "weak", "weak", **asked)[0].tau
    weak = [r for r in rows if r["attack"] == "weak"]
    # Above the threshold, the second is nearer to it: only a stricter one tells them apart.
    nearer = [r | {"attack": "nearer", "score": r["score"] and min(r["score"], tau + 1e-3)}
              if (r["score"] or 0) > tau else r | {"attack": "nearer"} for r in weak]  # fmt: skip
    both = ScoreTable.from_rows([*(r for r in rows if r["attack"] != "strong"), *nearer])
    c = compare_attacks(both, "weak", "nearer", **asked)[0]
    itself = compare_attacks(both, "weak", "weak", **asked)[0]
    assert (c.first_only, c.second_only) == (0, 0)
    assert c.lo == itself.lo < 0 < itself.hi <= c.hi


def test_a_comparison_says_what_it_was_made_under(table):
    found = compare_attacks(table, "strong", "weak", probe_policy="other", fmr=0.01, replicates=0)
    stated = dict(paired_table(found).labels)
    assert stated == {
        "Probe": "other", "Impostors": "all", "Variant": "MinMax", "FMR target": "1%",
    }  # fmt: skip
    assert paired_table([]).labels == ()


def test_only_common_pairs_count():
    def attack(pairs):
        subjects = np.array(pairs).ravel()
        return group(np.arange(len(subjects)) / 10, np.repeat(range(len(pairs)), 2), subjects)

    one, two = in_common(attack([("a", "b"), ("c", "d")]), attack([("d", "c"), ("e", "f")]))
    assert len(one) == len(two) == 1
    assert one.scores.tolist() == [0.2, 0.3]
    assert two.scores.tolist() == [0.1, 0.0]
    with pytest.raises(ScoreError, match="no pair of subjects in common"):
        in_common(attack([("a", "b")]), attack([("a", "c")]))
    with pytest.raises(ScoreError, match="two morphs of the subjects a, b"):
        in_common(attack([("a", "b"), ("b", "a")]), attack([("a", "b")]))


def test_variant_without_a_yes_or_no_is_refused(table):
    with pytest.raises(EvaluationError, match="takes MMPMR or MinMax"):
        compare_attacks(table, "strong", "weak", probe_policy="other", variant="ProdAvg")


def test_paired_difference_is_tighter_than_unpaired(table):
    """Attacks on the same people: the interval must profit from the pairing."""
    rows = table.select(kind=("morph", "nonmated"), system="arcface").to_rows()
    rows = [r for r in rows if r["attack"] != "strong"]
    nearly = []
    for r in rows:
        if r["attack"] == "weak" and r["score"] is not None:
            nearly.append(r | {"attack": "nearly", "score": r["score"] + 0.02})
        elif r["attack"] == "weak":
            nearly.append(r | {"attack": "nearly"})
    both = ScoreTable.from_rows([*rows, *nearly])
    c = compare_attacks(both, "nearly", "weak", probe_policy="source", fmr=0.01, replicates=300)[0]
    from adjointdeis.evaluation import evaluate

    row = evaluate(both, fmr=(0.01,), attacks=["weak"], probe_policies=["source"], replicates=300)[
        0
    ]
    assert c.first_only > 0  # Of attacks that never differ only the exact interval is known.
    assert c.hi - c.lo < (row["bootstrap_hi"] - row["bootstrap_lo"]) / 2
