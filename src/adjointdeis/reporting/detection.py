"""Detection in reports: the matrix, DET curves, and MMPMR against detectability.

A run directory that holds a `detection.csv` gets this section in its report; `adjointdeis-eval
detection` writes it from such a file alone. The verdict is about the system under test, recogniser
and detector together, and about what would harden it; no attack is made against a detector.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from adjointdeis.evaluation import (
    DetectionScores,
    DetectionStudy,
    EvaluationError,
    hardening_rows,
    matrix_rows,
    read_detection,
)
from adjointdeis.evaluation.detection import WORST, images_needed
from adjointdeis.evaluation.detection_matrix import (
    DETECTION,
    KINDS,
    UNDEGRADED,
    WITHOUT,
    DetectorSetting,
)
from adjointdeis.evaluation.detection_tables import (
    degradation_table,
    equal_error_cell,
    first_of,
    hardening_table,
    headline_of,
    leave_one_out_table,
    matrix_table,
    overview_table,
    points_table,
    training,
)
from adjointdeis.evaluation.passing import passing
from adjointdeis.evaluation.storage import write_json
from adjointdeis.evaluation.tables import subject_interval
from adjointdeis.files import printable, slug, spreadsheet_cell, write_atomically
from adjointdeis.reporting.collect import Collection, reason_of
from adjointdeis.reporting.curves import detection_curve, detection_curves
from adjointdeis.reporting.document import (
    DASH,
    Block,
    Bullets,
    Cell,
    Document,
    Figure,
    FigureRow,
    Folded,
    Section,
    Table,
    cells,
)
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.plots import WIDTH
from adjointdeis.reporting.render_html import html
from adjointdeis.reporting.render_latex import latex_table
from adjointdeis.reporting.render_markdown import markdown
from adjointdeis.reporting.run import EvaluationSetting, Run, condition
from adjointdeis.reporting.run_tables import GUIDE, GUIDE_NOTE
from adjointdeis.reporting.schema import read_degraded
from adjointdeis.reporting.style import (
    INK,
    PAPER,
    QUIET,
    figure,
    halo,
    label_beside,
    look,
    save,
)
from adjointdeis.reporting.text import PROBES, interval, listed, of, percent, rate_cell, share

ROWS = "detection_rows.json"
REPLICATES = 500
"""Of the bootstrap in a run's report, whose matrix has hundreds of settings."""
BSCER = 0.1
Row = Mapping[str, Any]
RESPONSIBLE = (
    "Responsible use: this is about finding morphs. No attack here was made against a detector."
)


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """A study with its rows, and the run whose morphs it is of, if any.

    Attributes:
        study: the scores.
        rows: of `matrix_rows`; changed: of `hardening_rows`.
        run: for MMPMR beside the detectors; None where there are scores alone.
    """

    study: DetectionStudy
    rows: Sequence[Row]
    changed: Sequence[Row]
    run: Run | None = None

    @classmethod
    def of_run(cls, run: Run) -> "DetectionResult | None":
        """That of a run directory, or None where it holds no `detection.csv`.

        Raises:
            ReportError: a file that is malformed or leaves the directory.
        """
        return cls.read(run.directory, run) if run.path(DETECTION).is_file() else None

    @classmethod
    def read(cls, directory: Path, run: Run | None = None) -> "DetectionResult":
        """That of a directory, with or without a run in it.

        Raises:
            ReportError: a file that is absent, malformed or leaves the directory.
        """
        path = directory / DETECTION
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ReportError(f"{path}: leaves the run directory; copy the file into it")
        try:
            study = read_detection(path)
            rows = matrix_rows(study, replicates=REPLICATES)
            return cls(study, rows, hardening_rows(study, replicates=REPLICATES), run)
        except EvaluationError as error:
            raise ReportError(str(error)) from None

    @cached_property
    def ranked(self) -> list[str]:
        """Detectors, the one that is best at its worst attack first."""

        def worst(name: str) -> float:
            row = self.row(name, WORST)
            return 1.0 if row is None else row["d_eer"]

        return sorted(self.study.detectors, key=worst)

    def row(self, detector: str, attack: str, degradation: str = UNDEGRADED) -> Row | None:
        """The row of a detector's headline training."""
        trained = headline_of(self.rows, detector)
        return first_of(self.rows, detector=detector, trained_on=trained, attack=attack,
                        degradation=degradation)  # fmt: skip

    def scores(self, detector: str, degradation: str = UNDEGRADED) -> DetectionScores | None:
        """Scores of its headline training."""
        trained = headline_of(self.rows, detector)
        setting = DetectorSetting(detector, self.study.detectors[detector], trained, degradation)
        table = self.study.tables.get(setting)
        return None if table is None else DetectionScores.from_table(table, detector)

    def label(self, attack: str) -> str:
        """The attack's name in a plot."""
        if self.run is not None and attack in self.run.attacks:
            return self.run.short_label(attack)
        return printable(attack)

    def vulnerable(
        self, attack: str, system: str, at: EvaluationSetting, degradation: str
    ) -> Row | None:
        """The row of MMPMR after a degradation, None where it was not measured."""
        if self.run is None:
            return None
        if degradation == UNDEGRADED:
            return self.run.row(attack, system, at)
        for row in self.degraded.get(degradation, ()):
            if (row["attack"], row["system"], condition(row)) == (attack, system, at):
                return row
        return None

    @cached_property
    def degraded(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of MMPMR by degradation, of the run that the scores are of."""
        return {} if self.run is None else read_degraded(self.run.directory, self.run.result)

    def passing(self, attack: str, system: str, at: EvaluationSetting) -> dict[str, Any] | None:
        """Morphs that pass a recogniser and the best detector, undegraded."""
        detector = self.ranked[0]
        trained = headline_of(self.rows, detector)
        setting = DetectorSetting(detector, self.study.detectors[detector], trained, UNDEGRADED)
        table = self.study.tables.get(setting)
        if self.run is None or table is None:
            return None
        groups, tau = self.run.groups(attack, system, at.probe), self.run.oriented_tau(system, at)
        if groups is None or tau is None:
            return None
        return passing(groups, tau, table, attack, bscer=BSCER, replicates=REPLICATES)

    def write(self, directory: Path) -> Path:
        """Writes the rows beside the report."""
        path = directory / ROWS
        write_json({"matrix": list(self.rows), "hardening": list(self.changed)}, path)
        return path


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
    written = []
    for name, text in (("report.html", html(document)), ("report.md", markdown(document, out))):
        write_atomically(out / name, lambda f, text=text: f.write(text))
        written.append(out / name)
    written.append(result.write(out))
    for table in (block for block in parts(blocks) if isinstance(block, Table)):
        stem = out / "tables" / slug(table.key)
        lines = [table.header, *([c.flat for c in row] for row in table.rows)]
        lines = [[spreadsheet_cell(text) for text in line] for line in lines]
        tex, plain = stem.with_name(f"{stem.name}.tex"), stem.with_name(f"{stem.name}.csv")
        write_atomically(tex, lambda f, table=table: f.write(latex_table(table)))
        write_atomically(plain, lambda f, lines=lines: csv.writer(f).writerows(lines))
        written += [tex, plain]
    return [*written, *drawn_files(blocks)]


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
    if folder is not None:
        found = [_det_of_attacks(result, d, folder) for d in result.ranked]
        blocks.append(FigureRow("DET of each detector, an attack a curve", _drawn(found)))
    if result.run is not None and at is not None and folder is not None:
        blocks += _planes(result, at, folder)
    for detector in result.ranked:
        table = matrix_table(rows, detector, UNDEGRADED)
        if not table.rows:
            continue
        if detector == best:
            blocks.append(table)
        else:
            blocks.append(Folded(table.title, (replace(table, title=""),)))
    left_out = leave_one_out_table(rows)
    blocks += [left_out] if left_out is not None else []
    blocks += _after_degradation(result, at, folder)
    if result.changed:
        blocks.append(hardening_table(result.changed))
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
        sections.append(Section(key, f"Detection: {title}", keyed(blocks, key)))
    return sections, skipped


def keyed(blocks: Sequence[Block], prefix: str) -> tuple[Block, ...]:
    """The blocks with keys of their own, for a page that has several such sections."""
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Table):
            block = replace(block, key=f"{prefix}-{block.key}")
        elif isinstance(block, Folded):
            inner = keyed(block.blocks, prefix)
            block = replace(block, blocks=inner, key=f"{prefix}-{block.key}" * bool(block.key))
        elif isinstance(block, FigureRow):
            figures = tuple(replace(f, key=f"{prefix}-{f.key}") for f in block.figures)
            block = replace(block, figures=figures)
        found.append(block)
    return tuple(found)


def verdict(result: DetectionResult, at: EvaluationSetting | None) -> tuple[str, ...]:
    """What the numbers say about the system under test, and what would harden it."""
    best = result.ranked[0]
    lines = [*_system_under_test(result, at), *_detector(result, best)]
    for make in (_unseen, _degraded, _hardened, _kinds):
        lines += make(result)
    return (*lines, *_controls(result))


def _system_under_test(result: DetectionResult, at: EvaluationSetting | None) -> list[str]:
    if result.run is None or at is None:
        return []
    run, lines = result.run, []
    for system in run.systems:
        found = [
            (both, attack)
            for attack in result.study.attacks
            if attack in run.attacks and not run.guided(attack, system)
            and (both := result.passing(attack, system, at)) is not None
        ]  # fmt: skip
        if not found:
            continue
        both, attack = max(found, key=lambda pair: pair[0]["value"])
        lines.append(
            f"{run.system_label(system)} alone accepts {both['matched']} of {both['n']} morphs of "
            f"{run.attack_label(attack)} as both people (FMR {share(at.fmr)}, probe {at.probe}); "
            f"behind {printable(result.ranked[0])}, which sends at most {share(BSCER)} of genuine "
            f"images to a person, {both['k']} of {both['n']} still pass "
            f"{interval(both['lo'], both['hi'], both['n'])}%. No attack gets further."
        )
    return lines or [
        "How many morphs pass recogniser and detector is not said: it takes "
        f"{images_needed(BSCER)} bona fide images, and one morph a pair of named people, of an "
        "attack that the recogniser did not guide."
    ]


def _detector(result: DetectionResult, best: str) -> list[str]:
    row = result.row(best, WORST)
    if row is None:
        return []
    attacks = [result.row(best, attack) for attack in result.study.attacks]
    worst = max((r for r in attacks if r is not None), key=lambda r: r["d_eer"])
    kind = KINDS[result.study.detectors[best]]
    return [
        f"Best at its worst attack, {_named(result, worst['attack'])}, is {printable(best)} "
        f"({kind}): {_eer(worst)}."
    ]


def _unseen(result: DetectionResult) -> list[str]:
    """The attack that a detector loses most by not having seen it."""
    gaps = []
    for row in result.rows:
        if (row["trained_on"], row["degradation"]) != (WITHOUT + row["attack"], UNDEGRADED):
            continue
        whole = first_of(result.rows, detector=row["detector"], trained_on="all",
                         attack=row["attack"], degradation=UNDEGRADED)  # fmt: skip
        if whole is not None:
            gaps.append((row["d_eer"] - whole["d_eer"], row, whole))
    gaps = [gap for gap in gaps if gap[1]["detector"] == result.ranked[0]] or gaps
    if not gaps:
        return []
    gap, row, whole = max(gaps, key=lambda found: found[0])
    if gap <= 0:
        return [
            f"{printable(row['detector'])} loses nothing on any attack that is left out of its "
            "training."
        ]
    return [
        f"Without {_named(result, row['attack'])} among its examples "
        f"{printable(row['detector'])} has {_eer(row)} on it, with it {_eer(whole)}: the most that "
        "an attack left out costs it."
    ]


def _degraded(result: DetectionResult) -> list[str]:
    best, found = result.ranked[0], []
    for degradation in result.study.degradations:
        row = result.row(best, WORST, degradation)
        if row is not None:
            found.append((row["d_eer"], degradation, row))
    if len(found) < 2:
        return []
    _, degradation, row = max(found)
    if degradation == UNDEGRADED:
        return [f"No degradation makes {printable(best)} worse at its worst attack."]
    name = printable(degradation)
    return [
        f"After {name} {printable(best)} has {_eer(row)} at its worst attack: detectors have to "
        "be trained and judged on images as the system gets them."
    ]


def _hardened(result: DetectionResult) -> list[str]:
    """What guided morphs among the examples change beyond chance, and what they cost."""
    if not result.changed:
        return []
    better, worse, pays = [], [], []
    for row in result.changed:
        if row["degradation"] != UNDEGRADED or row["d_eer"]["hi"] is None:
            continue
        if row["attack"] == WORST:
            cost = row["bscer10"]
            if cost is not None and cost["lo"] > 0:
                pays.append(printable(row["detector"]))
            continue
        new = ", which neither training had seen" * (row["learnt"] == "never")
        what = f"{_named(result, row['attack'])} by {printable(row['detector'])}{new}"
        better += [what] if row["d_eer"]["hi"] < 0 else []
        worse += [what] if row["d_eer"]["lo"] > 0 else []
    lines = []
    if better:
        lines.append(f"Guided morphs among the examples help beyond chance on {listed(better)}.")
    if worse:
        lines.append(f"They make it worse beyond chance on {listed(worse)}.")
    if pays:
        lines.append(
            f"At MACER 10% of the worst attack more bona fide images are flagged by {listed(pays)}."
        )
    return lines or [
        "Guided morphs among the examples change no detector's D-EER by more than chance explains "
        "with so few images."
    ]


def _kinds(result: DetectionResult) -> list[str]:
    """Whether a live capture is worth having."""
    found = {}
    for detector in reversed(result.ranked):
        if (row := result.row(detector, WORST)) is not None:
            found[result.study.detectors[detector]] = (detector, row)
    if not {"s_mad", "d_mad"} <= found.keys():
        return []
    (single, one), (live, two) = found["s_mad"], found["d_mad"]
    known = two["d_eer_hi"] < one["d_eer_lo"] or one["d_eer_hi"] < two["d_eer_lo"]
    return [
        f"With a live capture ({printable(live)}) {_eer(two)}, without ({printable(single)}) "
        f"{_eer(one)}, each the best of its kind at its worst attack"
        + ("." if known else ": these intervals overlap.")
    ]


def _controls(result: DetectionResult) -> list[str]:
    wrong = {}
    for row in result.rows:
        if (row["trained_on"], row["degradation"]) == ("shuffled", UNDEGRADED):
            if row["attack"] != WORST and not row["d_eer_lo"] <= 0.5 <= row["d_eer_hi"]:
                wrong.setdefault(row["detector"], row)
    return [
        f"{printable(detector)} trained on shuffled labels has {_eer(row)} on "
        f"{_named(result, row['attack'])}, which is not one half: its scores know something that "
        "its training should not, and its other numbers are in doubt."
        for detector, row in wrong.items()
    ]


def _eer(row: Row) -> str:
    n = min(row["n_morph"], row["n_bonafide"])
    bounds = interval(row["d_eer_lo"], row["d_eer_hi"], n)
    return f"D-EER {percent(row['d_eer'], n)}% {bounds} (n = {row['n_morph']}, {row['n_bonafide']})"


def _named(result: DetectionResult, attack: str) -> str:
    return result.label(attack).replace("\n", " ")


def _names(result: DetectionResult, attacks: Sequence[str]) -> str:
    return listed([_named(result, attack) for attack in attacks])


def beside_table(
    result: DetectionResult, at: EvaluationSetting, degradation: str = UNDEGRADED
) -> Table:
    """MMPMR at each recogniser, what passes it and the best detector, D-EER of each, per attack.

    Args:
        result: The study and its run.
        at: The condition of MMPMR.
        degradation: After which one; what passes both is known of undegraded images alone.
    """
    run = result.run
    assert run is not None
    both = degradation == UNDEGRADED
    header = ["attack", *(f"MMPMR %, {run.system_label(s)}" for s in run.systems)]
    header += [f"pass both, {run.system_label(s)}" for s in run.systems if both]
    header += [f"D-EER %, {detector}" for detector in result.ranked]
    lines, guided = [], False
    for attack in result.study.attacks:
        rates = [result.vulnerable(attack, s, at, degradation) for s in run.systems]
        found = [result.row(detector, attack, degradation) for detector in result.ranked]
        if not any(rates) or not any(found):
            continue
        line: list[str | Cell] = [_named(result, attack)]
        for system, rate in zip(run.systems, rates, strict=True):
            cell = rate_cell(rate)
            guides = rate is not None and run.guided(attack, system)
            guided |= guides
            line.append(replace(cell, detail=(*cell.detail, *(GUIDE,) * guides)))
        for system in run.systems if both else ():
            passed = result.passing(attack, system, at)
            line.append(Cell(DASH) if passed is None else _passing_cell(passed))
        lines.append(cells([*line, *map(_detector_cell, found)]))
    notes = [
        "MMPMR: share of morphs that the recogniser accepts as both people. Under D-EER: the share "
        f"of morphs that the detector misses where at most {share(BSCER)} of the bona fide images "
        "are flagged (MACER10)."
    ]
    if both:
        notes.append(
            f"Pass both: share of morphs that the recogniser accepts and {result.ranked[0]} misses "
            "at that threshold; what the whole system lets in."
        )
    else:
        notes.append("Thresholds of the recognisers: of degraded impostors, as the table's rows.")
    notes += [GUIDE_NOTE] * guided
    labels = (("Probe", at.probe), ("Impostors", at.impostors), ("FMR target", share(at.fmr)),
              ("Degradation", degradation))  # fmt: skip
    title = "MMPMR beside detection" + ("" if both else f", after {degradation}")
    return Table(f"beside-{degradation}", title, tuple(header), tuple(lines), labels, tuple(notes),
                 fold=False)  # fmt: skip


def reconstructed_table(result: DetectionResult) -> Table | None:
    """How many bona fide images are called morphs once an autoencoder has decoded them.

    None where the run did not try it. Nothing is blended in them: a detector that flags them
    detects the autoencoder, not the morph.
    """
    stated = {} if result.run is None else result.run.result["run"].get("detection")
    found = stated.get("control") if isinstance(stated, Mapping) else None
    rows = [row for row in found if _is_control(row)] if isinstance(found, list) else []
    rows = [row for row in rows if row["detector"] in result.study.detectors]
    wanted = {d: headline_of(result.rows, d) for d in result.study.detectors}
    rows = [row for row in rows if row["trained_on"] in (wanted[row["detector"]], "hardened")]
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


def _is_control(row: Any) -> bool:
    """Whether a stranger's row has what the table needs."""
    if not isinstance(row, Mapping):
        return False
    k, n = row.get("k"), row.get("n")
    texts = all(isinstance(row.get(x), str) for x in ("detector", "trained_on", "degradation"))
    return texts and isinstance(k, int) and isinstance(n, int) and 0 <= k <= n and n > 0


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
        found = [_det_of_degradations(result, d, folder) for d in result.ranked]
        title = "DET after each degradation, at the worst attack"
        blocks.append(FigureRow(title, _drawn(found)))
    each = [degradation_table(result.rows, attack) for attack in result.study.attacks]
    title = "After each degradation, attack by attack"
    blocks.append(Folded(title, tuple(t for t in each if t is not None), "degradations"))
    for degradation in result.study.degradations:
        if result.run is not None and at is not None and degradation != UNDEGRADED:
            table = beside_table(result, at, degradation)
            if table.rows:
                blocks.append(Folded(table.title, (replace(table, title=""),)))
    return blocks


def _planes(result: DetectionResult, at: EvaluationSetting, folder: Path) -> list[Block]:
    """MMPMR against detectability for the best detector of each kind: the first open.

    The recogniser is the first that guided no attack, for it is the black box; of the others the
    tables have the same numbers.
    """
    run = result.run
    assert run is not None
    unseen = [s for s in run.systems if not any(run.guided(a, s) for a in run.result["attacks"])]
    system = (unseen or run.systems)[0]
    kinds = result.study.detectors
    best = {kinds[detector]: detector for detector in reversed(result.ranked)}
    blocks: list[Block] = []
    for detector in result.ranked:
        if best[kinds[detector]] != detector:
            continue
        drawn = []
        for degradation in result.study.degradations:
            stem = folder / slug(f"plane_{detector}_{system}_{degradation}")
            drawn.append(plane_figure(result, detector, system, degradation, at, stem))
        found = _drawn(drawn)
        if not found:
            continue
        title = f"MMPMR against what {printable(detector)} misses"
        row = FigureRow(title, found)
        blocks.append(Folded(title, (row,), f"plane-{detector}") if blocks else row)
    return blocks


def plane_figure(
    result: DetectionResult,
    detector: str,
    system: str,
    degradation: str,
    at: EvaluationSetting,
    stem: Path,
) -> Figure | None:
    """An attack a point: MMPMR against the morphs that a detector misses, intervals both ways.

    Args:
        result: The study and its run.
        detector, system, degradation: Which plane.
        at: The condition of MMPMR.
        stem: Where to write.
    """
    run = result.run
    assert run is not None
    points = []
    for i, attack in enumerate(result.study.attacks):
        judged = result.vulnerable(attack, system, at, degradation)
        row = result.row(detector, attack, degradation)
        if judged is None or row is None or row["macer10"]["value"] is None:
            continue
        if judged["value"] is not None:
            points.append((i, attack, judged, row["macer10"]))
    if not points:
        return None
    words = []
    with figure(WIDTH, 3.1) as (made, axes):
        named = []
        for i, attack, judged, missed in points:
            style = look(i)
            x, y = 100 * judged["value"], 100 * missed["value"]
            left, right = (100 * end for end in subject_interval(judged))
            bars = {"color": style.colour, "linewidth": 0.9, "alpha": 0.75}
            axes.plot([left, right], [y, y], **bars)
            axes.plot([x, x], [100 * missed["lo"], 100 * missed["hi"]], **bars)
            before = _before(result, detector, system, degradation, attack, at)
            if before is not None:
                axes.plot([before[0], x], [before[1], y], color=QUIET, linewidth=0.8, zorder=1)
                axes.plot(*before, marker=style.marker, markerfacecolor=PAPER,
                          markeredgecolor=QUIET, linestyle="", clip_on=False)  # fmt: skip
            axes.plot(x, y, marker=style.marker, color=style.colour, markeredgecolor=INK,
                      linestyle="", clip_on=False, zorder=4)  # fmt: skip
            named.append((result.label(attack), x, y, style.colour))
            words.append(f"{_named(result, attack)} {x:.0f}% and {y:.0f}%")
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        lines = max(label.count("\n") + 1 for label, *_ in named)
        label_beside(axes, named, 7 * lines, 0, 100, path_effects=halo())
        axes.set_xlabel(f"{at.variant} at {run.system_label(system)} (%)")
        axes.set_ylabel("missed where 10% of\nbona fide are flagged (%)")
        after = "images as they are" if degradation == UNDEGRADED else f"after {degradation}"
        axes.set_title(printable(f"{detector}, {after}"))
        svg, png = save(made, stem)
    caption = (
        f"A point is an attack; up and right is what the system lets in. Bars: 95% intervals for "
        f"new people, both ways. Hollow: before the degradation. FMR {share(at.fmr)}, against "
        f"{PROBES.get(at.probe, at.probe)}."
    )
    alt = f"{detector}, {system}, {degradation}: MMPMR and missed: {', '.join(words)}"
    return Figure(stem.name, svg, png, caption, printable(alt))


def _before(
    result: DetectionResult,
    detector: str,
    system: str,
    degradation: str,
    attack: str,
    at: EvaluationSetting,
) -> tuple[float, float] | None:
    """Where the attack's point was before the degradation."""
    if degradation == UNDEGRADED:
        return None
    judged = result.vulnerable(attack, system, at, UNDEGRADED)
    row = result.row(detector, attack)
    if judged is None or row is None or judged["value"] is None or not row["macer10"]["n"]:
        return None
    return 100 * judged["value"], 100 * row["macer10"]["value"]


def _det_of_attacks(result: DetectionResult, detector: str, folder: Path) -> Figure | None:
    scores = result.scores(detector)
    if scores is None:
        return None
    curves = [
        detection_curve(scores, attack, result.label(attack))
        for attack in result.study.attacks
        if attack in scores.attacks
    ]
    title = printable(f"{detector}, trained on {headline_of(result.rows, detector)}")
    return detection_curves(curves, title, "an attack a curve", folder / slug(f"det_{detector}"))


def _det_of_degradations(result: DetectionResult, detector: str, folder: Path) -> Figure | None:
    curves = []
    for degradation in result.study.degradations:
        scores = result.scores(detector, degradation)
        if scores is not None:
            curves.append(detection_curve(scores, None, printable(degradation)))
    if len(curves) < 2:
        return None
    what = "a degradation a curve, at the worst attack of each threshold"
    stem = folder / slug(f"det_degradations_{detector}")
    return detection_curves(curves, printable(detector), what, stem)


def _drawn(figures: Sequence[Figure | None]) -> tuple[Figure, ...]:
    return tuple(figure for figure in figures if figure is not None)


def parts(blocks: Sequence[Block]) -> Iterator[Block]:
    """Every block, those that are folded away too."""
    for block in blocks:
        yield block
        if isinstance(block, Folded):
            yield from parts(block.blocks)


def drawn_files(blocks: Sequence[Block]) -> list[Path]:
    """The files of every figure."""
    rows = [block for block in parts(blocks) if isinstance(block, FigureRow)]
    return [path for row in rows for figure in row.figures for path in (figure.svg, figure.png)]
