"""The contract of result.json: what is refused, and that the message names the key."""

import copy
import json

import pytest

from adjointdeis.reporting import ReportError, read_result, validate_result
from adjointdeis.reporting.schema import DEGRADED, read_degraded


def test_a_written_result_has_no_problem(bare_run):
    assert validate_result(bare_run[1]) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda r: r.update(schema=2), "schema"),
        (lambda r: r.pop("rows"), "rows"),
        (lambda r: r["run"].pop("config_hash"), "run.config_hash"),
        (lambda r: r["attacks"]["dim_a"].pop("label"), "attacks.dim_a.label"),
        (lambda r: r["attacks"]["dim_a"]["nfe"].pop("vjps"), "attacks.dim_a.nfe.vjps"),
        (lambda r: r["attacks"]["dim_a"].update(pairs=True), "attacks.dim_a.pairs"),
        (lambda r: r["attacks"]["dim_a"].update(failed=[{"pair_id": "1"}]), "failed[0].reason"),
        (lambda r: r["attacks"]["exact"]["curves"].update(loss=["x"]), "attacks.exact.curves.loss"),
        (lambda r: r["rows"][0].pop("wilson_lo"), "rows[0].wilson_lo"),
        (lambda r: r["rows"][0].update(attack="nobody"), "rows[0].attack"),
        (lambda r: r["rows"][1].update(system="nobody"), "rows[1].system"),
        (lambda r: r["thresholds"][0].pop("value"), "thresholds[0]"),
        (lambda r: r["thresholds"].__setitem__(0, 3), "thresholds[0]"),
        (lambda r: r["pairs"][0].update(source_a="/etc/face.png"), "pairs[0].source_a"),
        (lambda r: r["pairs"][0]["morphs"].update(dim_a="../x.png"), "pairs[0].morphs.dim_a"),
        (lambda r: r["pairs"][0]["morphs"].update(other="x.png"), "pairs[0].morphs.other"),
        (lambda r: r.update(scores=""), "scores"),
        (lambda r: r["rows"][0].update(value=float("nan")), "rows[0].value"),
    ],
)
def test_a_problem_names_its_key(bare_run, change, named):
    result = copy.deepcopy(bare_run[1])
    change(result)
    problems = validate_result(result)
    assert problems
    assert named in problems[0]


def test_worst_case_rows_need_no_attack(bare_run):
    assert any(row["attack"] == "worst-case" for row in bare_run[1]["rows"])
    assert "worst-case" not in bare_run[1]["attacks"]


def test_an_attack_that_failed_everywhere_has_no_count(bare_run):
    result = copy.deepcopy(bare_run[1])
    result["attacks"]["dim_a"]["nfe"] = None
    assert validate_result(result) == []


def test_anything_but_an_object_is_refused():
    assert "expected a JSON object" in validate_result([1])[0]


def test_errors_name_the_file(tmp_path, bare_run):
    with pytest.raises(ReportError, match=r"result\.json: no such file"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(ReportError, match=r"result\.json:1: not JSON"):
        read_result(tmp_path)
    broken = {k: v for k, v in bare_run[1].items() if k not in ("rows", "pairs")}
    (tmp_path / "result.json").write_text(json.dumps(broken))
    with pytest.raises(ReportError, match=r"result\.json: rows: missing \(and 1 more\)"):
        read_result(tmp_path)


def test_rows_after_degradation_are_those_of_the_run(tmp_path, bare_run):
    result = bare_run[1]
    path = tmp_path / DEGRADED
    assert read_degraded(tmp_path, result) == {}
    rows = result["rows"][:2]
    path.write_text(json.dumps({"jpeg": rows}))
    assert read_degraded(tmp_path, result) == {"jpeg": rows}
    for wrong, message in (
        ([], "expected an object of rows by degradation, found a list"),
        ({"jpeg": 3}, "jpeg: expected a list of rows, found a number"),
        ({"jpeg": [{**rows[0], "k": "many"}]}, r"jpeg\[0\].k"),
        ({"jpeg": [{**rows[0], "attack": "nobody"}]}, r"jpeg\[0\].attack: 'nobody' is not in"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ReportError, match=f"{DEGRADED}: {message}"):
            read_degraded(tmp_path, result)
    path.unlink()
    path.symlink_to(bare_run[0] / "result.json")
    with pytest.raises(ReportError, match="leaves the run directory"):
        read_degraded(tmp_path, result)
