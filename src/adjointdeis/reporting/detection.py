"""Detection in reports: the matrix, DET curves, and MMPMR against detectability.

A run directory that holds a `detection.csv` gets this section in its report; `adjointdeis-eval
detection` writes it from such a file alone. The verdict is about the system under test, recogniser
and detector together, and about what would harden it; no attack is made against a detector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adjointdeis.evaluation import DetectionStudy
from adjointdeis.evaluation.detection_matrix import DETECTION, UNDEGRADED
from adjointdeis.evaluation.detection_tables import (
    degradation_table,
    equal_error_cell,
    first_of,
    hardening_table,
    leave_one_out_table,
    matrix_table,
    overview_table,
    points_table,
    training,
)
from adjointdeis.reporting.collect import Collection, reason_of
from adjointdeis.reporting.detection_figures import (
    det_of_attacks,
    det_of_degradations,
    planes,
)
from adjointdeis.reporting.detection_result import BSCER, DetectionResult, Row
from adjointdeis.reporting.detection_verdict import verdict
from adjointdeis.reporting.document import (
    DASH,
    Block,
    Bullets,
    Cell,
    Document,
    FigureRow,
    Folded,
    Section,
    Table,
    cells,
    drawn,
    drawn_files,
    folded,
)
from adjointdeis.reporting.render_html import write_pages
from adjointdeis.reporting.render_latex import write_tables
from adjointdeis.reporting.run import EvaluationSetting
from adjointdeis.reporting.run_tables import GUIDE_NOTE, flagged
from adjointdeis.reporting.text import interval, listed, of, percent, rate_cell, share
from adjointdeis.texts import printable, slug

RESPONSIBLE = (
    "Responsible use: this is about finding morphs. No attack here was made against a detector."
)


def write_detection_report(
    study: DetectionStudy,
    rows: Sequence[Row],
    changed: Sequence[Row],
    out: Path | str,
    *,
    plots: bool = True,
) -> list[Path]:
    """Writes report.html, report.md, the rows as JSON, every table as CSV and LaTeX, and figures.

    Args:
        study: scores; rows: of `matrix_rows`; changed: of `hardening_rows`.
        out: the folder; made where it is absent.
        plots: whether to draw.
    """
    out = Path(out)
    result = DetectionResult(study, rows, changed)
    blocks = detection_blocks(result, None, out / "plots" if plots else None)
    n = sum(len(table) for table in study.tables.values())
    lead = f"{n} scores of {listed([printable(name) for name in study.detectors])}."
    section = Section("detection", "Who finds which attack", blocks)
    document = Document("Detection of morphing attacks", lead, (section,), (RESPONSIBLE,))
    written = [*write_pages(document, out), result.write(out)]
    return [*written, *write_tables(blocks, out / "tables"), *drawn_files(blocks)]


def detection_blocks(
    result: DetectionResult, at: EvaluationSetting | None, folder: Path | None
) -> tuple[Block, ...]:
    """What a report says about detection, but for `beside_table`.

    Args:
        result: The scores and their rows.
        at: The condition of MMPMR; None without a run.
        folder: Where figures go; None draws none.
    """
    rows, best = result.rows, result.ranked[0]
    blocks: list[Block] = [Bullets(verdict(result, at)), overview_table(rows)]
    if result.candidates:
        blocks.append(folded(candidates_table(result)))
    if folder is not None:
        found = [det_of_attacks(result, d, folder) for d in result.ranked]
        blocks.append(FigureRow("DET of each detector, an attack a curve", drawn(found)))
    if result.run is not None and at is not None and folder is not None:
        blocks += planes(result, at, folder)
    for detector in result.ranked:
        table = matrix_table(rows, detector, UNDEGRADED)
        if table.rows:
            blocks.append(table if detector == best else folded(table))
    left_out = leave_one_out_table(rows)
    blocks += [left_out] if left_out is not None else []
    blocks += _after_degradation(result, at, folder)
    for degradation in result.study.degradations:
        table = hardening_table(result.changed, degradation)
        if table is not None:
            after = f"{table.title}, after {degradation}"
            blocks.append(table if degradation == UNDEGRADED else folded(table, after))
    control = reconstructed_table(result)
    blocks += [control] if control is not None else []
    for detector in result.ranked:
        for degradation in result.study.degradations:
            table = points_table(rows, detector, degradation)
            if not table.rows:
                continue
            title = f"{detector}, degradation {degradation}: every operating point"
            inner: tuple[Block, ...] = (replace(table, title=""),)
            if degradation != UNDEGRADED:
                inner = (replace(matrix_table(rows, detector, degradation), title=""), *inner)
            blocks.append(Folded(title, inner))
    return tuple(blocks)


def detection_sections(
    collection: Collection, folder: Path | None
) -> tuple[list[Section], list[tuple[Path, str]]]:
    """A section for every `detection.csv` below a folder, and those left out with the reason.

    Args:
        collection: Runs; a file in none of their directories is reported without MMPMR.
        folder: Where figures go; None draws none.
    """
    runs = {run.directory.resolve(): run for run in collection}
    sections, skipped = [], []
    for path in sorted(collection.outputs.rglob(DETECTION)):
        run = runs.get(path.parent.resolve())
        relative = path.parent.relative_to(collection.outputs).as_posix()
        own = None if folder is None else folder / slug(relative)
        title = relative if run is None else run.result["experiment"]
        try:
            result = DetectionResult.read(path.parent, run)
            at = run.headline[0] if run is not None and run.headline else None
            table = () if at is None else (beside_table(result, at),)
            blocks = (*table, *detection_blocks(result, at, own))
        # A stranger's file may bring about anything; the other runs must be reported all the same.
        except Exception as error:
            skipped.append((path, reason_of(error).removeprefix(f"{path}: ")))
            continue
        key = f"detection-{relative}"
        sections.append(Section(key, f"Detection: {title}", _keyed(blocks, key)))
    return sections, skipped


def _keyed(blocks: Sequence[Block], prefix: str) -> tuple[Block, ...]:
    """The blocks with keys of their own, for a page that has several such sections."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Table):
            block = replace(block, key=f"{prefix}-{block.key}")
        elif isinstance(block, Folded):
            inner = _keyed(block.blocks, prefix)
            block = replace(block, blocks=inner, key=f"{prefix}-{block.key}" * bool(block.key))
        elif isinstance(block, FigureRow):
            figures = tuple(replace(f, key=f"{prefix}-{f.key}") for f in block.figures)
            block = replace(block, figures=figures)
        found.append(block)
    return tuple(found)


def beside_table(
    result: DetectionResult, at: EvaluationSetting, degradation: str = UNDEGRADED
) -> Table:
    """MMPMR at each recogniser, what passes it and the best detector, D-EER of each, per attack.

    Args:
        result: The study and its run.
        at: The condition of MMPMR.
        degradation: After which one.
    """
    run = result.run
    assert run is not None
    header = ["attack", *(f"MMPMR %, {run.system_label(s)}" for s in run.systems)]
    header += [f"pass both, {run.system_label(s)}" for s in run.systems]
    header += [f"D-EER %, {detector}" for detector in result.ranked]
    lines, guided = [], False
    for attack in result.study.attacks:
        rates = [result.vulnerable(attack, s, at, degradation) for s in run.systems]
        found = [result.row(detector, attack, degradation) for detector in result.ranked]
        if not any(rates) or not any(found):
            continue
        line: list[str | Cell] = [result.name(attack)]
        for system, rate in zip(run.systems, rates, strict=True):
            guides = rate is not None and run.guided(attack, system)
            guided |= guides
            line.append(flagged(rate_cell(rate), guides))
        for system in run.systems:
            passed = result.passing(attack, system, at, degradation)
            line.append(Cell(DASH) if passed is None else _passing_cell(passed))
        lines.append(cells([*line, *map(_detector_cell, found)]))
    notes = [
        "MMPMR: share of morphs that the recogniser accepts as both people. Under D-EER: the share "
        f"of morphs that the detector misses where at most {share(BSCER)} of the bona fide images "
        "are flagged (MACER10)."
    ]
    notes.append(
        f"Pass both: share of morphs that the recogniser accepts and {result.ranked[0]} misses at "
        "that threshold, morph by morph; what the whole system lets in."
    )
    if degradation != UNDEGRADED:
        notes.append("Thresholds are of degraded impostors and of degraded bona fide images.")
    notes += [GUIDE_NOTE] * guided
    labels = (("Probe", at.probe), ("Impostors", at.impostors), ("FMR target", share(at.fmr)),
              ("Degradation", degradation))  # fmt: skip
    after = "" if degradation == UNDEGRADED else f", after {degradation}"
    title = f"MMPMR beside detection{after}"
    return Table(f"beside-{degradation}", title, tuple(header), tuple(lines), labels, tuple(notes),
                 fold=False)  # fmt: skip


def candidates_table(result: DetectionResult) -> Table:
    """What was tried for each detector on people who are neither learnt nor tested."""
    lines = []
    for detector, rows in result.candidates.items():
        for row in rows:
            settings = ", ".join(f"{key}={value}" for key, value in row["settings"].items())
            n = min(row["n_morph"], row["n_bonafide"])
            mark = "taken" if row["taken"] else ""
            line = [detector, printable(settings) or "as configured", percent(row["d_eer"], n)]
            line += [printable(row["attack"]), str(row["n_morph"]), str(row["n_bonafide"]), mark]
            lines.append(cells(line))
    header = ("detector", "settings", "D-EER %", "at its worst attack", "morphs", "bona fide", "")
    note = (
        "On validation people, who are neither learnt nor tested, trained on all seen attacks. The "
        "lowest is taken, the first of several that are equal; the test decides nothing. Low as "
        "the lowest of several it flatters the detector: what counts is the test above."
    )
    return Table("candidates", "How settings were chosen", header, tuple(lines), (), (note,),
                 fold=False)  # fmt: skip


def reconstructed_table(result: DetectionResult) -> Table | None:
    """How many bona fide images are called morphs once an autoencoder has decoded them.

    None where the run did not try it. Nothing is blended in them: a detector that flags them
    detects the autoencoder, not the morph.
    """
    rows = result.reconstructed
    if not rows:
        return None
    names = list(dict.fromkeys(row["degradation"] for row in rows))
    lines = []
    for detector, trained in dict.fromkeys((r["detector"], r["trained_on"]) for r in rows):
        line: list[str | Cell] = [Cell(detector, (f"trained on {training(trained)}",))]
        for name in names:
            row = first_of(rows, detector=detector, trained_on=trained, degradation=name)
            if row is None:
                line.append(Cell(DASH))
                continue
            share_of = percent(row["k"] / row["n"], row["n"])
            line.append(Cell(share_of, (of(row["k"], row["n"]),)))
        lines.append(cells(line))
    note = (
        "At the threshold of the D-EER over all attacks. Nothing is blended in these images: what "
        "lies far above the D-EER detects the autoencoder rather than the morph, and an attacker "
        "without one would pass."
    )
    title = "Bona fide images encoded and decoded, called morphs, %"
    return Table("reconstructed", title, ("detector", *names), tuple(lines), (), (note,),
                 fold=False)  # fmt: skip


def _detector_cell(row: Row | None) -> Cell:
    if row is None:
        return Cell(DASH)
    missed = row["macer10"]
    if missed["needs"] is not None:
        return equal_error_cell(row)
    return equal_error_cell(row, f"misses {percent(missed['value'], missed['n'])}%")


def _passing_cell(both: Mapping[str, Any]) -> Cell:
    n = both["n"]
    return Cell(percent(both["value"], n), (of(both["k"], n), interval(both["lo"], both["hi"], n)))


def _after_degradation(
    result: DetectionResult, at: EvaluationSetting | None, folder: Path | None
) -> list[Block]:
    """The worst attack open; each attack, and recognisers beside detectors, folded."""
    worst = degradation_table(result.rows)
    if worst is None:
        return []
    blocks: list[Block] = [worst]
    if folder is not None:
        found = [det_of_degradations(result, d, folder) for d in result.ranked]
        title = "DET after each degradation, at the worst attack"
        blocks.append(FigureRow(title, drawn(found)))
    each = [degradation_table(result.rows, attack) for attack in result.study.attacks]
    title = "After each degradation, attack by attack"
    blocks.append(Folded(title, tuple(t for t in each if t is not None), "degradations"))
    for degradation in result.study.degradations:
        if result.run is not None and at is not None and degradation != UNDEGRADED:
            table = beside_table(result, at, degradation)
            if table.rows:
                blocks.append(folded(table))
    return blocks
