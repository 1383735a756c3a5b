"""Result rows as Markdown tables with counts, percent and intervals, and the notes they need."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adjointdeis.evaluation.rates import CONDITIONAL, NEW_SUBJECTS, NEW_SUBJECTS_FIXED_TAU
from adjointdeis.evaluation.thresholds import ThresholdRecord


def percent(value: float | None, digits: int = 2) -> str:
    """A share as percent without its sign; a dash where unknown."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def share(value: float) -> str:
    """A target share as a reader writes it: 0.001 is `0.1%`."""
    return f"{100 * value:g}%"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, cells padded so that it also reads well as text."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(h), *(len(r[i]) for r in cells), 3) for i, h in enumerate(header)]
    lines = ["| " + " | ".join(h.ljust(w) for h, w in zip(header, widths, strict=True)) + " |"]
    lines.append("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for row in cells:
        line = " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
        lines.append(f"| {line} |")
    return "\n".join(lines)


def vulnerability_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `evaluate` as a table, followed by what its intervals mean."""
    bounded = any(row["bound"] is not None for row in rows)
    header = ["attack", "system", "probe", "impostors", "metric", "FMR target", "FMR realised",
              "tau", "k/N", "%", "Wilson 95%", "subjects 95%", "FTA/FTE"]  # fmt: skip
    header = [h.replace("95%", share(rows[0]["confidence"])) for h in header] if rows else header
    header += ["% of bound"] if bounded else []
    lines = []
    for row in rows:
        realised = "-"
        if row["impostors_n"]:
            realised = (
                f"{percent(row['fmr_realised'], 3)}% ({row['impostors_k']}/{row['impostors_n']})"
            )
        k = row["k"] if float(row["k"]).is_integer() else f"{row['k']:.1f}"
        star = "*" if row["bootstrap_tau"] == "fixed" else ""
        cells = [
            row["attack"],
            row["system"],
            row["probe_policy"],
            row["impostor_policy"],
            row["variant"],
            share(row["fmr_target"]),
            realised,
            f"{row['tau']:.4f}",
            f"{k:g}/{row['n']}" if isinstance(k, float) else f"{k}/{row['n']}",
            percent(row["value"]),
            f"[{percent(row['wilson_lo'])}, {percent(row['wilson_hi'])}]",
            f"[{percent(row['bootstrap_lo'])}, {percent(row['bootstrap_hi'])}]{star}",
            f"{row['n_fta']}/{row['n_fte']}",
        ]
        lines.append([*cells, percent(row["share_of_bound"], 1)] if bounded else cells)
    notes = [f"Wilson: {CONDITIONAL}."]
    if any(row["bootstrap_tau"] == "re-estimated" for row in rows):
        notes.append(f"Subjects: {NEW_SUBJECTS}.")
    if any(row["bootstrap_tau"] == "fixed" for row in rows):
        notes.append(f"Subjects*: {NEW_SUBJECTS_FIXED_TAU}.")
    return table(header, lines) + "\n\n" + "\n".join(f"- {note}" for note in notes)


def threshold_table(records: Sequence[ThresholdRecord]) -> str:
    """Threshold records as a table with the verdict of the rule of 30."""
    header = ["model", "impostors", "FMR target", "tau", "k/N_I", "FMR realised", "exact 95%",
              "rule of 30"]  # fmt: skip
    lines = []
    for r in records:
        known = r.n is not None
        lines.append(
            [
                r.model or "?",
                r.impostor_policy or "?",
                share(r.target_fmr),
                f"{r.value:.6f}",
                f"{r.k}/{r.n}" if known else "?",
                f"{percent(r.realised_fmr, 4)}%" if known else "?",
                f"[{percent(r.fmr_lo, 4)}, {percent(r.fmr_hi, 4)}]%" if known else "?",
                r.rule_of_30,
            ]
        )
    note = (
        "- Exact: Clopper-Pearson interval of the FMR for independent comparisons; pairs that "
        "share people are not independent, so the truth is wider."
    )
    return table(header, lines) + "\n\n" + note


def detection_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `detection_rows` as a table."""
    header = ["detector", "attack", "D-EER %", "BSCER10 %", "BSCER20 %", "BSCER100 %",
              "MACER10 %", "MACER100 %", "failed morph/bona fide"]  # fmt: skip
    lines = []
    for row in rows:
        cells = [row["system"], row["attack"], percent(row["d_eer"])]
        for name in ("bscer10", "bscer20", "bscer100", "macer10", "macer100"):
            r = row[name]
            cells.append(
                f"{percent(r['value'])} ({r['k']}/{r['n']}) "
                f"[{percent(r['lo'])}, {percent(r['hi'])}]"
            )
        lines.append([*cells, f"{row['n_failed_morph']}/{row['n_failed_bonafide']}"])
    note = (
        "- BSCER10/20/100: share of bona fide images flagged where MACER is at most 10, 5, 1% "
        "(older names BPCER at APCER), with Wilson interval; MACER10/100: share of morphs missed "
        "where BSCER is at most 10, 1%. The last line of a detector takes the worst attack, which "
        "is the headline."
    )
    return table(header, lines) + "\n\n" + note


def generality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `evaluate_generality`; publications differ in the aggregation over recognisers."""
    header = ["probe", "impostors", "FMR target %", "attacks", "recognisers", "min %", "mean %",
              "max %", "failed comparisons"]  # fmt: skip
    lines = [
        [
            row["probe_policy"],
            row["impostor_policy"],
            f"{100 * row['fmr_target']:g}",
            ", ".join(row["attacks"]),
            ", ".join(row["systems"]),
            *("-" if row[k] is None else percent(row[k]) for k in ("min", "mean", "max")),
            str(row["n_failed"]),
        ]
        for row in rows
    ]
    note = (
        "- G-MAP: share of paired attempts that match all subjects, averaged over attacks; "
        "minimum, mean and maximum over recognisers. A dash: unequal numbers of probes, which "
        "cannot be paired."
    )
    return "G-MAP over all attacks\n\n" + table(header, lines) + "\n\n" + note


def potential_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `evaluate_attack_potential` as one matrix per attack and probe policy."""
    parts = []
    for attack, policy in dict.fromkeys((row["attack"], row["probe_policy"]) for row in rows):
        cell = {
            (row["r"], row["c"]): row
            for row in rows
            if (row["attack"], row["probe_policy"]) == (attack, policy)
        }
        n_rows, n_columns = max(cell)
        first = cell[1, 1]
        title = (
            f"MAP[r, c] in % of N = {first['n']}: {attack}, probe {policy}, impostors "
            f"{first['impostor_policy']}, FMR {share(first['fmr_target'])}, "
            f"systems {', '.join(first['systems'])}"
        )
        header = ["r \\ c", *(str(c) for c in range(1, n_columns + 1))]
        lines = []
        for r in range(1, n_rows + 1):
            row = [cell[r, c] for c in range(1, n_columns + 1)]
            lines.append([r, *(f"{percent(x['value'], 1)} ({x['k']})" for x in row)])
        parts.append(f"{title}\n\n{table(header, lines)}")
    return "\n\n".join(parts)


def paired_table(comparisons: Sequence[Any]) -> str:
    """Results of `compare_attacks` as a table."""
    header = ["system", "first", "second", "pairs", "both", "first only", "second only", "neither",
              "difference, points", "95% (subjects)", "McNemar p", "Holm p"]  # fmt: skip
    lines = [
        [
            c.system,
            c.first,
            c.second,
            c.n,
            c.both,
            c.first_only,
            c.second_only,
            c.neither,
            f"{100 * c.difference:+.2f}",
            f"[{percent(c.lo)}, {percent(c.hi)}]",
            f"{c.p_value:.3g}",
            "-" if c.p_holm is None else f"{c.p_holm:.3g}",
        ]
        for c in comparisons
    ]
    note = (
        "- McNemar's exact test takes pairs as independent; the interval of the difference comes "
        "from the paired subject bootstrap and does not. Holm: adjusted over the systems shown."
    )
    return table(header, lines) + "\n\n" + note
