"""Figures of detection: DET curves, and MMPMR against what a detector misses."""

from pathlib import Path

from adjointdeis.evaluation.detection_matrix import UNDEGRADED
from adjointdeis.evaluation.detection_tables import headline_of
from adjointdeis.evaluation.tables import subject_interval
from adjointdeis.reporting.curves import detection_curve, detection_curves
from adjointdeis.reporting.detection_result import DetectionResult
from adjointdeis.reporting.document import Block, Figure, FigureRow, Folded, drawn
from adjointdeis.reporting.plots import WIDTH
from adjointdeis.reporting.run import EvaluationSetting
from adjointdeis.reporting.style import (
    INK,
    PAPER,
    QUIET,
    beside,
    figure,
    look,
    save,
    spread,
)
from adjointdeis.reporting.text import PROBES, share
from adjointdeis.texts import printable, slug


def planes(result: DetectionResult, at: EvaluationSetting, folder: Path) -> list[Block]:
    """MMPMR against detectability for the best detector of each kind: the first open.

    The recogniser is the first that guided no attack, for it is the black box; of the others the
    tables have the same numbers.
    """
    run = result.run
    assert run is not None
    unseen = [s for s in run.systems if not any(run.guided(a, s) for a in run.result["attacks"])]
    system = (unseen or run.systems)[0]
    kinds = result.study.detectors
    best = {kinds[detector]: detector for detector in reversed(result.ranked)}
    blocks: list[Block] = []
    for detector in result.ranked:
        if best[kinds[detector]] != detector:
            continue
        made = []
        for degradation in result.study.degradations:
            stem = folder / slug(f"plane_{detector}_{system}_{degradation}")
            made.append(plane_figure(result, detector, system, degradation, at, stem))
        found = drawn(made)
        if not found:
            continue
        title = f"MMPMR against what {printable(detector)} misses"
        row = FigureRow(title, found)
        blocks.append(Folded(title, (row,), f"plane-{detector}") if blocks else row)
    return blocks


def plane_figure(
    result: DetectionResult,
    detector: str,
    system: str,
    degradation: str,
    at: EvaluationSetting,
    stem: Path,
) -> Figure | None:
    """An attack a point: MMPMR against the morphs that a detector misses, intervals both ways.

    Args:
        result: The study and its run.
        detector, system, degradation: Which plane.
        at: The condition of MMPMR.
        stem: Where to write.
    """
    run = result.run
    assert run is not None
    points = []
    for i, attack in enumerate(result.study.attacks):
        judged = result.vulnerable(attack, system, at, degradation)
        row = result.row(detector, attack, degradation)
        if judged is None or row is None or row["macer10"]["value"] is None:
            continue
        if judged["value"] is not None:
            points.append((i, attack, judged, row["macer10"]))
    if not points:
        return None
    words = []
    with figure(WIDTH, 3.1) as (made, axes):
        named = []
        for i, attack, judged, missed in points:
            style = look(i)
            x, y = 100 * judged["value"], 100 * missed["value"]
            left, right = (100 * end for end in subject_interval(judged))
            bars = {"color": style.colour, "linewidth": 0.9, "alpha": 0.75}
            axes.plot([left, right], [y, y], **bars)
            axes.plot([x, x], [100 * missed["lo"], 100 * missed["hi"]], **bars)
            before = _before(result, detector, system, degradation, attack, at)
            if before is not None:
                axes.plot([before[0], x], [before[1], y], color=QUIET, linewidth=0.8, zorder=1)
                axes.plot(*before, marker=style.marker, markerfacecolor=PAPER,
                          markeredgecolor=QUIET, linestyle="", clip_on=False)  # fmt: skip
            axes.plot(x, y, marker=style.marker, color=style.colour, markeredgecolor=INK,
                      linestyle="", clip_on=False, zorder=4)  # fmt: skip
            named.append((result.label(attack), y, style))
            words.append(f"{result.name(attack)} {x:.0f}% and {y:.0f}%")
        axes.set_xlim(-3, 103)
        axes.set_ylim(-3, 103)
        lines = max(label.count("\n") + 1 for label, *_ in named)
        heights = spread([y for _, y, _ in named], 7 * lines, 0, 100)
        for (label, _, style), at_y in zip(named, heights, strict=True):
            # Points crowd at the floor, where lines from label to point would cross: marks instead.
            axes.plot(1.07, at_y, marker=style.marker, color=style.colour, markeredgecolor=INK,
                      linestyle="", transform=beside(axes), clip_on=False)  # fmt: skip
            axes.annotate(label, (1.12, at_y), xycoords=beside(axes), fontsize=8, va="center",
                          annotation_clip=False)  # fmt: skip
        axes.set_xlabel(f"{at.variant} at {run.system_label(system)} (%)")
        axes.set_ylabel("missed where 10% of\nbona fide are flagged (%)")
        after = "images as they are" if degradation == UNDEGRADED else f"after {degradation}"
        axes.set_title(printable(f"{detector}, {after}"))
        svg, png = save(made, stem)
    caption = (
        f"A point is an attack; up and right is what the system lets in. Bars: 95% intervals for "
        f"new people, both ways. Hollow: before the degradation. FMR {share(at.fmr)}, against "
        f"{PROBES.get(at.probe, at.probe)}."
    )
    alt = f"{detector}, {system}, {degradation}: MMPMR and missed: {', '.join(words)}"
    return Figure(stem.name, svg, png, caption, printable(alt))


def _before(
    result: DetectionResult,
    detector: str,
    system: str,
    degradation: str,
    attack: str,
    at: EvaluationSetting,
) -> tuple[float, float] | None:
    """Where the attack's point was before the degradation."""
    if degradation == UNDEGRADED:
        return None
    judged = result.vulnerable(attack, system, at, UNDEGRADED)
    row = result.row(detector, attack)
    if judged is None or row is None or judged["value"] is None or not row["macer10"]["n"]:
        return None
    return 100 * judged["value"], 100 * row["macer10"]["value"]


def det_of_attacks(result: DetectionResult, detector: str, folder: Path) -> Figure | None:
    """DET of a detector's headline training, undegraded, an attack a curve."""
    scores = result.scores(detector)
    if scores is None:
        return None
    curves = [
        detection_curve(scores, attack, result.label(attack))
        for attack in result.study.attacks
        if attack in scores.attacks
    ]
    title = printable(f"{detector}, trained on {headline_of(result.rows, detector)}")
    return detection_curves(curves, title, "an attack a curve", folder / slug(f"det_{detector}"))


def det_of_degradations(result: DetectionResult, detector: str, folder: Path) -> Figure | None:
    """DET at the worst attack, a degradation a curve; None with one alone."""
    curves = []
    for degradation in result.study.degradations:
        scores = result.scores(detector, degradation)
        if scores is not None:
            curves.append(detection_curve(scores, None, printable(degradation)))
    if len(curves) < 2:
        return None
    what = "a degradation a curve, at the worst attack of each threshold"
    stem = folder / slug(f"det_degradations_{detector}")
    return detection_curves(curves, printable(detector), what, stem)
