"""Is one attack stronger than another on the same pairs, within a run or across runs?

Runs of one benchmark morph the same pairs and are judged at the same thresholds by the same
networks, so that a row of a sweep may be tested against another one pair by pair. Where a network
or a threshold differs between two runs, that recogniser is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from adjointdeis.evaluation import EvaluationError, ScoreTable, concatenate, tables
from adjointdeis.evaluation.paired import PairedComparison, compare_attacks
from adjointdeis.reporting.document import Table
from adjointdeis.reporting.paper_tables import Line, is_adjoint_deis_1, is_sde
from adjointdeis.reporting.run import HEADLINE_VARIANTS, EvaluationSetting, Run
from adjointdeis.reporting.run_tables import GUIDE, GUIDE_NOTE, belongs

FIRST, SECOND = "first", "second"
REPLICATES = 1000


def paired_table(run: Run, at: EvaluationSetting) -> Table | None:
    """Every attack of a run against its first; None where nothing can be paired."""
    attacks = list(run.result["attacks"])
    found = [
        (run.attack_label(attack), c, _judge(run, c.system, (run, attack), (run, attacks[0])))
        for attack in attacks[1:]
        for c in comparisons((run, attack), (run, attacks[0]), at)
    ]
    if not found:
        return None
    return _table("paired", run.attack_label(attacks[0]), found, at.labels)


def paired_lines(name: str, rows: Sequence[Line], at: EvaluationSetting) -> Table | None:
    """Every row of a rebuilt table against its `baseline`, of several seeds the first."""
    base = baseline(rows)
    found = [
        (line.label, c, _judge(other[0], c.system, own, other))
        for line, own, other, c in _against(rows, base, at)
    ]
    return _table(f"{name}-paired", base.label, found, at.labels) if base and found else None


def baseline(rows: Sequence[Line]) -> Line | None:
    """The row that others are compared with: DiM-A, or the paper's own setting, or the first."""
    ours = [line for line in rows if line.ours is not None]
    for line in ours:
        if line.paper and line.paper.get("attack") == "DiM-A":
            return line
    for line in ours:
        assert line.ours is not None
        s = line.ours.settings
        chosen = (s.get("learning_rate"), s.get("adjoint_steps"), s.get("states") or "recorded")
        if is_adjoint_deis_1(s) and not is_sde(s) and chosen in (
            (0.1, 20, "recorded"), (0.01, 20, "recorded"),
        ):  # fmt: skip
            return line
    return ours[0] if ours else None


def comparisons(
    first: tuple[Run, str], second: tuple[Run, str], at: EvaluationSetting
) -> Sequence[PairedComparison]:
    """The first attack against the second on every recogniser that judged both alike."""
    if at.variant not in HEADLINE_VARIANTS:
        return []
    (run, attack), (other, base) = first, second
    systems = [
        s
        for s in other.systems
        if s in run.systems
        and run.result["systems"][s].get("fingerprint")
        == other.result["systems"][s].get("fingerprint")
        and (one := run.row(attack, s, at)) is not None
        and (two := other.row(base, s, at)) is not None
        and one["tau"] == two["tau"]
    ]
    if not systems:
        return []
    try:
        return compare_attacks(
            _joined(first, second, systems),
            FIRST,
            SECOND,
            [r for r in other.thresholds if belongs(r, at)] or None,
            probe_policy=at.probe,
            impostor_policy=at.impostors,
            fmr=at.fmr,
            systems=systems,
            variant=at.variant,
            replicates=REPLICATES,
        )
    except EvaluationError:
        # No pair in common, or policies whose covariates the report does not have.
        return []


def records(name: str, rows: Sequence[Line], at: EvaluationSetting) -> list[dict[str, Any]]:
    """The comparisons of `paired_lines` as JSON-ready records."""
    base = baseline(rows)
    return [
        {
            "table": name,
            "probe_policy": at.probe,
            "impostor_policy": at.impostors,
            "fmr_target": at.fmr,
            **c.to_dict(),
            "first": line.label,
            "second": base.label if base else None,
        }
        for line, _, _, c in _against(rows, base, at)
    ]


def _against(
    rows: Sequence[Line], base: Line | None, at: EvaluationSetting
) -> Iterator[tuple[Line, tuple[Run, str], tuple[Run, str], PairedComparison]]:
    """Every other row of ours with its side, the base's side, and how they compare."""
    if base is None or base.ours is None:
        return
    other = base.ours.runs[0], base.ours.attack
    for line in rows:
        if line.ours is not None and line.ours is not base.ours:
            own = line.ours.runs[0], line.ours.attack
            for c in comparisons(own, other, at):
                yield line, own, other, c


def _judge(run: Run, system: str, *sides: tuple[Run, str]) -> str:
    """A recogniser's printed name, marked where it guided either attack."""
    guide = any(own.guided(attack, system) for own, attack in sides)
    return run.system_label(system) + f" ({GUIDE})" * guide


def _joined(first: tuple[Run, str], second: tuple[Run, str], systems: Sequence[str]) -> ScoreTable:
    """Both attacks' morphs under two plain names, with the bona fide rows of the second's run."""
    parts = []
    for (run, attack), name in ((first, FIRST), (second, SECOND)):
        own = run.scores.select(kind="morph", attack=attack, system=systems)
        columns = {**own.columns, "attack": np.full(len(own), name)}
        parts.append(ScoreTable.from_columns(**columns))
    scores = second[0].scores
    parts.append(scores.select(kind=("mated", "nonmated"), system=systems))
    joined = concatenate(parts)
    return ScoreTable(joined.columns, scores.metadata, joined.source, joined.lines)


def _table(
    key: str,
    base: str,
    found: Sequence[tuple[str, PairedComparison, str]],
    stated: tuple[tuple[str, str], ...],
) -> Table:
    names = [(label, base, judge) for label, _, judge in found]
    made = tables.paired_table([c for _, c, _ in found], names)
    title = f"Is the difference to {base} more than chance?"
    note = (GUIDE_NOTE,) * any(judge.endswith(f"({GUIDE})") for _, _, judge in found)
    return replace(made, key=key, title=title, labels=stated, notes=(*made.notes, *note))
