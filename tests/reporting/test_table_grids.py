"""Behind a rebuilt table: links to the runs, the same pairs by every row, every kind of attack."""

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adjointdeis.reporting import aggregate, collect
from adjointdeis.reporting.morph_grid import CELL, GridFace, Rectangle, Text, morph_grid, pair_strip
from adjointdeis.reporting.paper_tables import headline, lines
from adjointdeis.reporting.table_grids import table_grid

PAPER = {"optimisation_steps": 50, "adjoint_steps": 20, "learning_rate": 0.1}
# What Table 1 is made of: no sampler, no gradient; a choice among blends; a gradient in every step;
# a guided row.
KINDS = {
    "landmark": ("Webmorph", "Webmorph", 0.30, None, None),
    "dim_a": ("DiM-A", "DiM-A", 0.22, None, 350),
    "morph_pipe": ("Morph-PIPE", "Morph-PIPE", 0.24, None, 2350),
    "greedy_dim": ("Greedy-DiM*", "Greedy-DiM*", 0.32, None, 270),
    "ode": ("AdjointDEIS-1 (ODE)", "DiM + AdjointDEIS-1 (ODE)", 0.28, 1, 2250),
}
# What each states, least first: nothing at all is what precomputed morphs can say.
SETTINGS = {
    "landmark": {},
    "morph_pipe": {"solver": "DDIM()", "candidates": 21},
    "greedy_dim": {"solver": "DDIM()", "optimizer": "Adam", "inner_steps": 50},
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, make_run) -> Path:
    """Table 1 as runs of one attack each, the guided one with two seeds; two points of Table 4."""
    root = tmp_path_factory.mktemp("outputs")
    common = {"systems": ("arcface", "adaface"), "replicates": 0, "n_pairs": 12}
    for name, entry in KINDS.items():
        for seed in (0, 1) if name == "ode" else (0,):
            folder = root / "table1" / name / str(seed)
            settings = PAPER if name == "ode" else None
            result = make_run(
                folder, experiment=f"table1/{name}", attacks={name: entry}, seed=seed,
                settings=settings, **common,
            )  # fmt: skip
            own = result["attacks"][name]
            if name in SETTINGS:
                own["settings"] = SETTINGS[name]
            if name == "landmark":
                own["nfe"] = own["nfe_paper"] = own["seconds_per_pair"] = None
            (folder / "result.json").write_text(json.dumps(result))
            (folder / "config.yaml").write_text("name: x\n")
    for steps in (5, 10):
        make_run(
            root / f"table4/{steps}", experiment="table4", attacks={"guided": KINDS["ode"]},
            settings={**PAPER, "adjoint_steps": steps}, images=steps == 5, **common,
        )  # fmt: skip
    rows = {f"m{m}": (f"M = {m}", None, 0.25, 1, 650) for m in (20, 5)}
    make_run(root / "figure4", experiment="figure4", attacks=rows, **common)
    return root


@pytest.fixture(scope="module")
def report(outputs, tmp_path_factory) -> Path:
    destination = tmp_path_factory.mktemp("report")
    written = aggregate(outputs, destination)
    assert all(path.is_file() for path in written)
    return destination


def test_attacks_of_every_kind_fill_their_rows(report):
    rows = json.loads((report / "tables" / "table1.json").read_text())["rows"]
    ours = {r["row"]: r for r in rows if r["probe_policy"] == "other" and r["system"] == "arcface"}
    assert set(ours) == {entry[1] for entry in KINDS.values()}
    assert ours["Webmorph"]["nfe_counted"] is None and ours["Webmorph"]["solver"] is None
    assert ours["Greedy-DiM*"]["nfe_counted"] == 600
    text = (report / "tables" / "table1-other.md").read_text()
    assert f"{ours['Webmorph']['k']}/12" in text and "(not run)" in text


def test_the_papers_column_is_of_the_papers_network(outputs, tmp_path):
    path = outputs / "table4/5/result.json"
    result = json.loads(path.read_text())
    for name in result["systems"]:
        result["systems"][name]["label"] += " (mini)"
    folder = tmp_path / "outputs" / "table4"
    shutil.copytree(path.parent, folder)
    (folder / "result.json").write_text(json.dumps(result))
    aggregate(tmp_path / "outputs", tmp_path / "report", plots=False)
    head = (tmp_path / "report/tables/table4-other.md").read_text()
    assert "ArcFace (mini), ours" in head and "ArcFace, paper" in head


def test_every_row_leads_to_its_runs_configs_and_images(report):
    page = (report / "report.html").read_text()
    row = next(r for r in page.split('<tr role="row">') if "DiM + AdjointDEIS-1 (ODE)" in r)
    for word in ("seed 0: run", "seed 1: run", "config"):
        assert f">{word}</a>" in row
    for link in re.findall(r'href="([^"#]+)', page):
        if not link.startswith(("http", "data:")):
            assert (report / link).resolve().is_file(), link


def test_the_grid_shows_the_same_pairs_for_every_row(outputs, report):
    rows = lines("table1", collect(outputs))
    sheet = report / "again.png"
    found = table_grid(rows, headline(rows)[0], sheet, report, pairs=3)
    assert found is not None
    strips = found[1].strips
    assert len(strips) == 3
    for title, faces in strips:
        pair = title.removeprefix("Pair ")
        assert [f.caption for f in faces[1:-1]] == [line.label for line in rows if line.ours]
        assert all(f.path.stem == pair for f in faces[1:-1])
        assert faces[0].caption == f"Identity a: {pair[:3]}"
    with Image.open(sheet) as image:
        assert image.width > (2 + len(KINDS)) * CELL
    # One point of Table 4 has no images, so that there is no pair to compare.
    rows = lines("table4", collect(outputs))
    assert table_grid(rows, headline(rows)[0], sheet, report) is None
    assert (report / "plots" / "table1_morphs.svg").is_file()
    assert not (report / "plots" / "table4_morphs.png").exists()


def test_figure_experiments_have_their_grids_and_no_table(report):
    page = (report / "report.html").read_text()
    section = page[page.index('<section id="figure4">') :].split("</section>")[0]
    assert "<h2>Figure 4: morphs</h2>" in section and "<table" not in section
    strip = section.split('class="strip"')[1]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", strip)
    assert captions[1:-1] == ["M = 20", "M = 5"]
    assert (report / "plots" / "figure4.svg").is_file()
    assert "M = 20" not in (report / "tables" / "table1-other.md").read_text()


def test_pixels_and_vectors_are_the_same_grid(tmp_path):
    face = tmp_path / "face.png"
    Image.fromarray(np.full((8, 8, 3), (10, 200, 30), np.uint8)).save(face)
    morph = (tmp_path / "absent.png", "m < n", [("Arc", "yes"), ("Ada", "failed")])
    row = pair_strip("1 & 2", [("a", face), ("b", face)], [morph], str)
    sheet = morph_grid([row], ["Arc", "Ada"], "caption")
    assert sum(isinstance(item, GridFace) for item in sheet.items) == 2
    pixels = sheet.pixels()
    assert pixels.size == (sheet.width, sheet.height)
    at = next(item for item in sheet.items if isinstance(item, GridFace))
    assert pixels.getpixel((at.x + 70, at.y + 70)) == (10, 200, 30)
    tree = ET.fromstring(sheet.svg())
    kinds = [element.tag.rpartition("}")[2] for element in tree]
    boxes = [item for item in sheet.items if isinstance(item, Rectangle)]
    assert kinds.count("rect") == 1 + sum(box.fill is not None for box in boxes)
    assert kinds.count("line") == 1 and kinds.count("image") == 2
    words = [element.text for element in tree if element.tag.endswith("text")]
    assert words == [item.line for item in sheet.items if isinstance(item, Text)]
    assert "1 & 2" in words and "m < n" in words


def test_boxes_of_labels_with_one_beginning_are_told_apart_in_two_letters(tmp_path):
    face = tmp_path / "face.png"
    Image.new("RGB", (8, 8)).save(face)
    labels = ["faceplugin", "MobileFaceNet", "MobileFace", "M", "dlib ResNet"]
    morph = (face, "A", [(label, "yes") for label in labels])
    row = pair_strip("1", [("a", face), ("b", face)], [morph], str)
    found = [i for i in morph_grid([row], labels, "").items if isinstance(i, Text)]
    boxes = [item.line for item in found if item.anchor == "mm"]
    assert boxes == ["fa", "Mo", "Mb", "4", "dl"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_the_latex_compiles(report, tmp_path):
    tables = sorted((report / "tables").glob("*.tex"))
    assert len(tables) >= 6
    inputs = "\n".join(rf"\input{{{path.as_posix()}}}" for path in tables)
    document = tmp_path / "paper.tex"
    document.write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\usepackage{graphicx}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", document.name],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "Missing character" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000
