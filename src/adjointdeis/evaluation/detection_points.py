"""Rows of a detector's operating points, with intervals of the bootstrap over people."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adjointdeis.evaluation.detection import WORST, DetectionScores
from adjointdeis.evaluation.operating import distinct
from adjointdeis.evaluation.rates import clopper_pearson
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable
from adjointdeis.evaluation.thresholds import allowed_false_matches
from adjointdeis.evaluation.uncertainty import (
    SubjectDraws,
    covering_interval,
    disjoint_sets,
    draw_subjects,
)

OPERATING_POINTS = {
    "bscer10": ("macer", 0.1),
    "bscer20": ("macer", 0.05),
    "bscer100": ("macer", 0.01),
    "macer10": ("bscer", 0.1),
    "macer100": ("bscer", 0.01),
}
"""Name -> the rate held at a target, and the target: BSCER10 is BSCER where MACER is 10%."""


def detection_rows(
    table: ScoreTable,
    *,
    systems: Sequence[str] | None = None,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """One row per detector and attack, and one for the worst case; JSON-ready.

    An operating point that lets no image through, such as MACER 1% of 20 morphs, says nothing about
    that rate: it has no value, and `needs` says how many images it takes.

    Intervals are of the subject bootstrap where `mad` rows name their people (`subject_id`, and of
    a morph `ref_subject_id` too) or the table's `morph` rows do, and else of a bootstrap over
    images; never narrower than the exact interval of as many images as share nobody.

    Args:
        table: `mad` rows, and `morph` rows where those say whose images were morphed.
        systems: detectors to evaluate; None takes what the table has.
        replicates: of the bootstrap; 0 leaves the exact interval alone.
        seed: of the bootstrap.
        confidence: level of the intervals, in (0, 1).

    Returns:
        system, attack, d_eer, d_eer_lo, d_eer_hi, d_eer_tau; k, n, value, lo, hi, tau and needs of
        bscer10, bscer20, bscer100 (BSCER at MACER 10, 5 and 1%) and of macer10, macer100 (MACER at
        BSCER 10 and 1%; of the worst case, of the attack with the largest); n_morph (of the worst
        case, of the smallest attack), n_bonafide, resampled (`subjects` or `images`), verdict,
        n_failed_morph, n_failed_bonafide, confidence.
    """
    rows = []
    for system in distinct(systems) if systems else table.unique("system", kind="mad"):
        scores = DetectionScores.from_table(table, system)
        images = Images.of(table, system)
        draws = None
        if replicates:
            draws = draw_subjects(np.unique(images.people), replicates=replicates, seed=seed)
        groups = [*([name] for name in scores.attacks), list(scores.attacks)]
        observed = resampled_points(images, groups, None)
        redrawn = None if draws is None else resampled_points(images, groups, draws)
        for g, (attack, names) in enumerate(zip((*scores.attacks, None), groups, strict=True)):
            once = {k: v[0] for k, v in observed[g].items()}
            drawn = None if redrawn is None else redrawn[g]
            bona = len(np.unique(images.people[images.bona_fide]))
            morphs = {name: images.independent(name) for name in names}
            failed = scores.n_failed
            row: dict[str, Any] = {"system": system, "attack": attack or WORST}

            def ends(name: str, value: float, n: int, drawn=drawn) -> tuple[float, float]:
                if drawn is None:
                    return clopper_pearson(value * n, n, confidence)
                return covering_interval(drawn[name], value, n, confidence)

            d_eer, tau = scores.d_eer(attack)
            row["d_eer"], row["d_eer_tau"] = d_eer, tau
            fewest = min(bona, *morphs.values())
            row["d_eer_lo"], row["d_eer_hi"] = ends("d_eer", d_eer, fewest)
            row["n_morph"] = min(len(scores.attacks[name]) - failed[name] for name in names)
            row["n_bonafide"] = len(scores.bona_fide) - failed[BONA_FIDE]
            for name, (held, target) in OPERATING_POINTS.items():
                size = row["n_morph"] if held == "macer" else row["n_bonafide"]
                if not allowed_false_matches(size, target):
                    row[name] = dict.fromkeys(("k", "n", "value", "lo", "hi", "tau"))
                    row[name]["needs"] = images_needed(target)
                    continue
                if held == "macer":
                    tau = scores.tau_at_macer(target, attack)
                    found, n = scores.bscer(tau, confidence), bona
                else:
                    tau = scores.tau_at_bscer(target)
                    worst = attack or scores.macer_max(tau, confidence)[0]
                    found, n = scores.macer(tau, worst, confidence), morphs[worst]
                assert math.isclose(found.value, once[name], abs_tol=1e-12)
                lo, hi = ends(name, found.value, n)
                row[name] = {"k": found.k, "n": found.n, "value": found.value, "lo": lo, "hi": hi,
                             "tau": tau, "needs": None}  # fmt: skip
            row["resampled"] = images.resampled
            row["verdict"] = _verdict(row["n_morph"], row["n_bonafide"], d_eer)
            row["n_failed_bonafide"] = failed[BONA_FIDE]
            row["n_failed_morph"] = sum(failed[name] for name in names)
            row["confidence"] = confidence
            rows.append(row)
    return rows


def images_needed(target: float) -> int:
    """The fewest images of which a share of at most `target` can be one image at all."""
    n = max(1, math.floor(1 / target))
    return n if allowed_false_matches(n, target) else n + 1


def _verdict(morphs: int, bona_fide: int, d_eer: float) -> str:
    """Which operating points the sample is too small for: thirty errors must be allowed there."""
    small = [
        f"{name} {100 * target:g}% ({int(target * n)} of {n} allowed, 30 wanted)"
        for name, n, targets in (("MACER", morphs, (0.1, 0.05, 0.01)),
                                 ("BSCER", bona_fide, (0.1, 0.01)))
        for target in targets
        if target * n < 30
    ]  # fmt: skip
    words = [f"too few for {', '.join(small)}"] if small else ["enough"]
    if d_eer > 0.5:
        words.append("worse than chance: is the direction of the scores right?")
    return "; ".join(words)


@dataclass(frozen=True, eq=False)
class Images:
    """A detector's images that it could process, with the people on them.

    Attributes:
        scores: shape (I,), high says morph.
        bona_fide: shape (I,), bool; attack: shape (I,).
        people: shape (I, 2), labels; a bona fide image has its person twice.
        resampled: `subjects`, or `images` where people are unknown.
    """

    scores: np.ndarray
    bona_fide: np.ndarray
    attack: np.ndarray
    people: np.ndarray
    resampled: str

    @classmethod
    def of(cls, table: ScoreTable, system: str) -> "Images":
        rows = table.select(kind="mad", system=system)
        rows = rows.where(rows["status"] == "ok")
        bona = np.isin(rows["attack"], ("", BONA_FIDE))
        contributors: dict[str, list[str]] = {}
        morphs = table.select(kind="morph")
        for morph, subject in zip(morphs["morph_id"].tolist(), morphs["subject_id"].tolist(),
                                  strict=True):  # fmt: skip
            own = contributors.setdefault(morph, [])
            if subject not in own:
                own.append(subject)
        people, known = [], True
        columns = ("subject_id", "ref_subject_id", "morph_id", "ref_id")
        for k, (one, two, morph, image) in enumerate(
            zip(*(rows[name].tolist() for name in columns), strict=True)
        ):
            if bona[k]:
                known &= one != ""
                people.append((one or f"image {image or k}",) * 2)
            elif one and two:
                people.append((one, two))
            elif len(own := contributors.get(morph, [])) == 2:
                people.append((own[0], own[1]))
            else:
                known = False
                people.append((f"morph {morph}",) * 2)
        kind = "subjects" if known else "images"
        return cls(rows.oriented, bona, rows["attack"], np.array(people, dtype=object), kind)

    def independent(self, attack: str) -> int:
        """How many morphs of an attack share nobody."""
        _, codes = np.unique(self.people[self.attack == attack], return_inverse=True)
        return disjoint_sets(list(codes.reshape(-1, 2)))


def resampled_points(
    images: Images, groups: Sequence[Sequence[str]], draws: SubjectDraws | None
) -> list[dict[str, np.ndarray]]:
    """The D-EER and every operating point, shape (B,), in every replicate; without draws, B = 1.

    Args:
        images: A detector's scored images.
        groups: Lists of attacks; of each list the worst attack counts, and one dictionary is
            returned.
        draws: Bootstrap draws of the people; None for the observed images.
    """
    taus = np.unique(images.scores)
    taus = np.concatenate([[np.nextafter(taus[0], -np.inf)], taus])
    at = None if draws is None else draws.index(images.people.astype(str))
    size = 1 if draws is None else len(draws)
    found = [{name: np.empty(size) for name in ("d_eer", *OPERATING_POINTS)} for _ in groups]
    for start in range(0, size, 128):
        part = slice(start, start + 128)

        def missed(mask: np.ndarray, part=part) -> np.ndarray:
            """Shape (B, T): the weighted share of images at or below every threshold."""
            order = np.argsort(images.scores[mask], kind="stable")
            weights = np.ones((1, int(mask.sum())))
            if draws is not None and at is not None:
                counts = draws.counts[part][:, at[mask]].astype(np.float64)
                # A bona fide image weighs once as often as its person is drawn.
                one_person = at[mask][:, 0] == at[mask][:, 1]
                weights = np.where(one_person, counts[..., 0], counts.prod(axis=-1))
            summed = np.pad(np.cumsum(weights[:, order], axis=1), ((0, 0), (1, 0)))
            below = np.searchsorted(images.scores[mask][order], taus, side="right")
            with np.errstate(invalid="ignore", divide="ignore"):
                return summed[:, below] / summed[:, -1:]

        bscer = 1 - missed(images.bona_fide)
        names = dict.fromkeys(name for names in groups for name in names)
        each = {name: missed(images.attack == name) for name in names}
        for names, own in zip(groups, found, strict=True):
            macer = np.max([each[name] for name in names], axis=0)
            rates = {"macer": macer, "bscer": bscer}
            row = np.arange(len(macer))
            empty = np.isnan(macer[:, 0]) | np.isnan(bscer[:, 0])
            gap = np.where(np.isnan(macer - bscer), np.inf, np.abs(macer - bscer))
            own["d_eer"][part] = ((macer + bscer) / 2)[row, np.argmin(gap, axis=1)]
            for name, (held, target) in OPERATING_POINTS.items():
                within = rates[held] <= target + 1e-12
                # MACER grows with the threshold, BSCER falls: the last and the first that hold it.
                index = within.sum(axis=1) - 1 if held == "macer" else np.argmax(within, axis=1)
                other = rates["bscer" if held == "macer" else "macer"]
                own[name][part] = np.where(empty, np.nan, other[row, index])
            own["d_eer"][part][empty] = np.nan
    return found
