"""The report of a run: its files, its numbers, its links, and what it says about the paper."""

import copy
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from adjointdeis.evaluation.tables import interval, percent, subject_interval
from adjointdeis.reporting import (
    ReportError,
    Run,
    run_details as details,
    run_tables as tables,
    write_report,
)
from adjointdeis.reporting.paired_tables import paired_table

VOID = {"meta", "link", "img", "br", "path", "use", "rect", "hr"}


class Page(HTMLParser):
    """Collects ids, references and the nesting of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.open: list[str] = []
        self.unbalanced: list[str] = []
        self.images_without_alt = 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        if "id" in found:
            self.ids.append(found["id"])
        self.references += [found[k] for k in ("src", "href") if k in found]
        if tag == "img" and not found.get("alt"):
            self.images_without_alt += 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)


@pytest.fixture(scope="module")
def page(reported):
    return Page((reported[0] / "report.html").read_text(encoding="utf-8"))


def test_the_files_are_written_and_named(reported):
    directory, _, written = reported
    assert [p.name for p in written] == ["report.md", "report.html", "morphs.png"]
    assert all(p.parent == directory and p.stat().st_size > 1000 for p in written)


def test_the_page_asks_for_nothing_from_outside(reported, page):
    text = (reported[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script|@import|url\((?!#)", text)
    loaded = re.findall(r"(?:src|xlink:href)=\"([^\"]+)\"", text)
    assert loaded
    assert all(source.startswith("data:image/") for source in loaded)


def test_the_page_is_well_formed_and_its_links_lead_somewhere(reported, page):
    directory = reported[0]
    assert not page.unbalanced
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert page.images_without_alt == 0
    for reference in page.references:
        if reference.startswith("#"):
            assert reference[1:] in page.ids
        elif not reference.startswith(("data:", "http")):
            assert (directory / reference).is_file(), reference


def test_every_rate_stands_in_both_reports_with_count_and_interval(reported):
    directory, result, _ = reported
    text = (directory / "report.md").read_text(encoding="utf-8")
    page_text = (directory / "report.html").read_text(encoding="utf-8")
    assert len(result["rows"]) == 4 * 2 * 2
    for row in result["rows"]:
        n = row["n"]
        words = (percent(row["value"], n), f"{row['k']}/{n}")
        bounds = interval(*subject_interval(row), n)
        assert f"{words[0]} {words[1]} {bounds}" in text
        assert bounds in page_text


def test_every_headline_table_carries_its_labels(bare_run):
    run = Run.read(bare_run[0])
    assert [c.probe for c in run.headline] == ["other", "source"]
    for at in run.headline:
        found = dict(tables.rate_table(run, at).labels)
        assert found["Probe"] == at.probe
        assert found["Impostors"].endswith("(all)")
        assert found["Variant"] == "MMPMR"
        assert found["FMR target"] == "0.1%"
        assert "mini/thresholds" in found["Threshold"]


def test_fewer_steps_than_the_paper_are_said_under_the_table(bare_run):
    run = Run.read(bare_run[0])
    notes = tables.rate_table(run, run.headline[0]).notes
    wanted = "10 optimisation steps instead of the paper's 50"
    assert notes[0] == f"AdjointDEIS-1 ODE and exact gradient: {wanted}."


def test_both_accountings_of_nfe_are_shown(bare_run):
    run = Run.read(bare_run[0])
    rows = {row[0].text: row for row in tables.rate_table(run, run.headline[0]).rows}
    assert rows["exact gradient"][1].text == "650"
    assert rows["exact gradient"][2].text == "920"
    assert rows["exact gradient"][2].detail == ("720 + 200 VJPs",)
    assert rows["worst-case bound"][1].text == "–"


def test_the_papers_cells_are_beside_ours_with_the_reason_against_comparing(bare_run):
    run = Run.read(bare_run[0])
    table = tables.paper_rows_table(run, run.headline[0])
    assert table is not None
    theirs = {row[0].text: row[4] for row in table.rows}
    assert theirs["AdjointDEIS-1 ODE"].text == "98.77"
    assert theirs["AdjointDEIS-1 ODE"].detail[0] == "483/489"
    assert table.notes[0].startswith("Not comparable with the paper: other faces")
    assert "optimisation steps 10 instead of 50" in table.notes[0]


def test_verdicts_add_up_to_the_count(bare_run):
    run = Run.read(bare_run[0])
    for row in run.result["rows"]:
        at = next(c for c in run.headline if c.probe == row["probe_policy"])
        verdicts = run.verdicts(row["attack"], row["system"], at)
        assert len(verdicts) == row["n"]
        assert sum(v == "yes" for v in verdicts.values()) == row["k"]


def test_the_paired_table_counts_every_pair_once(bare_run):
    run = Run.read(bare_run[0])
    table = paired_table(run, run.headline[0])
    assert table is not None
    assert len(table.rows) == 2 * 2
    for row in table.rows:
        assert sum(int(cell.text) for cell in row[4:8]) == 16


def test_gradient_errors_are_shown_where_measured(bare_run):
    run = Run.read(bare_run[0])
    table = details.gradient_table(run)
    assert table is not None
    assert [row[0].text for row in table.rows] == ["AdjointDEIS-1 ODE", "exact gradient"]
    assert [row[1].text for row in table.rows] == ["0.95", "0"]


def test_a_new_impostor_policy_adds_the_sensitivity_table(bare_run):
    run = Run.read(bare_run[0])
    assert tables.sensitivity_table(run, run.headline[0]) is None
    result = copy.deepcopy(run.result)
    result["rows"] += [{**row, "impostor_policy": "same-sex"} for row in result["rows"]]
    wider = Run(run.directory, result)
    assert [c.impostors for c in wider.headline] == ["all", "all"]
    table = tables.sensitivity_table(wider, wider.headline[0])
    assert table is not None
    assert table.header[1:] == (
        "other / all",
        "other / same-sex",
        "source / all",
        "source / same-sex",
    )


def test_a_failed_pair_leaves_an_empty_cell_and_a_note(tmp_path, make_run):
    attacks = {"dim_a": ("DiM-A", "DiM-A", 0.25, None, 350)}
    result = make_run(tmp_path, attacks=attacks, systems=("arcface",), n_pairs=4, replicates=0)
    gone = result["pairs"][0]
    (tmp_path / gone["morphs"].pop("dim_a")).unlink()
    result["attacks"]["dim_a"]["failed"] = [{"pair_id": gone["pair_id"], "reason": "no face"}]
    (tmp_path / "result.json").write_text(json.dumps(result))
    write_report(tmp_path, plots=False)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"DiM-A: pair {gone['pair_id']} failed: no face." in text
    assert "no image" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_text_from_outside_cannot_become_markup(tmp_path, make_run):
    attacks = {"dim_a": ("<b>DiM & |x|", None, 0.25, None, 350)}
    make_run(tmp_path, attacks=attacks, systems=("arcface",), n_pairs=3, replicates=0)
    write_report(tmp_path, plots=False)
    assert "<b>DiM" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\\<b>DiM & \\|x\\|" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_grid_has_a_column_per_attack_and_marks_the_matches(reported):
    with Image.open(reported[0] / "morphs.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    # Five columns of 144 px and eight rows; a filled box is dark, and some box is filled.
    assert pixels.shape[1] > 5 * 144
    assert pixels.shape[0] > 8 * 144
    assert (pixels < 40).sum() > 16 * 20


def test_unreadable_input_is_named(tmp_path, make_run):
    attacks = {"dim_a": ("DiM-A", None, 0.25, None, 350)}
    result = make_run(tmp_path, attacks=attacks, systems=("arcface",), n_pairs=3, replicates=0)
    broken = tmp_path / result["pairs"][0]["morphs"]["dim_a"]
    good = broken.read_bytes()
    broken.write_text("not an image")
    with pytest.raises(ReportError, match=f"{broken.name}: not a readable image"):
        write_report(tmp_path, plots=False)
    broken.write_bytes(good)
    (tmp_path / "scores.csv").unlink()
    with pytest.raises(ReportError, match=r"scores: .*scores\.csv: no such score file"):
        write_report(tmp_path, plots=False)
    result["rows"] = []
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ReportError, match="rows: empty"):
        write_report(tmp_path, plots=False)
    with pytest.raises(ReportError, match="pairs 0"):
        write_report(tmp_path, pairs=0, plots=False)
