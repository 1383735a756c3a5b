"""The aggregator: the paper's Tables 1, 4, 5, 6 over all finished runs, in every format."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from adjointdeis.evaluation.storage import write_json
from adjointdeis.files import write_atomically, write_csv
from adjointdeis.reporting import paired_tables
from adjointdeis.reporting.collect import Collection, collect, without_broken
from adjointdeis.reporting.detection import detection_sections
from adjointdeis.reporting.document import (
    DASH,
    Block,
    Bullets,
    Cell,
    Document,
    FigureRow,
    Prose,
    Section,
    Strips,
    Table,
    drawn,
    drawn_files,
    folded,
)
from adjointdeis.reporting.morph_grid import FIGURE, figure_grids, relative, run_links, table_grid
from adjointdeis.reporting.paired_tables import paired_lines
from adjointdeis.reporting.paper_tables import (
    ASSUMED,
    NUMBERS,
    TITLES,
    Line,
    headline,
    lines,
    records,
    systems_of,
)
from adjointdeis.reporting.render_html import write_pages
from adjointdeis.reporting.render_latex import latex_table
from adjointdeis.reporting.render_markdown import markdown_table
from adjointdeis.reporting.report import RESPONSIBLE
from adjointdeis.reporting.run import KNOWN, EvaluationSetting, Run
from adjointdeis.reporting.run_tables import GUIDE_NOTE, flagged, paper_cell
from adjointdeis.reporting.sweep_plots import pareto_figure, sweep_figure
from adjointdeis.reporting.text import (
    PROBES,
    count,
    duration,
    plural,
    rate_cell,
    small,
)
from adjointdeis.texts import slug, spreadsheet_cell


def aggregate(
    outputs: Path | str,
    destination: Path | str,
    *,
    plots: bool = True,
) -> list[Path]:
    """Collects runs and writes the tables with ours beside the paper's.

    Args:
        outputs: the folder that holds `<experiment>/<hash>/result.json`.
        destination: where to write; made if absent. It links to the runs by relative paths.
        plots: whether to draw; drawing takes most of the time.

    Returns:
        the files written: report.html, report.md, then per table and probe policy .md, .tex, .csv
        and .json, then the plots.

    Raises:
        ReportError: no readable run under `outputs`; of several, those that cannot be reported are
            left out and named at the end of the report.
    """
    destination = Path(destination)
    collection = collect(outputs)
    try:
        return _write_all(collection, destination, plots)
    # What a stranger's run breaks cannot be foreseen; whatever it is, that run alone is left out.
    except Exception:
        usable = without_broken(collection, lambda one, to: _write_all(one, to, plots))
        if len(usable) in (0, len(collection)):
            raise
        return _write_all(usable, destination, plots)


def _write_all(collection: Collection, destination: Path, plots: bool) -> list[Path]:
    """Every file of the report of a collection."""
    found = {name: lines(name, collection) for name in NUMBERS}
    sections = [_table_section(name, rows, destination, plots) for name, rows in found.items()]
    for name, grid in sorted(figure_grids(collection, destination).items() if plots else ()):
        sections.append(Section(name, f"Figure {name.removeprefix(FIGURE)}: morphs", grid))
    detected, broken = detection_sections(collection, destination / "plots" if plots else None)
    collection = replace(collection, skipped=(*collection.skipped, *broken))
    sections += [*detected, Section("runs", "Runs", _runs(collection, destination))]
    experiments = len({run.result["experiment"] for run in collection})
    lead = (
        f"The paper's Tables 1, 4, 5 and 6 rebuilt from {plural(len(collection), 'run')} of "
        f"{plural(experiments, 'experiment')}. Every rate leads to its run."
    )
    document = Document("Ours beside the paper's", lead, tuple(sections), (RESPONSIBLE,))
    written = write_pages(document, destination)
    for name, rows in found.items():
        written += _write_table(name, rows, destination / "tables", destination)
    sheets = [block.sheet for block in document.blocks if isinstance(block, Strips)]
    written += drawn_files(document.blocks)
    return [*written, *(path for sheet in sheets for path in (sheet.with_suffix(".svg"), sheet))]


def _table_section(name: str, rows: Sequence[Line], destination: Path, plots: bool) -> Section:
    """A table under each condition, its rows against the first, its morphs and its figures."""
    blocks: list[Block] = []
    if not any(line.ours for line in rows):
        blocks.append(Prose("No run of this table was found; the paper's numbers stand alone."))
    for at in headline(rows) or [None]:
        table = _comparison_table(name, rows, at, destination)
        # The section's own title names the table already.
        short = table.title.removeprefix(f"{TITLES[name]}, ")
        blocks.append(replace(table, title=short))
    for at in headline(rows)[:1]:
        paired = paired_lines(name, rows, at)
        blocks += [folded(paired, key=paired.key)] if paired is not None else []
        if plots:
            folder = destination / "plots"
            blocks += table_grid(rows, at, folder / f"{name}_morphs.png", destination) or ()
            make = pareto_figure if name == "table1" else sweep_figure
            figures = drawn(
                make(name, rows, s, label, at, folder / f"{name}_{slug(s)}")
                for s, label in _system_labels(rows).items()
            )
            blocks += [FigureRow("Ours and the paper's", figures)] if figures else []
    return Section(name, TITLES[name], tuple(blocks))


def _comparison_table(
    name: str, rows: Sequence[Line], at: EvaluationSetting | None, destination: Path
) -> Table:
    """One table under one condition; ours and the paper's in neighbouring columns."""
    names, header = _system_labels(rows), ["Row", "NFE"]
    columns: list[tuple[str, bool]] = []  # of rates: recogniser, and whether it is the paper's
    for system, label in names.items():
        columns.append((system, False))
        header.append(f"{label}, ours")
        if any(line.paper and system in line.paper for line in rows):
            columns.append((system, True))
            # The paper judged by its own networks, whatever ours are called.
            header.append(f"{KNOWN.get(system, system)}, paper")
    errors = any(line.ours and line.ours.first.get("gradient_error") for line in rows)
    header += ["Gradient error"] if errors else []
    header.append("Comparable")
    reasons = list(dict.fromkeys(reason for line in rows for reason in line.reasons))
    letters = {reason: f"({_letter(i)})" for i, reason in enumerate(reasons)}
    own = [line.label for line in rows]
    body = [
        (
            _name(line, own.count(line.label) > 1, destination),
            _cost(line),
            *(
                paper_cell(line.paper, system) if paper else _ours(line, system, at, destination)
                for system, paper in columns
            ),
            *((_error(line),) if errors else ()),
            _comparable(line, letters),
        )
        for line in rows
    ]
    against = f", against {PROBES.get(at.probe, at.probe)}" if at else ""
    notes = [f"{letter} Not comparable: {reason}." for reason, letter in letters.items()]
    notes.append(f"Even where a row says yes: {ASSUMED}.")
    notes.append(
        "Under each rate: k/N and its interval for new subjects, of several seeds the mean ends. "
        "The paper's cells are k/489; their "
        "intervals are ours. NFE: ours by the paper's accounting N_E + n_opt (N + M); under it the "
        "evaluations and vector-Jacobian products that were counted, what the paper states, and "
        "the wall time of ours."
    )
    if any(line.ours and len(line.ours.runs) > 1 for line in rows):
        notes.append(
            "Rows of several seeds: k is the mean count over seeds and N the pairs, which the "
            "seeds share; ± is the standard deviation over seeds."
        )
    if any(line.ours and line.ours.guided(s) for line in rows for s in names):
        notes.append(GUIDE_NOTE)
    if errors:
        notes.append("Gradient error: ‖g − g*‖/‖g*‖ against the exact gradient, and the cosine.")
    return Table(
        key=f"{name}-{at.probe}" if at else name,
        title=f"{TITLES[name]}, MMPMR in %{against}",
        header=tuple(header),
        rows=tuple(body),
        labels=at.labels if at else (),
        notes=tuple(notes),
    )


def _name(line: Line, twice: bool, destination: Path) -> Cell:
    """What the row is, with its configuration where two rows are called the same."""
    e, detail = line.ours, []
    if e and e.label != line.label and line.paper and "attack" in line.paper:
        detail.append(f"ours: {e.label}")
    if e and len(e.runs) > 1:
        detail.append(plural(len(e.runs), "seed"))
    if e and e.degradation:
        detail.append(f"after {e.degradation}")
    if e is None:
        detail.append("(not run)")
    source = str((line.paper or {}).get("source", ""))
    if source and not source.startswith("AdjointDEIS"):
        detail.append(f"({source})")
    if e and twice:
        detail.append(f"configuration {e.config_hash[:8]}")
    return Cell(line.label, tuple(detail), links=run_links(e, destination) if e else ())


def _cost(line: Line) -> Cell:
    """NFE by the paper's accounting, then as counted, the paper's own, and the time it took."""
    theirs = line.paper.get("nfe") if line.paper else None
    detail = [f"paper's {count(theirs)}"] if theirs else []
    if line.ours is None:
        return Cell(DASH, tuple(detail))
    counted, seconds = line.ours.counted(), line.ours.number("seconds_per_pair")
    detail = [f"counted {count(counted)}", *detail]
    detail += [f"{duration(seconds)} a pair"] if seconds is not None else []
    return Cell(count(line.ours.number("nfe_paper")), tuple(detail))


def _ours(line: Line, system: str, at: EvaluationSetting | None, destination: Path) -> Cell:
    entry = line.ours
    found = entry.rate(system, at) if entry and at else None
    if entry is None or found is None:
        return Cell(DASH)
    cell = rate_cell(found, _link(entry.runs[0], destination))
    if found["seed_sd"] is not None:
        cell = replace(cell, detail=(*cell.detail, f"± {100 * found['seed_sd']:.1f}"))
    return flagged(cell, entry.guided(system))


def _error(line: Line) -> Cell:
    error = line.ours.first.get("gradient_error") if line.ours else None
    return (
        Cell(small(error["relative"]), (f"cosine {error['cosine']:.2f}",)) if error else Cell(DASH)
    )


def _comparable(line: Line, letters: Mapping[str, str]) -> Cell:
    if line.ours is None or line.paper is None:
        return Cell("ours alone" if line.ours else DASH)
    return Cell("no", tuple(letters[r] for r in line.reasons)) if line.reasons else Cell("yes")


def _link(run: Run, destination: Path) -> str:
    """The report of a run, or its result, relative to the destination."""
    page = run.directory / "report.html"
    return relative(page if page.is_file() else run.directory / "result.json", destination)


def _runs(collection: Collection, destination: Path) -> tuple[Block, ...]:
    rows = []
    for run in collection:
        r = run.result["run"]
        rows.append(
            (
                Cell(run.result["experiment"], (r["config_hash"],), _link(run, destination)),
                Cell(str(len(run.result["attacks"]))),
                Cell(str(len(run.result["pairs"]))),
                Cell(str(r["seed"])),
                Cell(run.profile),
                Cell(duration(r.get("wall_seconds"))),
                Cell(run.result["created"][:16].replace("T", " ")),
                Cell(str(r["git"] or DASH)[:12]),
            )
        )
    table = Table(
        key="runs-table",
        title="Every run behind these tables",
        header=("Experiment", "Attacks", "Pairs", "Seed", "Assets", "Wall time", "Created", "Git"),
        rows=tuple(rows),
    )
    if not collection.skipped:
        return (table,)
    left = tuple(
        f"{path.relative_to(collection.outputs).as_posix()}: {why}"
        for path, why in collection.skipped
    )
    return (table, Prose("Left out:"), Bullets(left))


def _write_table(name: str, rows: list[Line], folder: Path, destination: Path) -> list[Path]:
    written = []
    for at in headline(rows) or [None]:
        table = _comparison_table(name, rows, at, destination)
        texts = {"md": markdown_table(table, level=2) + "\n", "tex": latex_table(table)}
        for suffix, text in texts.items():
            written.append(folder / f"{slug(table.key)}.{suffix}")
            write_atomically(written[-1], text)
    found = records(name, rows)
    path = folder / f"{name}.json"
    tests = [r for at in headline(rows) for r in paired_tables.records(name, rows, at)]
    write_json({"schema": 1, "table": name, "rows": found, "paired": tests}, path)
    rows_of_text = (map(spreadsheet_cell, row.values()) for row in found)
    write_csv(folder / f"{name}.csv", [found[0], *rows_of_text])
    return [*written, folder / f"{name}.csv", path]


def _system_labels(rows: Sequence[Line]) -> dict[str, str]:
    """Printed name of every recogniser of a table, in the order of its columns."""
    names = dict(KNOWN)
    for line in rows:
        if line.ours:
            run = line.ours.runs[0]
            names.update({s: run.system_label(s) for s in run.systems})
    return {system: names.get(system, system) for system in systems_of(rows)}


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else str(index + 1)
