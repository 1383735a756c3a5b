"""Plots: what they draw, that they are reproducible, and that labels do not overlap."""

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from adjointdeis.reporting import Run, collect, plots
from adjointdeis.reporting.curves import det_figure, operating_curve_figure, potential_figure
from adjointdeis.reporting.document import Document, FigureRow, Section
from adjointdeis.reporting.paper_tables import lines
from adjointdeis.reporting.plots import (
    cost_figure,
    curve_figure,
    density_figure,
    pareto_front,
    scatter_figure,
)
from adjointdeis.reporting.render_html import html
from adjointdeis.reporting.report import figures_of
from adjointdeis.reporting.style import (
    INK,
    figure,
    growth,
    label_beside,
    label_points,
    look,
    save,
    spread,
)
from adjointdeis.reporting.sweep_plots import sweep_figure


@pytest.fixture(scope="module")
def run(bare_run):
    return Run.read(bare_run[0])


def test_a_plot_is_written_twice_alike(run, tmp_path):
    at = run.headline[0]
    first = density_figure(run, "dlib", at, tmp_path / "first" / "densities")
    second = density_figure(run, "dlib", at, tmp_path / "second" / "densities")
    assert first.svg.read_bytes() == second.svg.read_bytes()
    assert first.png.read_bytes()[:4] == b"\x89PNG"
    assert first.alt.startswith("dlib ResNet: share of comparisons beyond the threshold")


def test_a_distribution_narrower_than_the_grid_is_drawn():
    x = np.linspace(0, 100, 400)
    for values in (np.full(5, 50.1), 50.1 + 1e-6 * np.arange(3000)):
        density = plots._density(values, x)
        assert np.isfinite(density).all() and abs(x[density.argmax()] - 50.1) < 0.3
        assert density.sum() * (x[1] - x[0]) == pytest.approx(1, abs=0.02)


def test_the_scatter_counts_what_the_table_counts(run, tmp_path):
    at = run.headline[0]
    figure = scatter_figure(run, "dlib", at, tmp_path / "scatter")
    row = run.row("exact", "dlib", at)
    assert f"exact gradient {row['k']} of {row['n']}" in figure.alt


def test_the_cost_plot_states_rate_and_cost(run, tmp_path):
    at = run.headline[0]
    figure = cost_figure(run, "arcface", at, tmp_path / "cost")
    row = run.row("dim_a", "arcface", at)
    assert f"DiM-A {100 * row['value']:.2f}% at 350" in figure.alt


def test_names_and_costs_of_the_cost_plot_do_not_overlap(tmp_path, make_run, monkeypatch):
    costs = (300, 310, 350, 350, 370, 450, 470, 640, 690)
    attacks = {
        f"a{k}": (f"Exact gradient (ODE), Adam, N = {k}", None, 0.3 + 0.05 * k, 1, cost)
        for k, cost in enumerate(costs)
    }
    make_run(
        tmp_path / "run", systems=("arcface",), images=False, n_pairs=10, replicates=0,
        attacks=attacks,
    )  # fmt: skip
    boxes: list[tuple[str, object]] = []

    def measured(made, stem):
        made.draw_without_rendering()
        (axes,) = made.axes
        for label in (*axes.texts, *axes.get_xticklabels()):
            boxes.append((label.get_text(), Text.get_window_extent(label)))
        return save(made, stem)

    monkeypatch.setattr(plots, "save", measured)
    found = Run.read(tmp_path / "run")
    cost_figure(found, "arcface", found.headline[0], tmp_path / "cost")
    assert len(boxes) == len(costs) + len(set(costs))
    for (one, a), (other, b) in combinations(boxes, 2):
        turned = one.isdigit() and other.isdigit()  # the box of a turned text is not the text
        assert turned or not a.overlaps(b), (one, other)


def test_curves_end_in_their_last_value(run, tmp_path):
    figure = curve_figure(run, "loss", tmp_path / "loss")
    last = run.result["attacks"]["exact"]["curves"]["loss"][-1]
    assert f"to {last:.3g}" in figure.alt
    assert curve_figure(run, "absent", tmp_path / "none") is None


def test_curves_over_thresholds_agree_with_the_rates(run, tmp_path):
    at = run.headline[0]
    assert "FNMR" in det_figure(run, at, tmp_path / "det").alt
    assert operating_curve_figure(run, "arcface", at, tmp_path / "operating") is not None
    potential = potential_figure(run, at, tmp_path / "potential")
    both = [run.verdicts("exact", s, at) for s in run.systems]
    share = np.mean([all(v[m] == "yes" for v in both) for m in both[0]])
    assert f"exact gradient {100 * share:.0f}% at all" in potential.alt


def test_inline_plots_follow_the_page_and_share_no_id(run, tmp_path):
    at = run.headline[0]
    figures = tuple(cost_figure(run, s, at, tmp_path / f"cost_{s}") for s in run.systems)
    page = html(Document("t", "l", (Section("s", "S", (FigureRow("Cost", figures),)),)))
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert INK not in page.partition("</style>")[2]
    assert "currentColor" in page
    assert page.count('<svg role="img" aria-label=') == 2
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert target in ids


def test_the_sweep_plot_names_every_cell(tmp_path, make_run):
    for steps in (5, 10):
        make_run(
            tmp_path / str(steps), experiment="table4", systems=("arcface",), images=False,
            n_pairs=10, replicates=0, attacks={"a": ("AdjointDEIS-1", None, 0.3, 1, 900)},
            settings={"adjoint_steps": steps},
        )  # fmt: skip
    found = lines("table4", collect(tmp_path))
    at = Run.read(tmp_path / "5").headline[0]
    figure = sweep_figure("table4", found, "arcface", "ArcFace", at, tmp_path / "sweep")
    assert "at M = 5" in figure.alt
    assert "at M = 10" in figure.alt
    # The labels beside the axes are whole: nothing touches the picture's right edge.
    with Image.open(figure.png) as picture:
        edge = np.asarray(picture.convert("L"))[:, -3:]
    assert edge.min() > 250


def test_labels_keep_their_distance_their_order_and_their_place():
    generator = np.random.default_rng(0)
    for _ in range(50):
        positions = generator.uniform(0, 100, 8)
        placed = spread(positions, 7.5, 0, 100)
        ordered = placed[np.argsort(positions)]
        assert (np.diff(ordered) >= 7.5 - 1e-9).all()
        assert placed.min() >= -1e-9
        assert placed.max() <= 100 + 1e-9
    assert spread([10.0, 50.0, 90.0], 5, 0, 100).tolist() == [10.0, 50.0, 90.0]
    assert spread([], 5, 0, 1).size == 0


def test_the_front_has_only_points_that_pay():
    cost = np.array([350.0, 650.0, 650.0, 900.0])
    assert pareto_front(cost, np.array([20.0, 30.0, 60.0, 55.0])) == [0, 2]


def test_neighbouring_looks_differ_without_colour():
    looks = [look(i) for i in range(4)]
    assert len({x.marker for x in looks}) == 4
    assert len({str(x.dash) for x in looks}) == 4


LONG = "AdjointDEIS(order=1, steps=20, states='recorded'), SDEDPMSolver, lr 0.01"


def test_a_long_name_loses_its_arguments_and_is_wrapped(tmp_path, make_run, recwarn):
    attacks = {
        "dim_a": ("DiM-A", "DiM-A", 0.22, None, 350),
        "guided": (LONG, None, 0.25, 1, 650),
        "ode": ("AdjointDEIS-1 (ODE)", None, 0.24, 1, 650),
    }
    make_run(tmp_path, attacks=attacks, systems=("arcface",), n_pairs=8, replicates=0, images=False)
    found = Run.read(tmp_path)
    assert found.short_label("guided") == "AdjointDEIS, SDEDPMSolver,\nlr 0.01"
    assert found.short_label("ode") == "AdjointDEIS-1 (ODE)" and found.label_lines == 2
    figures_of(found, found.headline[0])
    # Room for the plot itself is left beside its labels.
    assert not [w for w in recwarn if "constrained_layout" in str(w.message)]


def test_two_names_that_differ_in_arguments_alone_keep_them(tmp_path, make_run):
    attacks = {
        "a": (LONG, None, 0.22, 1, 650),
        "b": (LONG.replace("20", "10"), None, 0.25, 1, 650),
    }
    make_run(tmp_path, attacks=attacks, systems=("arcface",), n_pairs=4, replicates=0, images=False)
    found = Run.read(tmp_path)
    assert found.short_label("a").replace("\n", " ") == LONG
    assert found.short_label("a") != found.short_label("b")


@pytest.mark.parametrize("labels", [1, 13, 14, 15, 40])
def test_a_figure_of_many_labels_grows_until_all_of_them_fit(labels):
    gap = 7.5
    higher = growth(labels, gap, 100)
    placed = spread([100.0] * labels, gap / higher, 0, 100)
    assert placed.min() >= -1e-9 and placed.max() <= 100 + 1e-9
    # As far apart on the page as ever.
    assert all(step * higher >= gap - 1e-9 for step in np.diff(np.sort(placed)))
    assert higher == 1 or labels > 14


@pytest.mark.parametrize(("labels", "rows", "lines"), [(3, 1, 1), (23, 2, 1), (12, 1, 2)])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_no_name_beside_the_axes_covers_another(labels, rows, lines, logarithmic, tmp_path):
    """Whatever their number: the plot of 23 gradient methods had a name over every other."""
    with figure(4.6, 2.9 * rows, rows=rows, squeeze=False) as (made, axes):
        for panel in axes[:, 0]:
            panel.set_yscale("log" if logarithmic else "linear")
            panel.set_ylim(1e-6, 1e2)
            ends = [(f"method {k}\n" * (lines - 1) + "x", 1.0, 1.0, INK) for k in range(labels)]
            limits = (-6, 2) if logarithmic else (0, 100)
            label_beside(panel, ends, *limits)
            panel.set_title("a title")
        axes[-1, 0].set_xlabel("an axis")
        grown = made.get_size_inches()[1] > 2.9 * rows
        save(made, tmp_path / "many")
        for panel in axes[:, 0]:
            boxes = sorted(Text.get_window_extent(t).y0 for t in panel.texts)
            tall = Text.get_window_extent(panel.texts[0]).height
            assert len(boxes) == labels and (np.diff(boxes) > 0.95 * tall).all()
            assert panel.get_window_extent().y0 - tall < boxes[0]
    assert grown == (labels > 3)


def test_names_of_points_that_are_close_cover_no_other_and_stay_inside(tmp_path):
    """Both ends of a front at one height, the last at the right edge, as on the leaderboard."""
    points = [
        (f"a method of some length, {k}", x, y)
        for k, (x, y) in enumerate([(7, 1.0), (600, 5e-5), (1400, 4.5e-5), (1500, 4.4e-5)])
    ]
    with figure(5.6, 3.8) as (made, axes):
        axes.loglog([x for _, x, _ in points], [y for *_, y in points], "o")
        axes.margins(x=0.12)
        label_points(axes, points, fontsize=6.5)
        save(made, tmp_path / "front")
        frame, boxes = axes.get_window_extent(), []
        for label in axes.texts:
            boxes.append(Text.get_window_extent(label))
    assert [label.get_text() for label in axes.texts] == [name for name, *_ in points]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 for box in boxes)
