"""The tables of one run that show rates: headline, policies, bound, beside the paper."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from adjointdeis.evaluation import WORST_CASE
from adjointdeis.evaluation.paper import paper_table
from adjointdeis.evaluation.rates import sample_notes
from adjointdeis.evaluation.tables import interval_meaning
from adjointdeis.reporting.document import DASH, Cell, Table
from adjointdeis.reporting.paper_tables import reasons_not_comparable
from adjointdeis.reporting.run import HEADLINE_VARIANTS, KNOWN, EvaluationSetting, Run, condition
from adjointdeis.reporting.text import (
    IMPOSTORS,
    PROBES,
    count,
    interval,
    listed,
    of,
    percent,
    rate_cell,
    share,
)

INTERVAL = "Under each rate: k/N and its {level} interval. {meaning}."

BOUND = (
    "The worst-case bound is the rate of the best conceivable morph: the embedding halfway between "
    "the two source images' embeddings. No image need have that embedding."
)

GUIDE = "guide"
"""What marks a rate at a recogniser that guided the attack."""

GUIDE_NOTE = (
    f"{GUIDE}: this recogniser guided the attack, which saw its gradient or its scores. It is a "
    "white box there, and its rate says nothing about recognisers that were not seen."
)


def labels(run: Run, at: EvaluationSetting) -> tuple[tuple[str, str], ...]:
    """The labels without which a rate means nothing."""
    found = list(at.labels)
    records = [r for r in run.thresholds if belongs(r, at)]
    rules = dict.fromkeys(r.rule.split(":")[0] for r in records)
    sets = dict.fromkeys(r.impostor_set for r in records if r.impostor_set)
    source = "; ".join(rules) or "estimated from the run's own impostor scores"
    found.append(("Threshold", f"{source}{' on ' + ', '.join(sets) if sets else ''}"))
    alignments = dict.fromkeys(run.result["systems"][s].get("alignment", "") for s in run.systems)
    stated = [a for a in alignments if a]
    if stated:
        found.append(("Alignment", ", ".join(stated)))
    return tuple(found)


def rate_table(
    run: Run, at: EvaluationSetting, *, link: bool = True, explained: bool = True
) -> Table:
    """The headline: attack, both accountings of NFE, the rate at each recogniser.

    Args:
        link: rates lead to the outcomes of the pairs that they count.
        explained: notes say what NFE and the intervals are; once in a report is enough.
    """
    rows = []
    for attack in run.attacks:
        found = [run.row(attack, system, at) for system in run.systems]
        if not any(found):
            continue
        href = f"#pairs-{attack}" if link else ""
        name = Cell(run.attack_label(attack), _failures(run, attack))
        rates = [rate_cell(row, href if row else "") for row in found]
        rows.append((name, *_nfe(run, attack), *_flagged(run, attack, rates)))
    rows.append(_fnmr_row(run, at))
    level = share(next(iter(run.result["rows"]), {"confidence": 0.95})["confidence"])
    own = [row for row in run.result["rows"] if condition(row) == at]
    notes = [*_attack_notes(run), *_guide_note(run)]
    notes += explained * [
        INTERVAL.format(level=level, meaning=interval_meaning(own)),
        *[BOUND] * (WORST_CASE in run.attacks),
        *sample_notes(own, run.attack_label),
        "NFE (paper): N_E + n_opt (N + M), one backward product counted as one evaluation and the "
        "pair's encoding counted once. NFE (counted): network evaluations and vector-Jacobian "
        "products that ran, per pair.",
    ]
    return Table(
        key=f"rates-{at.probe}",
        title=f"{at.variant} in %, against {PROBES.get(at.probe, at.probe)}",
        header=("Attack", "NFE (paper)", "NFE (counted)", *map(run.system_label, run.systems)),
        rows=tuple(rows),
        labels=labels(run, at),
        notes=tuple(notes),
    )


def _fnmr_row(run: Run, at: EvaluationSetting) -> tuple[Cell, ...]:
    """What the same thresholds cost genuine users: an MMPMR says little without it."""
    line = [Cell("Genuine users rejected", ("FNMR",)), Cell(DASH), Cell(DASH)]
    for system in run.systems:
        own = (run.row(attack, system, at) for attack in run.attacks)
        row = next((r for r in own if r is not None and r["fnmr_n"]), None)
        if row is None:
            line.append(Cell(DASH))
        else:
            detail = (of(row["fnmr_k"], row["fnmr_n"]),)
            line.append(Cell(percent(row["fnmr"], row["fnmr_n"]), detail))
    return tuple(line)


def _attack_notes(run: Run) -> list[str]:
    """What the run says about its attacks; a note that several share is said once."""
    by_note: dict[str, list[str]] = {}
    for entry in run.result["attacks"].values():
        for note in entry["notes"]:
            by_note.setdefault(note.rstrip("."), []).append(entry["label"])
        for failure in entry["failed"]:
            note = f"pair {failure['pair_id']} failed: {failure['reason'].rstrip('.')}"
            by_note.setdefault(note, []).append(entry["label"])
    return [f"{listed(names)}: {note}." for note, names in by_note.items()]


def sensitivity_table(run: Run, at: EvaluationSetting) -> Table | None:
    """The headline variant under every probe and impostor policy; None where there is just one."""
    columns = [c for c in run.conditions if c.variant in HEADLINE_VARIANTS and c.fmr == at.fmr]
    columns.sort(key=lambda c: (c.probe != "other", list(IMPOSTORS).index(c.impostors)
                                if c.impostors in IMPOSTORS else len(IMPOSTORS)))  # fmt: skip
    if len({c.impostors for c in columns}) < 2:
        return None
    rows = []
    for system in run.systems:
        for attack in run.attacks:
            found = [run.row(attack, system, c) for c in columns]
            if any(found):
                guide = (GUIDE,) * run.guided(attack, system)
                name = Cell(run.attack_label(attack), (run.system_label(system), *guide))
                rows.append((name, *(_short(row) for row in found)))
    return Table(
        key="sensitivity",
        title=f"The same morphs under every policy ({at.variant} in %, FMR {share(at.fmr)})",
        header=("Attack, recogniser", *(f"{c.probe} / {c.impostors}" for c in columns)),
        rows=tuple(rows),
        notes=(
            "Columns: probe policy / impostor policy. Nothing but the policy changes along a row.",
            *_guide_note(run),
        ),
    )


def bound_table(run: Run, at: EvaluationSetting) -> Table | None:
    """What share of the recognisers' own bound each attack reached; None without a bound."""
    rows = []
    for attack in run.attacks:
        found = [run.row(attack, system, at) for system in run.systems]
        if attack == WORST_CASE or not any(r and r["share_of_bound"] is not None for r in found):
            continue
        line = [
            Cell(percent(r["share_of_bound"], r["n"]), (f"bound {percent(r['bound'], r['n'])}%",))
            if r and r["share_of_bound"] is not None
            else Cell(DASH)
            for r in found
        ]
        rows.append((Cell(run.attack_label(attack)), *_flagged(run, attack, line)))
    if not rows:
        return None
    return Table(
        key="bound",
        title=f"Share of the worst-case bound reached, in % (probe: {at.probe})",
        header=("Attack", *map(run.system_label, run.systems)),
        rows=tuple(rows),
        labels=at.labels,
        notes=(
            BOUND,
            *_guide_note(run),
        ),
    )


def paper_rows_table(run: Run, at: EvaluationSetting) -> Table | None:
    """The paper's own cells beside ours, for attacks that name a row of its Table 1."""
    paper = {row["attack"]: row for row in paper_table("table1")}
    systems = [s for s in run.systems if any(s in row for row in paper.values())]
    rows = []
    for attack, entry in run.result["attacks"].items():
        theirs = paper.get(entry["paper_row"] or "")
        if theirs is None:
            continue
        line: list[Cell] = [Cell(entry["label"], (f"paper: {entry['paper_row']}",))]
        nfe = theirs["nfe"]
        line += [Cell(count(entry["nfe_paper"])), Cell(count(nfe), mark="paper")]
        for system in systems:
            own = rate_cell(run.row(attack, system, at))
            line += [flagged(own, run.guided(attack, system)), paper_cell(theirs, system)]
        rows.append(tuple(line))
    if not rows or not systems:
        return None
    reasons = dict.fromkeys(
        reason
        for attack, entry in run.result["attacks"].items()
        if entry["paper_row"] in paper
        for reason in reasons_not_comparable(run, attack)
    )
    if reasons:
        verdict = "Not comparable with the paper: " + "; ".join(reasons) + "."
        if run.profile != "paper":
            verdict += " Only the order of the attacks may be asked to agree."
    else:
        verdict = "Same data, networks and settings as the paper; the policies are our assumption."
    return Table(
        key="paper",
        title="The paper's own numbers beside ours",
        header=(
            "Attack",
            "NFE, ours",
            "NFE, paper",
            *(
                h
                for s in systems
                for h in (f"{run.system_label(s)}, ours", f"{KNOWN.get(s, s)}, paper")
            ),
        ),
        rows=tuple(rows),
        labels=at.labels,
        notes=(
            verdict,
            *_guide_note(run),
            "Paper: Table 1, MMPMR at FMR 0.1%; every cell is k/489, from which its Wilson "
            "interval is ours. The paper gives no interval, no probe policy and no origin of its "
            "thresholds.",
        ),
    )


def belongs(record: object, at: EvaluationSetting) -> bool:
    """Whether a threshold record is that of a condition."""
    return getattr(record, "target_fmr", None) == at.fmr and getattr(
        record, "impostor_policy", ""
    ) in ("", at.impostors)


def flagged(cell: Cell, guided: bool) -> Cell:
    """The cell, which says so where its recogniser guided the attack."""
    return replace(cell, detail=(*cell.detail, GUIDE)) if guided else cell


def _flagged(run: Run, attack: str, cells: Sequence[Cell]) -> list[Cell]:
    """Cells of one attack at each recogniser."""
    judged = zip(cells, run.systems, strict=True)
    return [flagged(cell, run.guided(attack, system)) for cell, system in judged]


def paper_cell(row: Mapping[str, Any] | None, system: str) -> Cell:
    """The paper's own rate at a recogniser, with the interval that is ours."""
    rate = row.get(system) if row else None
    if row is None or rate is None:
        return Cell(DASH, mark="paper")
    detail = (of(rate.k, rate.n), interval(rate.lo, rate.hi, rate.n))
    return Cell(f"{row[f'{system}_percent']:g}", detail, mark="paper")


def _guide_note(run: Run) -> list[str]:
    """What the flag means, where it is used."""
    used = any(run.guided(attack, system) for attack in run.attacks for system in run.systems)
    return used * [GUIDE_NOTE]


def _short(row: dict[str, object] | None) -> Cell:
    if row is None:
        return Cell(DASH)
    return Cell(percent(row["value"], row["n"]), (of(row["k"], row["n"]),))  # type: ignore[arg-type]


def _failures(run: Run, attack: str) -> tuple[str, ...]:
    failed = run.result["attacks"].get(attack, {}).get("failed") or []
    return (f"{len(failed)} failed",) if failed else ()


def _nfe(run: Run, attack: str) -> tuple[Cell, Cell]:
    entry = run.result["attacks"].get(attack)
    if entry is None:
        return Cell(DASH), Cell(DASH)
    nfe = entry["nfe"]
    if nfe is None:
        return Cell(count(entry["nfe_paper"])), Cell(DASH)
    evaluations = nfe["encode"] + nfe["forward"]
    total = evaluations + nfe["vjps"]
    detail = (f"{count(evaluations)} + {count(nfe['vjps'])} VJPs",) if nfe["vjps"] else ()
    return Cell(count(entry["nfe_paper"])), Cell(count(total), detail)
