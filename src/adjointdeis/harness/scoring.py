"""Similarity scores of morphs and bona fide probes, as the evaluation's long table."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from adjointdeis.evaluation import (
    PolicyError,
    ScoreTable,
    ThresholdRecord,
    estimate_thresholds,
    evaluate,
    read_thresholds,
    worst_case_scores,
)
from adjointdeis.evaluation.policies import require_policy
from adjointdeis.evaluation.protocol import WORST_CASE
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.image_io import AnyPath, read_image
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.harness.assets import FROZEN_THRESHOLDS, Profile, thresholds
from adjointdeis.harness.benchmark import OTHER, SOURCE, Benchmark, finds_faces
from adjointdeis.harness.degrading import degraded_copies

PROBES = {"source": SOURCE, "other": OTHER}
"""Probe policy to the capture it takes: the very image that was morphed, or the subject's other."""


def applicable_thresholds(
    choice: str | None,
    profile: Profile,
    judges: Sequence[Recogniser],
    benchmark: Benchmark,
    fmr: Sequence[float],
    policies: Sequence[str],
) -> dict[str, list[ThresholdRecord]]:
    """The threshold records made for these very faces, by recogniser; the others are estimated.

    A threshold belongs to a data set: that of the embedded synthetic heads calls every two
    photographs different people.

    Args:
        choice: A file of records; None takes the profile's own where they were made for these
            faces, and leaves every other recogniser to the run's own impostors.
        profile: Where the frozen records are.
        judges: Recognisers under attack.
        benchmark: The faces that are judged.
        fmr, policies: What every recogniser needs a record for.

    Raises:
        ThresholdMismatch: A record of the file was made for other faces, weights or alignment.
        PolicyError: The file lacks a record that the run needs.
    """
    if choice is None:
        frozen = profile.manifest.get(FROZEN_THRESHOLDS)
        records = [] if frozen is None else thresholds(FROZEN_THRESHOLDS, profile)
    else:
        records = read_thresholds(choice)
    wanted = [(policy, target) for policy in policies for target in fmr]
    found: dict[str, list[ThresholdRecord]] = {}
    for judge in judges:
        own = {
            (r.impostor_policy, r.target_fmr): r
            for r in records
            if r.model == judge.name and (r.impostor_policy, r.target_fmr) in wanted
        }
        stated = {
            "model_fingerprint": judge.fingerprint,
            "alignment": benchmark.alignment(judge),
            "score_type": judge.score_type,
            "data_set": benchmark.dataset.fingerprint,
        }
        if choice is None:
            own = {at: r for at, r in own.items() if r.made_under(**stated)}
            if len(own) < len(wanted):
                continue
        missing = [at for at in wanted if at not in own]
        if missing:
            known = sorted({f"{r.model} {r.impostor_policy} {r.target_fmr:g}" for r in records})
            raise PolicyError(
                f"{choice}: no threshold of {judge.name}, impostors {missing[0][0]}, at FMR "
                f"{missing[0][1]:g}; it has {'; '.join(known) or 'none'}. assets.thresholds=null "
                "estimates thresholds from the run's own impostors"
            )
        found[judge.name] = [own[at].require(**stated) for at in wanted]
    return found


def operating_conditions(cfg: DictConfig, benchmark: Benchmark) -> tuple[list[float], list[str]]:
    """The false match rates and impostor policies of the run, each once.

    Raises:
        PolicyError: An unknown policy, or one that needs the people's sexes or groups.
    """
    policies = list(dict.fromkeys(cfg.protocol.impostor_policies))
    for policy in policies:
        require_policy(policy, benchmark.people, benchmark.dataset.ids)
    return list(dict.fromkeys(cfg.protocol.fmr)), policies


def rates_of(
    cfg: DictConfig,
    table: ScoreTable,
    given: Mapping[str, list[ThresholdRecord]],
    judges: Sequence[Any],
    benchmark: Benchmark,
) -> tuple[list[ThresholdRecord], list[dict[str, Any]]]:
    """Thresholds and rates of every recogniser under the protocol of the run.

    Args:
        cfg: The whole configuration, whose protocol it is.
        table: The run's comparisons.
        given: Records by recogniser; the others get those of the run's own impostors.
        judges: Recognisers under attack.
        benchmark: The faces that are judged.
    """
    (fmr, policies), people = operating_conditions(cfg, benchmark), benchmark.people
    records: list[ThresholdRecord] = []
    for judge in judges:
        own = given.get(judge.name)
        records += own or estimate_thresholds(table, judge.name, fmr, policies, people)
    rows = evaluate(
        table, records, subjects=people, replicates=cfg.protocol.replicates,
        seed=cfg.protocol.bootstrap_seed,
    )  # fmt: skip
    return records, rows


def score_morphs(
    benchmark: Benchmark,
    morphs: Mapping[str, Mapping[str, Path]],
    recognisers: Sequence[Recogniser],
    pairs: Sequence[MorphPair],
    progress: bool = True,
    everyone: Collection[str] = (),
    copies: Path | None = None,
    every_capture: bool = False,
    read: Callable[[AnyPath], np.ndarray] = read_image,
) -> ScoreTable:
    """Compares every morph with both of its subjects, under both probe policies.

    The written files are scored, not the tensors they came from: rounding to bytes is part of the
    attack. A face that a recogniser does not find is a failure to acquire. One more attack,
    "worst-case", bounds what any morph could reach on each recogniser: the embedding half way
    between the two sources'.

    Where the benchmark has a degradation, what lies in a document goes through it first: the
    morphs, the references of bona fide comparisons, and the sources that the bound is half way
    between. Probes are live captures and stay as they are.

    Args:
        benchmark: Probes, and what documents went through.
        morphs: File of each pair's morph, by attack and pair.
        recognisers: Systems under attack.
        pairs: Pairs to score; one without a morph in some attack is left out of that attack.
        progress: Show a bar.
        everyone: Names of the recognisers whose bona fide comparisons are of everybody in the data
            set, since their thresholds come from them; those of the others are of the pairs'
            subjects.
        copies: Folder of the degraded copies; needed where the benchmark has a degradation.
        every_capture: Compare different people in equal captures too, neutral with neutral and
            smiling with smiling, every two images once.
        read: From a file to the (H, W, 3) uint8 image that the recognisers are given.
    """

    def embed(system: Recogniser, paths: Sequence[AnyPath]) -> np.ndarray:
        return _embed(system, [read(path) for path in paths])

    rows: list[dict[str, Any]] = []
    if benchmark.degradation is not None:
        morphs = {
            attack: _copies(files, f"morphs/{attack}/{{}}.png", benchmark, copies)
            for attack, files in morphs.items()
        }
    in_pairs = sorted({s for pair in pairs for s in pair.subjects})
    bar = tqdm(total=len(recognisers) * (1 + len(morphs)), desc="scoring", disable=not progress)
    for system in recognisers:
        subjects = list(benchmark.dataset.ids) if system.name in everyone else in_pairs
        probes = {
            policy: embed(system, [benchmark.probe(system, s, capture) for s in subjects])
            for policy, capture in PROBES.items()
        }
        index = {subject: k for k, subject in enumerate(subjects)}
        references = probes["source"]
        if benchmark.degradation is not None:
            faces = {s: benchmark.probe(system, s, SOURCE) for s in subjects}
            original = benchmark.originals is not None and finds_faces(system)
            name = f"{'originals' if original else 'faces'}/{{}}_{SOURCE}.png"
            files = _copies(faces, name, benchmark, copies)
            references = embed(system, [files[subject] for subject in subjects])
        bar.update()
        for attack, files in morphs.items():
            done = [pair for pair in pairs if pair.morph_id in files]
            embeddings = embed(system, [files[pair.morph_id] for pair in done])
            bar.update()
            for row, pair in enumerate(done):
                for subject in (pair.subject_a, pair.subject_b):
                    for policy, capture in PROBES.items():
                        score = system.compare(embeddings[row], probes[policy][index[subject]])
                        rows.append(_row(attack, pair, subject, capture, policy, system, score))
        rows += _worst_case(system, references, probes, index, pairs)
        rows += _bona_fide(system, references, probes["other"], subjects)
        for side, capture in ((references, SOURCE), (probes["other"], OTHER)):
            if every_capture:
                rows += _within(system, side, capture, subjects)
    bar.close()
    conditions = {
        system.name: {
            "model_fingerprint": system.fingerprint,
            "alignment": benchmark.alignment(system),
        }
        for system in recognisers
    }
    metadata = {
        "systems": conditions,
        "data_set": benchmark.dataset.fingerprint,
        "impostor_set": f"{Path(benchmark.dataset.name).name}: the run's own people",
    }
    return ScoreTable.from_rows(rows, metadata=metadata)


def _copies(
    originals: Mapping[str, Any], name: str, benchmark: Benchmark, folder: Path | None
) -> dict[str, Path]:
    """Degraded copies by the same keys; `name` makes an image's name of its key."""
    assert benchmark.degradation is not None and folder is not None
    named = {name.format(key): path for key, path in originals.items()}
    made = degraded_copies(named, benchmark.degradation, folder)
    return {key: made[name.format(key)] for key in originals}


def _embed(system: Recogniser, images: Sequence[np.ndarray]) -> np.ndarray:
    """Embeddings (N, D); NaN where the recogniser finds no face."""
    embeddings = np.empty((len(images), system.embedding_dim), np.float32)
    # Originals of different cameras differ in size; those of one size go together.
    for shape in {image.shape for image in images}:
        same = [k for k, image in enumerate(images) if image.shape == shape]
        found, acquired = system.embed(np.stack([images[k] for k in same]))
        found[~acquired] = np.nan
        embeddings[same] = found
    return embeddings


def _row(
    attack: str,
    pair: MorphPair,
    subject: str,
    capture: str,
    policy: str,
    system: Recogniser,
    score: Any,
) -> dict[str, Any]:
    return {
        "kind": "morph",
        "morph_id": pair.morph_id,
        "attack": attack,
        "subject_id": subject,
        "probe_id": f"{subject}_{capture}",
        "probe_policy": policy,
        **_scored(system, float(score)),
    }


def _scored(system: Recogniser, value: float) -> dict[str, Any]:
    """What every row says of its score; one that is not finite is a failure to acquire."""
    good = bool(np.isfinite(value))
    return {
        "system": system.name,
        "score": value if good else None,
        "score_type": system.score_type,
        "status": "ok" if good else "fta",
    }


def _worst_case(
    system: Recogniser,
    references: np.ndarray,
    probes: Mapping[str, np.ndarray],
    index: Mapping[str, int],
    pairs: Sequence[MorphPair],
) -> list[dict[str, Any]]:
    """Rows of the embedding that lies half way between both sources (cosine systems only)."""
    # The bisector is the worst case of a cosine score; of a distance it is the midpoint, and no
    # published bound speaks of it.
    if system.metric != "cosine":
        return []
    rows = []
    for pair in pairs:
        sources = [references[index[s]] for s in (pair.subject_a, pair.subject_b)]
        for policy, capture in PROBES.items():
            targets = [probes[policy][index[s]] for s in (pair.subject_a, pair.subject_b)]
            scores = worst_case_scores(*(x[None] for x in (*sources, *targets)))
            for subject, score in zip((pair.subject_a, pair.subject_b), scores, strict=True):
                value = np.asarray(score).reshape(-1)[0]
                rows.append(_row(WORST_CASE, pair, subject, capture, policy, system, value))
    return rows


def _bona_fide(
    system: Recogniser,
    references: np.ndarray,
    probes: np.ndarray,
    subjects: Sequence[str],
) -> list[dict[str, Any]]:
    """Every neutral image against every smiling one: mated on the diagonal, else nonmated.

    The nonmated scores show where different people of this very benchmark lie; without a
    threshold that was made for it, they are what the thresholds come from.
    """
    rows = []
    for reference, source in zip(subjects, references, strict=True):
        scores = system.compare(source[None], probes)
        for subject, value in zip(subjects, scores.tolist(), strict=True):
            kind = "mated" if subject == reference else "nonmated"
            images = (subject, OTHER), (reference, SOURCE)
            rows.append(_bona_fide_row(system, kind, *images, value))
    return rows


def _within(
    system: Recogniser, embeddings: np.ndarray, capture: str, subjects: Sequence[str]
) -> list[dict[str, Any]]:
    """Every two people in one capture, once."""
    rows = []
    for k, (subject, embedding) in enumerate(zip(subjects, embeddings, strict=True), 1):
        scores = system.compare(embedding[None], embeddings[k:])
        for other, value in zip(subjects[k:], scores.tolist(), strict=True):
            images = (other, capture), (subject, capture)
            rows.append(_bona_fide_row(system, "nonmated", *images, value))
    return rows


def _bona_fide_row(
    system: Recogniser, kind: str, probe: tuple[str, str], reference: tuple[str, str], value: float
) -> dict[str, Any]:
    """Of a probe and a reference, each a subject and a capture."""
    return {
        "kind": kind,
        "subject_id": probe[0],
        "ref_subject_id": reference[0],
        "probe_id": "_".join(probe),
        "ref_id": "_".join(reference),
        **_scored(system, value),
    }
