"""Canonical files: exact round trips, atomic writes, errors with file and line."""

import importlib.util
import json

import pytest

from adjointdeis.evaluation import COLUMNS, ScoreError, read_scores, write_scores
from adjointdeis.evaluation.storage import sidecar_of

HEADER = "kind,morph_id,attack,subject_id,probe_id,ref_id,system,score,score_type,status,"
HEADER += "probe_policy\n"
GOOD = "morph,a_b,dim,a,a_08,a_b,arc,0.4,similarity,ok,other\n"
GOOD += "morph,a_b,dim,b,b_08,a_b,arc,0.3,similarity,ok,other\n"


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_round_trip_is_exact(table, tmp_path, suffix):
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    path = tmp_path / f"scores{suffix}"
    write_scores(table, path)
    again = read_scores(path)
    assert again.fingerprint() == table.fingerprint()
    assert again.metadata == table.metadata
    assert again.to_rows() == table.to_rows()


def test_sidecar_holds_rows_and_fingerprint(table, tmp_path):
    write_scores(table, tmp_path / "scores.csv")
    sidecar = json.loads(sidecar_of(tmp_path / "scores.csv").read_text())
    assert sidecar["rows"] == len(table)
    assert sidecar["fingerprint"] == table.fingerprint()
    assert sidecar["systems"]["adaface"]["alignment"] == "none"


def test_eleven_columns_without_ref_subject_are_enough(tmp_path):
    table = read_scores(write(tmp_path / "s.csv", HEADER + GOOD))
    assert len(table) == 2
    assert set(table["ref_subject_id"]) == {""}


@pytest.mark.parametrize(
    ("bad", "line", "message"),
    [
        ("morph,a_b,dim,a,a_09,a_b,arc,0.x,similarity,ok,other", 4, "score '0.x' is not a number"),
        ("morph,a_b,dim,a,a_09,a_b,arc,,similarity,ok,other", 4, "status ok needs a finite"),
        ("morph,a_b,dim,a,a_09,a_b,arc,0.1,distance,ok,other", 4, "score_type 'distance'"),
        ("morph,a_b,dim,a,a_08,a_b,arc,0.5,similarity,ok,other", 4, "duplicate comparison"),
        ("morph,c_d,dim,c,c_08,c_d,arc,0.5,similarity,ok,other", 4, "probes of one subject"),
        ("morph,a_b,dim,a,a_09,a_b", 4, "6 fields, expected 11"),
        ("mroph,a_b,dim,a,a_09,a_b,arc,0.1,similarity,ok,other", 4, "kind 'mroph'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, line, message):
    path = write(tmp_path / "s.csv", HEADER + GOOD + bad + "\n")
    with pytest.raises(ScoreError) as error:
        read_scores(path)
    assert f"{path}:{line}: " in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_with_a_default_may_be_left_out(tmp_path, table):
    kept = [name for name in COLUMNS if name not in ("status", "ref_subject_id")]
    rows = table.select(kind=("morph", "mated"), attack=("", "weak"))
    whole = {row["morph_id"] for row in rows.to_rows() if row["status"] != "ok"}
    rows = rows.where([row["morph_id"] not in whole for row in rows.to_rows()])
    lines = [",".join(kept)]
    lines += [",".join(str(row[name]) for name in kept) for row in rows.to_rows()]
    found = read_scores(write(tmp_path / "s.csv", "\n".join(lines) + "\n"))
    assert len(found) > 50
    assert set(found["status"]) == {"ok"} and set(found["ref_subject_id"]) == {""}
    assert found["score"].tolist() == rows["score"].tolist()


def test_header_errors(tmp_path):
    with pytest.raises(ScoreError, match=r":1: column 'score' is missing"):
        read_scores(write(tmp_path / "a.csv", "kind,system,score_type\n"))
    with pytest.raises(ScoreError, match=r":1: unknown column 'colour'"):
        read_scores(write(tmp_path / "b.csv", "kind,system,score,score_type,colour\n"))
    with pytest.raises(ScoreError, match=r":1: column .* appears twice"):
        read_scores(write(tmp_path / "c.csv", "kind,kind,system,score,score_type\n"))
    with pytest.raises(ScoreError, match=r":1: empty file"):
        read_scores(write(tmp_path / "d.csv", ""))
    with pytest.raises(ScoreError, match="no such score file"):
        read_scores(tmp_path / "absent.csv")


def test_quoted_newline_does_not_shift_line_numbers(tmp_path):
    text = HEADER + GOOD.replace("a_08", '"a\n08"') + "x,,,,,,,,,,\n"
    with pytest.raises(ScoreError, match=r"s\.csv:5: kind 'x'"):
        read_scores(write(tmp_path / "s.csv", text))


def test_broken_sidecar(tmp_path):
    path = write(tmp_path / "s.csv", HEADER + GOOD)
    write(sidecar_of(path), "{\n oops")
    with pytest.raises(ScoreError, match=r"s\.csv\.json:2: not JSON"):
        read_scores(path)


@pytest.mark.parametrize("text", ['{"systems": []}', '{"systems": {"a": 3}}', "[]"])
def test_a_sidecar_of_another_shape_is_named(tmp_path, table, text):
    path = tmp_path / "s.csv"
    write_scores(table, path)
    (tmp_path / "s.csv.json").write_text(text)
    with pytest.raises(ScoreError, match=r"s\.csv\.json: .*expected"):
        read_scores(path)


def test_a_damaged_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "s.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ScoreError, match=r"s\.parquet: not a readable Parquet"):
        read_scores(tmp_path / "s.parquet")


@pytest.mark.parametrize("name", ["s.parquet", "s.PARQUET"])
def test_parquet_of_other_programs_is_read_as_a_csv_of_the_same_cells(tmp_path, name):
    """Empty status, scores as text, and ids that a data frame made decimals of."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    rows = [("mated", 7, 0.5), ("nonmated", 8, 0.25), ("nonmated", 9, None)]
    columns = {
        "kind": [kind for kind, _, _ in rows],
        "system": "x",
        "score": ["" if score is None else repr(score) for _, _, score in rows],
        "score_type": "similarity",
        "status": ["", None, "fta"],
        "subject_id": [other for _, other, _ in rows],
        "ref_subject_id": [float("nan"), 7.0, 7.0],
    }
    listed = {k: v if isinstance(v, list) else [v] * 3 for k, v in columns.items()}
    parquet.write_table(pyarrow.table(listed), tmp_path / name)
    found = read_scores(tmp_path / name)
    assert found["score"][:2].tolist() == [0.5, 0.25]
    assert found["status"].tolist() == ["ok", "ok", "fta"]
    assert found["ref_subject_id"].tolist() == ["", "7", "7"]
    lines = [listed, *zip(*listed.values(), strict=True)]
    text = "\n".join(",".join(map(str, line)) for line in lines)
    path = write(tmp_path / "s.csv", text.replace("nan", "").replace("None", ""))
    with pytest.raises(ScoreError, match=r"'7.0': it and '7' differ in .* a final \.0"):
        read_scores(path)
    path.write_text(path.read_text().replace("7.0", "7"))
    assert read_scores(path).fingerprint() == found.fingerprint()
    (tmp_path / "t.csv").write_bytes((tmp_path / name).read_bytes())
    with pytest.raises(ScoreError, match=r"not text but Parquet; give .* \.parquet"):
        read_scores(tmp_path / "t.csv")
