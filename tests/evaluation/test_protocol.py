"""Rows of `evaluate`: against direct computation, under every policy, and what they refuse."""

import json
from dataclasses import replace

import numpy as np
import pytest

from adjointdeis.evaluation import (
    ALL_VARIANTS,
    ROW_KEYS,
    WORST_CASE,
    EvaluationError,
    PolicyError,
    ScoreError,
    ScoreTable,
    ThresholdMismatch,
    ThresholdRecord,
    concatenate,
    estimate_thresholds,
    evaluate,
    group_table,
    impostors,
    threshold_at_fmr,
    vulnerability,
)
from adjointdeis.evaluation.operating import DirectionWarning
from adjointdeis.evaluation.tables import rates_table, threshold_table


def test_rows_equal_direct_computation(table):
    rows = evaluate(table, fmr=(0.01, 0.1), replicates=0)
    assert len(rows) == 3 * 2 * 2 * 2
    for row in rows:
        nonmated = table.select(kind="nonmated", system=row["system"])
        record = threshold_at_fmr(nonmated["score"], row["fmr_target"])
        groups = group_table(
            table, attack=row["attack"], system=row["system"], probe_policy=row["probe_policy"]
        )
        expected = vulnerability(groups, record.value, "MMPMR")
        assert (row["k"], row["n"], row["value"]) == (expected.k, expected.n, expected.value)
        assert (row["wilson_lo"], row["wilson_hi"]) == expected.interval
        assert (row["tau"], row["impostors_k"], row["impostors_n"]) == (
            record.value,
            record.k,
            record.n,
        )
        assert row["fmr_realised"] <= row["fmr_target"]


def test_rows_are_json_with_all_keys(table):
    rows = evaluate(table, replicates=20, variants=ALL_VARIANTS)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert all(tuple(row) == ROW_KEYS for row in rows)


def test_attacks_on_other_pairs_are_named_under_their_rates(table):
    """Rates of different people stood side by side without a word."""
    rows = evaluate(table, replicates=0)
    morphs = table.select(kind="morph", attack="weak")
    assert {row["n_subjects"] for row in rows} == {len(morphs.unique("subject_id"))}
    assert len({row["pairs"] for row in rows}) == 1
    assert not any(note.startswith("Not the same") for note in rates_table(rows).notes)
    fewer = set(morphs.unique("morph_id")[::2])
    gone = (table["attack"] == "weak") & ~np.isin(table["morph_id"], sorted(fewer))
    rows = evaluate(table.where(~gone), replicates=0)
    notes = rates_table(rows).notes
    assert f"Not the same pairs of people: strong 40; weak {len(fewer)}. " in " ".join(notes)
    assert len({row["pairs"] for row in rows}) == 2
    # Two runs whose files have other names are not twice as many pairs.
    again = table["kind"] == "morph"
    ids = np.where(again, np.char.add(table["morph_id"].astype(str), "-again"), "")
    second = ScoreTable.from_columns(**{**table.where(again).columns, "morph_id": ids[again]})
    doubled = evaluate(concatenate([table, second]), replicates=0)
    assert {(row["n"], row["n_pairs"]) for row in doubled} == {(80, 40)}
    assert "strong 80 of 40 pairs, weak 80 of 40 pairs" in " ".join(rates_table(doubled).notes)
    # Rows of older results do not say whose they are.
    older = [{k: v for k, v in row.items() if k not in ROW_KEYS[-3:]} for row in rows]
    assert not any(note.startswith(("Not the", "N counts")) for note in rates_table(older).notes)


def test_an_unknown_strictest_threshold_is_no_promise():
    """`any stricter` has as few false matches only where there is none."""
    known = threshold_at_fmr(np.arange(1000) / 1000, 0.01)
    frozen = replace(known, value_strictest=None)
    none = threshold_at_fmr(np.arange(10) / 10, 0.01)
    cells = [row[4].text for row in threshold_table([known, frozen, none]).rows]
    assert cells == ["0.990000", "–", "any stricter"]


def test_failures_are_counted_and_are_no_matches(table):
    rows = evaluate(table, replicates=0)
    for row in rows:
        cell = table.select(
            kind="morph",
            attack=row["attack"],
            system=row["system"],
            probe_policy=row["probe_policy"],
        )
        failed = cell["status"] != "ok"
        assert row["n_fta"] == failed.sum()
        tau = row["tau"]
        hits = {}
        for morph, score, bad in zip(cell["morph_id"], cell["score"], failed, strict=True):
            hits.setdefault(morph, []).append(not bad and score > tau)
        assert row["k"] == sum(all(h) for h in hits.values())
    assert sum(row["n_fta"] for row in rows) > 0


def test_impostor_policies_select_by_both_people(table, subjects):
    rows = table.select(kind="nonmated", system="adaface")
    for policy, names in (("all", ()), ("same-sex", ("sex",)), ("same-sex-and-group", None)):
        names = ("sex", "group") if names is None else names
        expected = [
            score
            for score, a, b in zip(
                rows["score"], rows["subject_id"], rows["ref_subject_id"], strict=True
            )
            if all(
                getattr(subjects.by_id[a], name) == getattr(subjects.by_id[b], name)
                for name in names
            )
        ]
        found = impostors(table, "adaface", policy, subjects)
        assert sorted(found.scores) == sorted(expected)
    sizes = [len(impostors(table, "adaface", p, subjects).scores) for p in ("all", "same-sex")]
    assert sizes == [24 * 23, 2 * 12 * 11]


def test_sensitivity_table_names_all_four_labels(table, subjects):
    rows = evaluate(
        table,
        fmr=(0.01,),
        impostor_policies=("all", "same-sex", "same-sex-and-group"),
        subjects=subjects,
        systems=["arcface"],
        attacks=["weak"],
        replicates=0,
    )
    labels = {(r["probe_policy"], r["impostor_policy"], r["variant"]) for r in rows}
    assert len(labels) == len(rows) == 6
    by_policy = {r["impostor_policy"]: r["impostors_n"] for r in rows}
    assert by_policy == {"all": 24 * 23, "same-sex": 2 * 12 * 11, "same-sex-and-group": 6 * 4 * 3}


def test_bootstrap_says_what_it_did_with_the_threshold(table, subjects):
    rows = evaluate(table, systems=["arcface"], replicates=200)
    assert {r["bootstrap_tau"] for r in rows} == {"re-estimated"}
    assert all(r["bootstrap_lo"] <= r["value"] <= r["bootstrap_hi"] for r in rows)
    stated = {"model_fingerprint": "synthetic:arcface", "alignment": "none"}
    literal = ThresholdRecord.literal(rows[0]["tau"], target_fmr=0.001, model="arcface", **stated)
    fixed = evaluate(table, [literal], systems=["arcface"], replicates=200)
    assert {r["bootstrap_tau"] for r in fixed} == {"fixed"}
    for a, b in zip(rows, fixed, strict=True):
        assert a["value"] == b["value"]
        width = [r["bootstrap_hi"] - r["bootstrap_lo"] for r in (a, b)]
        assert width[0] >= width[1]


def test_record_of_the_same_impostors_is_re_estimated(table, subjects):
    records = estimate_thresholds(table, "arcface", (0.01,), ("all", "same-sex"), subjects)
    given = evaluate(table, records, systems=["arcface"], subjects=subjects, replicates=50)
    own = evaluate(
        table,
        fmr=(0.01,),
        impostor_policies=("all", "same-sex"),
        systems=["arcface"],
        subjects=subjects,
        replicates=50,
    )
    assert given == own
    assert {r["bootstrap_tau"] for r in given} == {"re-estimated"}


def test_without_names_of_the_impostors_the_threshold_stays_fixed(table):
    columns = dict(table.columns)
    columns["ref_subject_id"] = np.where(table["kind"] == "nonmated", "", table["ref_subject_id"])
    anonymous = ScoreTable(columns)
    rows = evaluate(anonymous, systems=["arcface"], replicates=20)
    assert {r["bootstrap_tau"] for r in rows} == {"fixed"}
    with pytest.raises(PolicyError, match="a table subject_id,sex,group"):
        evaluate(anonymous, impostor_policies=("same-sex",), replicates=0)


def test_policies_that_the_data_cannot_serve(table, subjects):
    with pytest.raises(PolicyError, match="expected all, same-sex, same-sex-and-group"):
        impostors(table, "arcface", "same-age", subjects)
    with pytest.raises(PolicyError, match="no nonmated row of system 'dlib'"):
        impostors(table, "dlib")
    columns = dict(table.columns)
    columns["ref_subject_id"] = np.full(len(table), "")
    with pytest.raises(PolicyError, match="needs subject_id and ref_subject_id"):
        impostors(ScoreTable(columns), "arcface", "same-sex", subjects)


def test_record_of_another_alignment_is_refused(table):
    records = estimate_thresholds(table, "arcface", alignment="arcface-5pt")
    with pytest.raises(ThresholdMismatch, match="made with alignment 'arcface-5pt'"):
        evaluate(table, records, systems=["arcface"], replicates=0)
    records = estimate_thresholds(table, "arcface", model_fingerprint="f" * 64)
    with pytest.raises(ThresholdMismatch, match="made with model_fingerprint"):
        evaluate(table, records, systems=["arcface"], replicates=0)


def test_missing_record_and_unknown_choices(table):
    records = estimate_thresholds(table, "arcface")
    with pytest.raises(PolicyError, match="no threshold record for system 'adaface'"):
        evaluate(table, records, replicates=0)
    with pytest.raises(EvaluationError, match="attack 'mipgan' is not in the table; it has strong"):
        evaluate(table, attacks=["mipgan"])
    with pytest.raises(EvaluationError, match="variant 'mean'"):
        evaluate(table, variants=["mean"])
    with pytest.raises(ScoreError, match="no row of kind 'morph'"):
        evaluate(table.select(kind="nonmated"))


def test_rmmr_rows_add_fnmr(table):
    rows = evaluate(table, fmr=(0.01,), variants=["MMPMR", "RMMR-MMPMR"], replicates=100)
    for plain, relative in zip(rows[::2], rows[1::2], strict=True):
        assert relative["value"] == pytest.approx(plain["value"] + plain["fnmr"])
        assert relative["bootstrap_lo"] <= relative["value"] <= relative["bootstrap_hi"]
    with pytest.raises(ScoreError, match="needs mated rows"):
        evaluate(table.select(kind=("morph", "nonmated")), variants=["RMMR-MMPMR"], replicates=0)


def test_several_probes_give_minmax_and_prodavg(table):
    rows = table.select(kind=("morph", "nonmated"), system="arcface").to_rows()
    extra = [r | {"probe_id": r["probe_id"] + "b"} for r in rows if r["kind"] == "morph"]
    found = evaluate(ScoreTable.from_rows([*rows, *extra]), replicates=0)
    assert {r["variant"] for r in found} == {"MinMax", "ProdAvg"}


def test_share_of_the_worst_case_bound(table):
    rows = table.select(kind=("morph", "nonmated"), system="arcface").to_rows()
    best = [
        r | {"attack": WORST_CASE, "score": 1.0, "status": "ok"}
        for r in rows
        if r["attack"] == "weak"
    ]
    found = evaluate(ScoreTable.from_rows([*rows, *best]), replicates=0)
    for row in found:
        assert row["bound"] == 1.0
        assert row["share_of_bound"] == row["value"]
    # A bound over other pairs of people would compare different things.
    fewer = [r for r in best if r["morph_id"] != best[0]["morph_id"]]
    found = evaluate(ScoreTable.from_rows([*rows, *fewer]), replicates=0)
    assert all(r["bound"] is None for r in found if r["attack"] != WORST_CASE)


def test_invariant_to_row_order(table):
    shuffled = table.where(np.random.default_rng(1).permutation(len(table)))
    assert evaluate(shuffled, replicates=30) == evaluate(table, replicates=30)


def test_separate_impostor_people_are_drawn_apart(table):
    rows = table.select(kind=("morph", "nonmated"), system="arcface").to_rows()
    for row in rows:
        if row["kind"] == "nonmated":
            row |= {"subject_id": "i" + row["subject_id"]}
            row |= {"ref_subject_id": "i" + row["ref_subject_id"]}
    found = evaluate(ScoreTable.from_rows(rows), replicates=100)
    assert {r["bootstrap_tau"] for r in found} == {"re-estimated"}
    assert all(r["bootstrap_lo"] < r["bootstrap_hi"] for r in found)


def _turned(table, kinds=("mated", "nonmated", "morph")):
    rows = [r | {"score_type": "dissimilarity"} for r in table.to_rows() if r["kind"] in kinds]
    return ScoreTable.from_rows(rows)


def test_a_reversed_direction_is_refused(table):
    with pytest.raises(
        ScoreError, match=r"of \d+ mated .* is score_type 'dissimilarity' the wrong"
    ):
        evaluate(_turned(table), replicates=0)


def test_few_scores_on_the_wrong_side_are_a_warning():
    rows = [
        {"kind": kind, "system": "x", "subject_id": "a", "ref_subject_id": other, "probe_id": "p",
         "ref_id": other, "score": score, "score_type": "similarity"}
        for kind, other, score in (("mated", "a", 0.1), ("nonmated", "b", 0.3))
    ]  # fmt: skip
    with pytest.warns(DirectionWarning, match="in 0% of the couples"):
        estimate_thresholds(ScoreTable.from_rows(rows), "x")


def test_scores_that_are_cut_off_are_refused_where_nothing_can_match(table):
    """Saturated at 1, the threshold of 1% is 1 itself; no morph matched there, and no genuine."""
    cut = dict(table.columns, score=np.minimum(table["score"] * 10, 1.0))
    cut = ScoreTable.from_columns(**cut)
    with pytest.raises(ScoreError, match=r"impostor comparisons have its best score of all, 1, so"):
        evaluate(cut, fmr=[0.01], replicates=0)
    found = threshold_at_fmr(impostors(cut, "adaface").scores, 0.01)
    assert found.value == 1.0 and not found.matches(cut["score"]).any()
    assert evaluate(cut, fmr=[0.99], replicates=0)
    alone = cut.select(kind="nonmated")
    assert estimate_thresholds(alone, "adaface", [0.01])[0].value == 1.0


def test_thresholds_of_small_scores_have_digits_in_the_table(table):
    small = ScoreTable.from_columns(**dict(table.columns, score=table["score"] * 1e-6))
    one, other = (rates_table(evaluate(t, fmr=[0.01], replicates=0)) for t in (table, small))
    at = one.header.index("tau")
    for plain, tiny in zip(one.rows, other.rows, strict=True):
        mine, theirs = (float(row[at].text.split()[0]) for row in (plain, tiny))
        assert theirs == pytest.approx(mine * 1e-6, rel=1e-3)


def test_a_threshold_without_a_model_is_refused_where_there_are_several(table):
    (record,) = estimate_thresholds(table, "arcface")
    nameless = replace(record, model="")
    with pytest.raises(PolicyError, match=r'names no model.*state "model"'):
        evaluate(table, [nameless], replicates=0)
    one = table.select(system="arcface")
    assert evaluate(one, [nameless], replicates=0)[0]["tau"] == record.value


def test_two_thresholds_for_one_condition_are_refused(table):
    (record,) = estimate_thresholds(table, "arcface")
    with pytest.raises(PolicyError, match="two threshold records of 'arcface'"):
        evaluate(table, [record, replace(record, value=0.9)], systems=["arcface"], replicates=0)
    twice = evaluate(table, [record, record], systems=["arcface"], replicates=0)
    assert len(twice) == len(evaluate(table, [record], systems=["arcface"], replicates=0))


def test_doubled_choices_do_not_double_rows(table):
    once = evaluate(table, replicates=0)
    asked = {"fmr": [0.001, 0.001], "impostor_policies": "all"}
    assert evaluate(table, **asked, systems=["adaface", "arcface", "adaface"], replicates=0) == [
        row for row in once if row["system"] in ("adaface", "arcface")
    ]


def test_rows_state_the_other_end_of_the_same_fmr(table):
    for row in evaluate(table, fmr=(0.05,), replicates=0):
        assert row["tau_strictest"] > row["tau"] and row["k_strictest"] <= row["k"]
        strictest = np.nextafter(row["tau_strictest"], -np.inf)
        impostors = table.select(kind="nonmated", system=row["system"]).oriented
        assert (impostors > strictest).sum() == (impostors > row["tau"]).sum()


def test_a_comparison_listed_in_both_orders_counts_once(table):
    rows = table.select(system="arcface").to_rows()
    mirrored = [
        r | {"subject_id": r["ref_subject_id"], "ref_subject_id": r["subject_id"],
             "probe_id": r["ref_id"], "ref_id": r["probe_id"]}
        for r in rows if r["kind"] == "nonmated"
    ]  # fmt: skip
    (once,) = estimate_thresholds(ScoreTable.from_rows(rows), "arcface", (0.05,))
    (twice,) = estimate_thresholds(ScoreTable.from_rows([*rows, *mirrored]), "arcface", (0.05,))
    assert (twice.k, twice.n, twice.value) == (once.k, once.n, once.value)
    # Neutral against smiling, both ways: two comparisons of one pair of people.
    assert once.n_people == once.n / 2 and once.k_people <= once.k
    other = [r | {"score": r["score"] + 0.001} for r in mirrored]
    (asymmetric,) = estimate_thresholds(ScoreTable.from_rows([*rows, *other]), "arcface", (0.05,))
    assert asymmetric.n == 2 * once.n and asymmetric.n_people == once.n_people
