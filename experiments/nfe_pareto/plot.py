"""MMPMR against evaluations: every attack, and the optimisers and gradients beside each other."""

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from adjointdeis.reporting.style import INK, PAPER, QUIET, figure, look

PAPER_NFE = 2250
_LEFT = 10.5  # place of attacks that make no evaluation
_TICKS = [20, 50, 100, 200, 450, 1000, 2250]
_PARETO = (  # names of curves, and how the plot calls them
    ("exact ode Adam 0.03 N=5 N_E=50", "exact gradient (ODE), Adam, N = 5"),
    ("exact sde Adam 0.03 N=10", "exact gradient (SDE), Adam, N = 10"),
    ("AdjointDEIS-1 ode SGD 0.1 N=20 N_E=250", "AdjointDEIS-1 (ODE), the paper's"),
    ("AdjointDEIS-1 sde SGD 0.1 N=20", "AdjointDEIS-1 (SDE), the paper's"),
)


def draw_attacks(result: dict[str, Any], path: Path, policy: str = "other") -> None:
    """Writes the plot of every attack; bands are intervals over the subjects of all pairs."""

    def fill(axis: Any, judge: str) -> None:
        key = f"{judge}/{policy}"
        for number, (name, label) in enumerate(_PARETO):
            for curve in result["curves"]:
                if curve["name"] == name:
                    _line(axis, curve, key, number, label, band=curve["pairs"] == result["pairs"])
        _points(axis, result["table1"], key)

    _panels(
        result, path, policy, fill, (9, 2800), _legend_of_points(result["table1"], result["pairs"])
    )


def draw_optimisers(result: dict[str, Any], path: Path, policy: str = "other") -> None:
    """Writes the plot of the optimisers, learning rates and gradients at N = 10."""
    wanted = [c for c in result["curves"] if " ode " in c["name"] and " N=10 " in c["name"]]

    def fill(axis: Any, judge: str) -> None:
        for number, curve in enumerate(wanted):
            gradient, _, optimizer, rate, *_ = curve["name"].split()
            _line(axis, curve, f"{judge}/{policy}", number, f"{gradient}, {optimizer} {rate}")

    _panels(result, path, policy, fill, (50, 500))


def _panels(
    result: dict[str, Any],
    path: Path,
    policy: str,
    fill: Callable[[Any, str], None],
    limits: tuple[float, float],
    note: str = "",
) -> None:
    judges = list(result["labels"])
    with figure(8.4, 3.1 * len(judges) + 0.9, rows=len(judges), sharex=True) as (made, axes):
        for axis, judge in zip(axes, judges, strict=True):
            fill(axis, judge)
            axis.axvline(PAPER_NFE / 5, color=QUIET, lw=0.8, ls=":")
            axis.set_xscale("log")
            axis.set_ylim(0, None)
            axis.set_xlim(*limits)
            axis.set_title(result["labels"][judge])
            axis.set_ylabel(f"MMPMR, {policy} probe")
        axes[-1].set_xticks(_TICKS, [str(tick) for tick in _TICKS])
        axes[-1].minorticks_off()
        axes[-1].set_xlabel("network evaluations, as the paper counts them" + note)
        handles, labels = axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        made.savefig(path, dpi=150)


def _line(
    axis: Any, curve: dict[str, Any], key: str, number: int, label: str, band: bool = False
) -> None:
    style, points = look(number), curve["points"]
    x = [point["nfe"] for point in points]
    rates = [point["rates"][key] for point in points]
    seeds = curve["seeds"]
    axis.plot(
        x,
        [rate["value"] for rate in rates],
        color=style.colour,
        ls=style.dash,
        lw=1.4,
        marker=style.marker,
        ms=3,
        markevery=max(1, len(x) // 12),
        label=label
        + (f", mean of {seeds} seeds" if seeds > 1 else "")
        + (f", {curve['pairs']} pairs" if curve["pairs"] < 100 else ""),
    )
    if band:
        low, high = ([rate[end] for rate in rates] for end in ("lo", "hi"))
        axis.fill_between(x, low, high, color=style.colour, alpha=0.1, lw=0)


def _marked(attacks: list[dict[str, Any]]) -> list[tuple[str, float, dict[str, Any]]]:
    """Letter, place on the axis and attack; the guided rows are curves already.

    Attacks of equal evaluations stand beside each other, those without at the left edge.
    """
    marked, taken = [], set()
    others = [a for a in attacks if "AdjointDEIS" not in a["row"]]
    for letter, attack in zip(ascii_lowercase, others, strict=False):
        x = _LEFT if attack["nfe"] is None else attack["nfe"]
        while any(abs(x / other - 1) < 0.06 for other in taken):
            x *= 1.08
        taken.add(x)
        marked.append((letter, x, attack))
    return marked


def _points(axis: Any, attacks: list[dict[str, Any]], key: str) -> None:
    for letter, x, attack in _marked(attacks):
        if key in attack["rates"]:
            axis.annotate(
                letter,
                (x, attack["rates"][key]["value"]),
                ha="center",
                va="center",
                fontsize=7,
                color=PAPER,
                bbox={"boxstyle": "circle,pad=0.15", "fc": INK, "ec": PAPER, "lw": 0.5},
            )


def _legend_of_points(attacks: list[dict[str, Any]], pairs: int) -> str:
    marked = _marked(attacks)
    rows = [
        f"{letter} {attack['row']}" + (f" ({attack['n']} pairs)" if attack["n"] < pairs else "")
        for letter, _, attack in marked
    ]
    lines = [", ".join(rows[k : k + 6]) for k in range(0, len(rows), 6)]
    return "\n" + "\n".join(lines) + "\n(at the left edge: no evaluation of the diffusion network)"
