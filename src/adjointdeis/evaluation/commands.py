"""What each `adjointdeis-eval` command does; `cli.py` parses, this computes and prints."""

import hashlib
import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from adjointdeis.evaluation import credentials, detection_tables, tables
from adjointdeis.evaluation.detection import WORST, DetectionScores
from adjointdeis.evaluation.detection_matrix import hardening_rows, matrix_rows, read_detection
from adjointdeis.evaluation.detection_points import detection_rows
from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.formats import Labels, read as read_format, write as write_format
from adjointdeis.evaluation.generality import evaluate_attack_potential, evaluate_generality
from adjointdeis.evaluation.markdown import markdown_table, table as text_table
from adjointdeis.evaluation.operating import chosen, estimate_thresholds
from adjointdeis.evaluation.paired import compare_attacks
from adjointdeis.evaluation.paper import SYSTEMS, paper_table
from adjointdeis.evaluation.protocol import INTERVALS, evaluate, evaluate_by
from adjointdeis.evaluation.provenance import NoProvenance, read_provenance, sources_match
from adjointdeis.evaluation.scores import ScoreTable, concatenate
from adjointdeis.evaluation.storage import read_scores, write_json, write_scores
from adjointdeis.evaluation.subjects import Subjects, read_subjects
from adjointdeis.evaluation.thresholds import ThresholdRecord, read_thresholds
from adjointdeis.evaluation.verification import verification_rows
from adjointdeis.extras import load
from adjointdeis.files import write_atomically, write_csv
from adjointdeis.texts import printable

_MOST_REPLICATES = 1_000_000
_MOST_SYNTHETIC = 100_000
RESULT_SCHEMA = "adjointdeis-evaluation/1"


def score(options: Namespace) -> None:
    """Evaluates a score file, prints the tables and writes the result as JSON."""
    table = _table(options)
    subjects = _subjects(options)
    statistics = _statistics(options)
    if options.thresholds:
        if options.fmr or options.impostors:
            raise EvaluationError("--thresholds brings its own FMR and impostor policy; drop those")
        records = read_thresholds(options.thresholds)
    else:
        records = [
            record
            for system in options.systems or table.unique("system", kind="morph")
            for record in estimate_thresholds(
                table,
                system,
                options.fmr or (0.001,),
                options.impostors or ("all",),
                subjects,
                confidence=options.confidence,
            )
        ]
    asked = {
        "probe_policies": options.probe,
        "attacks": options.attacks,
        "systems": options.systems,
        "variants": options.variants,
        **statistics,
    }
    rows = evaluate(table, records, subjects=subjects, **asked)
    for covariate in options.by or ():
        if subjects is None:
            raise EvaluationError(f"--by {covariate} needs --subjects FILE")
        rows += evaluate_by(table, subjects, covariate, records, **asked)
    text = _printed(tables.rates_table(rows), tables.threshold_table(records))
    print(text)
    result = {
        "schema": RESULT_SCHEMA,
        "scores": Path(options.scores).name,
        "scores_sha256": hashlib.sha256(Path(options.scores).read_bytes()).hexdigest(),
        "seed": options.seed,
        "intervals": INTERVALS,
        "thresholds": [record.to_dict() for record in records],
        "rows": rows,
    }
    out = Path(options.json or f"{options.scores}.result.json")
    write_json(result, out)
    if options.markdown:
        write_atomically(Path(options.markdown), text + "\n")
    print(f"wrote {out}", file=sys.stderr)


def report(options: Namespace) -> None:
    """Writes a report of score files: HTML, Markdown, LaTeX, CSV, JSON and figures."""
    _require_plots()
    from adjointdeis.reporting.score_report import write_score_report

    statistics = _statistics(options)
    written = write_score_report(
        _table(options),
        options.out,
        title=options.title or Path(options.scores[0]).stem,
        thresholds=read_thresholds(options.thresholds) if options.thresholds else None,
        fmr=options.fmr or (0.001,),
        impostor_policies=options.impostors or ("all",),
        subjects=_subjects(options),
        covariates=options.by or (),
        plots=not options.no_plots,
        **statistics,
    )
    _say_written(written, options)


def verification(options: Namespace) -> None:
    """Prints EER and FNMR of every recogniser; with --out also figures, as `report` does."""
    statistics = _statistics(options)
    rows = verification_rows(
        _table(options),
        fmr=options.fmr or (0.01, 0.001, 0.0001),
        impostor_policy=options.impostors,
        subjects=_subjects(options),
        **statistics,
    )
    print(_printed(tables.verification_table(rows)))
    if options.out:
        options.scores, options.by, options.title = [options.scores], (), None
        options.thresholds, options.impostors = None, [options.impostors]
        report(options)


def compare(options: Namespace) -> None:
    """Compares two attacks pair by pair and prints the table."""
    statistics = _statistics(options)
    found = compare_attacks(
        _table(options),
        options.first,
        options.second,
        probe_policy=options.probe,
        impostor_policy=options.impostors,
        fmr=options.fmr,
        systems=options.systems,
        subjects=_subjects(options),
        **statistics,
    )
    print(markdown_table(tables.paired_table(found)))


def map(options: Namespace) -> None:
    """Prints the matrix MAP[r, c] of every attack and probe policy, then G-MAP over the attacks."""
    statistics = _statistics(options)
    table = _table(options)
    records = read_thresholds(options.thresholds) if options.thresholds else None
    asked = {"fmr": options.fmr, "impostor_policy": options.impostors,
             "subjects": _subjects(options), **statistics}  # fmt: skip
    rows = evaluate_attack_potential(table, records, **asked)
    print(_printed(*tables.potential_tables(rows)))
    general = evaluate_generality(table, records, **asked)
    print(f"\n{markdown_table(tables.generality_table(general))}")


def mad(options: Namespace) -> None:
    """Prints the detection rates of every detector, and writes their DET curves if asked."""
    statistics = _statistics(options)
    table = _table(options)
    rows = detection_rows(table, **statistics)
    if not rows:
        raise EvaluationError(f"{options.scores}: no row of kind 'mad'")
    print(markdown_table(tables.detection_table(rows)))
    if options.det:
        write_csv(options.det, _det(table))
        print(f"wrote {options.det}", file=sys.stderr)


def detection(options: Namespace) -> None:
    """Prints the matrix of every detector; with --out also a page with the plots."""
    statistics = _statistics(options)
    study = read_detection(options.scores)
    rows = matrix_rows(study, **statistics)
    changed = hardening_rows(study, **statistics)
    print(_printed(*detection_tables.headline_tables(rows, changed)))
    if options.out:
        _require_plots()
        from adjointdeis.reporting.detection import write_detection_report

        written = write_detection_report(
            study, rows, changed, options.out, plots=not options.no_plots
        )
        _say_written(written, options)


def threshold(options: Namespace) -> None:
    """Estimates thresholds, prints them and writes the records."""
    table = _table(options)
    given = {"alignment": options.alignment, "impostor_set": options.impostor_set}
    stated = {name: value for name, value in given.items() if value}
    systems = options.systems or table.unique("system", kind="nonmated")
    if not systems:
        raise EvaluationError(f"{options.scores}: no row of kind 'nonmated'")
    subjects = _subjects(options)
    stated["confidence"] = _confidence(options)
    records: list[ThresholdRecord] = []
    for system in systems:
        records += estimate_thresholds(
            table, system, options.fmr, options.impostors, subjects, **stated
        )
    print(markdown_table(tables.threshold_table(records)))
    if options.out:
        write_json([record.to_dict() for record in records], options.out)
        print(f"wrote {options.out}", file=sys.stderr)


def convert(options: Namespace) -> None:
    """Reads one format and writes another."""
    mapped = dict(entry.split("=", 1) for entry in options.columns or () if "=" in entry)
    if len(mapped) != len(options.columns or ()):
        raise EvaluationError("--columns: expected name=column, such as score=Similarity")
    labels = Labels(
        system=options.system,
        score_type=options.score_type,
        attack=options.attack,
        probe_policy=options.probe,
        alignment=options.alignment,
        model_fingerprint=options.model_fingerprint,
        data_set=options.data_set,
        kind=options.kind,
        columns=mapped,
    )
    table = read_format(options.source, options.inputs, labels)
    if options.source == "generic":
        print(table.metadata["read_as"], file=sys.stderr)
    write_format(options.target, table, options.into)
    print(f"wrote {len(table)} rows to {', '.join(options.into)}", file=sys.stderr)


def verify(options: Namespace) -> int:
    """Prints the provenance of every image.

    Returns:
        2 where some file cannot be read, else 1 where one has no provenance, other sources or a
        broken signature; the others are looked at all the same.
    """
    failed = unread = False
    for image in options.images:
        try:
            found = read_provenance(image)
            signed = credentials.read_credentials(image)
        except EvaluationError as error:
            unreadable = not isinstance(error, NoProvenance)
            print("adjointdeis-eval: " * unreadable + printable(error), file=sys.stderr)
            failed, unread = True, unread or unreadable
            continue
        failed |= signed is not None and signed["state"] == "Invalid"
        if options.json:
            line = {"file": image, **found, "credentials": signed}
            print(json.dumps(line))
        else:
            # Values of others stand on their own line: none of them may look like a signature.
            name = printable(image)
            print(f"{name}: {printable(found['notice'])}")
            for key in ("tool", "version", "attack", "config_hash"):
                print(f"  {key}: {printable(found[key])}")
            for source in _listed(found["source_hashes"]):
                print(f"  source: {printable(source)}")
            if signed is not None:
                why = f" ({', '.join(signed['problems'])})" if signed["problems"] else ""
                stated = f"{signed['state']}, by {signed['signer']}{why}"
                print(f"  signature: {printable(stated)}")
        if options.source and not sources_match(found, options.source):
            print(printable(f"{image}: not made from {', '.join(options.source)}"), file=sys.stderr)
            failed = True
    return 2 if unread else int(failed)


def sign(options: Namespace) -> None:
    """Signs every image in place."""
    for image in options.images:
        credentials.sign(image, options.certificate, options.key, options.algorithm)
        print(f"{image}: signed", file=sys.stderr)


def synth(options: Namespace) -> None:
    """Writes synthetic scores and, if asked, the covariates of their subjects."""
    from adjointdeis.evaluation.simulate import synthetic_table

    _check_seed(options)
    for name, least in (("n_subjects", 4), ("n_morphs", 1)):
        given = getattr(options, name)
        if not least <= given <= _MOST_SYNTHETIC:
            raise EvaluationError(
                f"--{name.replace('_', '-')} {given}: expected {least} to {_MOST_SYNTHETIC}"
            )
    table, subjects = synthetic_table(
        n_subjects=options.n_subjects, n_morphs=options.n_morphs, seed=options.seed
    )
    write_scores(table, options.scores)
    if options.subjects:
        header = ("subject_id", "sex", "group", "age")
        write_csv(options.subjects, [header, *(astuple(s) for s in subjects.by_id.values())])
    print(f"wrote {len(table)} rows to {options.scores}", file=sys.stderr)


def paper(options: Namespace) -> None:
    """Prints a table of the paper with the counts and Wilson intervals behind its percentages."""
    rows = paper_table(options.table)
    labels = [key for key in rows[0] if not key.endswith("_percent") and key not in SYSTEMS]
    lines = []
    for row in rows:
        cells = ["" if row[key] is None else row[key] for key in labels]
        lines.append([*cells, *(str(row[system]) for system in SYSTEMS)])
    print(text_table([*labels, *SYSTEMS], lines))


def _printed(*found: tables.Table) -> str:
    return "\n\n".join(markdown_table(each) for each in found)


def _require_plots() -> None:
    for package in ("matplotlib", "PIL"):
        load(package, "reports")


def _say_written(files: Sequence[object], options: Namespace) -> None:
    print(f"wrote {len(files)} files to {options.out}: report.html first", file=sys.stderr)


def _statistics(options: Namespace) -> dict[str, Any]:
    """Options of every interval, checked."""
    _confidence(options)
    if options.replicates < 0:
        raise EvaluationError(f"--replicates {options.replicates}: expected 0 or more")
    if options.replicates > _MOST_REPLICATES:
        raise EvaluationError(
            f"--replicates {options.replicates}: expected at most {_MOST_REPLICATES}; thousands "
            "give every digit that an interval has"
        )
    _check_seed(options)
    return {name: getattr(options, name) for name in ("replicates", "seed", "confidence")}


def _confidence(options: Namespace) -> float:
    if not 0 < options.confidence < 1:
        raise EvaluationError(
            f"--confidence {options.confidence}: expected between 0 and 1, as 0.95 or 95%"
        )
    return options.confidence


def _check_seed(options: Namespace) -> None:
    if not 0 <= options.seed < 2**64:
        raise EvaluationError(f"--seed {options.seed}: expected 0 or more, of at most 64 bits")


def _table(options: Namespace) -> ScoreTable:
    """The comparisons of all score files, or those of `--systems` alone."""
    files = [options.scores] if isinstance(options.scores, str) else options.scores
    table = concatenate(read_scores(file) for file in files)
    wanted = options.systems
    return table.select(system=chosen(table, "system", wanted)) if wanted else table


def _subjects(options: Namespace) -> Subjects | None:
    return read_subjects(options.subjects) if options.subjects else None


def _det(table: ScoreTable) -> Iterator[tuple[Any, ...]]:
    """Header, then an operating point a line, per detector and attack and for the worst case."""
    yield ("system", "attack", "tau", "macer", "bscer")
    for system in table.unique("system", kind="mad"):
        scores = DetectionScores.from_table(table, system)
        for attack in (*scores.attacks, None):
            for point in zip(*scores.det(attack), strict=True):
                yield (system, attack or WORST, *(repr(float(value)) for value in point))


def _listed(hashes: Any) -> list[str]:
    if isinstance(hashes, dict):
        return [f"{name} {value}" for name, value in hashes.items()]
    return [str(value) for value in (hashes if isinstance(hashes, list) else [hashes])]
