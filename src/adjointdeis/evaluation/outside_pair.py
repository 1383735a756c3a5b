"""Thresholds from people outside the pair: does the pair's own presence decide its morphs?

A threshold that a run estimates from its own impostors rests on few comparisons (10 of 10,302 at
FMR 0.1% of 102 people), and the people of a morph take part in some of them. Here every morph is
decided again with the threshold of those comparisons in which neither of its people takes part.
"""

from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import codes
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.evaluation.thresholds import threshold_at_fmr


def decisions_outside_pair(table: ScoreTable, fmr: float = 0.001) -> dict[str, dict[str, Any]]:
    """How many decisions change when the pair's own people leave the threshold, by recogniser.

    A decision is one morph of one attack under one probe policy: accepted for both of its people
    or not. Impostors are everybody (policy `all`).

    Args:
        table: ``morph`` rows of two people each, and ``nonmated`` rows that name both people.
        fmr: Target false match rate, a share.

    Returns:
        By system: ``changed`` of ``decisions``, and the ``lowest`` and ``highest`` threshold
        (similarity) among pairs, beside ``everybody``'s.

    Raises:
        EvaluationError: A system has no impostor comparison left.
    """
    found = {}
    for system in table.unique("system", kind="morph"):
        impostors = table.select(kind="nonmated", system=system)
        scores = impostors.oriented
        one, two = impostors["subject_id"], impostors["ref_subject_id"]
        everybody = threshold_at_fmr(scores, fmr).value
        morphs = table.select(kind="morph", system=system)
        pairs = {
            morph: np.unique(morphs["subject_id"][morphs["morph_id"] == morph])
            for morph in morphs.unique("morph_id")
        }
        outside = {
            morph: threshold_at_fmr(
                scores[~(np.isin(one, people) | np.isin(two, people))], fmr
            ).value
            for morph, people in pairs.items()
        }
        decision, n = codes(morphs["attack"], morphs["probe_policy"], morphs["morph_id"])
        lowest = np.full(n, np.inf)
        # A comparison that failed matches at no threshold.
        np.minimum.at(lowest, decision, np.nan_to_num(morphs.oriented, nan=-np.inf))
        first = np.unique(decision, return_index=True)[1]
        without = np.array([outside[morph] for morph in morphs["morph_id"][first]])
        found[system] = {
            "decisions": n,
            "changed": int(((lowest > everybody) != (lowest > without)).sum()),
            "everybody": everybody,
            "lowest": min(outside.values()),
            "highest": max(outside.values()),
        }
    return found
