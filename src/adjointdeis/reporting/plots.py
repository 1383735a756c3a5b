"""Plots of one run: distributions, pairs of scores, cost against success, loss against step."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adjointdeis.evaluation.tables import subject_interval
from adjointdeis.reporting.document import Figure
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.style import (
    INK,
    PAPER,
    QUIET,
    Look,
    above,
    beside,
    figure,
    growth,
    label_beside,
    leader,
    look,
    save,
    spread,
)
from adjointdeis.reporting.text import percent, share

WIDTH = 4.6


def density_figure(run: Run, system: str, at: EvaluationSetting, stem: Path) -> Figure | None:
    """Score densities of impostors, mated pairs and every attack, one ridge each, with tau.

    Args:
        run: A finished run.
        system: The recogniser.
        at: Probe, impostors, variant and FMR of the threshold.
        stem: Path of the two pictures without suffix.
    """
    scores = run.scores.select(system=system)
    dissimilar = scores.direction(system) == "dissimilarity"
    ridges = []
    for kind, name in (("nonmated", "different people"), ("mated", "same person")):
        values = finite(scores.select(kind=kind)["score"])
        if len(values) > 1:
            ridges.append((name, values, None))
    for i, attack in enumerate(run.attacks):
        own = scores.select(kind="morph", attack=attack, probe_policy=at.probe)
        values = finite(own["score"])
        if len(values) > 1:
            ridges.append((run.short_label(attack), values, i))
    tau = run.oriented_tau(system, at)
    if not ridges or tau is None:
        return None
    tau = -tau if dissimilar else tau
    every = np.concatenate([values for _, values, _ in ridges] + [np.array([tau])])
    pad = 0.06 * np.ptp(every)
    x = np.linspace(every.min() - pad, every.max() + pad, 400)
    label = run.system_label(system)
    shares = []
    with figure(WIDTH, 0.9 + 0.42 * len(ridges)) as (made, axes):
        for level, (name, values, index) in enumerate(reversed(ridges)):
            y = _density(values, x)
            y = level + 0.86 * y / y.max()
            colour = QUIET if index is None else look(index).colour
            axes.fill_between(x, level, y, color=colour, alpha=0.28, linewidth=0)
            axes.plot(x, y, color=INK if index is None else colour, linewidth=1.1)
            beyond = float(np.mean(values < tau if dissimilar else values > tau))
            shares.append(f"{name} {percent(beyond)}%")
            axes.text(
                1.015, level + 0.12, f"{percent(beyond, 100)}%", transform=beside(axes), fontsize=8
            )
        axes.axvline(tau, color=INK, linewidth=1, linestyle=(0, (4, 2)))
        axes.set_yticks([i + 0.12 for i in range(len(ridges))], [r[0] for r in reversed(ridges)])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_ylim(-0.05, len(ridges) + 0.12)
        axes.set_xlim(x[0], x[-1])
        axes.set_xlabel(
            "distance (match: below τ)" if dissimilar else "similarity (match: above τ)"
        )
        # Above the threshold's own label, which may stand anywhere along the axis.
        axes.set_title(label, pad=17)
        axes.text(
            tau, 1.0, f" τ = {tau:.3f} ", transform=above(axes), va="bottom",
            fontsize=8, ha="right" if tau > x.mean() else "left",
        )  # fmt: skip
        axes.text(1.015, 1.0, "beyond τ", transform=axes.transAxes, fontsize=7.5, va="bottom")
        svg, png = save(made, stem)
    alt = f"{label}: share of comparisons beyond the threshold: " + ", ".join(reversed(shares))
    caption = (
        "Each ridge is scaled to its own height. At the right: single comparisons beyond the "
        f"threshold at FMR {share(at.fmr)}, not MMPMR; probe {at.probe}."
    )
    return Figure(stem.name, svg, png, caption, alt)


def scatter_figure(run: Run, system: str, at: EvaluationSetting, stem: Path) -> Figure | None:
    """S_a against S_b of every morph, one panel per attack, with the threshold as a cross.

    Args:
        run: A finished run.
        system: The recogniser.
        at: Probe, impostors, variant and FMR of the threshold.
        stem: Path of the two pictures without suffix.
    """
    tau = run.oriented_tau(system, at)
    points = [
        (i, attack, found)
        for i, attack in enumerate(run.result["attacks"])
        if np.isfinite(found := _pairs_of_scores(run, attack, system, at)).any()
    ]
    if tau is None or not points:
        return None
    sign = -1.0 if run.result["systems"][system]["score_type"] == "dissimilarity" else 1.0
    every = np.concatenate([found for _, _, found in points])
    every = np.append(every[np.isfinite(every)], tau)
    pad = 0.08 * max(np.ptp(every), 1e-6)
    limits = sorted((sign * (every.min() - pad), sign * (every.max() + pad)))
    columns = min(2, len(points))
    rows = -(-len(points) // columns)
    label = run.system_label(system)
    found_in_words = []
    with figure(
        WIDTH, 0.5 + 2.35 * rows, rows, columns, squeeze=False, sharex=True, sharey=True
    ) as (
        made,
        grid,
    ):
        for axes in grid.flat[len(points) :]:
            axes.set_visible(False)
        for axes, (i, attack, found) in zip(grid.flat, points, strict=False):
            failed = ~np.isfinite(found).all(axis=1)
            hit = found.min(axis=1) > tau
            style = look(i)
            axes.axvline(sign * tau, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
            axes.axhline(sign * tau, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
            for mask, face in ((hit, style.colour), (~hit & ~failed, PAPER)):
                at_x, at_y = sign * found[mask, 0], sign * found[mask, 1]
                axes.scatter(
                    at_x, at_y, s=16, marker=style.marker, facecolor=face,
                    edgecolor=style.colour, linewidth=0.9, zorder=3,
                )  # fmt: skip
            axes.set_title(run.short_label(attack), fontsize=8.5, pad=14)
            words = f"{int(hit.sum())}/{len(hit)} match both"
            words += f", {int(failed.sum())} failed" if failed.any() else ""
            axes.text(0, 1.02, words, transform=axes.transAxes, fontsize=7.5, va="bottom")
            axes.set_xlim(limits)
            axes.set_ylim(limits)
            axes.set_aspect("equal")
            found_in_words.append(f"{run.attack_label(attack)} {int(hit.sum())} of {len(hit)}")
        name = "D" if sign < 0 else "S"
        made.supxlabel(f"${name}_a$, morph against subject a", fontsize=8.5)
        made.supylabel(f"${name}_b$, morph against subject b", fontsize=8.5)
        made.suptitle(label, fontsize=9, fontweight="bold", x=0.01, ha="left")
        svg, png = save(made, stem)
    caption = (
        "One mark per morph; filled marks match both subjects and count for MMPMR. The dashed "
        f"cross is τ. FMR {share(at.fmr)}, probe {at.probe}."
    )
    return Figure(stem.name, svg, png, caption, f"{label}: {', '.join(found_in_words)}")


def cost_figure(run: Run, system: str, at: EvaluationSetting, stem: Path) -> Figure | None:
    """Success against cost of the attacks of a run, see :func:`success_against_cost`.

    Args:
        run: A finished run.
        system: The recogniser.
        at: Probe, impostors, variant and FMR of the threshold.
        stem: Path of the two pictures without suffix.
    """
    points = []
    for i, attack in enumerate(run.attacks):
        row = run.row(attack, system, at)
        nfe = run.result["attacks"].get(attack, {}).get("nfe_paper")
        if row is not None and nfe and row["value"] is not None:
            labels = run.short_label(attack), run.attack_label(attack)
            points.append(CostPoint(look(i), *labels, float(nfe), row))
    return success_against_cost(points, run.system_label(system), at, stem)


class CostPoint(NamedTuple):
    """An attack in a plot of success against cost: its look, names in plot and words, and rate."""

    look: Look
    short: str
    label: str
    nfe: float
    row: Mapping[str, Any]


def success_against_cost(
    points: Sequence[CostPoint],
    label: str,
    at: EvaluationSetting,
    stem: Path,
    theirs: Sequence[tuple[float, float]] = (),
) -> Figure | None:
    """MMPMR with its interval against NFE by the paper's accounting, with Pareto front.

    Args:
        points: The attacks; None is returned where there are none.
        label: Name of the recogniser.
        at: Which of its rates is shown.
        stem: Path of the pictures without suffix.
        theirs: NFE and percent of the paper's rows, as hollow marks.
    """
    if not points:
        return None
    nfe = np.array([p.nfe for p in points])
    value = np.array([100 * p.row["value"] for p in points])
    # Attacks of equal cost stand side by side, no further apart than reads as equal.
    shift = np.ones(len(points))
    for cost in np.unique(nfe):
        same = np.flatnonzero(nfe == cost)
        shift[same] = 1.035 ** (np.arange(len(same)) - (len(same) - 1) / 2)
    x = nfe * shift
    with figure(WIDTH, 2.9) as (made, axes):
        axes.set_xscale("log")
        for point, at_x, y in zip(points, x, value, strict=True):
            bounds = [100 * end for end in subject_interval(point.row)]
            colour, marker = point.look.colour, point.look.marker
            axes.plot([at_x, at_x], bounds, color=colour, linewidth=1.3, alpha=0.8)
            axes.plot(at_x, y, marker=marker, color=colour, markersize=6, linestyle="")
        for hollow in dict.fromkeys(theirs):
            axes.plot(*hollow, marker="o", markerfacecolor="none", color=QUIET, linestyle="")
        front = pareto_front(nfe, value)
        if len(front) > 1:
            axes.step(
                nfe[front], value[front], where="post", color=QUIET, linewidth=1, linestyle=":",
                zorder=1,
            )  # fmt: skip
        every = np.concatenate([nfe, [cost for cost, _ in theirs]])
        low, high = every.min() / 1.6, every.max() * 1.25
        axes.set_xlim(low, high)
        axes.set_ylim(-3, 103)
        names = [
            (f"{p.short} {percent(y / 100, 100)}%", at_x, y, p.look.colour)
            for p, at_x, y in zip(points, x.tolist(), value.tolist(), strict=True)
        ]
        ticks = np.unique(nfe)
        if theirs:  # whole tables have too many costs to state each
            ticks = np.array([100, 200, 500, 1000, 2000, 5000])
            ticks = ticks[(every.min() <= ticks) & (ticks <= every.max())]
        crowded = np.diff(np.log(ticks)).min(initial=1.0) < 0.14 * np.log(high / low)
        turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks], **turned)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("NFE, the paper's accounting (log scale)")
        axes.set_ylabel(f"{at.variant} (%)")
        axes.set_title(label)
        # In one column: beside their marks, long names would cover each other.
        label_beside(axes, names, 0, 100, x=1.02)
        svg, png = save(made, stem)
    words = ", ".join(f"{p.label} {percent(p.row['value'])}% at {p.nfe:g}" for p in points)
    caption = (
        "Bars: 95% interval for new subjects. Dotted: the Pareto front, the best rate at no more "
        "than that cost. "
        + ("Hollow: the paper's rows, on its own faces and networks. " if theirs else "")
        + f"Marks of equal NFE stand side by side. FMR {share(at.fmr)}, probe {at.probe}."
    )
    return Figure(stem.name, svg, png, caption, f"{label}: {words}")


def curve_figure(run: Run, key: str, stem: Path) -> Figure | None:
    """A curve of the optimisation, `loss` or `gradient_norm`, mean over pairs, per attack.

    Args:
        run: A finished run.
        key: `loss` or `gradient_norm`.
        stem: Path of the two pictures without suffix.
    """
    curves = [
        (i, attack, np.asarray(values, dtype=np.float64))
        for i, (attack, entry) in enumerate(run.result["attacks"].items())
        if (values := (entry.get("curves") or {}).get(key))
    ]
    if not curves:
        return None
    name = {"loss": "identity loss", "gradient_norm": "gradient norm"}.get(key, key)
    gap = 0.085 * run.label_lines
    higher = growth(len(curves), gap, 0.98)
    with figure(5.6, 3.0 * higher) as (made, axes):
        every = np.concatenate([v for _, _, v in curves])
        # Over less than a factor of four a logarithmic axis has hardly a tick to read.
        logarithmic = key != "loss" and bool((every > 0).all()) and every.max() > 4 * every.min()
        if logarithmic:
            axes.set_yscale("log")
        last = max(len(v) for _, _, v in curves)
        for i, _, values in curves:
            style = look(i)
            axes.plot(
                np.arange(1, len(values) + 1), values, color=style.colour, linestyle=style.dash,
                marker=style.marker if len(values) == 1 else None,
            )  # fmt: skip
        axes.set_xlim(1 if last > 1 else 0.5, last)
        made.draw_without_rendering()
        ends = np.array([float(v[-1]) for _, _, v in curves])
        at = axes.transAxes.inverted().transform(
            axes.transData.transform(np.stack([np.full(len(ends), last), ends], axis=1))
        )[:, 1]
        for (i, attack, values), y, text_y in zip(
            curves, ends, spread(at, gap / higher, 0.02, 1.0), strict=True
        ):
            axes.annotate(
                f"{run.short_label(attack)}  {y:.3g}", (len(values), y), xytext=(1.03, text_y),
                textcoords="axes fraction", va="center", fontsize=8, annotation_clip=False,
                arrowprops=leader(look(i).colour, 0),
            )  # fmt: skip
        axes.set_xlabel("optimisation step")
        axes.set_ylabel(name + (" (log scale)" if logarithmic else ""))
        axes.xaxis.get_major_locator().set_params(integer=True)
        if logarithmic:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _leading(value) else "")
        svg, png = save(made, stem)
    ends_in_words = ", ".join(
        f"{run.attack_label(a)} from {v[0]:.3g} to {v[-1]:.3g}" for _, a, v in curves
    )
    caption = "Means over pairs at each optimisation step; the labels give the last value."
    return Figure(stem.name, svg, png, caption, f"{name}: {ends_in_words}")


def _pairs_of_scores(run: Run, attack: str, system: str, at: EvaluationSetting) -> np.ndarray:
    """Oriented best scores, shape (M, 2), subject a first; -inf where every comparison failed."""
    groups = run.groups(attack, system, at.probe)
    if groups is None or (groups.n_subjects != 2).any():
        return np.empty((0, 2))
    best = groups.best.reshape(-1, 2)
    subjects = groups.subjects.reshape(-1, 2)
    first = {pair["pair_id"]: pair["subject_a"] for pair in run.result["pairs"]}
    swap = np.array(
        [first.get(str(m)) == str(s[1]) for m, s in zip(groups.morphs, subjects, strict=True)],
        dtype=bool,
    )
    return np.where(swap[:, None], best[:, ::-1], best)


def pareto_front(cost: np.ndarray, value: np.ndarray) -> list[int]:
    """Indices of the points that no cheaper or equally cheap point equals, in order of cost."""
    front: list[int] = []
    for i in np.lexsort((-value, cost)):
        if not front or value[i] > value[front[-1]]:
            front.append(int(i))
    return front


def _density(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A Gaussian kernel estimate by Silverman's rule, from a fine histogram when n is large."""
    spread_of = min(values.std(ddof=1), np.subtract(*np.percentile(values, [75, 25])) / 1.34)
    width = 0.9 * (spread_of or values.std() or 1e-3) * len(values) ** -0.2
    # A narrower one would fall between two places of the axis, and its curve would be none.
    width = max(width, x[1] - x[0])
    if len(values) > 2000:
        weight, edges = np.histogram(values, bins=1000)
        values = (edges[1:] + edges[:-1]) / 2
    else:
        weight = np.ones(len(values))
    kernel = np.exp(-0.5 * ((x[:, None] - values[None, :]) / width) ** 2)
    return kernel @ weight / (weight.sum() * width * np.sqrt(2 * np.pi))


def _leading(value: float) -> bool:
    """Whether a logarithmic tick starts with 2 or 5, the only minor ones worth a number."""
    return f"{value:e}"[0] in "25"


def finite(values: np.ndarray) -> np.ndarray:
    """The finite ones, in their order."""
    return values[np.isfinite(values)]
