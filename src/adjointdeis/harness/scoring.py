"""Similarity scores of morphs and bona fide probes, as the evaluation's long table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from adjointdeis.evaluation import ScoreTable, worst_case_scores
from adjointdeis.evaluation.protocol import WORST_CASE
from adjointdeis.faces.datasets.pairs import Pair
from adjointdeis.faces.image_io import read_image
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.harness.benchmark import OTHER, SOURCE, Benchmark

PROBES = {"source": SOURCE, "other": OTHER}
"""Probe policy to the capture it takes: the very image that was morphed, or the subject's other."""


def score_morphs(
    benchmark: Benchmark,
    morphs: Mapping[str, Mapping[str, Path]],
    recognisers: Sequence[Recogniser],
    pairs: Sequence[Pair],
    progress: bool = True,
) -> ScoreTable:
    """Compares every morph with both of its subjects, under both probe policies.

    The written files are scored, not the tensors they came from: rounding to bytes is part of the
    attack. A face that a recogniser does not find is a failure to acquire. One more attack,
    "worst-case", bounds what any morph could reach on each recogniser: the embedding half way
    between the two sources'.

    Args:
        benchmark: Probes.
        morphs: File of each pair's morph, by attack and pair.
        recognisers: Systems under attack.
        pairs: Pairs to score; one without a morph in some attack is left out of that attack.
        progress: Show a bar.
    """
    rows: list[dict[str, Any]] = []
    subjects = sorted({s for pair in pairs for s in pair.subjects})
    bar = tqdm(total=len(recognisers) * (1 + len(morphs)), desc="scoring", disable=not progress)
    for system in recognisers:
        probes = {
            policy: _embed(system, [benchmark.image(s, capture) for s in subjects])
            for policy, capture in PROBES.items()
        }
        index = {subject: k for k, subject in enumerate(subjects)}
        bar.update()
        for attack, files in morphs.items():
            done = [pair for pair in pairs if pair.morph_id in files]
            embeddings = _embed(system, [files[pair.morph_id] for pair in done])
            bar.update()
            for row, pair in enumerate(done):
                for subject in (pair.subject_a, pair.subject_b):
                    for policy, capture in PROBES.items():
                        score = system.compare(embeddings[row], probes[policy][index[subject]])
                        rows.append(_row(attack, pair, subject, capture, policy, system, score))
        rows += _worst_case(system, probes, index, pairs)
        rows += _bona_fide(system, probes, subjects)
    bar.close()
    conditions = {
        system.name: {
            "model_fingerprint": system.fingerprint,
            "alignment": system.alignment,
        }
        for system in recognisers
    }
    return ScoreTable.from_rows(rows, metadata={"systems": conditions})


def _embed(system: Recogniser, paths: Sequence[Any]) -> np.ndarray:
    if not paths:
        return np.empty((0, system.embedding_dim), np.float32)
    embeddings, acquired = system.embed(np.stack([read_image(path) for path in paths]))
    embeddings[~acquired] = np.nan
    return embeddings


def _row(
    attack: str,
    pair: Pair,
    subject: str,
    capture: str,
    policy: str,
    system: Recogniser,
    score: Any,
) -> dict[str, Any]:
    value = float(score)
    return {
        "kind": "morph",
        "morph_id": pair.morph_id,
        "attack": attack,
        "subject_id": subject,
        "probe_id": f"{subject}_{capture}",
        "system": system.name,
        "score": value if np.isfinite(value) else None,
        "score_type": system.score_type,
        "status": "ok" if np.isfinite(value) else "fta",
        "probe_policy": policy,
    }


def _worst_case(
    system: Recogniser,
    probes: Mapping[str, np.ndarray],
    index: Mapping[str, int],
    pairs: Sequence[Pair],
) -> list[dict[str, Any]]:
    """Rows of the embedding that lies half way between both sources (cosine systems only)."""
    # The bisector is the worst case of a cosine score; of a distance it is the midpoint, and no
    # published bound speaks of it.
    if getattr(system, "metric", None) != "cosine":
        return []
    rows = []
    for pair in pairs:
        sources = [probes["source"][index[s]] for s in (pair.subject_a, pair.subject_b)]
        for policy, capture in PROBES.items():
            targets = [probes[policy][index[s]] for s in (pair.subject_a, pair.subject_b)]
            scores = worst_case_scores(*(x[None] for x in (*sources, *targets)))
            for subject, score in zip((pair.subject_a, pair.subject_b), scores, strict=True):
                value = np.asarray(score).reshape(-1)[0]
                rows.append(_row(WORST_CASE, pair, subject, capture, policy, system, value))
    return rows


def _bona_fide(
    system: Recogniser,
    probes: Mapping[str, np.ndarray],
    subjects: Sequence[str],
) -> list[dict[str, Any]]:
    """Every neutral image against every smiling one: mated on the diagonal, else nonmated.

    The nonmated scores show where different people of this very benchmark lie; the thresholds come
    from other people, and do not depend on them.
    """
    rows = []
    for reference, source in zip(subjects, probes["source"], strict=True):
        scores = system.compare(source[None], probes["other"])
        for subject, value in zip(subjects, scores.tolist(), strict=True):
            rows.append(
                {
                    "kind": "mated" if subject == reference else "nonmated",
                    "subject_id": subject,
                    "ref_subject_id": reference,
                    "probe_id": f"{subject}_{OTHER}",
                    "ref_id": f"{reference}_{SOURCE}",
                    "system": system.name,
                    "score": value if np.isfinite(value) else None,
                    "score_type": system.score_type,
                    "status": "ok" if np.isfinite(value) else "fta",
                }
            )
    return rows
