"""The one writer of tables: result rows, thresholds and comparisons as tables of cells.

A `Table` is data; `markdown.py` prints it for the command line, and reports set the same table as
HTML and LaTeX. Numbers are written here, the same in every table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adjointdeis.evaluation.detection_points import OPERATING_POINTS
from adjointdeis.evaluation.rates import (
    CONDITIONAL,
    NEW_SUBJECTS,
    NEW_SUBJECTS_FIXED_TAU,
    sample_notes,
)
from adjointdeis.evaluation.thresholds import ThresholdRecord

DASH = "–"
Named = Callable[[str], str]


@dataclass(frozen=True)
class Cell:
    """A table cell.

    Attributes:
        text: the number itself.
        detail: further lines, shown smaller or after the text.
        href: where the number leads; `#id` stays within an HTML report.
        mark: `paper` or empty; how the cell is set.
        links: (word, target) pairs set under the details; HTML alone shows them.
    """

    text: str
    detail: tuple[str, ...] = ()
    href: str = ""
    mark: str = ""
    links: tuple[tuple[str, str], ...] = ()

    @property
    def flat(self) -> str:
        """Text and details on one line."""
        return " ".join((self.text, *self.detail))


@dataclass(frozen=True)
class Table:
    """A table with its labels.

    Attributes:
        key: a stable identifier, also its file name.
        title: what it shows, in one line.
        labels: (name, value) pairs that a reader needs to doubt the numbers.
        header: column titles; the first column names the row.
        rows: cells in the order of the header.
        notes: lines under the table.
        fold: whether a narrow page turns each row into a card; long tables of short cells scroll.
    """

    key: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    fold: bool = True


def cells(values: Sequence[str | Cell]) -> tuple[Cell, ...]:
    """Plain text turned into cells, cells left as they are."""
    return tuple(v if isinstance(v, Cell) else Cell(str(v)) for v in values)


def percent(value: float | None, n: int | None = None) -> str:
    """A share as percent without its sign; one digit where one of n weighs over 0.5 points."""
    if value is None or math.isnan(value):
        return DASH
    digits = 1 if n is not None and n < 200 else 2
    return f"{100 * value:.{digits}f}"


def share(value: float) -> str:
    """A target share as a reader writes it: 0.001 is `0.1%`."""
    return f"{100 * value:g}%"


def threshold(value: float, digits: int = 4) -> str:
    """A threshold in a table: decimals, or digits where scores are so small or large."""
    plain = value == 0 or 0.01 <= abs(value) < 1e6
    return f"{value:.{digits}{'f' if plain else 'g'}}"


def of(k: float | None, n: int | None) -> str:
    """`k/N`."""
    if k is None or n is None:
        return DASH
    return f"{int(k)}/{n}" if float(k).is_integer() else f"{k:.1f}/{n}"


def interval(lo: float | None, hi: float | None, n: int | None = None) -> str:
    """`[lo, hi]` in percent, or nothing where an end is unknown.

    Args:
        lo, hi: The ends, as shares.
        n: How many trials the rate is of, which decides the digits.
    """
    if lo is None or hi is None:
        return ""
    return f"[{percent(lo, n)}, {percent(hi, n)}]"


def change_cell(change: float, lo: float | None, hi: float | None) -> Cell:
    """A difference of shares in points with its sign, and its interval where both ends are known.

    Args:
        change, lo, hi: The difference and the ends, as shares.
    """
    bounds = () if lo is None or hi is None else (f"[{100 * lo:+.1f}, {100 * hi:+.1f}]",)
    return Cell(f"{100 * change:+.1f}", bounds)


def subject_interval(row: Mapping[str, Any]) -> tuple[float, float]:
    """The confidence interval of a rate, as shares (lo, hi).

    The bootstrap's over subjects, which holds for other people; where none was run, Wilson's, which
    holds for other morphs of these people.
    """
    if row.get("bootstrap_lo") is None:
        return row["wilson_lo"], row["wilson_hi"]
    return row["bootstrap_lo"], row["bootstrap_hi"]


def interval_meaning(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals that `subject_interval` gives of these rows are about, as a sentence
    without its full stop."""
    if any(row["bootstrap_lo"] is None for row in rows):
        return f"Wilson: {CONDITIONAL}"
    fixed = any(row["bootstrap_tau"] == "fixed" for row in rows)
    text = NEW_SUBJECTS_FIXED_TAU if fixed else NEW_SUBJECTS
    return f"{text[0].upper()}{text[1:]}"


def rate_cell(row: Mapping[str, Any] | None, href: str = "") -> Cell:
    """A rate in percent, with k/N and its interval below; a dash for no row.

    Args:
        row: A row of `evaluate`.
        href: Where the cell leads to.
    """
    if row is None:
        return Cell(DASH)
    n = row["n"]
    star = "" if row.get("bootstrap_lo") is not None else " (Wilson)"
    detail = (of(row["k"], n), interval(*subject_interval(row), n) + star)
    return Cell(percent(row["value"], n), tuple(d for d in detail if d), href)


def rates_table(rows: Sequence[Mapping[str, Any]], system: Named = str) -> Table:
    """Rows of `evaluate`, one line each, with everything that a reader needs to doubt them."""
    level = share(rows[0]["confidence"]) if rows else "95%"
    bounded = any(row["bound"] is not None for row in rows)
    header = ["attack", "system", "probe", "impostors", "metric", "FMR target", "FMR realised",
              "tau", "k/N", "%", f"{level} new subjects", f"{level} Wilson", "FNMR %",
              "FTA/FTE"]  # fmt: skip
    header += ["% of bound"] if bounded else []
    grouped = any("group" in row for row in rows)
    header = ["people", *header] if grouped else header
    lines = []
    for row in rows:
        realised = DASH
        if row["impostors_n"]:
            false = of(row["impostors_k"], row["impostors_n"])
            realised = f"{100 * row['fmr_realised']:.3f}% ({false})"
        tau, k = threshold(row["tau"]), of(row["k"], row["n"])
        strictest = row.get("k_strictest")
        if strictest is not None and strictest != row["k"]:
            tau += f" (to {threshold(row['tau_strictest'])})"
            k += f" ({strictest:g})"
        star = "*" if row["bootstrap_tau"] == "fixed" else ""
        new = interval(row["bootstrap_lo"], row["bootstrap_hi"])
        missed = DASH
        if row["fnmr_n"]:
            missed = f"{percent(row['fnmr'])} ({of(row['fnmr_k'], row['fnmr_n'])})"
        line = [
            row["attack"], system(row["system"]), row["probe_policy"], row["impostor_policy"],
            row["variant"], share(row["fmr_target"]), realised, tau, k, percent(row["value"]),
            f"{new}{star}" if new else DASH, interval(row["wilson_lo"], row["wilson_hi"]),
            missed, f"{row['n_fta']}/{row['n_fte']}",
        ]  # fmt: skip
        line += [percent(row["share_of_bound"])] if bounded else []
        lines.append(cells([row.get("group", "all"), *line] if grouped else line))
    return Table("rates", "Vulnerability", tuple(header), tuple(lines), notes=tuple(_notes(rows)))


def _notes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = sample_notes(rows)
    if any(row["bootstrap_tau"] == "re-estimated" for row in rows):
        notes.append(f"New subjects: {NEW_SUBJECTS}.")
    if any(row["bootstrap_tau"] == "fixed" for row in rows):
        notes.append(f"New subjects*: {NEW_SUBJECTS_FIXED_TAU}.")
    notes.append(f"Wilson: {CONDITIONAL}.")
    if any(row.get("k_strictest") not in (None, row["k"]) for row in rows):
        notes.append(
            "tau (to ...), k/N (...): every threshold between two neighbouring impostor scores has "
            "the same false matches. The first is the end that favours the attack, in parentheses "
            "the other one and how many morphs match there."
        )
    unstated = dict.fromkeys(row["system"] for row in rows if not row["alignment"])
    if unstated:
        notes.append(
            f"Alignment not stated for {', '.join(unstated)}: that the thresholds were made under "
            "the alignment of these scores could not be checked. State it in the sidecar JSON or "
            "with `convert --alignment`."
        )
    if any(not row["fnmr_n"] for row in rows):
        notes.append("FNMR: a dash where the table has no mated comparison of the system.")
    return notes


def threshold_table(records: Sequence[ThresholdRecord], system: Named = str) -> Table:
    """Threshold records with what they rest on, and the verdict of the rule of 30."""
    header = ("model", "impostors", "FMR target", "tau", "same false matches up to", "k/N_I",
              "FMR realised, %", "people behind them", "rule of 30")  # fmt: skip
    lines = []
    for r in records:
        model = system(r.model) if r.model else "unstated"
        policy = r.impostor_policy or "unstated"
        sign = "D <" if r.score_type == "dissimilarity" else "S >"
        tau = Cell(threshold(r.value, 6), (f"({sign} tau)",))
        found = r.value_strictest
        strictest = DASH if found is None else threshold(found, 6)
        if r.n is not None and r.k == 0:
            strictest = "any stricter"
        bounds = ()
        if r.fmr_lo is not None and r.fmr_hi is not None:
            bounds = (f"[{100 * r.fmr_lo:.4f}, {100 * r.fmr_hi:.4f}]",)
        fmr = Cell(DASH if r.realised_fmr is None else f"{100 * r.realised_fmr:.4f}", bounds)
        pairs = DASH if r.k_people is None else f"{r.k_people}/{r.n_people} pairs"
        people = Cell(pairs, (r.impostor_set,) if r.impostor_set else ())
        lines.append(cells([model, policy, share(r.target_fmr), tau, strictest, of(r.k, r.n), fmr,
                            people, r.rule_of_30]))  # fmt: skip
    notes = (
        "In brackets: Clopper-Pearson interval of the FMR for independent comparisons; pairs that "
        "share people are not independent, so the truth is wider. Pairs: of people, in either "
        "order; several comparisons of two people are one pair.",
        "Rule of 30 (Doddington): thirty false matches must lie above a threshold before its FMR "
        "is known to within 30%.",
    )
    return Table("thresholds", "What each threshold rests on", header, tuple(lines), notes=notes)


def paired_table(
    comparisons: Sequence[Any], names: Sequence[tuple[str, str, str]] | None = None
) -> Table:
    """Results of `compare_attacks`; `names` are the printed first, second and system of each."""
    header = ("first", "second", "system", "difference, points", "only the first",
              "only the second", "both", "neither", "McNemar p", "Holm p", "pairs")  # fmt: skip
    lines = []
    stated = names or [(c.first, c.second, c.system) for c in comparisons]
    for c, name in zip(comparisons, stated, strict=True):
        pairs = str(c.n)
        if c.n != max(c.n_first, c.n_second):
            pairs += f" (of {c.n_first} and {c.n_second})"
        counts = map(str, (c.first_only, c.second_only, c.both, c.neither))
        holm = DASH if c.p_holm is None else f"{c.p_holm:.2g}"
        change = change_cell(c.difference, c.lo, c.hi)
        lines.append(cells([*name, change, *counts, f"{c.p_value:.2g}", holm, pairs]))
    labels = ()
    if comparisons:
        c = comparisons[0]
        target = DASH if c.fmr_target is None else share(c.fmr_target)
        labels = (("Probe", c.probe_policy), ("Impostors", c.impostor_policy),
                  ("Variant", c.variant), ("FMR target", target))  # fmt: skip
    notes = (
        "Both attacks morph the same people: compare them here, never by two intervals of their "
        "own. Counts of pairs. McNemar's exact test takes pairs as independent; the interval of "
        "the difference, from the paired subject bootstrap, does not. Holm: over the recognisers.",
    )
    title = "Is the difference more than chance?"
    return Table("paired", title, header, tuple(lines), labels, notes)


def operating_cell(point: Mapping[str, Any], tau: bool = False) -> Cell:
    """An operating point of `detection_rows`, or how many images it needs."""
    if point["needs"] is not None:
        return Cell(DASH, (f"needs n ≥ {point['needs']}",))
    n = point["n"]
    detail = (f"({of(point['k'], n)})", interval(point["lo"], point["hi"], n))
    detail += (f"tau {point['tau']:.4g}",) if tau else ()
    return Cell(percent(point["value"], n), detail)


def detection_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `detection_rows`."""
    header = ("detector", "attack", "D-EER %", "BSCER10 %", "BSCER20 %", "BSCER100 %",
              "MACER10 %", "MACER100 %", "failed morph/bona fide", "sample")  # fmt: skip
    lines = []
    for row in rows:
        tau = f"tau {row['d_eer_tau']:.4g}"
        bounds = interval(row["d_eer_lo"], row["d_eer_hi"])
        d_eer = Cell(percent(row["d_eer"]), (bounds, tau))
        points = (operating_cell(row[name], tau=True) for name in OPERATING_POINTS)
        failed = f"{row['n_failed_morph']}/{row['n_failed_bonafide']}"
        line = [row["system"], row["attack"], d_eer, *points, failed, row["verdict"]]
        lines.append(cells(line))
    resampled = ", ".join(dict.fromkeys(row["resampled"] for row in rows))
    notes = (
        "BSCER10/20/100: share of bona fide images flagged where MACER is at most 10, 5, 1% (older "
        "names BPCER at APCER); MACER10/100: share of morphs missed where BSCER is at most 10, 1%. "
        "The last line of a detector takes the worst attack, which is the headline. A dash: not "
        "one of so few may be wrong at that rate.",
        f"Intervals: bootstrap over {resampled}, never narrower than the exact interval of as many "
        "images as share nobody. Sample: an operating point is known to within 30% where at least "
        "thirty errors are allowed.",
    )
    return Table("detection", "Morphing attack detection", header, tuple(lines), notes=notes)


def potential_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Rows of `evaluate_attack_potential`, one matrix per attack and probe policy."""
    tables = []
    for attack, policy in dict.fromkeys((row["attack"], row["probe_policy"]) for row in rows):
        cell = {
            (row["r"], row["c"]): row
            for row in rows
            if (row["attack"], row["probe_policy"]) == (attack, policy)
        }
        n_rows, n_columns = max(cell)
        own_rows, first = list(cell.values()), cell[1, 1]
        lines = []
        for r in range(1, n_rows + 1):
            own = [cell[r, c] for c in range(1, n_columns + 1)]
            lines.append((Cell(str(r)), *(rate_cell(x) for x in own)))
        labels = (
            ("Attack", attack), ("Probe", policy), ("Impostors", first["impostor_policy"]),
            ("FMR target", share(first["fmr_target"])), ("Systems", ", ".join(first["systems"])),
        )  # fmt: skip
        note = (
            "r, attempts of every subject that match, against c, recognisers where they do: the "
            f"share of {first['n']} morphs, k/N and its {share(first['confidence'])} interval. "
            f"{interval_meaning(own_rows)}."
        )
        header = ("r \\ c", *(str(c) for c in range(1, n_columns + 1)))
        key = f"potential-{attack}-{policy}"
        tables.append(Table(key, "MAP[r, c] in %", header, tuple(lines), labels, (note,)))
    return tables


def generality_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of `evaluate_generality`; publications differ in the aggregation over recognisers."""
    header = ("probe", "impostors", "FMR target", "attacks", "recognisers", "min %", "mean %",
              "max %", "failed comparisons")  # fmt: skip
    lines = []
    for row in rows:
        found = [
            Cell(percent(row[k]), (interval(row[f"{k}_lo"], row[f"{k}_hi"]),))
            for k in ("min", "mean", "max")
        ]
        names = [", ".join(row[key]) for key in ("attacks", "systems")]
        head = [row["probe_policy"], row["impostor_policy"], share(row["fmr_target"]), *names]
        lines.append(cells([*head, *found, str(row["n_failed"])]))
    bounded = any(row[f"{k}_lo"] is not None for row in rows for k in ("min", "mean", "max"))
    note = (
        "G-MAP: share of paired attempts that match all subjects, averaged over attacks; minimum, "
        "mean and maximum over recognisers, "
        f"{'with their intervals for new subjects' if bounded else 'without intervals'}. A dash: "
        "unequal numbers of probes, which cannot be paired."
    )
    return Table("generality", "G-MAP over all attacks", header, tuple(lines), notes=(note,))


def verification_table(rows: Sequence[Mapping[str, Any]], system: Named = str) -> Table:
    """Rows of `verification_rows`."""
    targets = list(dict.fromkeys(p["fmr_target"] for row in rows for p in row["fnmr"]))
    header = ("system", "EER %", *(f"FNMR % at FMR {share(t)}" for t in targets),
              "mated", "nonmated", "subjects", "failed")  # fmt: skip
    lines = []
    for row in rows:
        bounds = (interval(row["eer_lo"], row["eer_hi"]), f"tau {row['eer_tau']:.4g}")
        line: list[str | Cell] = [system(row["system"]), Cell(percent(row["eer"]), bounds)]
        points = {p["fmr_target"]: p for p in row["fnmr"]}
        for target in targets:
            p = points[target]
            detail = (f"({of(p['k'], p['n'])})", interval(p["lo"], p["hi"]))
            line.append(Cell(percent(p["value"]), detail))
        people = DASH if row["subjects"] is None else str(row["subjects"])
        lines.append(
            cells([*line, str(row["mated"]), str(row["nonmated"]), people, str(row["n_failed"])])
        )
    notes = (
        "Intervals: for new subjects, never narrower than the exact interval of as many people; "
        "of comparisons where people are not named. Comparisons that failed are in no rate.",
    )
    return Table("verification", "Verification of genuine people", header, tuple(lines), (), notes)
