"""Paired tests within a run and across runs of one benchmark."""

import json
import shutil
from pathlib import Path

import pytest

from adjointdeis.reporting import Run, aggregate, collect
from adjointdeis.reporting.paired_tables import baseline, comparisons, paired_lines, records
from adjointdeis.reporting.paper_tables import headline, lines

ATTACKS = {
    "dim_a": ("DiM-A", "DiM-A", 0.22, None, 350),
    "ode": ("AdjointDEIS-1 (ODE)", "DiM + AdjointDEIS-1 (ODE)", 0.28, 1, 2250),
}


@pytest.fixture(scope="module")
def together(tmp_path_factory, make_run) -> Run:
    """Both attacks in one run."""
    folder = tmp_path_factory.mktemp("together")
    make_run(
        folder, experiment="table1", attacks=ATTACKS, systems=("arcface", "dlib"), images=False,
        replicates=0, n_pairs=24,
    )  # fmt: skip
    return Run.read(folder)


@pytest.fixture(scope="module")
def apart(together, tmp_path_factory) -> Path:
    """The same numbers as two runs of one attack each."""
    root = tmp_path_factory.mktemp("apart")
    for name in ATTACKS:
        folder = Path(shutil.copytree(together.directory, root / name))
        result = json.loads((folder / "result.json").read_text())
        result["attacks"] = {name: result["attacks"][name]}
        result["rows"] = [row for row in result["rows"] if row["attack"] == name]
        result["run"]["config_hash"] = name
        for pair in result["pairs"]:
            pair["morphs"] = {name: pair["morphs"][name]}
        (folder / "result.json").write_text(json.dumps(result))
    return root


def test_across_runs_as_within_one(together, apart) -> None:
    at = together.headline[0]
    within = comparisons((together, "ode"), (together, "dim_a"), at)
    ode, dim = Run.read(apart / "ode"), Run.read(apart / "dim_a")
    across = comparisons((ode, "ode"), (dim, "dim_a"), at)
    assert [c.system for c in within] == ["arcface", "dlib"]
    assert list(across) == list(within)
    for c in within:
        assert c.both + c.first_only + c.second_only + c.neither == c.n == 24
        rates = [together.row(name, c.system, at)["value"] for name in ("ode", "dim_a")]
        assert c.difference == pytest.approx(rates[0] - rates[1], abs=1e-12)
    # The other way round, every sign turns.
    back = comparisons((dim, "dim_a"), (ode, "ode"), at)
    assert [c.difference for c in back] == [-c.difference for c in within]
    assert [c.p_value for c in back] == [c.p_value for c in within]


def test_another_network_or_threshold_is_left_out(apart, tmp_path) -> None:
    folder = Path(shutil.copytree(apart / "ode", tmp_path / "ode"))
    result = json.loads((folder / "result.json").read_text())
    result["systems"]["arcface"]["fingerprint"] = "another"
    for row in result["rows"]:
        if row["system"] == "dlib":
            row["tau"] += 0.01
    dim = Run.read(apart / "dim_a")
    (folder / "result.json").write_text(json.dumps(result))
    at = dim.headline[0]
    assert comparisons((Run.read(folder), "ode"), (dim, "dim_a"), at) == []


def test_rows_of_a_table_are_tested_against_dim_a(apart, tmp_path) -> None:
    rows = lines("table1", collect(apart))
    at = headline(rows)[0]
    base = baseline(rows)
    assert base is not None and base.label == "DiM-A"
    table = paired_lines("table1", rows, at)
    assert table is not None and len(table.rows) == 2
    assert all(sum(int(cell.text) for cell in row[4:8]) == 24 for row in table.rows)
    written = {path.name: path for path in aggregate(apart, tmp_path, plots=False)}
    assert table.title in written["report.md"].read_text()
    kept = json.loads(written["table1.json"].read_text())["paired"]
    assert [r for r in kept if r["probe_policy"] == at.probe] == records("table1", rows, at)
    assert {(r["first"], r["second"]) for r in kept} == {("DiM + AdjointDEIS-1 (ODE)", "DiM-A")}
