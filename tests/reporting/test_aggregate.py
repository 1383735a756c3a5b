"""Collecting runs, grouping seeds, and the paper's tables with ours beside them."""

import csv
import hashlib
import json

import pytest

from adjointdeis.evaluation import wilson
from adjointdeis.reporting import ReportError, aggregate, collect, entries
from adjointdeis.reporting.paper_tables import GUIDED, lines
from adjointdeis.reporting.render_latex import escape

DIM = {"dim_a": ("DiM-A", "DiM-A", 0.25, None, 350)}
PAPER = {"optimisation_steps": 50, "adjoint_steps": 20, "learning_rate": 0.1}


def guided(label: str = "AdjointDEIS-1 ODE", row: str | None = None) -> dict:
    """One guided attack."""
    return {"guided": (label, row, 0.28, 1, 2250)}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, make_run):
    """A sweep over Tables 1, 4, 5, 6 with two seeds of one row, a rerun and a broken result."""
    root = tmp_path_factory.mktemp("outputs")
    common = {"systems": ("arcface",), "images": False, "replicates": 0, "n_pairs": 20}
    ode = guided(row="DiM + AdjointDEIS-1 (ODE)")
    for seed in (0, 1):
        make_run(
            root / f"table1/ode/{seed}", experiment="table1/ode", attacks=ode, seed=seed,
            settings=PAPER, **common,
        )  # fmt: skip
    make_run(root / "table1_first/a", experiment="table1_first", attacks=DIM, **common)
    for steps in (5, 10):
        make_run(
            root / f"table4/{steps}", experiment="table4", attacks=guided(),
            settings={**PAPER, "adjoint_steps": steps}, **common,
        )  # fmt: skip
    again = make_run(
        root / "table4/5b", experiment="table4", attacks=guided(),
        settings={**PAPER, "adjoint_steps": 5}, **common,
    )  # fmt: skip
    again["created"] = "2026-11-24T00:00:00+00:00"
    (root / "table4/5b/result.json").write_text(json.dumps(again))
    make_run(
        root / "table5/a", experiment="table5", attacks=guided(),
        settings={**PAPER, "learning_rate": 0.01, "states": "resolved"}, **common,
    )  # fmt: skip
    make_run(
        root / "table6/a", experiment="table6", attacks=guided("AdjointDEIS-1 SDE"),
        settings={**PAPER, "learning_rate": 1.0}, **common,
    )  # fmt: skip
    (root / "broken").mkdir()
    (root / "broken/result.json").write_text("{")
    (root / "other").mkdir()
    (root / "other/result.json").write_text('{"schema": 9}')
    return root


def test_runs_are_collected_and_the_others_named(outputs):
    found = collect(outputs)
    assert len(found) == 7
    skipped = {path.parent.name: reason for path, reason in found.skipped}
    assert skipped.keys() == {"5", "broken", "other"}
    assert skipped["5"] == "run again later in 5b"
    assert "not JSON" in skipped["broken"]
    assert "schema 9" in skipped["other"]


def test_what_a_run_left_unfinished_or_lost_does_not_count(tmp_path, make_run):
    common = {"attacks": DIM, "systems": ("arcface",), "images": False, "replicates": 0}
    for seed, name in enumerate(("finished", "unfinished", "truncated", "copied")):
        make_run(tmp_path / name, seed=seed, n_pairs=6, **common)
        digests = {
            file: hashlib.sha256((tmp_path / name / file).read_bytes()).hexdigest()
            for file in ("result.json", "scores.csv")
        }
        if name != "copied":
            (tmp_path / name / "run.json").write_text("{}")
        if name in ("finished", "truncated"):
            (tmp_path / name / "done.json").write_text(json.dumps({"files": digests}))
    scores = tmp_path / "truncated/scores.csv"
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-3]))
    found = collect(tmp_path)
    assert [run.directory.name for run in found] == ["copied", "finished"]
    skipped = {path.parent.name: why for path, why in found.skipped}
    assert skipped == {
        "unfinished": "the run is unfinished; its command continues it",
        "truncated": "scores.csv is not the file that the run wrote; run its command again",
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda result: result["run"].update(degradation="print_scan"),
        lambda result: result["thresholds"][0].update(value=0.9),
        lambda result: result["thresholds"][0].update(data_set="other people"),
    ],
)
def test_seeds_under_other_conditions_are_not_averaged(tmp_path, make_run, change):
    common = {"attacks": DIM, "systems": ("arcface",), "images": False, "replicates": 0}
    results = [make_run(tmp_path / str(seed), seed=seed, n_pairs=6, **common) for seed in (0, 1)]
    assert [len(e.runs) for e in entries(collect(tmp_path).runs)] == [2]
    change(results[1])
    (tmp_path / "1/result.json").write_text(json.dumps(results[1]))
    assert [len(e.runs) for e in entries(collect(tmp_path).runs)] == [1, 1]


def test_seeds_are_grouped_and_keep_the_number_of_pairs(outputs):
    (entry,) = [e for e in entries(collect(outputs).runs) if len(e.runs) > 1]
    assert sorted(entry.seeds) == [0, 1]
    at = entry.conditions()[0]
    found = entry.rate("arcface", at)
    counts = [run.row("guided", "arcface", at)["k"] for run in entry.runs]
    assert found["k"] == sum(counts) / 2
    assert found["n"] == 20
    assert (found["wilson_lo"], found["wilson_hi"]) == wilson(found["k"], 20)
    assert found["seed_sd"] == pytest.approx(abs(counts[0] - counts[1]) / 20 / 2**0.5)


def matched(outputs, name: str) -> dict[str, object]:
    """Labels of the rows of a table that a run of ours stands in."""
    found = lines(name, collect(outputs))
    return {line.label: line for line in found if line.ours}


def test_cells_are_matched_by_what_ran(outputs):
    assert matched(outputs, "table1").keys() == {"DiM-A", "DiM + AdjointDEIS-1 (ODE)"}
    assert matched(outputs, "table4").keys() == {"η = 0.1, M = 10", "η = 0.1, M = 5"}
    assert matched(outputs, "table5").keys() == {"backward solve, M = 20"}
    assert matched(outputs, "table6").keys() == {"SDE, η = 1, M = 20"}


def test_the_papers_rows_all_stay_and_in_order(outputs):
    labels = [line.label for line in lines("table6", collect(outputs)) if line.paper]
    assert labels[0] == "ODE, η = 1, M = 20"
    assert labels[-1] == "SDE, η = 0.1, M = 20"
    assert len(labels) == 9


def test_reasons_name_what_differs(outputs):
    line = matched(outputs, "table5")["backward solve, M = 20"]
    assert line.reasons[0].startswith("other faces and other networks")
    assert line.reasons[-1] == "the paper labels this row 0.001 here and 0.01 in Table 6"


def test_paper_assets_settings_and_pairs_compare(tmp_path, make_run):
    make_run(
        tmp_path / "a", experiment="table1", profile="paper", n_pairs=489, images=False,
        replicates=0, systems=("arcface", "elasticface", "adaface"), settings={**GUIDED, **PAPER},
        attacks=guided(row="DiM + AdjointDEIS-1 (ODE)"),
    )  # fmt: skip
    (line,) = [x for x in lines("table1", collect(tmp_path)) if x.ours]
    assert line.reasons == ()
    result = json.loads((tmp_path / "a/result.json").read_text())
    result["attacks"]["guided"]["settings"]["sampling_steps"] = 50
    (tmp_path / "a/result.json").write_text(json.dumps(result))
    (line,) = [x for x in lines("table1", collect(tmp_path)) if x.ours]
    assert line.reasons == ("sampling steps 50 instead of 20",)


def test_every_format_is_written_and_agrees(outputs, tmp_path):
    written = {path.name: path for path in aggregate(outputs, tmp_path, plots=False)}
    assert {"report.html", "report.md", "table6-other.tex", "table6-other.md"} <= written.keys()
    rows = json.loads(written["table1.json"].read_text())["rows"]
    with written["table1.csv"].open(newline="") as f:
        table = list(csv.DictReader(f))
    assert len(table) == len(rows)
    (ours,) = [
        r
        for r in rows
        if r["row"] == "DiM + AdjointDEIS-1 (ODE)"
        and r["system"] == "arcface"
        and r["probe_policy"] == "other"
    ]
    assert (ours["paper_k"], ours["paper_n"], ours["paper_percent"]) == (483, 489, 98.77)
    assert ours["seeds"] == 2
    assert ours["nfe_paper_accounting"] == 2250
    assert ours["nfe_counted"] == 920
    assert ours["comparable"] is False
    cell = f"{ours['k']:g}/{ours['n']}"
    assert cell in written["table1-other.md"].read_text()
    assert cell in written["table1-other.tex"].read_text()


def test_latex_is_balanced_and_escaped(outputs, tmp_path):
    written = {path.name: path for path in aggregate(outputs, tmp_path, plots=False)}
    text = written["table1-other.tex"].read_text()
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    assert text.isascii()
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    header = next(line for line in text.splitlines() if line.startswith("Row &"))
    assert body
    for line in body:
        assert line.count(" & ") == header.count(" & ")
    assert escape("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"


def test_links_from_the_tables_lead_to_the_runs(outputs, tmp_path):
    aggregate(outputs, tmp_path / "tables", plots=False)
    page = (tmp_path / "tables/report.html").read_text()
    links = [part.split('"')[0] for part in page.split('href="')[1:]]
    leading = [link for link in links if link.endswith("result.json")]
    assert len(leading) > 7
    assert all((tmp_path / "tables" / link).resolve().is_file() for link in leading)


def test_nothing_to_collect_is_an_error(tmp_path):
    with pytest.raises(ReportError, match="no such folder"):
        collect(tmp_path / "absent")
    with pytest.raises(ReportError, match=r"no readable result\.json"):
        collect(tmp_path)


def test_a_recogniser_that_guided_is_flagged_in_every_format(tmp_path, make_run):
    """A white box among black ones: in the cell, in the paired test, and in the records."""
    result = make_run(
        tmp_path / "runs/table1/a", experiment="table1", attacks={**DIM, **guided()}, n_pairs=20,
        systems=("arcface", "adaface"), images=False, replicates=0,
    )  # fmt: skip
    assert not any("guide:" in path.read_text() for path in _tables(tmp_path, "plain"))
    fingerprint = result["systems"]["arcface"]["fingerprint"]
    result["attacks"]["guided"]["guides"] = {"arcface": fingerprint}
    (tmp_path / "runs/table1/a/result.json").write_text(json.dumps(result))

    for path in _tables(tmp_path, "flagged"):
        text = path.read_text()
        assert text.count("guide:") >= 1, path
        if path.suffix == ".md" and path.parent.name == "tables":
            (row,) = [line for line in text.splitlines() if line.startswith("| AdjointDEIS-1 ODE")]
            assert row.count("guide") == 1
            (row,) = [line for line in text.splitlines() if line.startswith("| DiM-A")]
            assert "guide" not in row
    assert "ArcFace (guide)" in (tmp_path / "flagged/report.md").read_text()
    with (tmp_path / "flagged/tables/table1.csv").open() as file:
        found = {(row["row"], row["system"]): row["guide"] for row in csv.DictReader(file)}
    assert found["AdjointDEIS-1 ODE", "arcface"] == "True"
    assert found["AdjointDEIS-1 ODE", "adaface"] == found["DiM-A", "arcface"] == "False"


def _tables(root, name):
    """Table 1 of every format, below a folder of a name."""
    files = aggregate(root / "runs", root / name, plots=False)
    return [f for f in files if f.name.startswith(("report.", "table1-")) and f.suffix != ".json"]
