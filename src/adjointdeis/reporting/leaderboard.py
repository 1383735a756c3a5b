"""The gradient leaderboard as one page: places at equal price, the Pareto front, who was refused.

Rows come from ``adjointdeis.harness.leaderboard``, places from ``adjointdeis.reporting.standings``.
The price of a gradient is the number of evaluations of the network plus that of vector-Jacobian
products, both of the whole batch.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.storage import write_json
from adjointdeis.files import write_atomically
from adjointdeis.reporting.document import (
    DASH,
    Bullets,
    Cell,
    Document,
    Facts,
    Figure,
    FigureRow,
    Folded,
    Prose,
    Section,
    Table,
    cells,
)
from adjointdeis.reporting.render_html import html
from adjointdeis.reporting.render_markdown import markdown
from adjointdeis.reporting.standings import (
    DOUBT,
    LEAST,
    NETWORKS,
    Row,
    Standing,
    at_price,
    contradictions,
    cosine,
    family_table,
    first,
    front,
    level_table,
    moves,
    number,
    price_table,
    standings,
)
from adjointdeis.reporting.style import INK, QUIET, figure, halo, label_points, look, save

PARTS = ("x_T", "z", "theta")

TITLES = {"ode": "Samplers of the ODE", "sde": "Samplers of the SDE"}
_TRUE = (
    "Error, bias, spread, cosine and length are against the gradient of the flow: that of the "
    "continuous equations, on the same Wiener path where these are stochastic. An exact method has "
    "the discretisation error of its sampler there. The column own sampler is against autograd "
    "through the very sampler that ran: exact methods have rounding there, whatever the sampler.",
    "error^2 = bias^2 + spread^2. Seeds draw the Wiener path and whatever the method draws; bias "
    "is what stays in the mean over seeds, spread the standard deviation around it, both relative "
    "to the length of the truth.",
    "Price: evaluations of the network plus vector-Jacobian products, counted at the network "
    "itself. Time: processor time of one gradient of a batch of small problems, which is mostly "
    "bookkeeping. Memory: peak bytes of live tensors beyond what was alive before.",
    "Means over problems are geometric; an error above 1000, and one that is not finite, counts as "
    "1000. Cosines, lengths, times and bytes are medians.",
    "Place: one more than the number of methods that are ahead. One method is ahead of another if "
    f"its error is smaller by a factor of {LEAST:g} or more, and by more than {DOUBT:g} standard "
    "errors, in the mean of the logarithms over the same problems; the standard error is what the "
    "draw of the problems leaves open. Methods that nobody can tell apart share a place, the "
    "cheaper one first. The zero vector, with its error of 1, takes part: who is not ahead of it "
    "has no place.",
)


def write_leaderboard(rows: Sequence[Row], facts: Row, directory: Path) -> list[Path]:
    """Writes leaderboard.html, leaderboard.md, result.json and the figures.

    Args:
        rows: everything that was measured.
        facts: how; ``budgets`` and ``committed`` are read.
        directory: where to.

    Returns:
        the pages and the record.
    """
    drawn = [row for row in rows if row["family"] not in NETWORKS]
    sections = [_answers(drawn, facts)] if drawn else []
    for calculus, title in TITLES.items():
        mine = [row for row in drawn if row["calculus"] == calculus]
        if mine:
            blocks = _calculus(mine, calculus, facts, directory)
            sections.append(Section(calculus, title, blocks))
    if drawn:
        seeds = _seeds(drawn, facts)
        sections.append(Section("seeds", "Does the order depend on the problems?", seeds))
    sections += [
        Section("networks", "Trained networks", _networks(rows)),
        Section("refused", "Refused, failed, disqualified", _out(rows)),
        Section("meaning", "What the columns mean", (Bullets(_TRUE), _facts(facts))),
    ]
    document = Document("Gradient leaderboard", _lead(rows), tuple(sections))
    pages = [directory / "leaderboard.html", directory / "leaderboard.md"]
    write_atomically(pages[0], html(document))
    write_atomically(pages[1], markdown(document, directory))
    record = directory / "result.json"
    write_json({"facts": dict(facts), "standings": _record(rows)}, record)
    return [*pages, record]


def _record(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means over the drawn and the committed problems, and over the networks, as JSON."""
    found = []
    for where in ("drawn", "network"):
        mine = [row for row in rows if (row["family"] in NETWORKS) == (where == "network")]
        for calculus in TITLES:
            for part in PARTS:
                for one in standings([r for r in mine if r["calculus"] == calculus], part):
                    numbers = {k: v for k, v in vars(one).items() if k not in ("logs", "place")}
                    numbers |= {"error": one.error, "problems": where, "over": len(one.logs)}
                    found.append({"calculus": calculus, "part": part, **numbers})
    return found


def _board(rows: Sequence[Row], facts: Row) -> list[Row]:
    """The rows on which places at equal price stand: the committed set, where every N was run."""
    return [row for row in rows if row["seed"] == facts["committed"]]


def _lead(rows: Sequence[Row]) -> str:
    methods = len({row["method"] for row in rows})
    sets = {(row["family"], row["seed"], row["number"], row["members"]) for row in rows}
    problems = sum(members for *_, members in sets)
    return (
        f"{methods} gradient methods on {problems} problems whose gradient is known: how wrong "
        "each is, what it costs, and which is best at equal price. Generated; no number is written "
        "by hand."
    )


def _answers(rows: Sequence[Row], facts: Row) -> Section:
    """The first places at every budget."""
    lines = []
    for calculus in TITLES:
        board = [row for row in _board(rows, facts) if row["calculus"] == calculus]
        for part in PARTS:
            found = standings(board, part)
            for budget in sorted(facts["budgets"]):
                best = at_price(found, budget)[:2]
                best = [one for one in best if one.place is not None]
                if best:
                    names = [
                        Cell(
                            f"{one.place} {one.method}",
                            (f"N = {one.steps}: {number(one.error)}, {cosine(one)}",),
                        )
                        for one in best
                    ]
                    names += [Cell(DASH)] * (2 - len(names))
                    lines.append(cells([calculus.upper(), part, str(budget), *names]))
    table = Table(
        "answers", "Best gradient at a price", ("equations", "gradient of", "price", "first",
        "second"), tuple(lines),
        notes=(
            "with its place, the N that it is run at, the relative error against the flow and the "
            "cosine; where a line is missing nobody is ahead of the zero vector",
        ),
    )  # fmt: skip
    return Section("answers", "Which gradient?", (table,))


def _calculus(rows: Sequence[Row], calculus: str, facts: Row, directory: Path) -> tuple[Any, ...]:
    board, main = _board(rows, facts), facts["budgets"][0]
    blocks: list[Any] = []
    figures, folded = [], []
    common = 20 if any(row["steps"] == 20 for row in rows) else max(r["steps"] for r in rows)
    for part in PARTS:
        found = standings(board, part)
        if not found:
            continue
        blocks.append(price_table(found, calculus, part, facts["budgets"], moves(board, part)))
        figures.append(_figure(found, calculus, part, directory))
        folded.append(level_table(standings(rows, part), calculus, part, common))
    blocks.insert(0, Prose(
        f"Places are those of the best N that {main} evaluations and products buy, on the "
        "committed problems; equal places are shared, the cheaper method first."
    ))  # fmt: skip
    if figures:
        blocks.append(FigureRow("Error against price", tuple(figures)))
    tables = (*folded, *(family_table(rows, calculus, part, common) for part in PARTS))
    blocks.append(Folded(f"Every method at N = {common}, all sets", tables, f"{calculus}-level"))
    return tuple(blocks)


def _figure(found: Sequence[Standing], calculus: str, part: str, directory: Path) -> Figure:
    best = front(found)
    stem = directory / f"front_{calculus}_{part}"
    with figure(5.6, 3.8) as (made, axes):
        axes.loglog(
            [one.price for one in found], [_drawn(one.error) for one in found], "o",
            color=QUIET, markersize=3, alpha=0.6, linewidth=0,
        )  # fmt: skip
        style = look(0)
        axes.step(
            [one.price for one in best], [_drawn(one.error) for one in best], where="post",
            color=style.colour, marker=style.marker, markersize=4,
        )  # fmt: skip
        axes.axhline(1.0, color=QUIET, linewidth=0.6)
        axes.set_xlabel("price: evaluations + products")
        axes.set_ylabel(f"relative error of dL/d{part}")
        axes.set_title(f"{calculus.upper()}: gradient of {part}")
        axes.margins(x=0.12)
        starts = [runs for k, runs in enumerate(best) if runs.method != best[k - 1].method or not k]
        label_points(
            axes, [(one.method, one.price, _drawn(one.error)) for one in starts],
            fontsize=6.5, color=INK, path_effects=halo(),
        )  # fmt: skip
        svg, png = save(made, stem)
    names = ", ".join(dict.fromkeys(one.method for one in best))
    return Figure(
        key=stem.name, svg=svg, png=png,
        caption="Each dot is a method at one N; the line is the Pareto front. At an error of 1 the "
        "zero vector is as good; dots above 100 are drawn there.",
        alt=f"Error of the gradient of {part} against its price; on the front: {names}",
    )  # fmt: skip


def _seeds(rows: Sequence[Row], facts: Row) -> tuple[Any, ...]:
    """The first five at N = 20, set by set, and whether they are the same."""
    lines, same, asked, against = [], 0, 0, set()
    for calculus in TITLES:
        for part in PARTS:
            orders, everybody = [], []
            for seed in (facts["committed"], *facts["seeds"]):
                mine = [r for r in rows if (r["calculus"], r["seed"]) == (calculus, seed)]
                found = [one for one in standings(mine, part) if one.steps == 20]
                if not found:
                    continue
                five = first(mine, part, 20)
                name = "committed" if seed == facts["committed"] else f"seed {seed}"
                shown = [f"{one.place} {one.method}" for one in five]
                shown += [DASH] * (5 - len(five))
                lines.append(cells([calculus.upper(), part, name, *shown]))
                if seed != facts["committed"]:
                    orders.append([(one.place, one.method) for one in five])
                    everybody.append(found)
            if len(orders) > 1:
                asked += 1
                same += all(order == orders[0] for order in orders)
                against |= {(calculus, part, *pair) for pair in contradictions(everybody)}
    if not lines:
        return (Prose("No set was run at N = 20."),)
    said = "One drawn set: nothing to compare. task.draws=3 draws three."
    if asked:
        said = (
            f"On the {len(facts['seeds'])} drawn sets the first five at N = 20 are the same, place "
            f"by place, in {same} of {asked} cases (equations and gradient). Pairs of methods of "
            f"which each is ahead on one of the sets: {len(against)}."
        )
    header = ("equations", "gradient of", "set", "first", "second", "third", "fourth", "fifth")
    return (
        Prose(said),
        Table("seeds", "First five at N = 20, with their places", header, tuple(lines), fold=False),
    )


def _networks(rows: Sequence[Row]) -> tuple[Any, ...]:
    """Each network by itself: every method at the largest N, with its errors at the others."""
    blocks: list[Any] = []
    for family in NETWORKS:
        for calculus in TITLES:
            mine = [r for r in rows if (r["family"], r["calculus"]) == (family, calculus)]
            *others, most = sorted({row["steps"] for row in mine}) or [0]
            for part in PARTS:
                if found := standings(mine, part):
                    labels = (
                        ("problems", str(len({row["number"] for row in mine}))),
                        ("truth moves on halving its steps", moves(mine, part)),
                    )
                    key, title = f"{family}-{calculus}", f"{family}, {calculus.upper()}: "
                    blocks.append(level_table(found, key, part, most, title, others[::-1], labels))
    return tuple(blocks) or (Prose("None was run: task.problems takes mini and terrain."),)


def _out(rows: Sequence[Row]) -> tuple[Any, ...]:
    """Who took no place, and why."""
    reasons: dict[tuple[str, ...], list[str]] = {}

    def note(row: Row, kind: str, reason: str) -> None:
        # A refusal is the same whatever sizes it names, and the first stands for all of them.
        same = re.sub(r"\d+", "#", reason) if kind == "refused" else reason
        key = (row["method"], row["calculus"].upper(), kind, same)
        reasons.setdefault(key, []).append(reason)

    for row in rows:
        for kind in ("refused", "failed", "disqualified"):
            if kind in row:
                note(row, kind, row[kind])
        for part in PARTS:
            if "flow" in row and part in row["truth_moves"] and part not in row["flow"]:
                note(row, "refused", f"no gradient of {part}")
    if not reasons:
        return (Prose("Nobody."),)
    lines = tuple(
        cells([*key[:3], told[0], str(len(told))]) for key, told in sorted(reasons.items())
    )
    header = ("method", "equations", "what", "why", "rows")
    return (Table("out", "", header, lines),)


def _facts(facts: Row) -> Facts:
    return Facts(tuple((name, _text(value)) for name, value in facts.items()))


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _drawn(error: float) -> float:
    return min(error, 100.0)
