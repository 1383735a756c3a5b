"""Behind a rebuilt table: links to its runs, and the same pairs morphed by every row of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from adjointdeis.reporting.collect import AttackRuns, Collection, entries
from adjointdeis.reporting.document import Prose, Strips
from adjointdeis.reporting.morph_grid import morph_grid, pair_strip, write_morph_grid
from adjointdeis.reporting.paper_tables import Line, headline, systems_of
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.text import PROBES, share
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


def relative(path: Path, destination: Path) -> str:
    """A link from a page in `destination` to a file."""
    return Path(os.path.relpath(path, destination)).as_posix()


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
    ours = list({id(line.ours): line for line in rows if line.ours}.values())
    made = [(line.label, line.ours.attack, line.ours.runs[0]) for line in ours if line.ours]
    images = [_images(run, attack) for _, attack, run in made]
    common = [p for p in images[0] if all(p in other for other in images)] if images else []
    sources = _sources(made[0][2]) if made else {}
    common = [p for p in common if p in sources][:pairs]
    if not common:
        return None
    systems = [s for s in systems_of(rows) if any(s in run.systems for _, _, run in made)]
    labels = {s: run.system_label(s) for _, _, run in made for s in systems if s in run.systems}
    verdicts = [
        {s: run.verdicts(attack, s, at) for s in systems if s in run.systems}
        for _, attack, run in made
    ]
    strips = [
        pair_strip(
            pair,
            sources[pair],
            (
                (own[pair], label, [(labels[s], of[pair]) for s, of in marks.items() if pair in of])
                for (label, _, _), own, marks in zip(made, images, verdicts, strict=True)
            ),
            lambda path: relative(path, destination),
        )
        for pair in common
    ]
    caption = f"FMR {share(at.fmr)}, probe: {at.probe}, impostors: {at.impostors}. Research use."
    write_morph_grid(morph_grid(strips, list(labels.values()), caption), sheet)
    text = (
        "The first pairs that every row made, in the order of the pair list, not a selection; of "
        "several seeds the first. Under each morph the recognisers: filled where it matches both "
        f"subjects at FMR {share(at.fmr)} (against {PROBES.get(at.probe, at.probe)}), hollow where "
        "it does not, dashed where a comparison failed."
    )
    alt = "Morph grid: identity a, every row of the table, identity b; one row per pair"
    return Prose(text), Strips(tuple(strips), sheet, alt)


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


def _images(run: Run, attack: str) -> dict[str, Path]:
    """Morph files that exist, by pair, in the order of the pair list."""
    found = {p["pair_id"]: run.path(p["morphs"].get(attack, "")) for p in run.result["pairs"]}
    return {pair: path for pair, path in found.items() if path.is_file()}


def _sources(run: Run) -> dict[str, tuple[tuple[str, Path], tuple[str, Path]]]:
    """(subject, file) of both sources of the pairs whose sources exist."""
    found = {
        p["pair_id"]: (
            (p["subject_a"], run.path(p["source_a"])),
            (p["subject_b"], run.path(p["source_b"])),
        )
        for p in run.result["pairs"]
    }
    return {pair: ends for pair, ends in found.items() if all(end[1].is_file() for end in ends)}
