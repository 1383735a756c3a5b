"""The verdict on detection: the system under test, and what would harden it, in sentences."""

from collections.abc import Sequence

from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import KINDS, UNDEGRADED, WITHOUT
from adjointdeis.evaluation.detection_points import images_needed
from adjointdeis.evaluation.detection_tables import first_of, headline_of
from adjointdeis.reporting.detection_result import BSCER, DetectionResult, Row
from adjointdeis.reporting.run import EvaluationSetting
from adjointdeis.reporting.text import interval, listed, percent, share
from adjointdeis.texts import printable


def verdict(result: DetectionResult, at: EvaluationSetting | None) -> tuple[str, ...]:
    """What the numbers say about the system under test, and what would harden it."""
    best = result.ranked[0]
    lines = [*_system_under_test(result, at), *_detector(result, best)]
    lines += [*_unseen(result), *_degraded(result, at), *_hardened(result), *_kinds(result)]
    return (*lines, *_autoencoder(result), *_turned(result), *_controls(result))


def _system_under_test(result: DetectionResult, at: EvaluationSetting | None) -> list[str]:
    if result.run is None or at is None:
        return []
    run, lines = result.run, []
    for system in run.systems:
        found = _most(result, at, [system], UNDEGRADED)
        if found is None:
            continue
        _, matched, attack, _, both = found
        lines.append(
            f"{run.system_label(system)} alone accepts {matched} of {both['n']} morphs of "
            f"{run.attack_label(attack)} as both people (FMR {share(at.fmr)}, probe {at.probe}); "
            f"behind {printable(result.ranked[0])}, which sends at most {share(BSCER)} of genuine "
            f"images to a person, {both['k']} of {both['n']} still pass "
            f"{interval(both['lo'], both['hi'], both['n'])}%. No attack gets further."
        )
    return lines or [
        "How many morphs pass recogniser and detector is not said: it takes "
        f"{images_needed(BSCER)} bona fide images, and one morph a pair of named people, of an "
        "attack that the recogniser did not guide."
    ]


def _most(
    result: DetectionResult, at: EvaluationSetting, systems: Sequence[str], degradation: str
) -> tuple[float, int, str, str, Row] | None:
    """Where most morphs pass both; of several alike, where the recogniser accepts most."""
    run = result.run
    assert run is not None
    found = [
        (both["value"], both["matched"], attack, system, both)
        for system in systems
        for attack in result.study.attacks
        if attack in run.attacks and not run.guided(attack, system)
        and (both := result.passing(attack, system, at, degradation)) is not None
    ]  # fmt: skip
    return max(found, key=lambda row: row[:2], default=None)


def _detector(result: DetectionResult, best: str) -> list[str]:
    row = result.row(best, WORST)
    if row is None:
        return []
    attacks = [result.row(best, attack) for attack in result.study.attacks]
    worst = max((r for r in attacks if r is not None), key=lambda r: r["d_eer"])
    kind, attack = KINDS[result.study.detectors[best]], result.name(worst["attack"])
    if result.held_out:
        return [
            f"Best on the validation people, who are not tested, is {printable(best)} ({kind}): on "
            f"the test at its worst attack, {attack}, {_eer(worst)}."
        ]
    return [f"Best at its worst attack, {attack}, is {printable(best)} ({kind}): {_eer(worst)}."]


def _unseen(result: DetectionResult) -> list[str]:
    """The attack that a detector loses most by not having seen it."""
    gaps = []
    for row in result.rows:
        if (row["trained_on"], row["degradation"]) != (WITHOUT + row["attack"], UNDEGRADED):
            continue
        whole = first_of(result.rows, detector=row["detector"], trained_on="all",
                         attack=row["attack"], degradation=UNDEGRADED)  # fmt: skip
        if whole is not None:
            gaps.append((row["d_eer"] - whole["d_eer"], row, whole))
    gaps = [gap for gap in gaps if gap[1]["detector"] == result.ranked[0]] or gaps
    if not gaps:
        return []
    gap, row, whole = max(gaps, key=lambda found: found[0])
    if gap <= 0:
        return [
            f"{printable(row['detector'])} loses nothing on any attack that is left out of its "
            "training."
        ]
    return [
        f"Without {result.name(row['attack'])} among its examples "
        f"{printable(row['detector'])} has {_eer(row)} on it, with it {_eer(whole)}: the most that "
        "an attack left out costs it."
    ]


def _degraded(result: DetectionResult, at: EvaluationSetting | None) -> list[str]:
    """The degradation that hurts the best detector most, and what the system then lets in."""
    best, found = result.ranked[0], []
    for degradation in result.study.degradations:
        row = result.row(best, WORST, degradation)
        if row is not None:
            found.append((row["d_eer"], degradation, row))
    if len(found) < 2:
        return []
    _, degradation, row = max(found)
    if degradation == UNDEGRADED:
        return [f"No degradation makes {printable(best)} worse at its worst attack."]
    name = printable(degradation)
    lines = [
        f"After {name} {printable(best)} has {_eer(row)} at its worst attack: detectors have to "
        "be trained and judged on images as the system gets them."
    ]
    return lines + (_passed(result, at, degradation) or _bound(result, at, degradation))


def _passed(result: DetectionResult, at: EvaluationSetting | None, degradation: str) -> list[str]:
    """How many morphs pass both after a degradation, of the attack and recogniser where most do."""
    run = result.run
    found = None if run is None or at is None else _most(result, at, run.systems, degradation)
    if run is None or found is None:
        return []
    _, matched, attack, system, both = found
    return [
        f"Then {run.system_label(system)} accepts {matched} of {both['n']} morphs of "
        f"{result.name(attack)}, and {both['k']} of {both['n']} pass both "
        f"{interval(both['lo'], both['hi'], both['n'])}%: no attack and recogniser lets more in."
    ]


def _bound(result: DetectionResult, at: EvaluationSetting | None, degradation: str) -> list[str]:
    """How many morphs pass both after a degradation at most: no more than pass either."""
    run, best, bounds = result.run, result.ranked[0], []
    if run is None or at is None:
        return []
    for attack in result.study.attacks:
        row = result.row(best, attack, degradation)
        for system in run.systems:
            judged = result.vulnerable(attack, system, at, degradation)
            if row is None or judged is None or run.guided(attack, system):
                continue
            rates = judged["value"], row["macer10"]["value"]
            if None not in rates:
                bounds.append((min(rates), attack, system, judged["n"], rates))
    if not bounds:
        return []
    most, attack, system, n, (accepted, escaped) = max(bounds, key=lambda found: found[0])
    return [
        f"Then {run.system_label(system)} accepts {percent(accepted, n)}% of {result.name(attack)} "
        f"and {printable(best)} misses {percent(escaped, n)}%: at most {percent(most, n)}% pass "
        "both, the highest such bound of all attacks and recognisers."
    ]


def _hardened(result: DetectionResult) -> list[str]:
    """What guided morphs among the examples change beyond chance, and what they cost."""
    if not result.changed:
        return []
    better, worse, pays = [], [], []
    for row in result.changed:
        if row["degradation"] != UNDEGRADED or row["d_eer"]["hi"] is None:
            continue
        if row["attack"] == WORST:
            cost = row["bscer10"]
            if cost is not None and cost["lo"] > 0:
                pays.append(printable(row["detector"]))
            continue
        new = ", which neither training had seen" * (row["learnt"] == "never")
        what = f"{result.name(row['attack'])} by {printable(row['detector'])}{new}"
        better += [what] if row["d_eer"]["hi"] < 0 else []
        worse += [what] if row["d_eer"]["lo"] > 0 else []
    lines = []
    if better:
        lines.append(f"Guided morphs among the examples help beyond chance on {listed(better)}.")
    if worse:
        lines.append(f"They make it worse beyond chance on {listed(worse)}.")
    if pays:
        lines.append(
            f"At MACER 10% of the worst attack more bona fide images are flagged by {listed(pays)}."
        )
    return lines or [
        "Guided morphs among the examples change no detector's D-EER by more than chance explains "
        "with so few images."
    ]


def _kinds(result: DetectionResult) -> list[str]:
    """Whether a live capture is worth having."""
    found = {}
    for detector in reversed(result.ranked):
        if (row := result.row(detector, WORST)) is not None:
            found[result.study.detectors[detector]] = (detector, row)
    if not {"s_mad", "d_mad"} <= found.keys():
        return []
    (single, one), (live, two) = found["s_mad"], found["d_mad"]
    where = "on the validation people" if result.held_out else "at its worst attack"
    known = two["d_eer_hi"] < one["d_eer_lo"] or one["d_eer_hi"] < two["d_eer_lo"]
    return [
        f"With a live capture ({printable(live)}) {_eer(two)}, without ({printable(single)}) "
        f"{_eer(one)}, each the best of its kind {where}"
        + ("." if known else ": these intervals overlap.")
    ]


def _autoencoder(result: DetectionResult) -> list[str]:
    """Detectors that call most bona fide images morphs once an autoencoder has decoded them."""
    found = []
    for detector in result.ranked:
        row = first_of(result.reconstructed, detector=detector, degradation=UNDEGRADED,
                       trained_on=headline_of(result.rows, detector))  # fmt: skip
        if row is not None and row["k"] > row["n"] / 2:
            found.append(f"{printable(detector)} ({row['k']} of {row['n']})")
    if not found:
        return []
    return [
        "Most bona fide images are called morphs once an autoencoder has encoded and decoded them, "
        f"nothing blended, by {listed(found)}: what these find in such attacks is the autoencoder, "
        "and they would have to be trained with such images among the bona fide ones."
    ]


def _turned(result: DetectionResult) -> list[str]:
    """Detectors that call bona fide images morphs and morphs bona fide, beyond chance."""
    lines = []
    for detector in result.ranked:
        rows = [row for a in result.study.attacks if (row := result.row(detector, a)) is not None]
        if rows and all(row["d_eer_lo"] > 0.5 for row in rows):
            lines.append(
                f"{printable(detector)} has {_eer(min(rows, key=lambda row: row['d_eer']))} at its "
                "best attack, worse than chance: is a high score of it bona fide (higher_is)?"
            )
    return lines


def _controls(result: DetectionResult) -> list[str]:
    wrong = {}
    for row in result.rows:
        if (row["trained_on"], row["degradation"]) == ("shuffled", UNDEGRADED):
            if row["attack"] != WORST and not row["d_eer_lo"] <= 0.5 <= row["d_eer_hi"]:
                wrong.setdefault(row["detector"], row)
    return [
        f"{printable(detector)} trained on shuffled labels has {_eer(row)} on "
        f"{result.name(row['attack'])}, which is not one half: its scores know something that "
        "its training should not, and its other numbers are in doubt."
        for detector, row in wrong.items()
    ]


def _eer(row: Row) -> str:
    n = min(row["n_morph"], row["n_bonafide"])
    bounds = interval(row["d_eer_lo"], row["d_eer_hi"], n)
    return f"D-EER {percent(row['d_eer'], n)}% {bounds} (n = {row['n_morph']}, {row['n_bonafide']})"
