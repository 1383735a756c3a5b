"""Curves over thresholds and recognisers: DET, MMPMR against FMR, and the MAP heat map."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.evaluation import DetectionScores, ScoreTable, mmpmr_curve
from adjointdeis.evaluation.attack_potential import attack_potential
from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.thresholds import allowed_false_matches
from adjointdeis.reporting.document import Figure
from adjointdeis.reporting.plots import WIDTH, finite
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.style import (
    INK,
    PAPER,
    QUIET,
    figure,
    label_beside,
    look,
    save,
)
from adjointdeis.reporting.text import percent, share

_DET_TICKS = np.array([0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95])
ENOUGH = 30
"""Errors behind a rate that is known to within 30%; curves are thin where there are fewer."""
SMALL = f"Thin lines and hollow marks: fewer than {ENOUGH} errors on one of the axes."


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """Two error rates over a common sweep of thresholds, x falling as y rises.

    Attributes:
        label: what it is of.
        x, y: shape (T,), shares; n_x, n_y: out of how many.
        mark: the (x, y) that is reported, or None.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    n_x: int
    n_y: int
    mark: tuple[float, float] | None = None


def det_figure(run: Run, at: EvaluationSetting, stem: Path) -> Figure | None:
    """Detection error trade-off of every recogniser on bona fide comparisons, tau marked.

    Args:
        run: A finished run.
        at: Probe, impostors, variant and FMR of the threshold.
        stem: Path of the two pictures without suffix.
    """
    curves, words = [], []
    for system in run.systems:
        rows = run.scores.select(system=system)
        mated = np.sort(finite(rows.select(kind="mated").oriented))
        nonmated = np.sort(finite(rows.select(kind="nonmated").oriented))
        if not (len(mated) and len(nonmated)):
            continue
        taus = np.sort(np.concatenate([mated, nonmated]))
        fmr = 1 - np.searchsorted(nonmated, taus, side="right") / len(nonmated)
        fnmr = np.searchsorted(mated, taus, side="right") / len(mated)
        mark, tau, label = None, run.oriented_tau(system, at), run.system_label(system)
        if tau is not None:
            mark = float(np.mean(nonmated > tau)), float(np.mean(mated <= tau))
            words.append(f"{label} FNMR {percent(mark[1])}%")
        curves.append(ErrorCurve(label, fmr, fnmr, len(nonmated), len(mated), mark))
    caption = (
        "Bona fide comparisons of this run's own people; marks stand at the thresholds used, which "
        f"may rest on others. Rates of zero are drawn at half a comparison. {SMALL}"
    )
    alt = f"DET; at the thresholds: {', '.join(words)}"
    return error_figure(curves, ("FMR", "FNMR"), "DET of the recognisers", caption, alt, stem)


def detection_figure(table: ScoreTable, stem: Path) -> Figure | None:
    """Detection error trade-off of every detector and attack, the D-EER marked."""
    curves = []
    for system in table.unique("system", kind="mad"):
        scores = DetectionScores.from_table(table, system)
        curves += [detection_curve(scores, a, f"{system}: {a}") for a in scores.attacks]
    return detection_curves(curves, "DET of the detectors", "an attack a curve", stem)


def detection_curve(scores: DetectionScores, attack: str | None, label: str) -> ErrorCurve:
    """Morphs missed against bona fide images flagged; with None at the worst attack each time."""
    _, macer, bscer = scores.det(attack)
    at = int(np.argmin(np.abs(macer - bscer)))
    order = np.argsort(-bscer, kind="stable")
    names = [attack] if attack else list(scores.attacks)
    n = min(len(finite(np.asarray(scores.attacks[name]))) for name in names)
    bona_fide = len(finite(np.asarray(scores.bona_fide)))
    mark = float(bscer[at]), float(macer[at])
    return ErrorCurve(label, bscer[order], macer[order], bona_fide, n, mark)


def detection_curves(
    curves: Sequence[ErrorCurve], title: str, what: str, stem: Path
) -> Figure | None:
    """Curves of `detection_curve` as a figure; `what` says in words what is a curve."""
    caption = (
        f"Morphs missed against bona fide images flagged, {what}; marks stand at the D-EER. Rates "
        f"of zero are drawn at half an image. {SMALL}"
    )
    ends = [(c.label, (c.mark[0] + c.mark[1]) / 2) for c in curves if c.mark]
    words = ", ".join(f"{label} {percent(value)}%" for label, value in ends)
    alt = f"{title}; D-EER: {words}"
    return error_figure(curves, ("BSCER", "MACER"), title, caption, alt, stem)


def error_figure(
    curves: Sequence[ErrorCurve],
    names: tuple[str, str],
    title: str,
    caption: str,
    alt: str,
    stem: Path,
) -> Figure | None:
    """Curves of two error rates; None without one.

    Both axes are normal deviates, on which two normal score distributions give a straight line.
    """
    from scipy.special import ndtri

    if not curves:
        return None
    with figure(WIDTH, 3.4) as (made, axes):
        ends = []
        for i, curve in enumerate(curves):
            # Shares of 0 and 1 lie at infinity on this scale; half a comparison is where they go.
            x = ndtri(np.clip(curve.x, 0.5 / curve.n_x, 1 - 0.5 / curve.n_x))
            y = ndtri(np.clip(curve.y, 0.5 / curve.n_y, 1 - 0.5 / curve.n_y))
            style = look(i)
            drawn = {"color": style.colour, "linestyle": style.dash, "drawstyle": "steps-post"}
            axes.plot(x, y, linewidth=0.7, **drawn)
            known = (curve.x * curve.n_x >= ENOUGH) & (curve.y * curve.n_y >= ENOUGH)
            axes.plot(x, np.where(known, y, np.nan), **drawn)
            if curve.mark is not None:
                errors = curve.mark[0] * curve.n_x, curve.mark[1] * curve.n_y
                axes.plot(
                    ndtri(np.clip(curve.mark[0], 0.5 / curve.n_x, 1 - 0.5 / curve.n_x)),
                    ndtri(np.clip(curve.mark[1], 0.5 / curve.n_y, 1 - 0.5 / curve.n_y)),
                    marker=style.marker,
                    color=style.colour,
                    markerfacecolor=style.colour if min(errors) >= ENOUGH else PAPER,
                    markeredgecolor=INK,
                    linestyle="",
                    clip_on=False,
                    zorder=4,
                )
            ends.append((x, y))
        ticks = ndtri(_DET_TICKS)
        axes.set_xticks(ticks, [share(t) for t in _DET_TICKS])
        axes.set_yticks(ticks, [share(t) for t in _DET_TICKS])
        # From half an error of the largest sample; beyond one half where a curve is at chance.
        chance = any(c.mark is not None and max(c.mark) > 0.4 for c in curves)
        top = ndtri(0.97 if chance else 0.6)
        axes.set_xlim(ndtri(max(0.00005, 0.4 / max(c.n_x for c in curves))), top)
        axes.set_ylim(ndtri(max(0.0005, 0.4 / max(c.n_y for c in curves))), top)
        heights = np.array([float(np.interp(ndtri(0.3), x[::-1], y[::-1])) for x, y in ends])
        low, high = axes.get_ylim()
        named = [
            (curve.label, ndtri(0.3), max(y, low), look(i).colour)
            for i, (curve, y) in enumerate(zip(curves, heights, strict=True))
        ]
        axes.set_xlabel(f"{names[0]} (normal deviate)")
        axes.set_ylabel(f"{names[1]} (normal deviate)")
        axes.set_title(title)
        label_beside(axes, named, low, high)
        svg, png = save(made, stem)
    return Figure(stem.name, svg, png, caption, alt)


def operating_curve_figure(
    run: Run, system: str, at: EvaluationSetting, stem: Path
) -> Figure | None:
    """MMPMR of every attack against the FMR that the threshold is set to.

    Args:
        run: A finished run.
        system: The recogniser.
        at: Probe, impostors, variant and FMR of the threshold.
        stem: Path of the two pictures without suffix.
    """
    impostors = finite(run.scores.select(system=system, kind="nonmated").oriented)
    curves = []
    for i, attack in enumerate(run.attacks):
        groups = run.groups(attack, system, at.probe)
        if groups is not None:
            curves.append((i, attack, groups))
    if len(impostors) < 2 or not curves:
        return None
    lowest = max(1 / len(impostors), 1e-6)
    targets = np.geomspace(lowest, 0.1, 120)
    ordered = np.sort(impostors)[::-1]
    taus = ordered[[allowed_false_matches(len(ordered), float(f)) for f in targets]]
    label = run.system_label(system)
    words = []
    with figure(WIDTH, 2.9) as (made, axes):
        axes.set_xscale("log")
        starts = []
        for i, attack, groups in curves:
            style = look(i)
            y = 100 * mmpmr_curve(groups, taus)
            axes.plot(targets, y, color=style.colour, linestyle=style.dash, drawstyle="steps-post")
            starts.append((run.short_label(attack), 0.1, float(y[-1]), style.colour))
            words.append(f"{run.attack_label(attack)} {y[0]:.0f} to {y[-1]:.0f}%")
        axes.axvline(at.fmr, color=INK, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.set_ylim(-3, 103)
        axes.set_xlim(lowest, 0.1)
        axes.xaxis.set_major_formatter(lambda value, _: share(value))
        axes.set_xlabel("FMR the threshold is set to (log scale)")
        axes.set_ylabel("MinMax-MMPMR (%)" if at.variant != "MMPMR" else "MMPMR (%)")
        axes.set_title(label)
        label_beside(axes, starts, 0, 100)
        svg, png = save(made, stem)
    caption = (
        "Thresholds from this run's own pairs of different people, one after another; those of "
        f"the tables may rest on others. Probe {at.probe}. The curves start where one false match "
        "is left; the dashed line is the FMR of the tables."
    )
    return Figure(stem.name, svg, png, caption, f"{label}: {', '.join(words)}")


def potential_figure(run: Run, at: EvaluationSetting, stem: Path) -> Figure | None:
    """MAP[r, c] of every attack: morphs that get in r times at c recognisers at least.

    Args:
        run: A finished run.
        at: Probe, impostors, variant and FMR of the threshold.
        stem: Path of the two pictures without suffix.
    """
    matrices = _potentials(run, at)
    if not matrices:
        return None
    columns = min(2, len(matrices))
    rows = -(-len(matrices) // columns)
    n_r, n_c = matrices[0][1].counts.shape
    height = 0.55 + rows * (0.75 + 0.34 * n_r)
    words = []
    with figure(WIDTH, height, rows, columns, squeeze=False) as (made, grid):
        for axes in grid.flat[len(matrices) :]:
            axes.set_visible(False)
        for axes, (attack, found) in zip(grid.flat, matrices, strict=False):
            values = found.values
            axes.imshow(values, cmap="Greys", vmin=0, vmax=1, aspect="auto")
            for r in range(n_r):
                for c in range(n_c):
                    axes.text(
                        c,
                        r,
                        f"{100 * values[r, c]:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8.5,
                        color=PAPER if values[r, c] > 0.55 else INK,
                    )
            axes.set_xticks(range(n_c), [str(c + 1) for c in range(n_c)])
            axes.set_yticks(range(n_r), [str(r + 1) for r in range(n_r)])
            axes.tick_params(length=0)
            axes.set_title(run.short_label(attack), fontsize=8.5)
            for spine in axes.spines.values():
                spine.set(visible=True, color=QUIET)
            words.append(f"{run.attack_label(attack)} {100 * values[0, -1]:.0f}% at all")
        made.supxlabel("c, recognisers at least", fontsize=8.5)
        made.supylabel("r, attempts", fontsize=8.5)
        svg, png = save(made, stem)
    caption = (
        f"MAP[r, c] in %: the share of morphs with which both subjects get in at least r times at "
        f"c of {n_c} recognisers or more. FMR {share(at.fmr)}, probe {at.probe}."
    )
    return Figure(stem.name, svg, png, caption, f"Morphing attack potential: {', '.join(words)}")


def _potentials(run: Run, at: EvaluationSetting) -> list[tuple[str, Any]]:
    taus = {s: run.oriented_tau(s, at) for s in run.systems}
    found = []
    for attack in run.result["attacks"]:
        groups = {s: run.groups(attack, s, at.probe) for s in run.systems}
        if any(g is None for g in groups.values()) or any(t is None for t in taus.values()):
            continue
        try:
            found.append((attack, attack_potential(groups, taus)))  # type: ignore[arg-type]
        except EvaluationError:
            # Recognisers that scored different morphs have no common potential.
            continue
    return found
