"""The report of one run: `report.md`, `report.html`, `morphs.png` and plots, in its directory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adjointdeis.reporting import run_details as details, run_tables as tables
from adjointdeis.reporting.curves import det_figure, operating_curve_figure, potential_figure
from adjointdeis.reporting.detection import beside_table, detection_blocks
from adjointdeis.reporting.detection_result import DetectionResult
from adjointdeis.reporting.document import (
    Block,
    Bullets,
    Cell,
    Document,
    Facts,
    Figure,
    FigureRow,
    Folded,
    Prose,
    Section,
    Table,
    drawn,
    drawn_files,
)
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.morph_grid import Column, morph_grid
from adjointdeis.reporting.paired_tables import paired_table
from adjointdeis.reporting.plots import (
    cost_figure,
    curve_figure,
    density_figure,
    scatter_figure,
)
from adjointdeis.reporting.render_html import write_pages
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.schema import RESULT
from adjointdeis.reporting.text import duration, listed, plural
from adjointdeis.texts import slug

PLOTS, SHEET = "plots", "morphs.png"
RESPONSIBLE = (
    "Responsible use: morphs are attacks on face recognition. These were made for research, carry "
    "that mark in their metadata, and must not be used to obtain or forge a document. Use only "
    "images of people who agreed to this use."
)


def write_report(run_directory: Path | str, *, pairs: int = 8, plots: bool = True) -> list[Path]:
    """Writes the report of a finished run beside its `result.json`.

    Args:
        run_directory: holds `result.json`, the scores and the images that it names.
        pairs: how many pairs the morph grid shows, the first of the pair list, never a selection.
        plots: whether to draw plots; they take most of the time.

    Returns:
        the files written: report.md, report.html, the rows of detectors where the run holds a
        `detection.csv`, morphs.png, then the plots as SVG and PNG.

    Raises:
        ReportError: a result that is absent or breaks the schema, a missing score file, an
            unreadable image. A morph that does not exist leaves an empty cell.
    """
    if pairs < 1:
        raise ReportError(f"pairs {pairs}: the morph grid needs at least 1")
    run = Run.read(run_directory)
    if not run.headline:
        raise ReportError(f"{run.directory / RESULT}: rows: empty, there is no rate to report")
    at = run.headline[0]
    figures = figures_of(run, at) if plots else {}
    detection = DetectionResult.of_run(run)
    document = _run_document(run, figures, pairs, detection)
    written = write_pages(document, run.directory)
    if detection is not None:
        written.append(detection.write(run.directory))
    return [*written, run.directory / SHEET, *drawn_files(document.blocks)]


def figures_of(run: Run, at: EvaluationSetting) -> dict[str, Sequence[Figure]]:
    """Every plot of a run under one condition, by kind, written into its folder `plots`."""
    folder = run.path(PLOTS)
    of_systems = {"densities": density_figure, "scatter": scatter_figure, "cost": cost_figure,
                  "operating": operating_curve_figure}  # fmt: skip
    found: dict[str, Sequence[Figure]] = {}
    for kind, make in of_systems.items():
        found[kind] = drawn(make(run, s, at, folder / f"{kind}_{slug(s)}") for s in run.systems)
    for key in ("loss", "gradient_norm"):
        found[key] = drawn([curve_figure(run, key, folder / key)])
    both = det_figure(run, at, folder / "det"), potential_figure(run, at, folder / "potential")
    return {**found, "recognisers": drawn(both)}


def _run_document(
    run: Run,
    figures: dict[str, Sequence[Figure]],
    pairs: int,
    detection: DetectionResult | None,
) -> Document:
    """The report as a document.

    Args:
        run: The run.
        figures: From `figures_of`; with none, detectors are not drawn either.
        pairs: Of the morph grid.
        detection: Scores of detectors, where there are some.
    """
    result, at = run.result, run.headline[0]
    results: list[Block] = [tables.rate_table(run, c, explained=c == at) for c in run.headline]
    results.append(_reading(run))
    if detection is not None and (beside := beside_table(detection, at)).rows:
        results.append(beside)
    optional = [
        details.gradient_table(run),
        paired_table(run, at),
        tables.bound_table(run, at),
        tables.sensitivity_table(run, at),
    ]
    closer = [table for table in optional if table is not None]
    paper = tables.paper_rows_table(run, at)
    sections = [
        Section("results", "Results", tuple(results)),
        Section("morphs", "Morphs", _morphs(run, at, pairs)),
    ]
    if figures:
        sections.append(Section("plots", "Plots", plot_rows(figures)))
    if paper is not None:
        sections.insert(1, Section("beside-the-paper", "Beside the paper", (paper,)))
    if detection is not None:
        folder = run.path(PLOTS) if figures else None
        blocks = detection_blocks(detection, at, folder)
        sections.insert(1, Section("detection", "Detection of morphing attacks", blocks))
    if closer:
        sections.append(Section("closer", "A closer look", tuple(closer)))
    sections += [
        Section("thresholds-section", "Thresholds", (details.threshold_table(run),)),
        Section("outcomes", "Outcome of every pair", _outcomes(run, at)),
        Section("run", "How it was run", _provenance(run)),
    ]
    n = len(result["pairs"])
    lead = (
        f"{plural(len(result['attacks']), 'attack')} on {plural(n, 'pair')} of faces, judged by "
        f"{listed([run.system_label(s) for s in run.systems])}. Made by {result['tool']} on "
        f"{result['created'][:10]}."
    )
    return Document(
        f"Morphing attack report: {result['experiment']}", lead, tuple(sections), (RESPONSIBLE,)
    )


def _reading(run: Run) -> Bullets:
    """What the words and intervals of the headline tables mean."""
    lines: list[str] = []
    lines.append(
        "MMPMR (mated morph presentation match rate): the share of morphs that match both "
        "contributing subjects. A comparison in which no face was found counts as a non-match."
    )
    if any(row["n_fta"] or row["n_fte"] for row in run.result["rows"]):
        shown = {(r["attack"], r["system"], r["probe_policy"]): r for r in run.result["rows"]}
        worst = max(shown.values(), key=lambda r: r["n_fta"] + r["n_fte"])
        lines.append(
            f"Failures to acquire or enrol occurred; most at {run.system_label(worst['system'])}, "
            f"{run.attack_label(worst['attack'])}, probe {worst['probe_policy']}: "
            f"{worst['n_fta'] + worst['n_fte']} comparisons."
        )
    return Bullets(tuple(lines))


def plot_rows(figures: dict[str, Sequence[Figure]]) -> tuple[FigureRow, ...]:
    """The figures of `figures_of` under their titles."""
    words = {
        ("cost",): "Success against cost",
        ("scatter",): "Both subjects at once",
        ("densities",): "Scores of every kind of comparison",
        ("operating",): "Success at other operating points",
        ("loss", "gradient_norm"): "The optimisation",
        ("recognisers",): "Across recognisers",
    }
    rows = (
        FigureRow(title, tuple(figure for kind in kinds for figure in figures.get(kind, ())))
        for kinds, title in words.items()
    )
    return tuple(row for row in rows if row.figures)


def _morphs(run: Run, at: EvaluationSetting, pairs: int) -> tuple[Block, ...]:
    """The first pairs of the list, with whom each morph fooled; drawn as `morphs.png` too."""
    columns = [Column(run.attack_label(attack), run, attack) for attack in run.result["attacks"]]
    every = run.result["pairs"]
    told = (
        f"The first {len(every[:pairs])} of {plural(len(every), 'pair')} in the order of the pair "
        "list, not a selection."
    )
    return morph_grid(
        columns, every[:pairs], run.systems, at, run.directory / SHEET, run.directory,
        what="each attack", told=told,
    )  # fmt: skip


def _outcomes(run: Run, at: EvaluationSetting) -> tuple[Block, ...]:
    blocks: list[Block] = [
        Prose(
            "Behind every count: which pairs it counts. A pair's name leads to its morph, where "
            "the run's folder holds it."
        )
    ]
    for attack in run.attacks:
        table = details.outcome_table(run, attack, at)
        if isinstance(table, Table):
            blocks.append(
                Folded(
                    f"{run.attack_label(attack)}: {plural(len(table.rows), 'pair')}",
                    (table,),
                    f"pairs-{attack}",
                )
            )
    return tuple(blocks)


def _provenance(run: Run) -> tuple[Block, ...]:
    r = run.result["run"]
    facts = [
        ("Experiment", run.result["experiment"]),
        ("Created", run.result["created"]),
        ("Tool", run.result["tool"]),
        ("Config hash", str(r["config_hash"])),
        ("Git revision", str(r["git"] or "unknown")),
        ("Seed", str(r["seed"])),
        ("Machine", str(r.get("machine") or "unstated")),
        ("Wall time", duration(r.get("wall_seconds"))),
    ]
    if r.get("versions"):
        facts.append(("Versions", ", ".join(f"{k} {v}" for k, v in r["versions"].items())))
    for name, asset in (r.get("assets") or {}).items():
        facts.append((f"Asset: {name}", _asset(asset)))
    for system in run.systems:
        facts.append(
            (f"Recogniser: {run.system_label(system)}", _asset(run.result["systems"][system]))
        )
    links = [Cell(RESULT, ("every number of this page",), RESULT)]
    for name, what in (
        (run.result["scores"], "every comparison"),
        ("config.yaml", "the resolved configuration"),
        (".hydra/config.yaml", "the resolved configuration"),
        ("metrics.jsonl", "every optimisation step"),
        ("citations.bib", "what to cite for what ran"),
        (SHEET, "the morph grid as one image"),
    ):
        if run.path(name).is_file():
            links.append(Cell(name, (what,), name))
    return (details.cost_table(run), Facts(tuple(facts)), Bullets(tuple(links)))


def _asset(asset: Mapping[str, Any]) -> str:
    parts = [str(asset.get("fingerprint") or "no fingerprint")[:16]]
    parts += [f"licence {asset['licence']}"] if asset.get("licence") else []
    parts += [f"alignment {asset['alignment']}"] if asset.get("alignment") else []
    return ", ".join(parts)
