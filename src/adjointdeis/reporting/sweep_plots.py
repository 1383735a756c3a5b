"""Plots over runs: success against cost for Table 1, success against adjoint steps for 4 to 6."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adjointdeis.reporting.document import Figure
from adjointdeis.reporting.paper_tables import Line, is_adjoint_deis_1, is_sde
from adjointdeis.reporting.plots import WIDTH, CostPoint, success_against_cost
from adjointdeis.reporting.run import EvaluationSetting
from adjointdeis.reporting.style import figure, halo, label_beside, look, save
from adjointdeis.reporting.text import share


def pareto_figure(
    name: str, rows: Sequence[Line], system: str, label: str, at: EvaluationSetting, stem: Path
) -> Figure | None:
    """Success against cost of the runs found, ours filled and the paper's hollow."""
    points = []
    for line in rows:
        found = line.ours.rate(system, at) if line.ours else None
        nfe = line.ours.number("nfe_paper") if line.ours else None
        if found is not None and nfe and line.ours:
            attack = line.ours.label
            points.append(CostPoint(look(len(points)), attack, attack, nfe, found))
    theirs = [
        (line.paper["nfe"], line.paper[f"{system}_percent"])
        for line in rows
        if line.paper and line.paper.get("nfe") and system in line.paper
    ]
    made = success_against_cost(points, label, at, stem, theirs)
    return made and replace(made, key=f"{name}-{system}")


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
        steps = sorted({x for source in (ours, theirs) for v in source.values() for x, _ in v})
        axes.set_xticks(steps, [f"{s:g}" for s in steps])
        axes.set_xlabel("adjoint steps M")
        axes.set_ylabel(f"{at.variant} (%)")
        axes.set_title(label)
        label_beside(axes, labels, -2, 102, fontsize=7.5, path_effects=halo())
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
