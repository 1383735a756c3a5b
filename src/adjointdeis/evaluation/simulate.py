r"""Synthetic scores with known truth: subjects that are easy or hard to match, and morphs of them.

Additive dyadic model, with subject effects u, morph effects v and noise e, all centred normal:

.. math::
    S_{\text{nonmated}}(i, j) &= \mu_I + u_i + u_j + e \\
    S_{\text{morph } m}(a) &= \mu_M + u_a + v_m + e

With :math:`\tau_f = \mu_I + \Phi^{-1}(1 - f) \sqrt{2\sigma_u^2 + \sigma_e^2}` the population MMPMR
at FMR f is :math:`E_v[\Phi((\mu_M + v - \tau_f)/\sqrt{\sigma_u^2 + \sigma_e^2})^2]`, by Gauss-
Hermite quadrature. The study in `experiments/uncertainty` measures how often intervals cover it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable
from adjointdeis.evaluation.subjects import Subjects


@dataclass(frozen=True)
class DyadicModel:
    """Parameters of the model above, in units of a cosine similarity.

    Attributes:
        impostor: mu_I; mated: mean of mated scores; morph: mu_M.
        subject_sd, morph_sd, noise_sd: standard deviations of u, v and e.
    """

    impostor: float = 0.0
    mated: float = 0.7
    morph: float = 0.3
    subject_sd: float = 0.04
    morph_sd: float = 0.05
    noise_sd: float = 0.06

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or (name.endswith("_sd") and value < 0):
                raise ValueError(
                    f"{name}={value}: expected a finite number, deviations of 0 or more"
                )

    def threshold(self, fmr: float) -> float:
        """The population threshold of a target FMR."""
        from scipy.special import ndtri

        spread = math.sqrt(2 * self.subject_sd**2 + self.noise_sd**2)
        return self.impostor + spread * float(ndtri(1 - fmr))

    def mmpmr(self, fmr: float) -> float:
        """The population MMPMR of two-subject morphs, one probe each, at a target FMR."""
        from scipy.special import ndtr

        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        margin = self.morph + self.morph_sd * nodes - self.threshold(fmr)
        single = ndtr(margin / math.hypot(self.subject_sd, self.noise_sd))
        return float((weights * single**2).sum() / weights.sum())


@dataclass(frozen=True, eq=False)
class Simulation:
    """Arrays of one simulated study: impostor pairs (i, j) and morph pairs (a, b) of N subjects."""

    impostor_scores: np.ndarray
    impostor_pairs: np.ndarray
    morph_scores: np.ndarray
    morph_pairs: np.ndarray
    n_subjects: int


def simulate(
    model: DyadicModel,
    *,
    n_subjects: int = 102,
    n_morphs: int = 489,
    seed: int = 0,
    pairs: np.ndarray | None = None,
) -> Simulation:
    """Draws subjects, all ordered impostor pairs and random distinct morph pairs.

    Args:
        model: means and deviations of the scores.
        n_subjects: N.
        n_morphs: M, of distinct pairs.
        seed: of the draws.
        pairs: shape (M, 2), the morph pairs to use instead of random ones.

    Returns:
        impostor_scores (N(N-1),), impostor_pairs (N(N-1), 2), morph_scores (M, 2), morph_pairs
        (M, 2).
    """
    generator = np.random.default_rng(seed)
    pairs = _random_pairs(n_subjects, n_morphs, generator) if pairs is None else pairs
    effect = model.subject_sd * generator.standard_normal(n_subjects)
    i, j = np.nonzero(~np.eye(n_subjects, dtype=bool))
    noise = model.noise_sd * generator.standard_normal(len(i))
    impostor = model.impostor + effect[i] + effect[j] + noise
    shared = model.morph_sd * generator.standard_normal((len(pairs), 1))
    noise = model.noise_sd * generator.standard_normal((len(pairs), 2))
    morph = model.morph + effect[pairs] + shared + noise
    return Simulation(impostor, np.stack([i, j], axis=1), morph, pairs, n_subjects)


def _random_pairs(n_subjects: int, n_morphs: int, generator: np.random.Generator) -> np.ndarray:
    """Distinct unordered pairs of subjects, shape (M, 2), sorted."""
    every = np.stack(np.triu_indices(n_subjects, 1), axis=1)
    if n_morphs > len(every):
        raise EvaluationError(f"{n_morphs} morphs of {n_subjects} subjects: at most {len(every)}")
    return every[np.sort(generator.permutation(len(every))[:n_morphs])]


def synthetic_table(
    *,
    systems: Sequence[str] = ("arcface", "elasticface", "adaface"),
    attacks: Mapping[str, float] | None = None,
    n_subjects: int = 60,
    n_morphs: int = 120,
    failure_rate: float = 0.01,
    seed: int = 0,
) -> tuple[ScoreTable, Subjects]:
    """A table of every kind of row, and its subjects, for demonstrations and tests.

    Args:
        attacks: name -> strength mu_M; None is two attacks of unequal strength.
        failure_rate: share of morph comparisons with status fta.

    No person or recogniser is behind any of these numbers.
    """
    generator = np.random.default_rng(seed)
    attacks = {"weak": 0.24, "strong": 0.32} if attacks is None else attacks
    names = [f"{i:03d}" for i in range(1, n_subjects + 1)]
    pairs = _random_pairs(n_subjects, n_morphs, generator)
    rows: list[dict[str, object]] = []
    for s, system in enumerate(systems):
        base = {"system": system, "score_type": "similarity"}
        drawn: dict[str, Simulation] = {}
        for attack, strength in attacks.items():
            # One seed per system: its attacks share impostors and subjects.
            model = DyadicModel(morph=strength)
            drawn[attack] = simulate(
                model, n_subjects=n_subjects, seed=1000 * seed + s, pairs=pairs
            )
        first = next(iter(drawn.values()))
        for name in names:
            score = float(generator.normal(0.7, 0.09))
            rows.append({"kind": "mated", **_sides(name, name), **base, "score": score})
        for (i, j), score in zip(first.impostor_pairs, first.impostor_scores, strict=True):
            sides = _sides(names[j], names[i])
            rows.append({"kind": "nonmated", **sides, **base, "score": float(score)})
        for attack, simulation in drawn.items():
            for pair, scores in zip(simulation.morph_pairs, simulation.morph_scores, strict=True):
                morph_id = f"{names[pair[0]]}_{names[pair[1]]}"
                for at, score in zip(pair, scores, strict=True):
                    for policy, view, gain in (("source", "03", 0.08), ("other", "08", 0.0)):
                        failed = generator.random() < failure_rate
                        value = float(score) + gain + 0.02 * float(generator.normal())
                        rows.append(
                            {
                                "kind": "morph",
                                "morph_id": morph_id,
                                "attack": attack,
                                "subject_id": names[at],
                                "probe_id": f"{names[at]}_{view}",
                                "ref_id": morph_id,
                                "probe_policy": policy,
                                "score": None if failed else value,
                                "status": "fta" if failed else "ok",
                                **base,
                            }
                        )
    base = {"kind": "mad", "system": "detector", "score_type": "similarity"}
    for name in names:
        image = {"attack": BONA_FIDE, "ref_id": f"{name}_03", "subject_id": name}
        rows.append({**base, **image, "score": float(generator.normal(0.3, 0.1))})
    for attack in attacks:
        for a, b in pairs:
            morph_id = f"{names[a]}_{names[b]}"
            image = {"attack": attack, "morph_id": morph_id, "ref_id": morph_id}
            people = {"subject_id": names[a], "ref_subject_id": names[b]}
            rows.append({**base, **image, **people, "score": float(generator.normal(0.55, 0.12))})
    metadata = {
        "impostor_set": "synthetic subjects",
        "note": "synthetic scores; no person or recogniser is behind them",
        "seed": seed,
        "systems": {
            s: {"model_fingerprint": f"synthetic:{s}", "alignment": "none"} for s in systems
        },
    }
    people = [
        {"subject_id": name, "sex": "fm"[i % 2], "group": "abc"[i // 2 % 3]}
        for i, name in enumerate(names)
    ]
    return ScoreTable.from_rows(rows, metadata=metadata), Subjects.from_rows(people)


def _sides(probe: str, reference: str) -> dict[str, object]:
    """Columns of a bona fide comparison: the one's second image with the other's first."""
    people = {"subject_id": probe, "ref_subject_id": reference}
    return {**people, "probe_id": f"{probe}_08", "ref_id": f"{reference}_03"}
