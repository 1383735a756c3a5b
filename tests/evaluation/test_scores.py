"""The canonical table: every malformed input is one line that names the row."""

import numpy as np
import pytest

from adjointdeis.evaluation import ScoreError, ScoreTable, concatenate, impostors


def pair(morph_row, **changes):
    return [morph_row(**changes), morph_row(subject_id="b", probe_id="b_08", **changes)]


def test_rows_round_trip(table):
    again = ScoreTable.from_rows(table.to_rows(), metadata=table.metadata)
    assert again.fingerprint() == table.fingerprint()
    assert len(again) == len(table)


def test_arrays_are_immutable(table):
    with pytest.raises(ValueError, match="read-only"):
        table["score"][0] = 1.0


def test_oriented_negates_dissimilarities_and_hides_failures(morph_row):
    rows = [
        morph_row(score_type="dissimilarity", score=0.25),
        morph_row(subject_id="b", score_type="dissimilarity", score=-1, status="fta"),
    ]
    assert np.array_equal(
        ScoreTable.from_rows(rows).oriented, np.array([-0.25, np.nan]), equal_nan=True
    )


def test_score_of_a_failure_is_dropped(morph_row):
    rows = pair(morph_row)
    rows[0] |= {"score": -1.0, "status": "fte"}
    assert np.isnan(ScoreTable.from_rows(rows)["score"][0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "genuine"}, "row 0: kind 'genuine': expected one of mated"),
        ({"score_type": "distance"}, "score_type 'distance': expected one of similarity"),
        ({"status": "failed"}, "status 'failed'"),
        ({"probe_policy": "both"}, "probe_policy 'both'"),
        ({"probe_policy": ""}, "a morph row needs one of source, other"),
        ({"score": float("nan")}, "status ok needs a finite number"),
        ({"score": float("inf")}, "status ok needs a finite number"),
        ({"system": ""}, "every row needs a system"),
        ({"subject_id": ""}, "a morph row needs subject_id"),
        ({"attack": ""}, "a morph row needs attack"),
    ],
)
def test_a_bad_value_names_the_row_and_what_was_expected(morph_row, changes, message):
    with pytest.raises(ScoreError, match=message):
        ScoreTable.from_rows([morph_row(**changes)])


def test_two_directions_of_one_system(morph_row):
    rows = pair(morph_row)
    rows[1]["score_type"] = "dissimilarity"
    with pytest.raises(
        ScoreError, match=r"row 1: score_type 'dissimilarity': system 'arcface' has"
    ):
        ScoreTable.from_rows(rows)


def test_duplicate_with_another_score(morph_row):
    rows = [*pair(morph_row), morph_row(score=0.5)]
    with pytest.raises(ScoreError, match=r"row 2: duplicate comparison .* 0.5, first seen .*row 0"):
        ScoreTable.from_rows(rows)


def test_duplicate_that_failed_the_second_time(morph_row):
    rows = [*pair(morph_row), morph_row(score=None, status="fta")]
    with pytest.raises(ScoreError, match="row 2: duplicate comparison with another score: fta"):
        ScoreTable.from_rows(rows)


def test_identical_repeats_count_once(morph_row):
    rows = [*pair(morph_row), *pair(morph_row), morph_row()]
    assert len(ScoreTable.from_rows(rows)) == 2


def test_morph_of_one_subject(morph_row):
    with pytest.raises(ScoreError, match=r"morph 'a_b' of attack 'dim' has probes of one subject"):
        ScoreTable.from_rows([morph_row(), morph_row(probe_id="a_09")])


def test_subject_without_probe_under_one_policy(morph_row):
    rows = [*pair(morph_row), morph_row(probe_policy="source", probe_id="a_03")]
    with pytest.raises(ScoreError, match=r"row 2: subject 'b' .* policy 'source'"):
        ScoreTable.from_rows(rows)


def test_subject_without_probe_under_one_system(morph_row):
    rows = [*pair(morph_row), morph_row(system="adaface", subject_id="b")]
    with pytest.raises(ScoreError, match=r"row 2: subject 'a' .* system 'adaface'"):
        ScoreTable.from_rows(rows)


def test_nonmated_comparison_of_one_person():
    row = {"kind": "nonmated", "subject_id": "a", "ref_subject_id": "a", "system": "s"}
    with pytest.raises(ScoreError, match="a nonmated comparison is of one subject"):
        ScoreTable.from_rows([row | {"score": 0.1, "score_type": "similarity"}])


def test_mated_comparison_of_two_people():
    row = {"kind": "mated", "subject_id": "a", "ref_subject_id": "b", "system": "s"}
    with pytest.raises(ScoreError, match="a mated comparison is of two subjects"):
        ScoreTable.from_rows([row | {"score": 0.1, "score_type": "similarity"}])


def test_unknown_and_missing_columns():
    with pytest.raises(ScoreError, match="unknown column 'scroe'"):
        ScoreTable.from_columns(scroe=[1.0])
    with pytest.raises(ScoreError, match="column 'score' is missing"):
        ScoreTable.from_columns(kind="mated", system="s", score_type="similarity")


def test_fingerprint_ignores_order_and_sees_scores(table):
    shuffled = table.where(np.random.default_rng(0).permutation(len(table)))
    assert shuffled.fingerprint() == table.fingerprint()
    scores = table["score"].copy()
    scores[np.flatnonzero(np.isfinite(scores))[0]] += 1e-9
    changed = ScoreTable({**table.columns, "score": scores})
    assert changed.fingerprint() != table.fingerprint()


def test_concatenate_checks_again(morph_row):
    one = ScoreTable.from_rows(pair(morph_row), metadata={"seed": 1})
    two = ScoreTable.from_rows(pair(morph_row, attack="adjoint"), metadata={"seed": 2, "x": 3})
    both = concatenate([one, two])
    assert len(both) == 4
    assert both.metadata == {"seed": 1, "x": 3}
    with pytest.raises(ScoreError, match="duplicate comparison"):
        concatenate([one, ScoreTable.from_rows(pair(morph_row, score=0.9))])


def test_select_and_unique(table):
    rows = table.select(kind="morph", system=("adaface", "arcface"))
    assert set(rows["system"]) == {"adaface", "arcface"}
    assert table.unique("attack", kind="morph") == ["strong", "weak"]
    assert table.direction("adaface") == "similarity"
    with pytest.raises(ScoreError, match="expected one score_type"):
        table.direction("nobody")


def impostor(morph_row, one, two, **changes):
    row = {"kind": "nonmated", "subject_id": one, "ref_subject_id": two, "ref_id": f"{two}_03"}
    return morph_row(
        probe_id=f"{one}_08", morph_id="", attack="", probe_policy="", **row, **changes
    )


@pytest.mark.parametrize("spelling", ["Zoe\u0301", "Ｚｏé", "Zo\u200bé", " Zoé\u00a0"])
def test_two_spellings_of_one_person_are_no_impostors(morph_row, spelling):
    with pytest.raises(ScoreError, match="a nonmated comparison is of one subject"):
        ScoreTable.from_rows([impostor(morph_row, "Zoé", spelling)])
    rows = [impostor(morph_row, "Zoé", "b"), impostor(morph_row, spelling, "c")]
    table = ScoreTable.from_rows(rows)
    assert table.unique("subject_id") == ["Zoé"]
    assert len(table.select(subject_id=spelling)) == 2


@pytest.mark.parametrize(
    ("one", "two"), [("Zoé", "zoé"), ("001", "1"), ("A-1", "A–1"), ("7", "7.0")]
)
def test_ids_that_look_alike_are_refused_as_impostors(morph_row, one, two):
    with pytest.raises(ScoreError, match=r"differ in case, .* or leading zeros only"):
        ScoreTable.from_rows([impostor(morph_row, one, two)])
    assert len(ScoreTable.from_rows([impostor(morph_row, one, "other")])) == 1


def test_a_cross_comparison_without_a_mated_row_is_refused(morph_row):
    rows = [impostor(morph_row, f"{i:03d}", f"{j:03d}_a") for i in range(3) for j in range(3)]
    table = ScoreTable.from_rows(rows)
    with pytest.raises(ScoreError, match=r"no mated comparison.*'000' among the probes"):
        impostors(table, "arcface")
    stated = ScoreTable.from_rows(rows, metadata={"two_groups": True})
    assert len(impostors(stated, "arcface").scores) == 9
    alike = [impostor(morph_row, f"{i:03d}", f"{j:03d}") for i in range(3) for j in range(i)]
    assert len(impostors(ScoreTable.from_rows(alike), "arcface").scores) == 3


def test_one_long_id_costs_its_own_length_in_every_operation(morph_row):
    rows = [impostor(morph_row, f"{i % 50:03d}", "other", score=i / 1000) for i in range(1000)]
    for i, row in enumerate(rows):
        row["probe_id"] = f"p{i}"
    rows[3]["probe_id"] = "x" * 4000
    table = ScoreTable.from_rows(rows)
    assert table["probe_id"].dtype == object and table["subject_id"].dtype.kind == "U"
    again = concatenate([table, ScoreTable.from_rows(rows[:10])])
    assert len(again) == len(table) == 1000 and again.fingerprint() == table.fingerprint()
    assert len(table.select(probe_id="x" * 4000)) == 1
    assert len(table.unique("probe_id")) == 1000
    assert ScoreTable.from_rows(table.to_rows()).fingerprint() == table.fingerprint()


def test_joined_tables_keep_what_each_states_about_its_systems(table):
    parts = [table.select(system=name) for name in ("arcface", "adaface")]
    joined = concatenate(
        ScoreTable(part.columns, {"systems": {name: {"alignment": name}}})
        for part, name in zip(parts, ("arcface", "adaface"), strict=True)
    )
    assert joined.metadata["systems"] == {n: {"alignment": n} for n in ("arcface", "adaface")}
    for key, message in (("systems", "has alignment 'b', and 'a'"), ("data_set", "evaluate them")):
        values = ({"x": {"alignment": "a"}}, {"x": {"alignment": "b"}})
        values = values if key == "systems" else ("one", "two")
        with pytest.raises(ScoreError, match=message):
            concatenate(ScoreTable(parts[0].columns, {key: value}) for value in values)


def test_morphs_and_probes_that_changed_places_are_refused():
    """120 probes passed for morphs, of subjects that were the names of pairs."""
    pairs = [("a", "b"), ("b", "c"), ("c", "a")]
    person = {"system": "s", "score_type": "similarity", "score": 0.5}
    rows = [
        {"kind": "nonmated", "subject_id": p, "ref_subject_id": q, "probe_id": f"{p}_live",
         "ref_id": f"{q}_document", **person}
        for p in "abc" for q in "abc" if p != q
    ]  # fmt: skip
    right = [
        {"kind": "morph", "attack": "x", "probe_policy": "other", "morph_id": f"{p}{q}.png",
         "ref_id": f"{p}{q}.png", "subject_id": who, "ref_subject_id": f"{p}+{q}",
         "probe_id": f"{who}_live", **person}
        for p, q in pairs for who in (p, q)
    ]  # fmt: skip
    assert len(ScoreTable.from_rows(rows + right)) == 12
    wrong = [
        row | {"morph_id": row["probe_id"], "ref_id": row["probe_id"], "probe_id": row["ref_id"],
               "subject_id": row["ref_subject_id"], "ref_subject_id": row["subject_id"]}
        for row in right
    ]  # fmt: skip
    message = "row 6: were morphs and probes taken for each other?"
    with pytest.raises(ScoreError, match=message):
        ScoreTable.from_rows(rows + wrong)
    with pytest.raises(ScoreError, match=message):
        ScoreTable.from_rows([row | {"ref_subject_id": ""} for row in rows + wrong])
    # A reference may be named by one of its people, who has no other comparison than as impostor.
    named = [row | {"ref_subject_id": row["ref_subject_id"][0]} for row in right]
    assert len(ScoreTable.from_rows(rows + named)) == 12
