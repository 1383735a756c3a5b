"""Reports from score files alone, by the command that users type."""

import csv
import json
import re

import pytest

from adjointdeis.evaluation import concatenate, read_scores, write_scores
from adjointdeis.evaluation.cli import main
from adjointdeis.evaluation.rates import CONDITIONAL, NEW_SUBJECTS


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scores")
    arguments = ["--n-subjects", "16", "--n-morphs", "24"]
    assert main(["synth", str(folder / "s.csv"), "--subjects", str(folder / "p.csv"),
                 *arguments]) == 0  # fmt: skip
    return folder


def test_everything_that_the_files_hold_is_in_the_report(scores, tmp_path):
    out = tmp_path / "report"
    arguments = ["--subjects", str(scores / "p.csv"), "--by", "sex", "--replicates", "30"]
    assert main(["report", str(scores / "s.csv"), "-o", str(out), *arguments]) == 0
    page, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for title in ("Vulnerability", "Verification", "Morphing attack detection", "Thresholds",
                  "Plots", "A closer look"):  # fmt: skip
        assert f"## {title}" in text and title in page
    assert "Genuine users rejected" in text and "MAP[r, c]" in text and "G-MAP" in text
    # Nothing is asked for from outside, and no figure is missing.
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]+"', page)
    for name in re.findall(r"\]\(([^)]+\.png)\)", text):
        assert (out / name).is_file()
    result = json.loads((out / "result.json").read_text())
    rates = list(csv.DictReader((out / "tables" / "rates.csv").open(newline="")))
    assert len(rates) == len(result["rows"]) == 12
    for row, line in zip(result["rows"], rates, strict=True):
        assert line["k/N"].startswith(f"{row['k']}/{row['n']}")
        assert line["%"] == f"{100 * row['value']:.2f}"
    latex = (out / "tables" / "rates.tex").read_text()
    assert latex.count("\\begin{tabular}") == 1 and "\\%" in latex
    groups = {r["people"] for r in csv.DictReader((out / "tables" / "by-sex.csv").open(newline=""))}
    assert groups <= {"sex: female", "sex: male"} and groups


def test_what_the_scores_cannot_tell_is_said(scores, tmp_path):
    # One recogniser has not scored one morph: no common potential, and before no word of it.
    table, path = read_scores(scores / "s.csv"), tmp_path / "part.csv"
    morph, (system, _, *_) = table.unique("morph_id", kind="morph")[0], table.unique("system")
    morphs = table.select(kind="morph")
    gone = (morphs["morph_id"] == morph) & (morphs["system"] == system)
    write_scores(concatenate([table.select(kind=("mated", "nonmated")), morphs.where(~gone)]), path)
    command = ["report", str(path), "-o", str(tmp_path / "out"), "--replicates", "0", "--no-plots"]
    assert main(command) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    told = text.partition("What these scores cannot tell")[2]
    assert (
        "MAP and G-MAP" in told and "scored other morphs" in told and "MAP[r, c] in %" not in text
    )


def test_intervals_of_the_potential_are_called_what_they_are(scores, capsys):
    for replicates, meaning in (("0", f"Wilson: {CONDITIONAL}"), ("20", NEW_SUBJECTS.capitalize())):
        assert main(["map", str(scores / "s.csv"), "--replicates", replicates]) == 0
        printed = capsys.readouterr().out
        assert f"interval. {meaning}." in printed
        assert ("their intervals for new subjects" in printed) == (replicates == "20")


@pytest.mark.parametrize(("kinds", "title"), [(("mated", "nonmated"), "Verification"),
                                              (("mad",), "Morphing attack detection")])  # fmt: skip
def test_files_without_morphs_have_a_report_too(scores, tmp_path, kinds, title):
    path = tmp_path / "part.csv"
    write_scores(read_scores(scores / "s.csv").select(kind=kinds), path)
    command = ["report", str(path), "-o", str(tmp_path / "out"), "--replicates", "20"]
    assert main(command) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"## {title}" in text and "## Vulnerability" not in text
    assert ("plots/det.png" in text) == (title == "Verification")
    assert ("plots/det_detectors.png" in text) == (title != "Verification")


def test_thresholds_of_other_recognisers_are_passed_over(scores, tmp_path):
    path, one, record = tmp_path / "one.csv", tmp_path / "tau.json", tmp_path / "out"
    table = read_scores(scores / "s.csv")
    assert main(["threshold", str(scores / "s.csv"), "--out", str(one), "--fmr", "0.01"]) == 0
    system, *others = table.unique("system", kind="morph")
    assert others
    write_scores(table.select(system=system), path)
    command = ["report", str(path), "-o", str(record), "--thresholds", str(one), "--no-plots"]
    assert main([*command, "--replicates", "20"]) == 0
    result = json.loads((record / "result.json").read_text())
    assert {row["system"] for row in result["rows"]} == {system}
    assert {r["model"] for r in result["thresholds"]} == {system}


def test_verification_prints_and_draws(scores, tmp_path, capsys):
    command = ["verification", str(scores / "s.csv"), "--replicates", "20"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "EER %" in printed and "FNMR % at FMR 0.01%" in printed
    assert main([*command, "-o", str(tmp_path / "v")]) == 0
    assert (tmp_path / "v" / "plots" / "det.svg").is_file()


def test_nothing_to_report_is_one_line(scores, tmp_path, capsys):
    path = tmp_path / "mated.csv"
    write_scores(read_scores(scores / "s.csv").select(kind="mated"), path)
    assert main(["report", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "nothing to report" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
