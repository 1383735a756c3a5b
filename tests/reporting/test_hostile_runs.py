"""Runs of strangers: nothing written outside of the report, no markup, one bad run left out."""

import copy
import json
import os
import re
import shutil
from xml.etree import ElementTree

import pytest

from adjointdeis.reporting import ReportError, aggregate, collect, validate_result, write_report
from adjointdeis.texts import slug

DIM = {"dim_a": ("DiM-A", "DiM-A", 0.25, None, 350)}
EVIL = '../../../x"><script>alert(1)</script>'
ESC = "\x1b[2J\x9b31m\u202e"


@pytest.fixture(scope="module")
def strangers(tmp_path_factory, make_run):
    """One good run, its result, and the folder of outputs that others are added to."""
    root = tmp_path_factory.mktemp("outputs")
    result = make_run(
        root / "good", experiment="table1", attacks=DIM, systems=("arcface",), n_pairs=6,
        replicates=0,
    )  # fmt: skip
    return root, result


def renamed(text: str, former: str, name: str) -> str:
    return text.replace(json.dumps(former), json.dumps(name))


def hostile(make_run, directory, system=EVIL, experiment="table1"):
    """A run whose recogniser has another name, in its result and in its scores."""
    make_run(
        directory, experiment=experiment, attacks=DIM, systems=("arcface",), n_pairs=6, replicates=0
    )
    path = directory / "result.json"
    result = renamed(path.read_text(), "arcface", system)
    path.write_text(result)
    return json.loads(result)


def quoted(name: str) -> str:
    """A field of a CSV file."""
    return '"' + name.replace('"', '""') + '"'


def everything(root):
    return {path for path in root.rglob("*") if path.is_file()}


def test_names_never_become_paths_or_markup(tmp_path, make_run):
    root = tmp_path / "a/b/c/d"
    result = hostile(make_run, root / "runs/one", experiment=f"figure3{EVIL}")
    scores = root / "runs/one/scores.csv"
    scores.write_text(scores.read_text().replace("arcface", quoted(EVIL)))
    result["systems"][EVIL]["label"] = EVIL + ESC + "$\\frac$"
    result["run"]["assets"][EVIL] = {"fingerprint": EVIL, "licence": f"[x](javascript:0){ESC}"}
    result["attacks"]["dim_a"]["notes"] = ["</details>\n\n# Forged\n" + EVIL]
    (root / "runs/one/result.json").write_text(json.dumps(result))
    before = everything(tmp_path)
    aggregate(root / "runs", root / "made")
    outside = everything(tmp_path) - before
    assert outside
    assert all(path.is_relative_to(root / "made") for path in outside)
    for path in outside:
        if path.suffix in (".html", ".md", ".tex", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert not any(c in text for c in ESC if not c.isprintable()), path
            if path.suffix != ".tex":  # where `<` is text
                assert "<script" not in text.replace("\\<script", ""), path


def test_plots_take_labels_as_text(tmp_path, make_run):
    attacks = {"a": (f"</text><script>{ESC}$\\frac{{$ %", "DiM-A", 0.25, None, 350)}
    make_run(tmp_path, attacks=attacks, systems=("arcface",), n_pairs=3, replicates=0)
    for path in write_report(tmp_path):
        if path.suffix == ".svg":
            ElementTree.parse(path)
            assert "<script" not in path.read_text(encoding="utf-8")


def test_a_page_of_one_run_holds_no_markup_of_its_keys(tmp_path, make_run):
    result = make_run(
        tmp_path / "run", attacks={"dim_a": ("DiM-A", None, 0.25, None, 350)}, n_pairs=3,
        systems=("arcface",), replicates=0,
    )  # fmt: skip
    text = renamed((tmp_path / "run/result.json").read_text(), "dim_a", EVIL)
    result = json.loads(text)
    result["run"]["versions"] = {EVIL: ESC}
    result["pairs"][0]["subject_a"] = f"<img src=x onerror=alert(1)>{ESC}"
    scores = tmp_path / "run/scores.csv"
    scores.write_text(scores.read_text().replace("dim_a", quoted(EVIL)))
    (tmp_path / "run/result.json").write_text(json.dumps(result))
    write_report(tmp_path / "run", plots=False)
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8")
    plain = (tmp_path / "run/report.md").read_text(encoding="utf-8")
    for forbidden in ("<script", "<img src=x", "\x1b", "\x9b", "\u202e"):
        assert forbidden not in page
        assert forbidden not in plain.replace(f"\\{forbidden}", "")
    # Links from rates to outcomes still meet their anchors.
    anchor = slug(f"pairs-{EVIL}")
    assert f'href="#{anchor}"' in page
    assert f'id="{anchor}"' in page


def one_of(result, *path, value):
    """A copy of a result with one value changed."""
    changed = copy.deepcopy(result)
    at = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(changed)


BAD = {
    "policy": (lambda r: one_of(r, "rows", 0, "probe_policy", value="/../../x"), "probe_policy"),
    "impostors": (lambda r: one_of(r, "rows", 0, "impostor_policy", value="x"), "impostor_policy"),
    "text for a number": (lambda r: one_of(r, "rows", 0, "k", value="3"), r"rows\[0\].k"),
    "list for a name": (lambda r: one_of(r, "rows", 0, "system", value=[]), r"rows\[0\].system"),
    "text for a rate": (
        lambda r: one_of(r, "attacks", "dim_a", "settings", "learning_rate", value="x"),
        "learning_rate",
    ),
    "text for seconds": (lambda r: one_of(r, "run", "wall_seconds", value="x"), "wall_seconds"),
    "guides": (lambda r: one_of(r, "attacks", "dim_a", "guides", value=3), "guides"),
    "curves": (lambda r: one_of(r, "attacks", "dim_a", "curves", value=[3]), "curves"),
    "assets": (lambda r: one_of(r, "run", "assets", value={"a": 3}), "assets.a"),
    "negative count": (lambda r: one_of(r, "rows", 0, "k", value=-1), r"rows\[0\].k: -1 of n=6"),
    "more than all": (lambda r: one_of(r, "rows", 0, "k", value=7), r"rows\[0\].k: 7 of n=6"),
    "another rate": (
        lambda r: one_of(r, "rows", 0, "value", value=0.123),
        r"rows\[0\].value: 0.123 is not k/n",
    ),
    "percent": (lambda r: one_of(r, "rows", 0, "wilson_hi", value=95.0), "95.0, expected a share"),
    "a row twice": (
        lambda r: one_of(r, "rows", value=[*r["rows"], {**r["rows"][0], "n_fta": 1}]),
        r"rows\[\d\]: attack, .* are those of an earlier one",
    ),
    "a pair twice": (
        lambda r: one_of(r, "pairs", value=[*r["pairs"], r["pairs"][0]]),
        r"pairs\[6\]: pair_id",
    ),
    "300 digits": (lambda r: one_of(r, "rows", 0, "k", value=10**300), "64 bits"),
    "6,000 digits": (
        lambda r: one_of(r, "rows", 0, "k", value=77777).replace("77777", "7" * 6000),
        "thousands of digits",
    ),
    "deep": (lambda r: "[" * 100_000, "nested too deeply"),
    "list": (lambda r: "[]", "expected a JSON object"),
    "empty": (lambda r: "", "not JSON"),
    "escape": (lambda r: one_of(r, "rows", 0, "system", value=ESC), "system"),
    "leaving path": (lambda r: one_of(r, "scores", value="../good/scores.csv"), "leaves the run"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_result_is_left_out_and_named(strangers, tmp_path, name):
    root, good = strangers
    spoil, reason = BAD[name]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/result.json").write_text(spoil(good))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/result.json").write_text((root / "good/result.json").read_text())
    found = collect(tmp_path)
    assert [run.directory.name for run in found] == ["own"]
    ((path, why),) = found.skipped
    assert path.parent.name == "bad"
    assert re.search(reason, why), why
    assert why.isprintable()


def test_files_that_are_not_regular_are_left_out(strangers, tmp_path):
    _, good = strangers
    (tmp_path / "own").mkdir()
    (tmp_path / "own/result.json").write_text(json.dumps(good))
    for name in ("pipe", "folder", "large"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe/result.json")
    (tmp_path / "folder/result.json").mkdir()
    with open(tmp_path / "large/result.json", "wb") as file:
        file.truncate(2**33)
    skipped = {path.parent.name: why for path, why in collect(tmp_path).skipped}
    assert skipped.keys() == {"pipe", "folder", "large"}
    assert "not a regular file" in skipped["pipe"]
    assert "larger than 64 MiB" in skipped["large"]


def test_a_damaged_morph_or_score_file_costs_one_run(tmp_path, make_run):
    more = {"experiment": "table1", "attacks": DIM, "systems": ("arcface",), "replicates": 0}
    make_run(tmp_path / "runs/good", n_pairs=6, **more)
    result = make_run(tmp_path / "runs/torn", n_pairs=5, **more)
    make_run(tmp_path / "runs/unscored", n_pairs=4, **more)
    make_run(tmp_path / "runs/linked", n_pairs=3, **more)
    for name, digits in (("torn", "a" * 12), ("unscored", "b" * 12), ("linked", "c" * 12)):
        path = tmp_path / f"runs/{name}/result.json"
        stated = json.loads(path.read_text())
        stated["run"]["config_hash"] = digits
        path.write_text(json.dumps(stated))
    torn = tmp_path / "runs/torn" / result["pairs"][0]["morphs"]["dim_a"]
    torn.write_bytes(torn.read_bytes()[:100])
    (tmp_path / "runs/unscored/scores.csv").unlink()
    linked = next((tmp_path / "runs/linked/morphs").rglob("*.png"))
    secret = tmp_path / "private.png"
    linked.rename(secret)
    linked.symlink_to(secret)
    aggregate(tmp_path / "runs", tmp_path / "made")
    text = (tmp_path / "made/report.md").read_text(encoding="utf-8")
    left = text[text.index("Left out:") :]
    assert "torn/result.json: " in left
    assert f"{torn.name}: not a readable image" in left
    assert "unscored/result.json: scores: " in left
    assert "linked/result.json: " in left
    assert "leaves the run directory" in left
    assert "good/result.json" not in left


def test_a_link_out_of_the_run_is_not_followed(tmp_path, make_run):
    result = make_run(tmp_path / "run", attacks=DIM, systems=("arcface",), n_pairs=3, replicates=0)
    morph = tmp_path / "run" / result["pairs"][0]["morphs"]["dim_a"]
    morph.rename(tmp_path / "private.png")
    morph.symlink_to(tmp_path / "private.png")
    with pytest.raises(ReportError, match=f"{morph.name}: leaves the run directory"):
        write_report(tmp_path / "run", plots=False)


def test_a_name_of_others_starts_no_formula(strangers, tmp_path):
    root, good = strangers
    changed = copy.deepcopy(good)
    changed["attacks"]["dim_a"]["label"] = '=HYPERLINK("http://x","y")'
    changed["attacks"]["dim_a"]["paper_row"] = None
    assert validate_result(changed) == []
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/result.json").write_text(json.dumps(changed))
    shutil.copy(root / "good/scores.csv", tmp_path / "runs")
    aggregate(tmp_path / "runs", tmp_path / "made", plots=False)
    rows = (tmp_path / "made/tables/table1.csv").read_text().splitlines()
    own = [row for row in rows if "HYPERLINK" in row]
    assert own
    assert all("\"'=HYPERLINK" in row for row in own)
