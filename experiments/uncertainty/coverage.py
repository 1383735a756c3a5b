"""How often intervals for MMPMR cover a known truth, over many simulated studies.

Each study draws new subjects, estimates its own threshold and morphs its own pairs, as a real
evaluation does. Four intervals are asked for the population MMPMR at the population threshold:
Wilson at the estimated threshold, the subject bootstrap at that threshold, the subject bootstrap
with the threshold re-estimated, and the interval that the tables report: the last, never narrower
than the exact interval of as many morphs as share no subject (`covering_interval`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adjointdeis.evaluation.groups import MorphScores, group
from adjointdeis.evaluation.metrics import vulnerability
from adjointdeis.evaluation.rates import wilson
from adjointdeis.evaluation.simulate import DyadicModel, Simulation, simulate
from adjointdeis.evaluation.thresholds import threshold_at_fmr
from adjointdeis.evaluation.uncertainty import (
    bootstrap_rates,
    bootstrap_thresholds,
    covering_interval,
    draw_subjects,
    independent_morphs,
    percentile_interval,
)

METHODS = ("wilson", "bootstrap, tau fixed", "bootstrap, tau re-estimated", "as reported")


@dataclass(frozen=True)
class Coverage:
    """Of one method over all studies: the share that covers, mean width, and which side misses."""

    method: str
    covered: int
    studies: int
    mean_width: float
    truth_below: int
    truth_above: int

    @property
    def share(self) -> float:
        """Share of studies whose interval holds the truth."""
        return self.covered / self.studies


def coverage_study(
    model: DyadicModel,
    *,
    fmr: float = 0.001,
    n_subjects: int = 102,
    n_morphs: int = 489,
    studies: int = 400,
    replicates: int = 400,
    confidence: float = 0.95,
    separate_impostors: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Coverage]:
    """Coverage of every method of `METHODS` for the population MMPMR.

    Args:
        separate_impostors: whether the threshold comes from other people than the morphs' subjects,
            as many again.
        progress: called with the number of finished studies.
    """
    truth = model.mmpmr(fmr)
    ends = np.empty((len(METHODS), studies, 2))
    for study in range(studies):
        ends[:, study] = _intervals(
            model, fmr, n_subjects, n_morphs, replicates, confidence, separate_impostors,
            seed * 1_000_003 + study,
        )  # fmt: skip
        if progress is not None:
            progress(study + 1)
    found = []
    for method, (lo, hi) in zip(METHODS, np.moveaxis(ends, 2, 1), strict=True):
        below, above = int((truth < lo).sum()), int((truth > hi).sum())
        covered = studies - below - above
        width = float((hi - lo).mean())
        found.append(Coverage(method, covered, studies, width, below, above))
    return found


def _intervals(
    model: DyadicModel,
    fmr: float,
    n_subjects: int,
    n_morphs: int,
    replicates: int,
    confidence: float,
    separate: bool,
    seed: int,
) -> list[tuple[float, float]]:
    sample = simulate(model, n_subjects=n_subjects, n_morphs=n_morphs, seed=seed)
    groups = _group(sample)
    people = np.arange(n_subjects)
    impostors, offset = sample, 0
    strata = [people]
    if separate:
        impostors = simulate(model, n_subjects=n_subjects, n_morphs=1, seed=seed + 500_000_009)
        offset = n_subjects
        strata.append(people + offset)
    tau = threshold_at_fmr(impostors.impostor_scores, fmr, impostor_hash="").value
    observed = vulnerability(groups, tau, "MMPMR")
    draws = draw_subjects(*strata, replicates=replicates, seed=seed)
    i, j = (impostors.impostor_pairs + offset).T
    taus = bootstrap_thresholds(draws, impostors.impostor_scores, i, j, fmr)
    values = bootstrap_rates(draws, groups, "MMPMR", taus)
    return [
        wilson(observed.k, observed.n, confidence),
        percentile_interval(bootstrap_rates(draws, groups, "MMPMR", tau), confidence),
        percentile_interval(values, confidence),
        covering_interval(values, observed.value, independent_morphs(groups), confidence),
    ]


def model_of_rate(rate: float, fmr: float, **parameters: float) -> DyadicModel:
    """The model whose population MMPMR at this FMR is `rate`, by its morphs' strength."""
    from scipy.optimize import brentq

    def excess(morph: float) -> float:
        return DyadicModel(**parameters, morph=morph).mmpmr(fmr) - rate

    return DyadicModel(**parameters, morph=float(brentq(excess, -1.0, 2.0)))


def _group(sample: Simulation) -> MorphScores:
    morph = np.repeat(np.arange(len(sample.morph_pairs)), 2)
    return group(sample.morph_scores.ravel(), morph, sample.morph_pairs.ravel())


def to_dict(model: DyadicModel, fmr: float, found: list[Coverage]) -> dict[str, Any]:
    """JSON-ready: the model, the truth, and each method's coverage."""
    methods = [{**asdict(c), "share": c.share} for c in found]
    return {"model": asdict(model), "fmr": fmr, "truth": model.mmpmr(fmr), "methods": methods}
