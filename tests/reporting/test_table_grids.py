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
from adjointdeis.reporting.document import Picture
from adjointdeis.reporting.morph_grid import CELL, GAP, _abbreviations, draw_grid, table_grid
from adjointdeis.reporting.paper_tables import headline, lines

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
    face, sheet = tmp_path / "face.png", tmp_path / "sheet.png"
    Image.fromarray(np.full((8, 8, 3), (10, 200, 30), np.uint8)).save(face)
    marks = (("Arc", "yes"), ("Ada", "no"), ("Dlib", "failed"))
    faces = [Picture(face, "Identity a: a"), Picture(tmp_path / "absent.png", "m < $n$", marks),
             Picture(face, "Identity b: b")]  # fmt: skip
    draw_grid([("Pair 1 & 2", faces)], ["Arc", "Ada", "Dlib"], "caption", sheet)
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    shown = (pixels == (10, 200, 30)).all(2)
    # Two faces, to the pixel, and none where the image is absent.
    assert shown.sum() == 2 * CELL**2
    assert sorted(np.flatnonzero(shown.any(0)))[-1] == pixels.shape[1] - 2 * GAP - 1
    left = np.flatnonzero(shown.any(0))[0] + CELL + GAP
    row = np.flatnonzero(shown.any(1))[-1] + 6
    # The first box is filled with ink, the others with the ground.
    dark = [pixels[row, left + k * CELL // 3 + 4].sum() < 200 for k in range(3)]
    assert dark == [True, False, False]
    tree = ET.parse(sheet.with_suffix(".svg")).getroot()
    assert sum(element.tag.endswith("}image") for element in tree.iter()) == 2


def test_boxes_of_labels_with_one_beginning_are_told_apart_in_two_letters():
    labels = ["faceplugin", "MobileFaceNet", "MobileFace", "M", "dlib ResNet"]
    assert list(_abbreviations(labels).values()) == ["fa", "Mo", "Mb", "4", "dl"]


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
