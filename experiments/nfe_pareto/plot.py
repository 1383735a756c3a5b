"""MMPMR against evaluations: every attack, and the optimisers and gradients beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from adjointdeis.reporting.style import INK, QUIET, figure, look

PAPER_NFE = 2250
_TICKS = [50, 100, 200, 450, 1000, 2250]
_PARETO = (  # names of curves, and how the plot calls them
    ("exact ode Adam 0.03 N=5 N_E=50", "exact gradient (ODE), Adam, N = 5"),
    ("exact sde Adam 0.03 N=10", "exact gradient (SDE), Adam, N = 10"),
    ("AdjointDEIS-1 ode SGD 0.1 N=20 N_E=250", "AdjointDEIS-1 (ODE), the paper's"),
    ("AdjointDEIS-1 sde SGD 0.1 N=20", "AdjointDEIS-1 (SDE), the paper's"),
)


def draw_attacks(result: dict[str, Any], path: Path, policy: str = "other") -> None:
    """Writes the plot of every attack; bands are intervals over subjects."""

    def fill(axis: Any, judge: str) -> None:
        key = f"{judge}/{policy}"
        for number, (name, label) in enumerate(_PARETO):
            for curve in result["curves"]:
                if curve["name"] == name:
                    _line(axis, curve, key, number, label, band=True)
        _points(axis, result["table1"], key, judge)

    _panels(result, path, policy, fill)


def draw_optimisers(result: dict[str, Any], path: Path, policy: str = "other") -> None:
    """Writes the plot of the optimisers, learning rates and gradients at N = 10."""
    wanted = [
        curve
        for curve in result["curves"]
        if curve["setting"]["n"] == 10 and curve["setting"]["calculus"] == "ode"
    ]

    def fill(axis: Any, judge: str) -> None:
        for number, curve in enumerate(wanted):
            setting = curve["setting"]
            label = f"{setting['gradient']}, {setting['optimiser']} {setting['lr']:g}"
            _line(axis, curve, f"{judge}/{policy}", number, label)

    _panels(result, path, policy, fill)


def _panels(
    result: dict[str, Any], path: Path, policy: str, fill: Callable[[Any, str], None]
) -> None:
    judges = list(result["thresholds"])
    with figure(11.0, 4.8, columns=len(judges), sharey=True) as (made, axes):
        for axis, judge in zip(axes, judges, strict=True):
            fill(axis, judge)
            axis.axvline(PAPER_NFE / 5, color=QUIET, lw=0.8, ls=":")
            axis.set_xscale("log")
            axis.set_xticks(_TICKS, [str(tick) for tick in _TICKS])
            axis.minorticks_off()
            axis.set_xlabel("network evaluations (as the paper counts them)")
            axis.set_title(judge)
        axes[0].set_ylabel(f"MMPMR, {policy} probe")
        handles, labels = axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
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
        label=label + (f", mean of {seeds} seeds" if seeds > 1 else ""),
    )
    if band:
        low, high = ([rate[end] for rate in rates] for end in ("lo", "hi"))
        axis.fill_between(x, low, high, color=style.colour, alpha=0.12, lw=0)


def _points(axis: Any, attacks: list[dict[str, Any]], key: str, judge: str) -> None:
    """One point an attack of Table 1; those without evaluations stand at the left edge."""
    drawn = [
        (_TICKS[0] * 0.8 if attack["nfe"] is None else attack["nfe"], attack)
        for attack in attacks
        if key in attack["rates"] and not attack["row"].startswith("AdjointDEIS")
    ]
    for x, attack in drawn:
        rate = attack["rates"][key]
        face = "none" if attack["nfe"] is None else INK
        axis.plot([x], [rate["value"]], "o", ms=4, mec=INK, mfc=face)
        axis.annotate(
            attack["row"], (x, rate["value"]), xytext=(4, 2), textcoords="offset points", fontsize=6
        )
