"""Every format: exact round trips, examples of the published files, errors with file and line."""

import json

import numpy as np
import pytest

from adjointdeis.evaluation import (
    EvaluationError,
    ScoreError,
    ScoreTable,
    estimate_thresholds,
    evaluate,
)
from adjointdeis.evaluation.attack_potential import attack_potential
from adjointdeis.evaluation.cli import main
from adjointdeis.evaluation.formats import FORMATS, Labels, lists, read, write
from adjointdeis.evaluation.formats.attack_potential import read_thresholds, write_info
from adjointdeis.evaluation.formats.nist import parse_name
from adjointdeis.evaluation.groups import group_table

LABELS = Labels(system="arcface", score_type="similarity", attack="dim", probe_policy="other")


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def morphs(scores=(0.1, 0.25, 1 / 3, 0.4), **columns):
    """Two morphs of two people each, one probe."""
    return ScoreTable.from_columns(
        **{
            "kind": "morph",
            "morph_id": ["001_002", "001_002", "003_004", "003_004"],
            "attack": "dim",
            "subject_id": ["001", "002", "003", "004"],
            "probe_id": ["001_08", "002_08", "003_08", "004_08"],
            "system": "arcface",
            "score": list(scores),
            "score_type": "similarity",
            "probe_policy": "other",
            **columns,
        }
    )


def bona_fide(**columns):
    """One mated and two nonmated comparisons."""
    return ScoreTable.from_columns(
        **{
            "kind": ["mated", "nonmated", "nonmated"],
            "subject_id": ["001", "002", "001"],
            "ref_subject_id": ["001", "001", "002"],
            "probe_id": ["001_08", "002_08", "001_08"],
            "ref_id": ["001_03", "001_03", "002_03"],
            "system": "arcface",
            "score": [0.9, -0.05, 1e-17],
            "score_type": "similarity",
            **columns,
        }
    )


def detections(**columns):
    """Two bona fide images and two morphs."""
    return ScoreTable.from_columns(
        **{
            "kind": "mad",
            "morph_id": ["", "", "001_002", "003_004"],
            "attack": ["bonafide", "bonafide", "dim", "dim"],
            "ref_id": ["001_03", "002_03", "001_002", "003_004"],
            "system": "arcface",
            "score": [0.1, 0.6, 0.7, 0.95],
            "score_type": "similarity",
            **columns,
        }
    )


def joined(*tables):
    return ScoreTable.from_rows([row for table in tables for row in table.to_rows()])


def images(table):
    """The table with the morph's image as its reference, as NIST logs name it."""
    reference = np.where(table["kind"] == "morph", table["morph_id"], table["ref_id"])
    return ScoreTable({**table.columns, "ref_id": reference})


ROUND_TRIPS = {
    "canonical": (joined(morphs(), bona_fide(), detections()), ["s.csv"]),
    "mvr": (joined(morphs(), bona_fide()), ["morphs.txt", "bona.txt"]),
    "map": (morphs(probe_id="1"), ["folder"]),
    "bob-csv": (joined(morphs(), bona_fide()), ["s.csv"]),
    "bob-5col": (bona_fide(), ["s.txt"]),
    "bob-pad": (detections(subject_id=["001", "002", "", ""]), ["pad.csv"]),
    "nist": (images(joined(morphs(), bona_fide())), ["log.txt"]),
    "nist-mad": (detections(), ["log.txt"]),
    "pyeer": (bona_fide(subject_id="", ref_subject_id=""), ["gen.txt", "imp.txt"]),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_round_trip_is_exact(case, tmp_path):
    table, names = ROUND_TRIPS[case]
    paths = [tmp_path / name for name in names]
    name = case.split("-")[0]
    write(name, table, paths)
    again = read(name, paths, LABELS)
    assert again.fingerprint() == table.fingerprint()


def test_every_format_has_a_round_trip():
    covered = {case.split("-")[0] for case in ROUND_TRIPS} | {"revelio"}
    # Tables and matrices of one's own are read only.
    assert covered == set(FORMATS) - {"generic", "matrix"}
    for name in ("generic", "matrix"):
        with pytest.raises(ScoreError, match=f"{name} are read only; write --to canonical"):
            write(name, detections(), ["scores.out"])


def test_revelio_round_trip_keeps_scores_by_class(tmp_path):
    paths = [tmp_path / "bona.txt", tmp_path / "morph.txt"]
    write("revelio", detections(), paths)
    again = read("revelio", paths, LABELS)
    for attack, expected in (("bonafide", [0.1, 0.6]), ("dim", [0.7, 0.95])):
        assert again.select(attack=attack)["score"].tolist() == expected


def test_nist_failures_and_differential_logs(tmp_path):
    probes = ["001_08", "002_08", "001_08", "003_08"]
    table = detections(
        probe_id=probes,
        subject_id=["001", "002", "001", "003"],
        score=[0.1, np.nan, 0.7, 0.95],
        status=["ok", "fta", "ok", "ok"],
    )
    path = tmp_path / "dmad.log"
    write("nist", table, [path])
    lines = path.read_text().splitlines()
    assert lines[0] == "image probeImage isMorph score returnCode"
    assert lines[2] == "002_03 002_08 0 -1 1"
    assert lines[3] == "001_002 001_08 1 0.7 0"
    assert read("nist", [path], LABELS).fingerprint() == table.fingerprint()


def test_mvr_example(tmp_path):
    path = put(tmp_path / "m.txt", "m1; s1; p1; 0.9\n\nm1; |s;2|; p1; 0.8\n")
    table = read("mvr", [path], LABELS)
    assert table["subject_id"].tolist() == ["s1", "s;2"]
    path = put(tmp_path / "b.txt", "s1; x1; s1; x2; 0.9\ns1; x1; s2; x1; 0.1\n")
    assert read("mvr", [path], LABELS)["kind"].tolist() == ["mated", "nonmated"]


def test_bob_examples(tmp_path):
    four = put(tmp_path / "4.txt", "1 1 a/b 0.5\n1 2 c -0.5\n")
    table = read("bob", [four], LABELS)
    assert table["kind"].tolist() == ["mated", "nonmated"]
    five = put(tmp_path / "5.txt", "1 m1 2 a 0.5\n")
    assert read("bob", [five], LABELS)["ref_id"].tolist() == ["m1"]
    pad = put(
        tmp_path / "pad.csv",
        "claimed_id,test_label,is_bonafide,attack_type,sample_n,score\n"
        "1,a,True,,0,0.9\n1,b,False,dim,0,0.1\n",
    )
    table = read("bob", [pad], Labels(system="x"))
    assert table["attack"].tolist() == ["bonafide", "dim"]
    # bob.pad scores are high for bona fide images.
    assert set(table["score_type"]) == {"dissimilarity"}
    vuln = put(
        tmp_path / "v.csv",
        "bio_ref_subject_id,probe_subject_id,probe_key,probe_attack_type,score\n"
        "x,y,0,,2.1\nx,x,1,,4.7\nx,m,9,dim,3.0\ny,m,9,dim,3.5\n",
    )
    table = read("bob", [vuln], LABELS)
    assert table["kind"].tolist() == ["nonmated", "mated", "morph", "morph"]
    assert table["subject_id"].tolist()[2:] == ["x", "y"]


def test_attack_potential_folder(tmp_path):
    """Roles S1, S2 are no people; distances count through; the matrix comes out by hand."""
    (tmp_path / "D").mkdir()
    put(tmp_path / "D" / "A.txt", "M1\tS1\t0.1\t0.2\nM1\tS2\t0.1\t0.9\nM2\tS1\t0.9\t0.9\n"
        "M2\tS2\t0.1\t0.1\n")  # fmt: skip
    put(tmp_path / "D" / "B.txt", "M1\tS1\t5\t5\nM1\tS2\t5\t5\nM2\tS1\t5\t1\nM2\tS2\t5\t1\n")
    put(tmp_path / "FRS_Info.json", json.dumps({"A": [0.5, False], "B": [4, True]}))
    table = read("map", [tmp_path / "D"], Labels(attack="dim", probe_policy="other"))
    assert table.direction("A") == "dissimilarity"
    assert table.unique("subject_id") == ["M1/S1", "M1/S2", "M2/S1", "M2/S2"]
    groups = {
        s: group_table(table, attack="dim", system=s, probe_policy="other") for s in ("A", "B")
    }
    records = read_thresholds(tmp_path / "FRS_Info.json", 0.001)
    taus = {r.model: r.oriented for r in records}
    # M1: A once, B twice; M2: A never (S1 fails), B once.
    assert attack_potential(groups, taus).counts.tolist() == [[2, 1], [1, 0]]
    write_info(records, tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == {"A": [0.5, False], "B": [4, True]}


@pytest.mark.parametrize(
    ("name", "text", "line", "message"),
    [
        ("mvr", "m; a; p; 0.5\nm; b; p\n", 2, "3 fields, expected 4: morph subject sample score"),
        ("mvr", "m; a; p; x\n", 1, "score 'x' is not a number"),
        ("mvr", "m; a; p; 1\nm; b; p; 1\nm; a; p; 2\n", 3, "duplicate comparison"),
        ("mvr", "m; a; p; nan\n", 1, "score 'nan' is not finite"),
        ("map", "m\ta\n", 1, "at least one score"),
        ("map", "m\ta\t1\nm\tb\t1\nm\ta\t1\n", 3, "appears twice"),
        ("bob", "1 2 3\n", 1, "3 fields, expected 4"),
        ("bob", "claimed_id,test_label,is_bonafide,attack_type,score\n1,a,maybe,,1\n", 2, "maybe"),
        ("bob", "claimed_id,test_label,is_bonafide,attack_type,score\n1,a,False,,1\n", 2, "needs"),
        ("bob", "a,b\n1,2\n", 1, "no column 'score'"),
        ("nist", "a b c\n", 1, "unknown header 'a b c'"),
        ("nist", "image isMorph score returnCode\n001_03 0 0.5\n", 2, "3 fields, expected 4"),
        ("nist", "image isMorph score returnCode\nface 0 0.5 0\n", 2, "image name 'face'"),
        ("nist", "image isMorph score returnCode\n001_03 0 0.5 ok\n", 2, "returnCode 'ok'"),
        (
            "nist",
            "enrollImage verifImage score returnCode\n001_002 003_08 0.5 0\n",
            2,
            "subject '003' did not contribute",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path, name, text, line, message):
    path = put(tmp_path / "scores.txt", text)
    with pytest.raises(ScoreError) as error:
        read(name, [path], LABELS)
    assert f"{path}:{line}: " in str(error.value)
    assert message in str(error.value)


def test_formats_without_direction_demand_one(tmp_path):
    gen, imp = put(tmp_path / "g.txt", "0.9\n"), put(tmp_path / "i.txt", "0.1\n")
    with pytest.raises(ScoreError, match=r"g\.txt: this format does not say which way"):
        read("pyeer", [gen, imp], Labels())
    with pytest.raises(ScoreError, match="1 files given, expected 2"):
        read("pyeer", [gen], LABELS)
    with pytest.raises(ScoreError, match=r"i\.txt:1: 2 fields, expected 1"):
        read("revelio", [gen, put(imp, "0.1 0.2\n")], LABELS)


def test_writers_refuse_what_they_cannot_hold(tmp_path):
    path = tmp_path / "out.txt"
    failed = morphs(status=["ok", "fta", "ok", "ok"])
    with pytest.raises(ScoreError, match="row 1: this format cannot hold a failed comparison"):
        write("mvr", failed, [path])
    two = joined(morphs(), morphs(attack="adjoint"))
    with pytest.raises(ScoreError, match="one attack per file, the table has adjoint, dim"):
        write("mvr", two, [path])
    with pytest.raises(ScoreError, match="similarities only"):
        write("mvr", morphs(score_type="dissimilarity"), [path])
    with pytest.raises(ScoreError, match="give a second file"):
        write("mvr", joined(morphs(), bona_fide()), [path])
    with pytest.raises(ScoreError, match="cannot hold morphs"):
        write("bob", morphs(), [path])
    with pytest.raises(ScoreError, match="separate logs"):
        write("nist", joined(morphs(), detections()), [path])
    assert not path.exists()


def test_unknown_format_and_binary_file(tmp_path):
    with pytest.raises(EvaluationError, match="format 'openbr': expected one of canonical, mvr"):
        read("openbr", [], LABELS)
    path = tmp_path / "image.png"
    path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(ScoreError, match="not UTF-8 text"):
        read("mvr", [path], LABELS)


def test_names_of_the_london_set():
    assert parse_name("x/001_03.jpg").subjects == ("001",)
    assert parse_name("001_08-vs-010_08.jpg").subjects == ("001", "010")
    assert parse_name("001_002.png").is_morph
    with pytest.raises(ScoreError, match="expected NNN_VV"):
        parse_name("morph_1.png")


SPELLINGS = ["Zoe\u0301", "Ｚｏé", " Zo\u200bé"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_kinds_that_come_from_ids_know_the_spellings_of_one_person(spelling, tmp_path):
    mvr = tmp_path / "bona.txt"
    mvr.write_text(f"Zoé; 1; {spelling}; 2; 0.9\nb; 1; Zoé; 2; 0.1\n", encoding="utf-8")
    bob = tmp_path / "four"
    bob.write_text(f"Zoé {spelling.strip()} probe 0.9\nb Zoé probe2 0.1\n", encoding="utf-8")
    for name, path in (("mvr", mvr), ("bob", bob)):
        table = read(name, [path], LABELS)
        assert sorted(table["kind"].tolist()) == ["mated", "nonmated"]
        assert table.unique("subject_id") == ["Zoé"]


def test_ids_that_never_agree_are_refused_where_kinds_come_from_them(tmp_path):
    path = tmp_path / "bona.txt"
    path.write_text("".join(f"{i}; a; {j}_08; b; 0.{i}{j}\n" for i in (1, 2) for j in (1, 2)))
    with pytest.raises(ScoreError, match="no mated comparison of system 'arcface'"):
        read("mvr", [path], LABELS)


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("mvr", "Morph; Subject; Sample; Score", "m; a; p; 0.5\nm; b; p; 0.5"),
        ("mvr", "subject1; sample1; subject2; sample2; score", "a; x; a; y; 0.5"),
        ("bob", "claimed_id real_id test_label score", "1 1 a 0.5"),
        ("bob", "claimed_id model_label real_id test_label score", "1 x 1 a 0.5"),
        ("pyeer", "score", "0.5"),
    ],
)
def test_a_header_in_the_order_of_the_format_is_no_comparison(tmp_path, name, header, row):
    path = put(tmp_path / "s.txt", f"# by a tool\n{header}\n{row}\n")
    other = [put(tmp_path / "t.txt", "0.1\n")] if name == "pyeer" else []
    table = read(name, [path, *other], LABELS)
    assert table["score"].tolist() == [0.5] * len(row.splitlines()) + [0.1] * len(other)
    with pytest.raises(ScoreError, match=r"s\.txt:\d: score 'score' is not a number; write it"):
        read(name, [put(path, f"{row}\n{header.lower()}\n"), *other], LABELS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mvr", "subject;morph;sample;score\na;m;p;0.5\n"),
        ("bob", "real_id claimed_id test_label score\n1 2 a 0.5\n"),
        ("map", "morph\tsubject\tscore1\tscore2\nm\ta\t1\t2\nm\tb\t1\t2\n"),
        ("pyeer", "probe reference similarity\na b 0.5\n"),
        ("revelio", "Similarity\n0.5\n"),
    ],
)
def test_any_other_header_is_refused_with_the_call_that_reads_it(tmp_path, name, text):
    """Its columns may stand in another order: subject;morph would be read as morph;subject."""
    path = put(tmp_path / "s.txt", text)
    other = [put(tmp_path / "t.txt", "0.1\n")] if name in ("pyeer", "revelio") else []
    with pytest.raises(ScoreError, match=r"s\.txt:1: score .* Is the line a header.*"
                       r"--from generic .*s\.txt --columns score=([Ss]\w+) "):  # fmt: skip
        read(name, [path, *other], LABELS)


def test_that_call_reads_it(tmp_path):
    path = put(tmp_path / "s.txt", "subject;morph;sample;score\na;m;p;0.5\nb;m;p;0.4\n")
    names = "score=score morph_id=morph subject_id=subject probe_id=sample".split()
    into = tmp_path / "scores.csv"
    given = ["convert", "--from", "generic", str(path), "--columns", *names, "--into", str(into)]
    assert main([*given, "--score-type", "similarity", "--probe", "other"]) == 0
    assert read("canonical", [into], Labels())["morph_id"].tolist() == ["m", "m"]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"system": "facenet"}, "system is 'arcface', and --system facenet was stated"),
        ({"score_type": "dissimilarity"}, "score_type is 'similarity', and --score-type dissim"),
        ({"probe_policy": "source"}, "probe_policy is 'other', and --probe source was stated"),
        ({"attack": "opencv"}, "attack is 'dim', and --attack opencv was stated"),
        ({"kind": "mated"}, "kind is 'morph', and --kind mated was stated"),
        ({"columns": {"score": "score"}}, "--columns is of --from generic; the format canonical"),
    ],
)
def test_what_is_stated_against_the_file_is_refused(stated, message, tmp_path):
    """It was dropped in silence: a file of `other` probes stayed one under --probe source."""
    write("canonical", joined(morphs(), bona_fide()), [tmp_path / "s.csv"])
    with pytest.raises(ScoreError, match=message):
        read("canonical", [tmp_path / "s.csv"], Labels(**stated))


def test_a_canonical_file_is_told_its_alignment_once(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    write("canonical", joined(morphs(), bona_fide()), [one])
    given = ["convert", "--from", "canonical", str(one), "--into", str(two)]
    assert main([*given, "--alignment", "5pt", "--data-set", "mine"]) == 0
    again = read("canonical", [two], Labels(alignment="5pt"))
    assert again.metadata["systems"] == {"arcface": {"alignment": "5pt"}}
    assert again.metadata["data_set"] == "mine"
    with pytest.raises(ScoreError, match=r"two\.csv: system 'arcface' has alignment '5pt', and '7"):
        read("canonical", [two], Labels(alignment="7pt"))


def test_two_runs_of_one_attack_are_named_by_file_and_line(tmp_path):
    tables = [morphs(), morphs()]
    moved = tables[1].to_rows()
    moved[1]["score"] += 0.1
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for table, file in zip((tables[0], ScoreTable.from_rows(moved)), files, strict=True):
        write("canonical", table, [file])
    with pytest.raises(ScoreError, match=r"b\.csv:3: duplicate.*first seen at .*a\.csv:3 as"):
        read("canonical", files, Labels())


def test_lists_have_no_header_but_their_own(tmp_path):
    path = put(tmp_path / "l.txt", "morph\tbonafide1\tbonafide2\nm.png\ta.png\tb.png\n")
    assert [triple.morph for triple in lists.read_triples(path)] == ["m.png"]
    path = put(tmp_path / "l.csv", "# made by hand\nimage_path,label\na.png,attack\n")
    assert lists.read_labels(path) == {"a.png": False}


@pytest.mark.parametrize("nothing", [[], (), None])
def test_no_false_match_rate_is_no_evaluation(nothing):
    table = joined(morphs(), bona_fide())
    for name, usual in (("fmr", r"\[0\.001\]"), ("impostor_policies", r"\['all'\]")):
        with pytest.raises(EvaluationError, match=rf"^{name}=.*: expected .* as {name}={usual}$"):
            evaluate(table, replicates=0, **{name: nothing})
        with pytest.raises(EvaluationError, match=rf"^{name}=.*: expected .* as {name}={usual}$"):
            estimate_thresholds(table, "arcface", **{name: nothing})
    with pytest.raises(EvaluationError, match="'arcface'; the records are of nobody"):
        evaluate(table, [], replicates=0)
