"""Behind a rebuilt table: links to its runs, and the same pairs morphed by every row of it."""

from collections.abc import Sequence
from pathlib import Path

from adjointdeis.reporting.collect import AttackRuns, Collection, entries
from adjointdeis.reporting.document import Prose, Strips
from adjointdeis.reporting.morph_grid import Column, morph_grid, relative
from adjointdeis.reporting.paper_tables import Line, headline, systems_of
from adjointdeis.reporting.run import EvaluationSetting
from adjointdeis.texts import slug

PAIRS = 4
FIGURE = "figure"


def run_links(entry: AttackRuns, destination: Path) -> tuple[tuple[str, str], ...]:
    """(word, target) of every run's page, configuration and images, relative to `destination`."""
    found = []
    for run in entry.runs:
        seed = f"seed {run.result['run']['seed']}: " if len(entry.runs) > 1 else ""
        page = run.path("report.html").is_file()
        targets = (
            ("run", "report.html" if page else "result.json", ""),
            ("config", "config.yaml", ""),
            ("images", "report.html" if page else "morphs.png", "#morphs" if page else ""),
        )
        for word, name, anchor in targets:
            if run.path(name).is_file():
                found.append((seed + word, relative(run.path(name), destination) + anchor))
                seed = ""
    return tuple(found)


def table_grid(
    rows: Sequence[Line], at: EvaluationSetting, sheet: Path, destination: Path, pairs: int = PAIRS
) -> tuple[Prose, Strips] | None:
    """Identity a, every row's morph, identity b, for the first pairs that all rows have images of.

    Args:
        rows: a table; the paper's rows that no run made are left out.
        at: the condition of the verdicts under each morph.
        sheet: where the grid is written as one PNG, with an SVG beside it.
        destination: the folder that links are relative to.

    Returns:
        a sentence and the strips, or None where the rows have no pair with images in common.
    """
    ours = {id(line.ours): (line.label, line.ours) for line in rows if line.ours}
    columns = [Column(label, entry.runs[0], entry.attack) for label, entry in ours.values()]
    if not columns:
        return None
    run = columns[0].run
    images = [{p for p, path in c.morphs().items() if path.is_file()} for c in columns]
    common = [
        pair
        for pair in run.result["pairs"]
        if all(run.path(pair[side]).is_file() for side in ("source_a", "source_b"))
        and all(pair["pair_id"] in own for own in images)
    ]  # fmt: skip
    if not common:
        return None
    systems = [s for s in systems_of(rows) if any(s in c.run.systems for c in columns)]
    told = (
        "The first pairs that every row made, in the order of the pair list, not a selection; of "
        "several seeds the first."
    )
    return morph_grid(
        columns, common[:pairs], systems, at, sheet, destination, what="every row of the table",
        told=told,
    )  # fmt: skip


def figure_grids(collection: Collection, destination: Path) -> dict[str, tuple[Prose, Strips]]:
    """The grid of every `figure*` experiment, such as the paper's Figures 3 to 6, by its name."""
    found = {}
    for run in collection:
        name = run.result["experiment"]
        if not name.startswith(FIGURE):
            continue
        rows = [Line(entry.label, None, entry) for entry in entries([run])]
        for at in headline(rows)[:1]:
            grid = table_grid(rows, at, destination / "plots" / f"{slug(name)}.png", destination)
            if grid is not None:
                found[name] = grid
    return found
