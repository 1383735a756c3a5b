"""Tables of detectors under several trainings and degradations, from rows of `matrix_rows`."""

from collections.abc import Mapping, Sequence
from typing import Any

from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import (
    CHANGES,
    KINDS,
    UNDEGRADED,
    WITHOUT,
    training_order,
)
from adjointdeis.evaluation.detection_points import OPERATING_POINTS
from adjointdeis.evaluation.tables import (
    DASH,
    Cell,
    Table,
    cells,
    change_cell,
    interval,
    operating_cell,
    percent,
    share,
)

POINTS = ("bscer10", "bscer20", "bscer100")
HEADLINE = ("all", "given")
LEARNT = {"all": "both", "hardened": "hardened", "never": "neither"}
Row = Mapping[str, Any]

_NAMES = (
    "D-EER: where as many morphs are missed as bona fide images are flagged. BSCER10/20/100: share "
    "of bona fide images flagged where at most 10, 5, 1% of the morphs are missed (older names: "
    "BPCER at APCER). MACER10: share of morphs missed where at most 10% of the bona fide images "
    "are flagged."
)
_NEEDS = "A dash with a number: fewer images than an error rate so low can be seen in."


def rows_of(rows: Sequence[Row], **wanted: str) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def first_of(rows: Sequence[Row], **wanted: str) -> Row | None:
    """The first row with these values, or None."""
    return next(iter(rows_of(rows, **wanted)), None)


def headline_of(rows: Sequence[Row], detector: str) -> str:
    """The training that speaks for a detector: on all attacks, or as it was given, or its first."""
    found = list(dict.fromkeys(row["trained_on"] for row in rows_of(rows, detector=detector)))
    return next((name for name in HEADLINE if name in found), found[0])


def equal_error_cell(row: Row | None, *detail: str) -> Cell:
    """D-EER in percent with its interval; a dash for no row."""
    if row is None:
        return Cell(DASH)
    n = min(row["n_morph"], row["n_bonafide"])
    bounds = interval(row["d_eer_lo"], row["d_eer_hi"], n)
    return Cell(percent(row["d_eer"], n), (bounds, *detail))


def overview_table(rows: Sequence[Row]) -> Table:
    """Each detector at its worst attack, undegraded, with the control beside it."""
    header = ("detector", "kind", "trained on", "D-EER %", "BSCER10 %", "BSCER20 %", "BSCER100 %",
              "control D-EER %", "morphs", "bona fide")  # fmt: skip
    lines, backwards = [], []
    for detector in dict.fromkeys(row["detector"] for row in rows):
        for trained in dict.fromkeys((headline_of(rows, detector), "hardened")):
            row = first_of(rows, detector=detector, trained_on=trained, degradation=UNDEGRADED,
                           attack=WORST)  # fmt: skip
            if row is None:
                continue
            every = rows_of(rows, detector=detector, trained_on=trained, degradation=UNDEGRADED)
            if min(each["d_eer"] for each in every) > 0.5:
                backwards.append(f"{detector}, trained on {trained}")
            shuffled = rows_of(
                rows, detector=detector, trained_on="shuffled", degradation=UNDEGRADED
            )
            control = max(
                (row for row in shuffled if row["attack"] != WORST),
                key=lambda row: abs(row["d_eer"] - 0.5),
                default=None,
            )
            points = (operating_cell(row[name]) for name in POINTS)
            head = (detector, KINDS[row["kind"]], trained, equal_error_cell(row))
            sizes = (str(row["n_morph"]), str(row["n_bonafide"]))
            lines.append(cells([*head, *points, equal_error_cell(control), *sizes]))
    notes = (
        f"{_NAMES} Each at the worst attack, the headline; morphs: of the smallest attack. "
        "Control: the same detector trained on shuffled labels, at the attack where it is furthest "
        f"from 50%; its interval must hold 50%. {_NEEDS}",
        _intervals_note(rows),
    )
    if backwards:
        notes += (
            f"Worse than chance at every attack: {'; '.join(backwards)}. Larger must say morph: "
            "where a larger score says bona fide, turn the scores round.",
        )
    return Table("detectors", "Detectors at their worst attack", header, tuple(lines), notes=notes)


def _intervals_note(rows: Sequence[Row]) -> str:
    """What the intervals of these rows are, and how far the samples reach."""
    resampled = " and ".join(dict.fromkeys(row["resampled"] for row in rows))
    return (
        f"Intervals, {share(rows[0]['confidence'])}: bootstrap over {resampled}, never narrower "
        "than the exact interval of as many images as share nobody. A rate is known to within 30% "
        "where thirty errors lie behind it, hence at 10% of 300 images."
    )


def training(name: str) -> str:
    """A training as a reader says it, `without opencv`, which can be wrapped."""
    return f"without {name.removeprefix(WITHOUT)}" if name.startswith(WITHOUT) else name


def matrix_table(rows: Sequence[Row], detector: str, degradation: str) -> Table:
    """D-EER: trained on i (rows), tested on j (columns), of one detector and degradation.

    Args:
        rows: What `matrix_rows` returned.
        detector: Name of the detector.
        degradation: Name of the degradation.
    """
    own = rows_of(rows, detector=detector, degradation=degradation)
    tested = list(dict.fromkeys(row["attack"] for row in own))
    order = training_order(tested)
    trained = dict.fromkeys(row["trained_on"] for row in own)
    lines = []
    for name in sorted(trained, key=lambda t: order.index(t) if t in order else len(order)):
        line: list[str | Cell] = [training(name)]
        for attack in tested:
            row = first_of(own, trained_on=name, attack=attack)
            # Said where it is the exception: a detector of one attack, or of all but some.
            saw = None if row is None else row["saw"]
            mark = ("not seen",) if saw is False and name not in tested else ()
            mark = ("seen",) if saw and name in tested else mark
            line.append(equal_error_cell(row, *mark))
        lines.append(cells(line))
    return Table(
        f"matrix-{detector}-{degradation}",
        f"{detector}: trained on the row, tested on the column, D-EER in %",
        ("trained on", *tested),
        tuple(lines),
        (("Detector", detector), ("Degradation", degradation)),
        (
            "Seen, not seen: whether the attack was among the examples, said where it is the "
            "exception. Hardened: guided morphs beside the others. Shuffled: the control.",
        ),
        fold=False,
    )


def points_table(
    rows: Sequence[Row], detector: str, degradation: str, trained_on: str | None = None
) -> Table:
    """Every operating point of one detector and degradation, a line per training and attack.

    Args:
        rows: What `matrix_rows` returned.
        detector: Name of the detector.
        degradation: Name of the degradation.
        trained_on: One training; None for all.
    """
    own = rows_of(rows, detector=detector, degradation=degradation)
    own = own if trained_on is None else rows_of(own, trained_on=trained_on)
    header = ("trained on", "tested on", "D-EER %", "BSCER10 %", "BSCER20 %", "BSCER100 %",
              "MACER10 %", "MACER100 %", "morphs", "bona fide", "failed")  # fmt: skip
    lines = []
    for row in own:
        points = (operating_cell(row[name]) for name in OPERATING_POINTS)
        failed = f"{row['n_failed_morph']}/{row['n_failed_bonafide']}"
        sizes = (str(row["n_morph"]), str(row["n_bonafide"]))
        head = (training(row["trained_on"]), row["attack"], equal_error_cell(row))
        lines.append(cells([*head, *points, *sizes, failed]))
    return Table(
        f"points-{detector}-{degradation}",
        f"{detector}: every operating point" + (f", trained on {trained_on}" if trained_on else ""),
        header,
        tuple(lines),
        (("Detector", detector), ("Degradation", degradation)),
        (f"{_NAMES} {_NEEDS} Failed: morphs/bona fide images without a score, left out.",),
        fold=False,
    )


def leave_one_out_table(rows: Sequence[Row]) -> Table | None:
    """What detectors make of an attack that they were not trained on; None without such a training.

    Args:
        rows: Of `matrix_rows`; those of degraded images are left out.
    """
    own = rows_of(rows, degradation=UNDEGRADED)
    left = [row for row in own if row["trained_on"] == WITHOUT + row["attack"]]
    detectors = list(dict.fromkeys(row["detector"] for row in left))
    lines = []
    for attack in dict.fromkeys(row["attack"] for row in left):
        line: list[str | Cell] = [attack]
        for detector in detectors:
            row = first_of(left, detector=detector, attack=attack)
            whole = first_of(own, detector=detector, trained_on="all", attack=attack)
            n = 0 if whole is None else min(whole["n_morph"], whole["n_bonafide"])
            seen = () if whole is None else (f"seen: {percent(whole['d_eer'], n)}",)
            line.append(equal_error_cell(row, *seen))
        lines.append(cells(line))
    if not lines:
        return None
    note = (
        "D-EER of a detector trained on every attack but this one; seen: of the detector trained "
        "on all. BSCER at MACER 10, 5 and 1% are under every operating point, below."
    )
    title = "Attacks left out of the training, D-EER in %"
    return Table(f"left-out-{UNDEGRADED}", title, ("left out", *detectors), tuple(lines),
                 (("Degradation", UNDEGRADED),), (note,), fold=False)  # fmt: skip


def degradation_table(rows: Sequence[Row], attack: str = WORST) -> Table | None:
    """D-EER after each degradation, a line per detector; None without a degradation.

    Args:
        rows: Of `matrix_rows`.
        attack: One of the test, or the worst.
    """
    names = list(dict.fromkeys(row["degradation"] for row in rows))
    names.sort(key=lambda name: name != UNDEGRADED)
    if names == [UNDEGRADED]:
        return None
    lines = []
    for detector in dict.fromkeys(row["detector"] for row in rows):
        trained = headline_of(rows, detector)
        found = (
            first_of(rows, detector=detector, trained_on=trained, attack=attack, degradation=name)
            for name in names
        )
        head = Cell(detector, (f"trained on {training(trained)}",))
        lines.append(cells([head, *map(equal_error_cell, found)]))
    note = "Morphs and bona fide images went through the same degradation."
    return Table(f"degradations-{attack}", "After each degradation, D-EER in %",
                 ("detector", *names), tuple(lines), (("Attack", attack),), (note,),
                 fold=False)  # fmt: skip


def hardening_table(rows: Sequence[Row], degradation: str = UNDEGRADED) -> Table | None:
    """What training with guided morphs gains, and what it costs; None where nobody did.

    Args:
        rows: Of `hardening_rows`.
        degradation: Of the images.
    """
    header = ("attack", "detector", "learnt by", "D-EER %", "D-EER, points",
              "MACER10 %", "MACER10, points", "BSCER10 %", "BSCER10, points",
              "morphs")  # fmt: skip
    lines = []
    for row in rows_of(rows, degradation=degradation):
        line: list[str | Cell] = [row["attack"], row["detector"], LEARNT.get(row["learnt"], DASH)]
        for name in (CHANGES[0], CHANGES[2], CHANGES[1]):
            point = row[name]
            if point is None:
                line += [Cell(DASH), Cell(DASH)]
                continue
            ends = (percent(point[end], row["n_morph"]) for end in ("before", "after"))
            change = change_cell(point["change"], point["lo"], point["hi"])
            line += [Cell(" → ".join(ends)), change]
        lines.append(cells([*line, str(row["n_morph"])]))
    notes = (
        "Trained with guided morphs among the examples, minus without, on the same images. "
        "Negative is better in every column: MACER10 falls where more morphs are found at the same "
        "cost to bona fide people, BSCER10 rises where those pay for it. Learnt by neither: what "
        "hardening is worth on attacks that nobody has seen.",
        "Intervals: of the change, the same people drawn for both; they hold zero where fewer than "
        "six images change sides. [+0.0, +0.0]: neither is ever wrong, which few images do not "
        "prove.",
    )
    if not lines:
        return None
    return Table(f"hardening-{degradation}", "Hardened with guided morphs", header, tuple(lines),
                 (("Degradation", degradation),), notes, fold=False)  # fmt: skip


def headline_tables(rows: Sequence[Row], changed: Sequence[Row] = ()) -> list[Table]:
    """What one reads first: every detector as it is, what it did not see, after degradation.

    Args:
        rows: Of `matrix_rows`.
        changed: Of `hardening_rows`.
    """
    found: list[Table | None] = [overview_table(rows)]
    settings = list(dict.fromkeys((row["detector"], row["degradation"]) for row in rows))
    first: dict[str, str] = {}
    for detector, degradation in settings:
        if degradation == UNDEGRADED or detector not in first:
            first[detector] = degradation
    for detector, degradation in first.items():
        found.append(points_table(rows, detector, degradation, headline_of(rows, detector)))
    found += [leave_one_out_table(rows), degradation_table(rows)]
    degradations = dict.fromkeys(row["degradation"] for row in changed)
    found += [hardening_table(changed, degradation) for degradation in degradations]
    return [table for table in found if table is not None]
