"""A report from score files alone: tables and figures of rates, without morphs or photographs.

The same document as a run's report where both have something to say; what the files do not hold
(no morphs, no detectors, one recogniser) is left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adjointdeis.evaluation import (
    WORST_CASE,
    EvaluationError,
    ScoreTable,
    Subjects,
    ThresholdRecord,
    compare_attacks,
    detection_rows,
    evaluate,
    evaluate_attack_potential,
    evaluate_generality,
    tables,
)
from adjointdeis.evaluation.operating import distinct, estimate_thresholds
from adjointdeis.evaluation.protocol import evaluate_by
from adjointdeis.evaluation.storage import write_json
from adjointdeis.evaluation.verification import verification_rows
from adjointdeis.reporting.curves import (
    detection_figure,
)
from adjointdeis.reporting.document import (
    Bullets,
    Document,
    Facts,
    FigureRow,
    Section,
    Table,
    drawn_files,
)
from adjointdeis.reporting.render_html import write_pages
from adjointdeis.reporting.render_latex import write_tables
from adjointdeis.reporting.report import figures_of, plot_rows
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.run_tables import rate_table
from adjointdeis.reporting.text import listed, plural

TABLES = "tables"


def write_score_report(
    table: ScoreTable,
    out: Path | str,
    *,
    title: str = "Scores",
    thresholds: Sequence[ThresholdRecord] | None = None,
    fmr: Sequence[float] = (0.001,),
    impostor_policies: Sequence[str] = ("all",),
    subjects: Subjects | None = None,
    covariates: Sequence[str] = (),
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
    plots: bool = True,
) -> list[Path]:
    """Writes report.html, report.md, result.json, figures, and every table as CSV and LaTeX.

    Args:
        table: scores of any kinds.
        out: the folder; made where it is absent.
        thresholds: records instead of estimates from the impostors in the table.
        covariates: of `sex`, `group`, `age`; rates of each group, which needs `subjects`.
        plots: whether to draw figures; they take most of the time.

    Returns:
        the files written.

    Raises:
        EvaluationError: as the evaluation raises it, or a table without anything to report.
    """
    out = Path(out)
    statistics = {"replicates": replicates, "seed": seed, "confidence": confidence}
    records, rows = _rates(table, thresholds, fmr, impostor_policies, subjects, statistics)
    if not (rows or records or len(table.select(kind="mad"))):
        raise EvaluationError(f"{table.source or 'scores'}: nothing to report in these rows")
    run = _as_run(table, rows, records, out, title)
    sections = []
    if rows:
        sections.append(Section("results", "Vulnerability", _vulnerability(run)))
        closer = _closer(run, subjects, covariates, statistics)
        sections.append(Section("closer", "A closer look", closer))
    made: dict[str, Any] = {}
    if table.unique("system", kind="mated") and table.unique("system", kind="nonmated"):
        made["verification"] = verification_rows(
            table, fmr=fmr, impostor_policy=impostor_policies[0], subjects=subjects, **statistics
        )
        found = tables.verification_table(made["verification"], run.system_label)
        sections.append(Section("verification", "Verification", (found,)))
    if len(table.select(kind="mad")):
        made["detection"] = detection_rows(table, **statistics)
        found = tables.detection_table(made["detection"])
        sections.append(Section("detection", "Morphing attack detection", (found,)))
    if records:
        found = tables.threshold_table(records, run.system_label)
        sections.append(Section("thresholds", "Thresholds", (found,)))
    if plots and (drawn := _figures(run, records)):
        sections.insert(1 if rows else len(sections), Section("plots", "Plots", drawn))
    sections.append(Section("origin", "Where the numbers come from", (_origin(table),)))
    document = Document(f"Morphing attack evaluation: {title}", _lead(table), tuple(sections))
    return _write(document, run, out, made)


def _rates(
    table: ScoreTable,
    thresholds: Sequence[ThresholdRecord] | None,
    fmr: Sequence[float],
    policies: Sequence[str],
    subjects: Subjects | None,
    statistics: dict[str, Any],
) -> tuple[list[ThresholdRecord], list[dict[str, Any]]]:
    morphs = table.unique("system", kind="morph")
    # A file of thresholds may serve recognisers that these scores are not of.
    known = table.unique("system")
    records = [record for record in thresholds or () if record.model in known]
    if thresholds is None:
        for system in morphs or table.unique("system", kind="nonmated"):
            confidence = statistics["confidence"]
            records += estimate_thresholds(
                table, system, fmr, policies, subjects, confidence=confidence
            )
    rows = evaluate(table, records, subjects=subjects, **statistics) if morphs else []
    return records, rows


def _as_run(
    table: ScoreTable,
    rows: list[dict[str, Any]],
    records: Sequence[ThresholdRecord],
    out: Path,
    title: str,
) -> Run:
    """The table as a run without images, so that a run's tables and figures serve it too."""
    names = table.unique("system", kind=("morph", "mated", "nonmated"))
    stated = table.metadata.get("systems", {})
    systems = {
        name: {
            "label": name,
            "alignment": str(stated.get(name, {}).get("alignment", "")),
            "fingerprint": str(stated.get(name, {}).get("model_fingerprint", "")),
            "licence": "",
            "score_type": table.select(kind=("morph", "mated", "nonmated")).direction(name),
        }
        for name in names
    }
    morphs = table.select(kind="morph")
    attacks = {
        name: {
            "label": name, "paper_row": None, "settings": {}, "nfe_paper": None, "nfe": None,
            "pairs": len(morphs.select(attack=name).unique("morph_id")), "failed": [], "notes": [],
        }
        for name in morphs.unique("attack")
        if name != WORST_CASE
    }  # fmt: skip
    result: dict[str, Any] = {
        "schema": 1,
        "tool": "adjointdeis-eval report",
        "experiment": title,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": {"config_hash": table.fingerprint(), "git": None, "seed": None},
        "attacks": attacks,
        "systems": systems,
        "rows": rows,
        "thresholds": [record.to_dict() for record in records],
        "pairs": [],
        "scores": "scores.csv",
    }
    run = Run(out, result)  # type: ignore[arg-type]
    run.__dict__["scores"] = table
    return run


def _vulnerability(run: Run) -> tuple[Table, ...]:
    found = [
        _without_nfe(rate_table(run, at, link=False, explained=at == run.headline[0]))
        for at in run.headline
    ]
    every = replace(
        tables.rates_table(run.result["rows"], run.system_label),
        key="rates", title="Every rate with what it rests on",
    )  # fmt: skip
    return (*found, every)


def _without_nfe(table: Table) -> Table:
    """A run's table of rates without the costs, which score files do not know."""
    keep = [k for k, name in enumerate(table.header) if not name.startswith("NFE")]
    notes = tuple(note for note in table.notes if not note.startswith("NFE"))
    rows = tuple(tuple(row[k] for k in keep) for row in table.rows)
    return replace(table, header=tuple(table.header[k] for k in keep), rows=rows, notes=notes)


def _closer(
    run: Run, subjects: Subjects | None, covariates: Sequence[str], statistics: dict[str, Any]
) -> tuple[Table, ...]:
    """MAP and G-MAP over several recognisers, paired tests of several attacks, groups; last what
    of it could not be computed, and why."""
    at, attacks, found = run.headline[0], list(run.result["attacks"]), []
    left_out: list[tuple[str, str]] = []
    asked: dict[str, Any] = {
        "fmr": at.fmr, "impostor_policy": at.impostors, "subjects": subjects, **statistics,
    }  # fmt: skip
    table = run.scores
    for covariate in distinct(covariates):
        if subjects is None:
            raise EvaluationError(f"rates by {covariate} need --subjects FILE")
        rows = evaluate_by(table, subjects, covariate, run.thresholds, **statistics)
        made = tables.rates_table(rows, run.system_label)
        found.append(replace(made, key=f"by-{covariate}", title=f"Morphs of one {covariate}"))
    if len(run.systems) > 1 and attacks:
        try:
            rows = evaluate_attack_potential(table, run.thresholds, attacks=attacks, **asked)
            general = evaluate_generality(table, run.thresholds, **asked)
            found += [*tables.potential_tables(rows), tables.generality_table(general)]
        except EvaluationError as wrong:
            # Recognisers that scored different morphs have no common potential.
            left_out.append(("MAP and G-MAP", str(wrong)))
    for other in attacks[1:]:
        for condition in run.headline:
            try:
                pairs = compare_attacks(
                    table, attacks[0], other, run.thresholds, probe_policy=condition.probe,
                    **asked,
                )  # fmt: skip
            except EvaluationError as wrong:
                # The two attacks have no pair of people in common.
                what = f"{attacks[0]} against {other} pair by pair, probe {condition.probe}"
                left_out.append((what, str(wrong)))
                continue
            key = f"paired-{other}-{condition.probe}"
            made = tables.paired_table(pairs)
            found.append(replace(made, key=key))
    if left_out:
        lines = tuple(tables.cells(line) for line in left_out)
        found.append(Table("left-out", "What these scores cannot tell", ("table", "why"), lines))
    return tuple(found)


def _figures(run: Run, records: Sequence[ThresholdRecord]) -> tuple[FigureRow, ...]:
    detectors = detection_figure(run.scores, run.directory / "plots" / "det_detectors")
    of_detectors = () if detectors is None else (FigureRow("Detectors", (detectors,)),)
    if run.headline:
        at = run.headline[0]
    elif records:
        at = EvaluationSetting("other", records[0].impostor_policy, "MMPMR", records[0].target_fmr)
    else:
        return of_detectors
    return (*plot_rows(figures_of(run, at)), *of_detectors)


def _lead(table: ScoreTable) -> str:
    words = []
    nouns = {"morph": "morph comparison", "mated": "mated comparison",
             "nonmated": "impostor comparison", "mad": "detection score"}  # fmt: skip
    for kind, noun in nouns.items():
        if n := len(table.select(kind=kind)):
            words.append(plural(n, noun))
    return f"{listed(words)}, from score files alone."


def _origin(table: ScoreTable) -> Facts | Bullets:
    facts = [("Files", table.source or "one table"), ("Fingerprint", table.fingerprint()[:16])]
    for name, value in table.metadata.items():
        if isinstance(value, str) and value:
            facts.append((name, value))
    for name, stated in (table.metadata.get("systems") or {}).items():
        facts.append(
            (f"Recogniser {name}", ", ".join(f"{k} {v}" for k, v in stated.items()) or "–")
        )
    return Facts(tuple(facts))


def _write(document: Document, run: Run, out: Path, made: dict[str, Any]) -> list[Path]:
    written = write_pages(document, out)
    write_json({**run.result, **made}, out / "result.json")
    written.append(out / "result.json")
    tables_of = write_tables(document.blocks, out / TABLES)
    return [*written, *tables_of, *drawn_files(document.blocks)]
