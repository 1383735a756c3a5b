"""The tables of one run: rates, policies, thresholds, the paper's cells, gradients, costs."""

from collections.abc import Sequence

from adjointdeis.evaluation import WORST_CASE, EvaluationError
from adjointdeis.evaluation.paired import PairedComparison, compare_attacks
from adjointdeis.evaluation.paper import paper_table

from .comparability import reasons_not_comparable
from .document import DASH, Cell, Table, cells
from .run import HEADLINE_VARIANTS, Condition, Run
from .text import (
    IMPOSTORS,
    PROBES,
    count,
    duration,
    interval,
    listed,
    of,
    percent,
    rate_cell,
    share,
)

WILSON = "Under each rate: k/N and its {level} Wilson interval."


def labels(run: Run, at: Condition) -> tuple[tuple[str, str], ...]:
    """The labels without which a rate means nothing."""
    found = [
        ("Probe", at.probe),
        ("Impostors", IMPOSTORS.get(at.impostors, at.impostors)),
        ("Variant", at.variant),
        ("FMR target", share(at.fmr)),
    ]
    records = [r for r in run.thresholds if _belongs(r, at)]
    rules = dict.fromkeys(r.rule.split(":")[0] for r in records)
    sets = dict.fromkeys(r.impostor_set for r in records if r.impostor_set)
    source = "; ".join(rules) or "estimated from the run's own impostor scores"
    found.append(("Threshold", f"{source}{' on ' + ', '.join(sets) if sets else ''}"))
    alignments = dict.fromkeys(run.result["systems"][s].get("alignment", "") for s in run.systems)
    stated = [a for a in alignments if a]
    if stated:
        found.append(("Alignment", ", ".join(stated)))
    return tuple(found)


def rate_table(run: Run, at: Condition, *, link: bool = True, explained: bool = True) -> Table:
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
        rates = (rate_cell(row, href if row else "") for row in found)
        rows.append((name, *_nfe(run, attack), *rates))
    level = share(next(iter(run.result["rows"]), {"confidence": 0.95})["confidence"])
    notes = attack_notes(run)
    notes += explained * [
        WILSON.format(level=level),
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


def attack_notes(run: Run) -> list[str]:
    """What the run says about its attacks; a note that several share is said once."""
    by_note: dict[str, list[str]] = {}
    for entry in run.result["attacks"].values():
        for note in entry["notes"]:
            by_note.setdefault(note.rstrip("."), []).append(entry["label"])
        for failure in entry["failed"]:
            note = f"pair {failure['pair_id']} failed: {failure['reason'].rstrip('.')}"
            by_note.setdefault(note, []).append(entry["label"])
    return [f"{listed(names)}: {note}." for note, names in by_note.items()]


def sensitivity_table(run: Run, at: Condition) -> Table | None:
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
                name = Cell(run.attack_label(attack), (run.system_label(system),))
                rows.append((name, *(_short(row) for row in found)))
    return Table(
        key="sensitivity",
        title=f"The same morphs under every policy ({at.variant} in %, FMR {share(at.fmr)})",
        header=("Attack, recogniser", *(f"{c.probe} / {c.impostors}" for c in columns)),
        rows=tuple(rows),
        notes=(
            "Columns: probe policy / impostor policy. Nothing but the policy changes along a row.",
        ),
    )


def bootstrap_table(run: Run, at: Condition) -> Table | None:
    """The subject bootstrap's intervals beside the rates; None where none was run."""
    rows, fixed = [], False
    for attack in run.attacks:
        found = [run.row(attack, system, at) for system in run.systems]
        if not any(row and row["bootstrap_lo"] is not None for row in found):
            continue
        line = []
        for row in found:
            if row is None:
                line.append(Cell(DASH))
                continue
            star = "*" if row["bootstrap_tau"] == "fixed" else ""
            fixed = fixed or bool(star)
            bounds = interval(row["bootstrap_lo"], row["bootstrap_hi"], row["n"])
            line.append(Cell(percent(row["value"], row["n"]), (f"{bounds}{star}",)))
        rows.append((Cell(run.attack_label(attack)), *line))
    if not rows:
        return None
    notes = (
        "The interval that holds for new people: the subject (vertex) bootstrap draws subjects, "
        "not comparisons, and estimates the threshold again in every replicate.",
        *(
            ("* threshold held fixed, for its impostor comparisons name no subjects.",)
            if fixed
            else ()
        ),
    )
    return Table(
        key=f"bootstrap-{at.probe}",
        title=f"Intervals for a new sample of subjects ({at.variant} in %, probe: {at.probe})",
        header=("Attack", *map(run.system_label, run.systems)),
        rows=tuple(rows),
        labels=labels(run, at)[:4],
        notes=notes,
    )


def bound_table(run: Run, at: Condition) -> Table | None:
    """What share of the recognisers' own bound each attack reached; None without a bound."""
    rows = []
    for attack in run.attacks:
        found = [run.row(attack, system, at) for system in run.systems]
        if attack == WORST_CASE or not any(r and r["share_of_bound"] is not None for r in found):
            continue
        line = [
            Cell(percent(r["share_of_bound"], r["n"]), (f"of {percent(r['bound'], r['n'])}%",))
            if r and r["share_of_bound"] is not None
            else Cell(DASH)
            for r in found
        ]
        rows.append((Cell(run.attack_label(attack)), *line))
    if not rows:
        return None
    return Table(
        key="bound",
        title=f"Share of the worst-case bound reached, in % (probe: {at.probe})",
        header=("Attack", *map(run.system_label, run.systems)),
        rows=tuple(rows),
        labels=labels(run, at)[:4],
        notes=(
            "The bound is the rate of the best conceivable morph: the embedding halfway between "
            "the two source images' embeddings. No image need have that embedding.",
        ),
    )


def threshold_table(run: Run) -> Table:
    """Every threshold with what it rests on."""
    rows = []
    for r in run.thresholds:
        known_system = r.model in run.result["systems"]
        label = run.system_label(r.model) if known_system else r.model or "unnamed"
        known = r.n is not None
        fmr_bounds = (
            f"[{100 * r.fmr_lo:.3f}, {100 * r.fmr_hi:.3f}]"
            if r.fmr_lo is not None and r.fmr_hi is not None
            else ""
        )
        realised = DASH if r.realised_fmr is None else f"{100 * r.realised_fmr:.3f}"
        rows.append(
            cells(
                (
                    label,
                    r.impostor_policy or "unstated",
                    share(r.target_fmr),
                    Cell(
                        f"{r.value:.4f}", ("D < τ" if r.score_type == "dissimilarity" else "S > τ",)
                    ),
                    Cell(realised, (fmr_bounds,) if fmr_bounds else ()),
                    f"{r.k}/{r.n}" if known else DASH,
                    r.rule_of_30,
                )
            )
        )
    header = (
        "Recogniser",
        "Impostors",
        "FMR target",
        "τ",
        "FMR realised, %",
        "k/N_I",
        "Rule of 30",
    )
    return Table(
        key="thresholds",
        title="What each threshold rests on",
        header=header,
        rows=tuple(rows),
        notes=(
            "In brackets: Clopper-Pearson interval of the FMR for independent comparisons. "
            "Impostor pairs share people, so the truth is wider.",
            "Rule of 30 (Doddington): thirty false matches must lie above a threshold before its "
            "FMR is known to within 30%.",
        ),
    )


def paper_rows_table(run: Run, at: Condition) -> Table | None:
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
            line.append(rate_cell(run.row(attack, system, at)))
            r = theirs[system]
            detail = (of(r.k, r.n), interval(r.lo, r.hi, r.n))
            line.append(Cell(f"{theirs[f'{system}_percent']:g}", detail, mark="paper"))
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
                for h in (f"{run.system_label(s)}, ours", f"{run.system_label(s)}, paper")
            ),
        ),
        rows=tuple(rows),
        labels=labels(run, at)[:4],
        notes=(
            verdict,
            "Paper: Table 1, MMPMR at FMR 0.1%; every cell is k/489, from which its Wilson "
            "interval is ours. The paper gives no interval, no probe policy and no origin of its "
            "thresholds.",
        ),
    )


def gradient_table(run: Run) -> Table | None:
    """How wrong each method's gradient was against the exact one; None where none was measured."""
    rows = []
    for entry in run.result["attacks"].values():
        error = entry.get("gradient_error")
        if error:
            method = entry["settings"].get("gradient")
            rows.append(
                cells(
                    (
                        Cell(entry["label"], (str(method),) if method else ()),
                        f"{error['relative']:.3g}",
                        f"{error['cosine']:.3f}",
                        f"{error['norm_ratio']:.3g}",
                        str(error["pairs"]),
                    )
                )
            )
    if not rows:
        return None
    return Table(
        key="gradient",
        title="Gradient of each method against the exact gradient of the sampler that ran",
        header=("Attack", "Relative error", "Cosine", "Length ratio", "Pairs"),
        rows=tuple(rows),
        notes=(
            "Relative error ‖g − g*‖/‖g*‖, cosine of the angle between g and g*, and ‖g‖/‖g*‖, "
            "with g over (x_T, z) at the first optimisation step; 0, 1 and 1 are exact.",
        ),
    )


def paired_table(run: Run, at: Condition) -> Table | None:
    """Every attack against the first on the same pairs; None where nothing can be paired."""
    attacks = list(run.result["attacks"])
    if len(attacks) < 2 or at.variant not in HEADLINE_VARIANTS:
        return None
    rows = []
    for attack in attacks[1:]:
        for c in _paired(run, attack, attacks[0], at):
            bounds = (
                f"[{100 * c.lo:+.1f}, {100 * c.hi:+.1f}]"
                if c.lo is not None and c.hi is not None
                else ""
            )
            rows.append(
                (
                    Cell(run.attack_label(attack), (run.system_label(c.system),)),
                    Cell(f"{100 * c.difference:+.1f}", (bounds,) if bounds else ()),
                    Cell(str(c.first_only)),
                    Cell(str(c.second_only)),
                    Cell(str(c.both)),
                    Cell(str(c.neither)),
                    Cell(f"{c.p_value:.2g}"),
                    Cell(DASH if c.p_holm is None else f"{c.p_holm:.2g}"),
                )
            )
    if not rows:
        return None
    base = run.attack_label(attacks[0])
    return Table(
        key="paired",
        title=f"Is the difference to {base} more than chance?",
        header=(
            "Attack, recogniser",
            "Difference, points",
            "Only this",
            f"Only {base}",
            "Both",
            "Neither",
            "McNemar p",
            "Holm p",
        ),
        rows=tuple(rows),
        labels=labels(run, at)[:4],
        notes=(
            "Both attacks morph the same people: compare them here, never by overlapping Wilson "
            "intervals. Counts of pairs; exact McNemar test; Holm over the recognisers; in "
            "brackets the paired subject bootstrap of the difference.",
        ),
    )


def cost_table(run: Run) -> Table:
    """What each attack did and cost."""
    rows = []
    for entry in run.result["attacks"].values():
        s, nfe = entry["settings"], entry["nfe"] or {}
        method, arguments = _call(s.get("gradient"))
        solver, options = _call(s.get("solver"))
        guided = s.get("optimisation_steps")
        steps = (
            f"{guided} × {s.get('optimizer') or 'SGD'}, η = {s.get('learning_rate')}"
            if guided
            else "none"
        )
        of_solver = (f"{s.get('sampling_steps') or DASH} steps", *options)
        of_method = (
            *((f"{s['adjoint_steps']} steps",) if s.get("adjoint_steps") else ()),
            *arguments,
        )
        rows.append(
            cells(
                (
                    entry["label"],
                    Cell(solver, of_solver),
                    Cell(method, of_method),
                    Cell(steps, (f"keeps the {s['keep']}",) if guided and s.get("keep") else ()),
                    count(nfe.get("encode")),
                    count(nfe.get("forward")),
                    count(nfe.get("vjps")),
                    duration(entry.get("seconds_per_pair")),
                )
            )
        )
    return Table(
        key="cost",
        title="What each attack ran, per pair",
        header=(
            "Attack",
            "Sampler",
            "Gradient",
            "Optimisation",
            "Encoding evaluations",
            "Sampling evaluations",
            "Vector-Jacobian products",
            "Time",
        ),
        rows=tuple(rows),
    )


def outcome_table(run: Run, attack: str, at: Condition) -> Table | None:
    """Every pair of one attack: its images and, per recogniser, the weaker score and verdict."""
    by_system = {s: run.verdicts(attack, s, at) for s in run.systems}
    rows = []
    for pair in run.result["pairs"]:
        path = pair["morphs"].get(attack)
        href = path if path and run.path(path).is_file() else ""
        found = [by_system[s].get(pair["pair_id"]) for s in run.systems]
        if not any(found):
            continue
        words = {"yes": "matches both", "no": DASH, "failed": "failed", None: ""}
        rows.append((Cell(pair["pair_id"], href=href), *(Cell(words[v]) for v in found)))
    if not rows:
        return None
    return Table(
        key=f"outcomes-{attack}",
        title="",
        header=("Pair", *map(run.system_label, run.systems)),
        rows=tuple(rows),
        labels=labels(run, at)[:4],
        fold=False,
    )


def _call(text: object) -> tuple[str, tuple[str, ...]]:
    """`Name(a=1, b=None)` as its name and its arguments that are set."""
    if not text:
        return "none", ()
    name, _, rest = str(text).partition("(")
    arguments = [a for a in rest.removesuffix(")").split(", ") if a]
    return name, tuple(a for a in arguments if not a.endswith(("=None", "=False")))


def _paired(run: Run, attack: str, base: str, at: Condition) -> Sequence[PairedComparison]:
    found: list[PairedComparison] = []
    records = [r for r in run.thresholds if _belongs(r, at)] or None
    systems = [s for s in run.systems if run.row(attack, s, at) and run.row(base, s, at)]
    try:
        found = compare_attacks(
            run.scores,
            attack,
            base,
            records,
            probe_policy=at.probe,
            impostor_policy=at.impostors,
            fmr=at.fmr,
            systems=systems,
            variant=at.variant,
            replicates=1000,
        )
    except EvaluationError:
        # No pair in common, or policies whose covariates the report does not have.
        return []
    return found


def _belongs(record: object, at: Condition) -> bool:
    return getattr(record, "target_fmr", None) == at.fmr and getattr(
        record, "impostor_policy", ""
    ) in ("", at.impostors)


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
