"""Tables and matrices of one's own: columns named by the user, delimiter and decimal mark found."""

import numpy as np
import pytest

from adjointdeis.evaluation import ScoreError, evaluate, read_scores
from adjointdeis.evaluation.cli import main
from adjointdeis.evaluation.formats import Labels, read

COLUMNS = {"morph_id": "Morph", "subject_id": "Who", "ref_subject_id": "Against", "score": "Sim",
           "attack": "Method"}  # fmt: skip
ROWS = [
    ("m1", "a", "", "0.61", "dim"), ("m1", "b", "", "0.52", "dim"),
    ("m1", "a", "", "0.4", "webmorph"), ("m1", "b", "", "nan", "webmorph"),
    ("", "a", "a", "0.9", ""), ("", "a", "b", "0.2", ""), ("", "b", "a", "0.3", ""),
]  # fmt: skip
LABELS = Labels(system="x", score_type="similarity", probe_policy="other", columns=COLUMNS)


def write(path, delimiter, comma=False):
    lines = [delimiter.join((*("Morph", "Who", "Against", "Sim", "Method"), "Camera"))]
    for row in ROWS:
        cells = [c.replace(".", ",") if comma else c for c in row]
        lines.append(delimiter.join((*cells, "K1")))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("delimiter", "comma"), [(",", False), (";", True), ("\t", True), ("|", False)]
)
def test_delimiter_and_decimal_mark_are_found_and_said(delimiter, comma, tmp_path):
    table = read("generic", [write(tmp_path / "t.csv", delimiter, comma)], LABELS)
    assert table.unique("attack") == ["dim", "webmorph"]
    assert sorted(table["kind"].tolist()) == ["mated", *["morph"] * 4, "nonmated", "nonmated"]
    assert table["score"][:2].tolist() == [0.61, 0.52] and table["status"][3] == "fta"
    said = table.metadata["read_as"]
    assert ("decimal comma" in said) == comma and "passed over: Camera" in said
    rows = evaluate(table, replicates=0)
    assert {(r["attack"], r["k"], r["n"], r["n_fta"]) for r in rows} == {
        ("dim", 1, 1, 0), ("webmorph", 0, 1, 1),
    }  # fmt: skip


def test_what_the_columns_leave_open_is_refused(tmp_path):
    path = write(tmp_path / "t.csv", ",")
    for labels, message in (
        (
            Labels(score_type="similarity", columns={**COLUMNS, "score": "Score"}),
            "no column 'Score'",
        ),
        (
            Labels(score_type="similarity", columns={"morph_id": "Morph"}),
            "which column is the score",
        ),
        (Labels(score_type="similarity", columns={"sum": "Sim"}), "--columns sum"),
        (Labels(probe_policy="other", columns=COLUMNS), "which way scores point"),
        (Labels(score_type="similarity", columns=COLUMNS), "state --probe source"),
    ):
        with pytest.raises(ScoreError, match=message):
            read("generic", [path], labels)
    (tmp_path / "one.csv").write_text("score\n0.3\n")
    with pytest.raises(ScoreError, match=r"one\.csv:1: no comma, semicolon"):
        read("generic", [tmp_path / "one.csv"], LABELS)


def test_convert_writes_model_and_alignment_and_needs_the_probe_policy(tmp_path, capsys):
    path, out = write(tmp_path / "t.csv", ";"), tmp_path / "s.csv"
    command = ["convert", "--from", "generic", str(path), "--into", str(out), "--system", "x",
               "--score-type", "similarity", "--columns",
               *(f"{k}={v}" for k, v in COLUMNS.items())]  # fmt: skip
    assert main(command) == 2
    assert "--probe other (other images of the same people)" in capsys.readouterr().err
    stated = ["--probe", "source", "--alignment", "arcface-5pt", "--model-fingerprint", "abc"]
    assert main([*command, *stated]) == 0
    assert "delimiter semicolon, decimal point" in capsys.readouterr().err
    table = read_scores(out)
    assert table.metadata["systems"] == {
        "x": {"model_fingerprint": "abc", "alignment": "arcface-5pt"}
    }
    assert table.unique("probe_policy") == ["source"]


def test_matrices(tmp_path):
    scores = np.array([[0.9, 0.1, 0.6], [0.2, 0.8, 0.7], [0.1, np.nan, 0.5]])
    (tmp_path / "rows.csv").write_text("subject_id,image_id\na,a2\nb,b2\nc,c2\n")
    (tmp_path / "columns.csv").write_text(
        "subject_id,image_id,morph_id,subject_a,subject_b,attack\na,a1,,,,\nb,b1,,,,\n"
        ",,ab,a,b,dim\n"
    )
    labels = Labels(system="x", score_type="similarity", probe_policy="other")
    for name in ("s.npy", "s.npz"):
        if name == "s.npy":
            np.save(tmp_path / name, scores)
        else:
            np.savez(tmp_path / name, scores=scores)
        paths = [tmp_path / name, tmp_path / "rows.csv", tmp_path / "columns.csv"]
        table = read("matrix", paths, labels)
        # c contributed nothing to the morph: no comparison of it.
        assert [len(table.select(kind=k)) for k in ("mated", "nonmated", "morph")] == [2, 4, 2]
        assert int((table["status"] == "fta").sum()) == 1
        assert table.select(kind="morph")["score"].tolist() == [0.6, 0.7]
    with pytest.raises(ScoreError, match=r"shape \(3, 3\), but .* names 3 rows and .* 2|3 columns"):
        read("matrix", [paths[0], paths[1], _two(tmp_path)], labels)
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ScoreError, match=r"o\.npy: not a file of arrays"):
        read("matrix", [tmp_path / "o.npy", *paths[1:]], labels)


def _two(folder):
    path = folder / "two.csv"
    path.write_text("subject_id\na\nb\n")
    return path


def test_a_symmetric_matrix_counts_every_pair_once(tmp_path):
    half = np.random.default_rng(0).random((4, 4))
    np.save(tmp_path / "s.npy", half + half.T)
    (tmp_path / "l.csv").write_text("subject_id,image_id\na,1\na,2\nb,3\nb,4\n")
    paths = [tmp_path / "s.npy", tmp_path / "l.csv", tmp_path / "l.csv"]
    table = read("matrix", paths, Labels(system="x", score_type="similarity"))
    assert [len(table.select(kind=k)) for k in ("mated", "nonmated")] == [2, 4]
