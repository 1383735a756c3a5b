r"""The whole system under test: morphs that match both people and that the detector lets through.

A recogniser's MMPMR counts morphs that match, a detector's MACER those that are missed; a border
has both. With M morphs of one attack,

.. math::
    P = \frac{1}{M} \sum_m \mathbf{1}\{\min_n \max_i S_m^{n,i} > \tau\}
        \, \mathbf{1}\{D_m \le \tau_D\}

where :math:`\tau_D` is the detector's threshold at a stated BSCER. Its product form MMPMR x MACER
holds only where the two are independent, which morphs of unequal quality are not. A morph without
a detector's score goes to a person and does not pass.
"""

from typing import Any

import numpy as np

from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.detection_points import images_needed
from adjointdeis.evaluation.groups import MorphScores
from adjointdeis.evaluation.rates import clopper_pearson
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.uncertainty import covering_interval, disjoint_sets, draw_subjects


def passing(
    groups: MorphScores,
    tau: float,
    detected: ScoreTable,
    attack: str,
    *,
    bscer: float = 0.1,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Any] | None:
    """How many morphs of an attack pass recogniser and detector, joined by the two people.

    Args:
        groups: The recogniser's scores of the attack.
        tau: Its threshold, oriented like the scores.
        detected: The detector's scores under one setting, as in `DetectionStudy.tables`.
        attack: Its name among those.
        bscer: Share of bona fide images that may be flagged, which sets the detector's threshold.
        replicates, seed, confidence: Of the subject bootstrap, both thresholds held.

    Returns:
        k and n of the morphs that both judged, value, lo, hi, matched (how many of them match) and
        bscer; None where the bona fide images are too few for that rate, where the detector scored
        no morph of the attack, or where people are not named or have several morphs of one attack.
    """
    bona = detected.select(attack="bonafide")
    own = detected.select(attack=attack)
    people = list(zip(own["subject_id"].tolist(), own["ref_subject_id"].tolist(), strict=True))
    keys = [frozenset(pair) for pair in people]
    if len(set(keys)) != len(keys) or not all(one and two for one, two in people):
        return None
    usable = bona["score"][~np.isnan(bona["score"])]
    if len(usable) < images_needed(bscer):
        return None
    # Bona fide images alone set it; that class wants some morph.
    threshold = DetectionScores(usable, {attack: np.zeros(1)}, "morph").tau_at_bscer(bscer)
    found = dict(zip(keys, own["score"].tolist(), strict=True))
    hit, missed, pairs = [], [], []
    matches = groups.min_of_best > tau
    for subjects, match in zip(groups.people, matches.tolist(), strict=True):
        if (key := frozenset(subjects)) in found and len(subjects) == 2:
            hit.append(match)
            missed.append(found[key] <= threshold)
            pairs.append(subjects)
    if not pairs:
        return None
    passed = np.array(hit) & np.array(missed)
    labels, codes = np.unique(np.array(pairs), return_inverse=True)
    codes = codes.reshape(-1, 2)
    value, independent = float(passed.mean()), disjoint_sets(pairs)
    lo, hi = clopper_pearson(value * independent, independent, confidence)
    if replicates:
        draws = draw_subjects(labels, replicates=replicates, seed=seed)
        weights = draws.counts[:, codes].prod(axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn = (weights * passed).sum(axis=1) / weights.sum(axis=1)
        lo, hi = covering_interval(drawn, value, independent, confidence)
    return {
        "k": int(passed.sum()),
        "n": len(passed),
        "value": value,
        "lo": lo,
        "hi": hi,
        "matched": int(np.sum(hit)),
        "bscer": bscer,
    }
