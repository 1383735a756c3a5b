"""Landmark morphs of real photographs, judged by a real recogniser under every policy.

Reads FRLL, aligns it, takes the most similar pairs of each gender, morphs each in several styles,
and scores the morphs with dlib. The thresholds come from the same photographs. The result is one
row per style x probe policy x impostor policy: on the same morphs, these labels move MMPMR by tens
of percentage points, which is why every row carries them.

dlib selects the pairs *and* judges the morphs: an easier game for the attack than a pair list made
by another recogniser (`pairs_file` takes one).
"""

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from adjointdeis.evaluation import (
    INTERVALS,
    ScoreTable,
    Subjects,
    ThresholdRecord,
    estimate_thresholds,
    evaluate,
    write_scores,
)
from adjointdeis.evaluation.provenance import TEXT_KEY
from adjointdeis.evaluation.storage import write_json
from adjointdeis.faces.alignment import FFHQ_256
from adjointdeis.faces.array_cache import ArrayCache
from adjointdeis.faces.datasets.folder import NEUTRAL, SMILING, FaceDataset
from adjointdeis.faces.datasets.frll import load_frll
from adjointdeis.faces.datasets.pairs import (
    MorphPair,
    most_similar_pairs,
    read_pairs,
    validate_pairs,
    write_pairs,
)
from adjointdeis.faces.dlib_models import DlibLandmarker, DlibRecogniser
from adjointdeis.faces.image_io import sha256_of, write_image
from adjointdeis.faces.recogniser import Recogniser, require_faces
from adjointdeis.harness.provenance import digest, morph_text
from adjointdeis.harness.tasks.frll_config import Config
from adjointdeis.harness.tasks.frll_faces import Face, align_all, embed_all
from adjointdeis.harness.tasks.frll_report import morph_grid, write_report
from adjointdeis.morphing.landmark import LandmarkMorph

ATTACK_PREFIX = "landmark-"


def run(cfg: DictConfig | Mapping[str, Any] | Config) -> dict[str, Any]:
    """Runs the experiment and writes its results into the run directory.

    Written: scores.csv, thresholds.json, result.json, report.md, table.csv, pairs.csv, morphs.png
    and ``morphs/<style>/*.png``. A run that was stopped and is started again takes the alignments,
    embeddings and morphs that it finds.

    Returns:
        What result.json holds.

    Raises:
        ValueError, DatasetError, PairListError, NoFaceError, MissingPackageError: Bad settings or
            input, before any morph is made.
    """
    if isinstance(cfg, DictConfig):
        parts = {key: cfg[key] for key in ("data", "task", "protocol")}
        plain = OmegaConf.to_container(OmegaConf.create(parts), resolve=True)
        cfg = cast(dict[str, Any], plain) | {"paths": {"run": cfg.paths.run}}
    config = cfg if isinstance(cfg, Config) else Config.from_mapping(cfg)
    started = time.perf_counter()
    out = Path(config.run_dir)
    cache = ArrayCache(out / "cache")
    templates_needed = "tem" in {_template_of(v, config) for v in config.variants}
    dataset = load_frll(config.root, need_templates=templates_needed)
    fixed_pairs = _listed_pairs(config, dataset) if config.pairs_file else None

    landmarker = DlibLandmarker(detection_side=config.detection_side)
    judge = DlibRecogniser()
    faces = align_all(dataset, landmarker, config, cache, templates_needed)
    names = sorted(faces)
    embedded, ok = embed_all(judge, [faces[name].image for name in names], cache, "bona fide")
    require_faces(ok, names, judge.name)
    embeddings = dict(zip(names, embedded, strict=True))

    people = Subjects.from_rows(
        {"subject_id": s.id, "sex": s.gender or "", "group": s.ethnicity or "", "age": s.age or ""}
        for s in dataset.subjects
    )
    bona_fide = bona_fide_rows(dataset.ids, embeddings, judge)
    metadata = {"systems": {judge.name: _system(judge)}, "data": dataset.name}
    thresholds = estimate_thresholds(
        ScoreTable.from_rows(bona_fide, metadata=metadata),
        judge.name,
        fmr=config.fmr,
        impostor_policies=config.impostor_policies,
        subjects=people,
        impostor_set="FRLL neutral x smiling, ordered, without self",
    )
    loosest = min(record.value for record in thresholds)
    excluded = false_matches(dataset.ids, embeddings, judge, loosest)
    if fixed_pairs is not None:
        pairs = fixed_pairs
    else:
        pairs = _similar_pairs(dataset, embeddings, judge, config, excluded)
    write_pairs(out / "pairs.csv", pairs)

    rows = list(bona_fide)
    grid = {}
    for variant in config.variants:
        morphs = make_morphs(pairs, faces, variant, config, out / "morphs" / variant)
        rows += morph_rows(pairs, morphs, variant, embeddings, judge, cache, config)
        grid[variant] = morphs
    table = ScoreTable.from_rows(rows, metadata=metadata)
    write_scores(table, out / "scores.csv")
    write_json([record.to_dict() for record in thresholds], out / "thresholds.json")
    # Without the records, so that the bootstrap re-estimates the threshold in every replicate.
    results = evaluate(
        table,
        fmr=config.fmr,
        impostor_policies=config.impostor_policies,
        probe_policies=config.probe_policies,
        subjects=people,
        replicates=config.replicates,
        seed=config.seed,
    )
    result = {
        "schema": "adjointdeis-frll-landmark/1",
        "settings": {k: v for k, v in dataclasses.asdict(config).items() if k != "run_dir"},
        "data": {"name": dataset.name, "licence": dataset.licence, "subjects": len(dataset.ids)},
        "recogniser": _system(judge) | {"name": judge.name, "licence": judge.licence},
        "pairs": _pair_facts(pairs, excluded, embeddings, judge, thresholds, config),
        "thresholds": [record.to_dict() for record in thresholds],
        "rows": results,
        "intervals": INTERVALS,
        "seconds": round(time.perf_counter() - started, 1),
    }
    write_json(result, out / "result.json")
    write_image(out / "morphs.png", morph_grid(pairs, faces, grid))
    write_report(result, out)
    return result


def bona_fide_rows(
    ids: Sequence[str], embeddings: Mapping[str, np.ndarray], judge: Recogniser
) -> list[dict[str, Any]]:
    """Rows of every neutral photograph against every smiling one: mated on the diagonal."""
    neutral = np.stack([embeddings[f"{i}_{NEUTRAL}"] for i in ids])
    smiling = np.stack([embeddings[f"{i}_{SMILING}"] for i in ids])
    scores = judge.compare(neutral[:, None], smiling[None])
    return [
        {
            "kind": "mated" if a == b else "nonmated",
            "subject_id": b,
            "probe_id": f"{b}_{SMILING}",
            "ref_id": f"{a}_{NEUTRAL}",
            "ref_subject_id": a,
            "system": judge.name,
            "score": float(scores[i, j]),
            "score_type": judge.score_type,
        }
        for i, a in enumerate(ids)
        for j, b in enumerate(ids)
    ]


def false_matches(
    ids: Sequence[str], embeddings: Mapping[str, np.ndarray], judge: Recogniser, tau: float
) -> set[frozenset[str]]:
    """Pairs of subjects of whom some two photographs match, neutral or smiling, at `tau`."""
    found = set()
    for one in (NEUTRAL, SMILING):
        for other in (NEUTRAL, SMILING):
            rows = np.stack([embeddings[f"{i}_{one}"] for i in ids])
            columns = np.stack([embeddings[f"{i}_{other}"] for i in ids])
            hits = judge.compare(rows[:, None], columns[None]) > tau
            found |= {frozenset((ids[i], ids[j])) for i, j in np.argwhere(hits) if i != j}
    return found


def make_morphs(
    pairs: Sequence[MorphPair],
    faces: Mapping[str, Face],
    variant: str,
    config: Config,
    folder: Path,
) -> list[np.ndarray]:
    """The morphs of all pairs, saved with their provenance; those found finished are not remade."""
    attack = LandmarkMorph(variant, weight=config.weight)  # type: ignore[arg-type]
    which = _template_of(variant, config)
    morphs = []
    for pair in tqdm(pairs, desc=f"morph {variant}", unit="pair"):
        a, b = faces[pair.image_a], faces[pair.image_b]
        points_a, points_b = getattr(a, which), getattr(b, which)
        if points_a is None or points_b is None:
            raise ValueError(
                f"{pair.image_a} + {pair.image_b}: no .tem template; set task.template=dlib68"
            )
        made_of = {
            "attack": ATTACK_PREFIX + variant,
            "weight": config.weight,
            "sources": [sha256_of(a.image), sha256_of(b.image)],
            "landmarks": [sha256_of(points_a), sha256_of(points_b)],
        }
        path = folder / f"{pair.morph_id}.png"
        # The sources are the aligned pixels: the photographs themselves are not what is morphed.
        sources = dict(zip((pair.image_a, pair.image_b), made_of["sources"], strict=True))
        text = morph_text(made_of["attack"], digest(made_of), sources)
        morph = _finished(path, text[TEXT_KEY])
        if morph is None:
            morph = attack(a.image, b.image, points_a, points_b)
            write_image(path, morph, text)
        morphs.append(morph)
    return morphs


def morph_rows(
    pairs: Sequence[MorphPair],
    morphs: Sequence[np.ndarray],
    variant: str,
    embeddings: Mapping[str, np.ndarray],
    judge: Recogniser,
    cache: ArrayCache,
    config: Config,
) -> Iterable[dict[str, Any]]:
    """Rows of each morph against the probes of both subjects, under each probe policy."""
    embedded, ok = embed_all(judge, morphs, cache, variant)
    rows = []
    for pair, embedding, found in zip(pairs, embedded, ok, strict=True):
        sides = ((pair.subject_a, pair.capture_a), (pair.subject_b, pair.capture_b))
        for policy in config.probe_policies:
            for subject, capture in sides:
                other = SMILING if capture == NEUTRAL else NEUTRAL
                probe = f"{subject}_{capture if policy == 'source' else other}"
                score = float(judge.compare(embedding, embeddings[probe])) if found else None
                rows.append(
                    {
                        "kind": "morph",
                        "morph_id": pair.morph_id,
                        "attack": ATTACK_PREFIX + variant,
                        "subject_id": subject,
                        "probe_id": probe,
                        "ref_id": f"{variant}/{pair.morph_id}",
                        "system": judge.name,
                        "score": score,
                        "score_type": judge.score_type,
                        "status": "ok" if found else "fta",
                        "probe_policy": policy,
                    }
                )
    return rows


def _finished(path: Path, made_of: str) -> np.ndarray | None:
    """The morph in a file, if it was made of exactly this; None for another or a damaged one."""
    try:
        with Image.open(path, formats=("PNG",)) as stored:
            stored.load()
            if stored.info.get(TEXT_KEY) == made_of:
                return np.array(stored.convert("RGB"))
    except OSError:
        pass
    return None


def _template_of(variant: str, config: Config) -> str:
    return LandmarkMorph(variant).points_for if config.template == "auto" else config.template  # type: ignore[arg-type]


def _listed_pairs(config: Config, dataset: FaceDataset) -> list[MorphPair]:
    assert config.pairs_file is not None
    pairs = read_pairs(config.pairs_file)
    validate_pairs(pairs, dataset, config.pairs_file)
    return pairs


def _similar_pairs(
    dataset: FaceDataset,
    embeddings: Mapping[str, np.ndarray],
    judge: Recogniser,
    config: Config,
    false_matching: set[frozenset[str]],
) -> list[MorphPair]:
    pairs = most_similar_pairs(
        np.stack([embeddings[f"{i}_{NEUTRAL}"] for i in dataset.ids]),
        dataset.ids,
        [subject.gender or "" for subject in dataset.subjects],
        judge,
        config.pairs_per_group,
        false_matching if config.exclude_false_matches else (),
    )
    validate_pairs(pairs, dataset, "most similar pairs")
    return pairs


def _pair_facts(
    pairs: Sequence[MorphPair],
    false_matching: set[frozenset[str]],
    embeddings: Mapping[str, np.ndarray],
    judge: Recogniser,
    thresholds: Sequence[ThresholdRecord],
    config: Config,
) -> dict[str, Any]:
    similar = judge.compare(
        np.stack([embeddings[pair.image_a] for pair in pairs]),
        np.stack([embeddings[pair.image_b] for pair in pairs]),
    )
    return {
        "count": len(pairs),
        "rule": config.pairs_file
        or f"{config.pairs_per_group} most similar neutral pairs per gender by {judge.name}",
        "selector": "given list" if config.pairs_file else judge.name,
        "subjects": len({i for pair in pairs for i in pair.subjects}),
        "false_matching_pairs": len(false_matching),
        "false_matching_pairs_excluded": config.exclude_false_matches and not config.pairs_file,
        "similarity_lowest": float(similar.min()),
        "similarity_highest": float(similar.max()),
        "matching_before_morphing": {
            f"{record.impostor_policy} at FMR {record.target_fmr:g}": int(
                record.matches(similar).sum()
            )
            for record in thresholds
        },
    }


def _system(judge: Recogniser) -> dict[str, str]:
    return {
        "model_fingerprint": judge.fingerprint,
        "alignment": f"{FFHQ_256} > {judge.alignment}",
        "score": "1 - Euclidean distance of 128-d descriptors",
    }
