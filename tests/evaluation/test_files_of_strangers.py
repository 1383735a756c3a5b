"""Score files as other people write them: the number worked out by hand, or a refusal by name.

The table: impostors 0.1, 0.2, 0.3; three genuine comparisons above all; morph m1 of a and b scores
0.5 and 0.25, m2 of a and c 0.5 and 0.45. At FMR 0.1% tau = 0.3, so that m2 alone matches: 1 of 2.
"""

import bz2
import gzip
import io
import json
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adjointdeis.evaluation import EvaluationError, ScoreError, ScoreTable, evaluate, read_scores
from adjointdeis.evaluation.checks import SameImageWarning
from adjointdeis.evaluation.cli import main, parser
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.detection_points import detection_rows
from adjointdeis.evaluation.formats import Labels, read
from adjointdeis.evaluation.metrics import minmax_mmpmr, mmpmr
from adjointdeis.evaluation.paired import compare_attacks
from adjointdeis.evaluation.subjects import age_band, read_subjects
from adjointdeis.evaluation.tables import paired_table
from adjointdeis.evaluation.thresholds import ThresholdRecord, read_thresholds, threshold_at_fmr

HEADER = "kind,morph_id,attack,subject_id,probe_id,ref_subject_id,ref_id,system,score,score_type,"
ROWS = (
    ("mated", "", "", "a", "a2", "a", "a1", 0.9), ("mated", "", "", "b", "b2", "b", "b1", 0.8),
    ("mated", "", "", "c", "c2", "c", "c1", 0.85), ("nonmated", "", "", "a", "a2", "b", "b1", 0.1),
    ("nonmated", "", "", "a", "a2", "c", "c1", 0.2),
    ("nonmated", "", "", "b", "b2", "c", "c1", 0.3),
    ("morph", "m1", "dim", "a", "a2", "", "", 0.5), ("morph", "m1", "dim", "b", "b2", "", "", 0.25),
    ("morph", "m2", "dim", "a", "a2", "", "", 0.5), ("morph", "m2", "dim", "c", "c2", "", "", 0.45),
)  # fmt: skip


def text(score: Callable[[float], object] = str, people=None, rows=ROWS):
    """The table as canonical CSV; `people` renames the people of every row."""
    lines = [HEADER + "probe_policy"]
    for row in rows:
        cells = [*row[:3], *(people(c) if people and c else c for c in row[3:7]), "x",
                 score(row[7]), "similarity", "other" * (row[0] == "morph")]  # fmt: skip
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def saved(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def counted(path, **options):
    (row,) = evaluate(read_scores(path), replicates=0, **options)
    return row["k"], row["n"], row["fnmr_k"], row["fnmr_n"]


@pytest.mark.parametrize(
    "content",
    [
        text(lambda s: f"{s:.3E}"),
        text(lambda s: repr(np.float32(s).item())),
        text(lambda s: f"+{s}"),
        text(lambda s: str(s).replace("1", "\u0661")),
        text(lambda s: f'" {s} "'),
        text().replace("\n", "\r"),
        text().replace("\n", "\r\n\r\n"),
        text().replace(",", ", ").replace("\n", " \n"),
        text(people=lambda p: {"a": "nan", "b": "None", "c": "1e5"}.get(p, p)),
        text(people=lambda p: {"a": "NA", "b": "inf", "c": "2024-01-02"}.get(p, p)),
        text().replace("m1,", '"m;1|a,b",').replace("m2,", "m 2,"),
        text() + text().splitlines()[-1].replace("0.45", "4.5e-1") + "\n",
        text(people=lambda p: p.replace("a", "Zo\u00e9")).replace(
            "morph,m1,dim,Zo\u00e9", unicodedata.normalize("NFD", "morph,m1,dim,Zo\u00e9")
        ),
    ],
)  # fmt: skip
def test_dialects_of_one_table_give_one_number(content, tmp_path):
    path = saved(tmp_path / "s.csv", content)
    assert counted(path) == (1, 2, 0, 3)
    # One false match of three is allowed at 34%: tau = 0.2, and both morphs match.
    assert counted(path, fmr=[0.34]) == (2, 2, 0, 3)


def test_a_typeset_minus_is_a_minus(tmp_path):
    content = text(lambda s: f"{s - 1:.2f}".replace("-", "\u2212"))
    path = saved(tmp_path / "s.csv", content)
    assert counted(path) == (1, 2, 0, 3)
    assert read_scores(path)["score"].min() == -0.9


def packed(name):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr(name, text())
    return whole.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (text(lambda s: "1_0"), ":2: score '1_0' is not a number; write it like 0.25"),
        (text(lambda s: f'"{s}"'.replace(".", ",")), ":2: score '0,9' is not a number"),
        (text(lambda s: f"{100 * s}%"), ":2: score '90.0%' is not a number"),
        (gzip.compress(text().encode()), "packed by gzip; unpack it"),
        (bz2.compress(text().encode()), "packed by bzip2; unpack it"),
        (packed("s.csv"), "a zip archive, or a workbook of a spreadsheet"),
        (text().replace("policy\n", "policy,score\n", 1), ":1: column 'score' appears twice"),
        (text().replace("m1,dim,b,", "m1,dim,A,"), ": it and 'A' differ in case"),
        (text().replace("dim,b", "Dim,b"), "attack 'dim': it and 'Dim' differ in case"),
        (text().replace("c2,,,x", "c2,,,X"), "system 'x': it and 'X' differ in case"),
        (text().replace("dim", "bona_fide"), ":8: attack 'bona_fide': 'bonafide' marks a bona"),
        (text().replace("dim", "bonafide"), ":8: attack 'bonafide': .* only of kind mad"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_one_way_is_refused_by_line(content, message, tmp_path):
    path = saved(tmp_path / "s.csv", content)
    with pytest.raises(ScoreError, match=rf"s\.csv.*({message})"):
        read_scores(path)


@pytest.mark.parametrize(("mine", "theirs"), [("7", "007"), ("Ann", "ANN"), ("a-b", "a\u2013b")])
def test_one_person_is_spelled_one_way_in_all_rows(mine, theirs, tmp_path):
    """Of spreadsheets that read 007 as 7: such a person would be drawn twice in the bootstrap."""
    rows = text(people=lambda p: {"a": mine, "b": "8", "c": "9"}.get(p, p))
    path = saved(tmp_path / "s.csv", rows.replace(f"dim,{mine},", f"dim,{theirs},"))
    with pytest.raises(ScoreError, match=r"s\.csv:\d+: subject_id .* leading zeros only"):
        read_scores(path)


GENERIC = Labels(
    system="x", score_type="similarity", probe_policy="other",
    columns={"morph_id": "Morph", "subject_id": "Who", "ref_subject_id": "Against", "score": "Sim"},
)  # fmt: skip


def generic(scores=(0.9, 0.1, 0.5, 0.4), top="Morph;Who;Against;Sim\n"):
    labels = (";a;a", ";a;b", "m;a;", "m;b;")
    return top + "".join(f"{who};{s}\n" for who, s in zip(labels, scores, strict=True))


@pytest.mark.parametrize(
    ("content", "scores"),
    [
        ("sep=;\n" + generic(), [0.9, 0.1, 0.5, 0.4]),
        ("# by hand\n" + generic(), [0.9, 0.1, 0.5, 0.4]),
        (generic(("0,5", "1", "0", "0,25")), [0.5, 1, 0, 0.25]),
        (generic(("1,5", "1,234", "2,345", "3,456")), [1.5, 1.234, 2.345, 3.456]),
        (generic(("0,123", "1,234", "2,345", "3,456")), [0.123, 1.234, 2.345, 3.456]),
        (generic(("1.234", "999", "2.345", "3")), [1.234, 999, 2.345, 3]),
        (generic(("5e-1", "\u22120,5", "0,25", "1")), [0.5, -0.5, 0.25, 1]),
        (generic().replace("\n", ";\n"), [0.9, 0.1, 0.5, 0.4]),
        (generic().replace("m;a", "# m is a morph\nm;a"), [0.9, 0.1, 0.5, 0.4]),
        ("# run;1;2;3\n" + generic(), [0.9, 0.1, 0.5, 0.4]),
    ],
)
def test_tables_of_spreadsheets(content, scores, tmp_path):
    table = read("generic", [saved(tmp_path / "t.csv", content)], GENERIC)
    assert table["score"].tolist() == scores
    assert table["kind"].tolist() == ["mated", "nonmated", "morph", "morph"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (generic(("1,234", "999", "2,345", "3,456")), ":2: score '1,234': is the comma a decimal"),
        (generic(("1.234,5", "9", "2", "3")), ":2: score '1.234,5' is not a number"),
        (generic(top="Morph;Who;Sim;Sim\n"), ":1: column 'Sim' appears twice"),
        (generic().replace("\n;a;a", "\nnan;a;a"), ":2: morph_id 'nan': leave the field empty"),
        (generic().replace("\n;a;a", "\n<NA>;a;a"), ":2: morph_id '<NA>': leave the field empty"),
        (generic().replace("m;", "#1;"), ":4: '#1' begins with #"),
        (generic().replace(";a;b", ";a;"), ":3: is the comparison of one person or of two"),
        (generic().replace(";a;b", ";;"), ":3: is the comparison of one person or of two"),
    ],
)
def test_what_a_table_leaves_open_is_refused_by_line(content, message, tmp_path):
    with pytest.raises(ScoreError, match=rf"t\.csv{message}"):
        read("generic", [saved(tmp_path / "t.csv", content)], GENERIC)


def test_no_column_says_who_was_compared_with_whom(tmp_path):
    path = saved(tmp_path / "t.csv", "score,camera\n0.5,1\n")
    with pytest.raises(ScoreError, match=r"t\.csv:2: .* one person or of two.*--kind"):
        read("generic", [path], Labels(score_type="similarity"))
    stated = read("generic", [path], Labels(score_type="similarity", kind="mated"))
    assert stated["kind"].tolist() == ["mated"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bob", "a a a_1 1_0\n", ":1: score '1_0' is not a number"),
        ("bob", "bio_ref_subject_id,probe_subject_id,score,score\na,a,1,2\n",
         ":1: column 'score' appears twice"),
        ("bob", "bio_ref_subject_id,probe_subject_id,probe_key,probe_attack_type,score\n"
                "a,a,1,None,.5\nb,a,1,None,.4\n", ":2: probe_attack_type 'None': leave"),
        ("bob", "bio_ref_subject_id,probe_subject_id,probe_key,probe_attack_type,score\n"
                "a,a,1,bonafide,.5\n", ":2: probe_attack_type 'bonafide': leave"),
        ("bob", "claimed_id,test_label,is_bonafide,attack_type,score\n1,a,True,,.1\n"
                "1,b,False,bonafide,.9\n",
         ":3: attack 'bonafide': leave"),
        ("mvr", "m; a; a1; 0.5\n#m; b; b1; 0.4\nm; c; c1; 0.3\n", ":2: '#m' begins with #"),
        ("mvr", "#m; a; a1; 0.5\nm; b; b1; 0.4\n", ":1: '#m' begins with #"),
        ("bob", "# of A\n\n#1 #1 a 0.5\n2 2 b 0.4\n", ":3: '#1' begins with #"),
    ],
)  # fmt: skip
def test_files_of_other_programs(name, content, message, tmp_path):
    with pytest.raises(ScoreError, match=rf"f\.txt{message}"):
        read(name, [saved(tmp_path / "f.txt", content)], GENERIC)


@pytest.mark.parametrize("name", ["pyeer", "revelio"])
def test_one_file_is_not_both_sides(name, tmp_path):
    path = saved(tmp_path / "f.txt", "0.5\n0.6\n")
    with pytest.raises(ScoreError, match=r"f\.txt is given twice, expected two files"):
        read(name, [path, path], GENERIC)


@pytest.mark.parametrize(("attack", "message"), [
    ("bonafide", "attack 'bonafide': leave"), ("", "a morph needs the name of its attack"),
])  # fmt: skip
def test_a_morph_that_is_named_as_no_morph(attack, message, tmp_path):
    """It counted as a bona fide image."""
    paths = [saved(tmp_path / f"{name}.txt", "0.5\n0.6\n") for name in ("bona_fide", "morphs")]
    with pytest.raises(ScoreError, match=rf"morphs\.txt:1: {message}"):
        read("revelio", paths, Labels(score_type="similarity", attack=attack))


def test_a_key_of_json_twice(tmp_path):
    record = json.dumps(ThresholdRecord.literal(0.3, target_fmr=0.001).to_dict())
    path = saved(tmp_path / "t.json", record.replace('"value": 0.3', '"value": 0.3, "value": 0.2'))
    with pytest.raises(EvaluationError, match=r"t\.json: the key 'value' is there twice"):
        read_thresholds(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_fmr": 34}, "target_fmr 34: expected a share, 0.001 for 0.1%"),
        ({"target_fmr": -0.1}, "target_fmr -0.1"),
        ({"value": float("nan")}, "threshold nan"),
        ({"confidence": 95}, "confidence 95: expected a share"),
        ({"k": 5, "n": 3, "realised_fmr": 0.5}, "5 false matches of 3"),
        ({"k": 1, "n": 3, "realised_fmr": 0.5}, "realised_fmr 0.5: 1 false matches of 3 are 0.33"),
    ],
)
def test_threshold_records_that_contradict_themselves(changes, message, tmp_path):
    record = ThresholdRecord.literal(0.3, target_fmr=0.001).to_dict() | changes
    path = saved(tmp_path / "t.json", json.dumps([record]))
    with pytest.raises(EvaluationError, match=rf"t\.json: record 0: {message}"):
        read_thresholds(path)


def matrix(tmp_path, scores, rows, columns=None):
    np.save(tmp_path / "s.npy", np.array(scores))
    first = saved(tmp_path / "rows.csv", rows)
    second = first if columns is None else saved(tmp_path / "columns.csv", columns)
    labels = replace(GENERIC, columns={})
    return read("matrix", [tmp_path / "s.npy", first, second], labels)


def test_both_triangles_of_an_asymmetric_matrix_count(tmp_path):
    table = matrix(tmp_path, [[1, 0.1], [0.9, 1]], "subject_id,image_id\na,1\nb,2\n")
    assert table["score"].tolist() == [0.1, 0.9]
    rounded = matrix(tmp_path, [[1, 0.1], [0.1 + 1e-8, 1]], "subject_id,image_id\na,1\nb,2\n")
    assert rounded["score"].tolist() == [0.1 + 1e-8]


def test_a_morph_of_three_people_needs_all_three(tmp_path):
    rows = "subject_id,image_id\na,1\nb,2\nc,3\n"
    columns = "morph_id,subject_a,subject_b,subject_c\nm,a,b,c\n"
    table = matrix(tmp_path, [[0.5], [0.9], [0.1]], rows, columns)
    assert len(table.select(kind="morph")) == 3
    record = ThresholdRecord.literal(0.3, target_fmr=0.001)
    (row,) = evaluate(table, [record], replicates=0)
    assert (row["k"], row["n"]) == (0, 1)


def test_one_list_of_faces_and_morphs(tmp_path):
    """Morphs among the rows are no impostors: 0.7 and 0.6 are the morph's, 0.2 the impostors'."""
    rows = "subject_id,image_id,morph_id,subject_a,subject_b\na,1,,,\nb,2,,,\n,,m,a,b\n"
    scores = [[1, 0.2, 0.7], [0.2, 1, 0.6], [0.7, 0.6, 1]]
    table = matrix(tmp_path, scores, rows)
    assert table.select(kind="nonmated")["score"].tolist() == [0.2]
    assert table.select(kind="morph")["score"].tolist() == [0.7, 0.6]
    assert table.select(kind="morph")["probe_id"].tolist() == ["1", "2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("subject_id,image\na,1\nb,2\n", ":1: unknown column 'image'"),
        ("subject_id,subject_id\na,b\nb,a\n", ":1: column 'subject_id' appears twice"),
        ("subject_id,image_id\n,1\nb,2\n", ":2: no subject_id, and no morph_id"),
        ("morph_id,subject_a,subject_b\nm,a,b\nn,a,\n", ":3: a morph needs subject_a and"),
    ],
)
def test_labels_that_do_not_say_who_it_is(columns, message, tmp_path):
    with pytest.raises(ScoreError, match=rf"columns\.csv{message}"):
        matrix(tmp_path, [[0.5, 0.1]], "subject_id\na\n", columns)


def test_empty_cells_of_data_frames_are_no_names(morph_row):
    empty = [None, float("nan"), np.nan, ""]
    rows = [{**morph_row(kind="nonmated", subject_id=f"s{k}", probe_policy=None, attack=None),
             "morph_id": None, "ref_subject_id": name} for k, name in enumerate(empty)]  # fmt: skip
    table = ScoreTable.from_rows(rows)
    assert table.unique("ref_subject_id") == table.unique("morph_id") == []
    named = ScoreTable.from_rows([{**rows[0], "ref_subject_id": "nan"}])
    assert named.unique("ref_subject_id") == ["nan"]
    with pytest.raises(ScoreError, match="scores: expected numbers"):
        ScoreTable.from_rows([morph_row(score="0,5")])
    for who in (["a", None], [1.0, np.nan]):
        with pytest.raises(ScoreError, match="comparison 1 has no subject"):
            mmpmr(np.array([0.5, 0.4]), np.array(["m", "m"]), np.array(who), 0.3)


def test_a_morph_of_three_in_arrays():
    found = minmax_mmpmr([0.5, 0.4, 0.1, 0.9], ["m"] * 4, ["a", "b", "c", "c"], 0.3)
    assert (found.k, found.n) == (1, 1)
    assert minmax_mmpmr([0.5, 0.4, 0.1], ["m"] * 3, ["a", "b", "c"], 0.3).k == 0


def test_attacks_are_compared_where_both_were_scored(tmp_path):
    """Of dim's pairs ab and ac, web has ab alone, and one system has no web at all."""
    web = [("morph", "w", "web", *row[3:]) for row in ROWS[6:8]]
    web[1] = (*web[1][:7], 0.35)
    web += [("morph", "v", "web", who, f"{who}2", "", "", 0.9) for who in "bc"]
    content = text(rows=(*ROWS, *web)) + text().replace(",x,", ",y,").split("\n", 1)[1]
    table = read_scores(saved(tmp_path / "s.csv", content))
    (found,) = compare_attacks(table, "dim", "web", probe_policy="other", replicates=0)
    assert (found.system, found.n, found.n_first, found.n_second) == ("x", 1, 2, 2)
    assert (found.first_only, found.second_only, found.difference) == (0, 1, -1.0)
    assert "1 (of 2 and 2)" in str(paired_table([found]))
    with pytest.raises(EvaluationError, match="attack 'wbe' is not in the table; it has dim, web"):
        compare_attacks(table, "dim", "wbe", probe_policy="other", replicates=0)
    with pytest.raises(
        EvaluationError, match="probe_policy 'source' is not in the table; it has o"
    ):
        compare_attacks(table, "dim", "web", probe_policy="source", replicates=0)


def test_shares_in_percent(capsys):
    asked = parser().parse_args(["score", "s.csv", "--fmr", "0.1%", "1e-9", "--confidence", "95%"])
    assert (asked.fmr, asked.confidence) == ([0.001, 1e-9], 0.95)
    with pytest.raises(SystemExit):
        main(["score", "s.csv", "--fmr", "a tenth"])
    assert "'a tenth': expected a share such as 0.001, or 0.1%" in capsys.readouterr().err


def test_detectors_need_both_kinds_of_images(tmp_path):
    head = "kind,morph_id,attack,ref_id,system,score,score_type\n"
    bona, morph = "mad,,bonafide,b,d,0.1,similarity\n", "mad,m,dim,m,d,0.9,similarity\n"
    for rows, message in ((bona, "no attack of detector 'd'"), (morph, "no bona fide image of")):
        table = read_scores(saved(tmp_path / "s.csv", head + rows))
        with pytest.raises(EvaluationError, match=message):
            detection_rows(table, replicates=0)


def test_covariates_of_strangers(tmp_path):
    with pytest.raises(EvaluationError, match="age 'inf': expected years"):
        age_band("inf")
    path = saved(tmp_path / "p.csv", "id,identity,sex\n1,a,f\n")
    with pytest.raises(ScoreError, match=r"p\.csv:1: columns id and identity: which is the sub"):
        read_subjects(path)
    path = saved(tmp_path / "p.csv", "sex,subject_id,id\nF,a,1\nwoman,b,2\n")
    assert {s.sex for s in read_subjects(path).by_id.values()} == {"female"}


def test_arrays_of_strangers():
    """Of impostors 0.1 and 0.9 a mask hides the second: tau is 0.1, not 0.9."""
    hidden = np.ma.masked_array([0.1, 0.9], [False, True])
    record = threshold_at_fmr(hidden, 0)
    assert (record.value, record.n, record.n_failed) == (0.1, 1, 1)
    who = (np.array(["m", "m"]), np.array(["a", "b"]))
    assert (mmpmr(np.ma.masked_array([0.5, 0.9], [False, True]), *who, 0.3).k) == 0
    assert mmpmr(np.array([0.5, 0.4]), *who, float(np.float32(0.3))).k == 1
    wrong: list[Any] = [None, "high", [0.2, 0.3]]
    for tau in wrong:
        with pytest.raises(ScoreError, match=r"threshold .*: expected a finite"):
            mmpmr(np.array([0.5, 0.4]), *who, tau)
    wrong = ["0.1%", None, 1, -0.1, float("nan")]
    for fmr in wrong:
        with pytest.raises(EvaluationError, match=r"FMR .*: expected a share"):
            threshold_at_fmr(hidden, fmr)
    for pair in (["007", "7"], ["a", "A"]):
        with pytest.raises(ScoreError, match=r"differ in case, .* or leading zeros only"):
            mmpmr(np.array([0.5, 0.4]), who[0], np.array(pair), 0.3)
    found = DetectionScores(np.array([0.1, 0.2]), {"x": np.array([0.9])}, "morph")
    assert found.macer(0.5, "x").k == 0 and found.bscer(0.15).k == 1
    with pytest.raises(EvaluationError, match="threshold nan"):
        found.macer(float("nan"), "x")


def test_an_image_compared_with_itself_is_said(tmp_path):
    """It is counted, for two captures may have one name in two folders; FNMR is 0 of 4 with it."""
    itself = ("mated", "", "", "a", "a1", "a", "a1", 1.0)
    path = saved(tmp_path / "s.csv", text(rows=(*ROWS, itself)))
    with pytest.warns(SameImageWarning, match=r"s\.csv:12: 1 mated comparisons have one image"):
        assert counted(path) == (1, 2, 0, 4)
