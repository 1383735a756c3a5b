"""Plots over runs: success against cost for Table 1, success against adjoint steps for 4 to 6."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.tables import subject_interval
from adjointdeis.reporting.document import Figure
from adjointdeis.reporting.paper_tables import Line, is_adjoint_deis_1, is_sde
from adjointdeis.reporting.plots import WIDTH, pareto_front
from adjointdeis.reporting.run import EvaluationSetting
from adjointdeis.reporting.style import INK, QUIET, figure, halo, label_beside, look, save
from adjointdeis.reporting.text import share


def pareto_figure(
    name: str, rows: Sequence[Line], system: str, label: str, at: EvaluationSetting, stem: Path
) -> Figure | None:
    """MMPMR against NFE by the paper's accounting; ours filled, with interval, theirs hollow."""
    points = []
    for line in rows:
        ours = line.ours.rate(system, at) if line.ours else None
        nfe = line.ours.number("nfe_paper") if line.ours else None
        if ours is not None and nfe and line.ours:
            points.append((line.ours.label, nfe, ours))
    theirs = [
        (line.paper["nfe"], line.paper[f"{system}_percent"])
        for line in rows
        if line.paper and line.paper.get("nfe") and system in line.paper
    ]
    if not points:
        return None
    cost = np.array([p[1] for p in points], dtype=np.float64)
    value = np.array([100 * p[2]["value"] for p in points])
    with figure(WIDTH, 3.1) as (made, axes):
        axes.set_xscale("log")
        for i, (_, nfe, found) in enumerate(points):
            style = look(i)
            bounds = [100 * end for end in subject_interval(found)]
            axes.plot([nfe, nfe], bounds, color=style.colour, linewidth=1.2, alpha=0.8)
            axes.plot(nfe, value[i], marker=style.marker, color=style.colour, linestyle="")
        if theirs:
            x, y = zip(*dict.fromkeys(theirs), strict=True)
            axes.plot(x, y, marker="o", markerfacecolor="none", color=QUIET, linestyle="")
        front = pareto_front(cost, value)
        if len(front) > 1:
            axes.step(cost[front], value[front], where="post", color=INK, linewidth=0.9, zorder=1)
        axes.set_ylim(-3, 103)
        every = np.concatenate([cost, [t[0] for t in theirs]])
        axes.set_xlim(every.min() / 1.3, every.max() * 1.2)
        ends = [(p[0], p[1], value[i], look(i).colour) for i, p in enumerate(points)]
        label_beside(axes, ends, 7.0, 0, 100)
        ticks = [t for t in (100, 200, 500, 1000, 2000, 5000) if every.min() <= t <= every.max()]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("NFE, the paper's accounting (log scale)")
        axes.set_ylabel(f"{at.variant} (%)")
        axes.set_title(label)
        svg, png = save(made, stem)
    caption = (
        "Filled: ours with its interval; the step is our Pareto front. Hollow: the paper's "
        f"rows, on its own faces and networks. FMR {share(at.fmr)}, probe {at.probe}."
    )
    words = ", ".join(f"{p[0]} {100 * p[2]['value']:.1f}% at {p[1]:g}" for p in points)
    return Figure(f"{name}-{system}", svg, png, caption, f"{label}: {words}")


def sweep_figure(
    name: str, rows: Sequence[Line], system: str, label: str, at: EvaluationSetting, stem: Path
) -> Figure | None:
    """MMPMR against adjoint steps M, one line per learning rate and calculus, ours and theirs."""
    ours: dict[str, list[tuple[float, float]]] = {}
    theirs: dict[str, list[tuple[float, float]]] = {}
    for line in rows:
        if line.ours and is_adjoint_deis_1(line.ours.settings):
            s, found = line.ours.settings, line.ours.rate(system, at)
            if found is not None and s.get("adjoint_steps") and s.get("learning_rate"):
                series = _series(is_sde(s), s["learning_rate"], s.get("states") or "recorded")
                ours.setdefault(series, []).append((s["adjoint_steps"], 100 * found["value"]))
        if line.paper and system in line.paper:
            p = line.paper
            states = "recorded" if p.get("recorded", True) else "resolved"
            series = _series(bool(p.get("sde")), p["eta"], states)
            theirs.setdefault(series, []).append((p["steps_M"], p[f"{system}_percent"]))
    if not ours:
        return None
    names = list(dict.fromkeys((*ours, *theirs)))
    labels: list[tuple[str, float, float, str]] = []
    with figure(WIDTH, 3.1) as (made, axes):
        for i, series in enumerate(names):
            style = look(i)
            for source, fill in ((ours, style.colour), (theirs, "none")):
                points = sorted(set(source.get(series, ())))
                if not points:
                    continue
                x, y = zip(*points, strict=True)
                axes.plot(
                    x,
                    y,
                    color=style.colour,
                    marker=style.marker,
                    markerfacecolor=fill,
                    linestyle="-" if source is ours else ":",
                    linewidth=1.4 if source is ours else 1.0,
                )
                who = "ours" if source is ours else "paper"
                labels.append((f"{series}, {who}", x[-1], y[-1], style.colour))
        axes.set_ylim(-3, 103)
        label_beside(axes, labels, 6.6, -2, 102, fontsize=7.5, path_effects=halo())
        steps = sorted({x for source in (ours, theirs) for v in source.values() for x, _ in v})
        axes.set_xticks(steps, [f"{s:g}" for s in steps])
        axes.set_xlabel("adjoint steps M")
        axes.set_ylabel(f"{at.variant} (%)")
        axes.set_title(label)
        svg, png = save(made, stem)
    caption = (
        "Filled and solid: ours. Hollow and dotted: the paper's, on its own faces and networks. "
        f"FMR {share(at.fmr)}, probe {at.probe}."
    )
    words = "; ".join(
        f"{s}: " + ", ".join(f"{y:.1f}% at M = {x:g}" for x, y in sorted(v))
        for s, v in ours.items()
    )
    return Figure(f"{name}-{system}", svg, png, caption, f"{label}: {words}")


def _series(sde: bool, eta: float, states: str) -> str:
    calculus = "SDE" if sde else "ODE"
    return f"{calculus} η {eta:g}" + ("" if states == "recorded" else f" {states}")
