"""Detectors of morphing attacks: trained, applied to the morphs of the run, their scores written.

    python run.py +experiment=detection

1. The test morphs are made, judged and reported as in every other run (:mod:`.morph`).
2. People of two other roles are rendered; look-alikes among them are paired, and the attacks of
   ``task.seen`` and ``task.guided`` morph them. Or, with ``task.folds``, detectors learn from the
   test's own people, each image being scored by the one that has seen none of its people.
3. The settings of every detector are chosen on the people of ``task.validation``, who are neither
   learnt nor tested (:mod:`adjointdeis.harness.detectors`).
4. Every detector is trained on: all seen attacks; each attack alone; all but one; all with the
   guided ones beside them (``hardened``); and all with shuffled labels, the control.
5. Every detector scores every test image, as it is and after each degradation. ``detection.csv``
   has a line for each, ``detection_control.csv`` those of bona fide images that were encoded and
   decoded: a detector that calls them morphs detects the autoencoder. ``vulnerability.json`` has
   who accepts the degraded morphs.

A suspect is a neutral image: bona fide, or a morph. Its live capture is the smiling one of its
person, or of one of the morph's two, drawn by the pair's name. No attack is made or changed by what
a detector says.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from adjointdeis.detection.degradation import NONE, Degradation
from adjointdeis.detection.detector import DetectorError, MorphDetector, Suspects, score_in_batches
from adjointdeis.detection.plugged import PrecomputedScores
from adjointdeis.evaluation import write_scores
from adjointdeis.evaluation.storage import write_json
from adjointdeis.faces.image_io import write_image
from adjointdeis.faces.tensors import to_uint8
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import Benchmark, load_benchmark, load_faces, read_aligned
from adjointdeis.harness.degrading import degradation_of, print_speed
from adjointdeis.harness.detection_data import (
    ALL,
    GIVEN,
    SuspectImage,
    bona_fide,
    choose_pairs,
    folds_of,
    loaded,
    morph_image,
    rows_of_scores,
    scores_by_attack,
    synthetic_people,
    write_scores_of_images,
)
from adjointdeis.harness.detectors import Candidate, candidates_of, choose, train, train_folds
from adjointdeis.harness.interruption import one_process
from adjointdeis.harness.provenance import digest
from adjointdeis.harness.records import write_record
from adjointdeis.harness.resources import in_folds, workbenches
from adjointdeis.harness.scoring import rates_of, score_morphs
from adjointdeis.harness.tasks import morph
from adjointdeis.morphing.attack import Attack, Workbench
from adjointdeis.reporting import write_report

DRY_RUN = True  # of the morphs; detectors are not in it
REUSED = ("training", "validation", "reconstructed", *morph.REUSED)


@dataclass(frozen=True)
class Plan:
    """What a run of detectors needs, made before any morph is.

    Attributes:
        cfg: The whole configuration, whose task is this one.
        candidates: Of each detector.
        degradations: By name.
        attacks: Of the run, by name.
    """

    cfg: DictConfig
    candidates: dict[str, list[Candidate]]
    degradations: dict[str, Degradation]
    attacks: dict[str, Attack]


def run(cfg: DictConfig) -> dict[str, Any]:
    """Runs what is not done yet, and returns the result of the table."""
    return examined(planned(cfg), morph.run(cfg, plots=False))


def check(cfg: DictConfig) -> None:
    """Refuses settings that contradict each other before the run's folder exists."""
    planned(cfg)


def planned(cfg: DictConfig) -> Plan:
    """Makes what the configuration names, and refuses what would only fail after the morphs.

    Raises:
        DetectorError, DegradationError, ValueError: See the message.
    """
    task = cfg.task
    if not one_process(cfg.trainer):
        raise ValueError("task=detection runs in one process; leave out trainer=, or trainer=cpu")
    if cfg.degradation:
        raise ValueError(
            "task=detection compares degradations with each other: list them in task.degradations "
            "and leave degradation=none"
        )
    degradations = {key: degradation_of(node) for key, node in task.degradations.items() if node}
    if NONE in degradations or None in degradations.values():
        raise DetectorError("task.degradations: images as they are (none) are always scored")
    attacks = {attack.name: attack for attack in morph.chosen_attacks(cfg)}
    unknown = [name for name in (*task.seen, *task.guided) if name not in attacks]
    if unknown or not task.seen:
        raise DetectorError(
            f"task.seen and task.guided name {', '.join(unknown) or 'no attack'}, and the rows of "
            f"the run are {', '.join(attacks)}: detectors learn from some of them"
        )
    if twice := set(task.seen) & set(task.guided):
        raise DetectorError(f"{min(twice)} is in task.seen and in task.guided; take one out")
    if task.folds and task.validation:
        raise DetectorError(
            f"task.folds={task.folds} learns from the test's own people, and settings are chosen "
            "on others alone: task.validation=null takes them as they are set"
        )
    roles = [of.role for of in (task.people, task.validation) if of]
    if len(set(roles)) < len(roles):
        raise DetectorError(f"task.validation.role={roles[0]}: those people are learnt")
    candidates = candidates_of(task)
    for name, (first, *_) in candidates.items():
        of = first.recipe.degradations if isinstance(first.recipe, PrecomputedScores) else (NONE,)
        if NONE not in of or not set(of) <= {NONE, *degradations}:
            raise DetectorError(
                f"detector {name}: its file has scores under {', '.join(of) or 'nothing'}, and the "
                f"run's degradations are {', '.join((NONE, *degradations))}: score the images as "
                "they are at least, and take out or rename the others"
            )
    return Plan(cfg, candidates, degradations, attacks)  # type: ignore[arg-type]


def examined(plan: Plan, result: dict[str, Any]) -> dict[str, Any]:
    """Detectors of the morphs of a finished table: trained, applied and reported.

    Args:
        plan: Of the run.
        result: Of its table; a dry run's is returned as it is.
    """
    cfg, directory, task = plan.cfg, Path(plan.cfg.paths.run), plan.cfg.task
    if cfg.dry_run:
        print("Not in these hours: the detectors' training and scores.")
        return result
    test = load_benchmark(load_faces(cfg.data.faces), cfg.data.pairs, cfg.data.limit)
    files = {
        attack: {
            pair.morph_id: path
            for pair in test.pairs
            if (path := directory / "morphs" / attack / f"{pair.morph_id}.png").is_file()
        }
        for attack in plan.attacks
    }
    images = bona_fide(test.dataset)
    for attack, made in files.items():
        own = [pair for pair in test.pairs if pair.morph_id in made]
        images += [morph_image(attack, p, made[p.morph_id], test.dataset) for p in own]
    for first, *_ in plan.candidates.values():
        if isinstance(first.recipe, PrecomputedScores):  # refused here rather than after training
            first.recipe.of([image.name for image in images], NONE)
    control = _reconstructed(cfg, directory, test) if task.reconstructed else []
    wanted = [plan.attacks[name] for name in (*task.seen, *task.guided)]
    recipes, tried = {name: of[0].recipe for name, of in plan.candidates.items()}, {}
    if task.folds:
        learnt = [image for image in images if image.attack in ("", *task.seen, *task.guided)]
        fold = folds_of([*images, *control], test.dataset.ids, task.folds)
        detectors = train_folds(cfg, recipes, learnt, fold, directory / "detectors")
    else:
        learnt = _synthetic_images(cfg, task.people, directory / "training", wanted)
        if task.validation:
            seen = wanted[: len(task.seen)]
            held = _synthetic_images(cfg, task.validation, directory / "validation", seen)
            recipes, tried = choose(cfg, plan.candidates, learnt, held)
        detectors = train(cfg, recipes, learnt, directory / "detectors")
    rows: dict[str, list[dict[str, Any]]] = {"detection": [], "detection_control": []}
    for name, change in {NONE: None, **plan.degradations}.items():
        copies = directory / "degraded" / name
        rows["detection"] += _score_all(detectors, images, loaded(images, change, copies), name)
        if control:
            running = [(t, d) for t, d in detectors if not isinstance(d, PrecomputedScores)]
            suspects = loaded(control, change, copies)
            rows["detection_control"] += _score_all(running, control, suspects, name)
    for key, found in rows.items():
        if found:
            write_scores_of_images(directory / f"{key}.csv", found)
    _vulnerability(cfg, directory, test, files, plan.degradations)
    result["run"]["detection"] = {
        "detectors": {
            name: {
                "kind": recipe.kind,
                "trained": {
                    trained_on: {"training": d.training, "fingerprint": d.fingerprint}
                    for trained_on, d in detectors
                    if d.name == name
                },
                "candidates": tried.get(name, []),
            }
            for name, recipe in recipes.items()
        },
        "training": {a: sum(p.attack == a for p in learnt) for a in ("", *task.seen, *task.guided)},
        "control": _control_rates(rows["detection"], rows["detection_control"]),
    }
    write_record(directory / "result.json", result)
    write_report(directory)
    return result


def _synthetic_images(
    cfg: DictConfig, people: DictConfig, folder: Path, attacks: Sequence[Attack]
) -> list[SuspectImage]:
    """Bona fide images and morphs of people that no test knows.

    Args:
        cfg: The whole configuration.
        people: Whose: role, per_sex, size, and how many pairs of each sex.
        folder: Where pairs and morphs go.
        attacks: That morph them.
    """
    task = cfg.task
    dataset = synthetic_people(cfg.paths.data, people.role, people.per_sex, people.size)
    pairs = {"faces": str(dataset.root), "pairs": str(folder / "pairs.csv"), "limit": None}
    sub = OmegaConf.merge(cfg, {"data": pairs})
    assert isinstance(sub, DictConfig)
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    choose_pairs(dataset, profile, task.pairs, people.pairs_per_sex, folder / "pairs.csv")
    found = bona_fide(dataset)
    benches = workbenches(sub, profile, dataset, attacks)
    for attack in attacks:
        benchmark = load_benchmark(dataset, sub.data.pairs, task.most_pairs.get(attack.name))
        parts = in_folds(benchmark, benches)
        into = folder / "morphs" / attack.name
        records = morph.make_morphs(sub, attack, parts, into, [])
        found += [
            morph_image(attack.name, pair, into / f"{pair.morph_id}.png", dataset)
            for pair in benchmark.pairs
            if not records[pair.morph_id]["failed"]
        ]
    return found


def _reconstructed(cfg: DictConfig, directory: Path, test: Benchmark) -> list[SuspectImage]:
    """Bona fide images encoded and decoded by the autoencoder, nothing blended."""
    if cfg.assets.autoencoder is None:
        return []
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    (bench,) = workbenches(cfg, profile, test.dataset, [_Encoding(name="encoding")]).values()
    settings = cfg.task.reconstructed
    made = digest(
        {
            **settings,
            "autoencoder": bench.autoencoder.fingerprint,
            "faces": test.dataset.fingerprint,
        }
    )
    folder, originals = directory / "reconstructed" / made, bona_fide(test.dataset)
    found = [
        replace(image, name=f"reconstructed/{path.name}", path=folder / path.name)
        for image in originals
        for path in [Path(image.name)]
    ]
    todo = [k for k, image in enumerate(found) if not image.path.is_file()]
    for start in range(0, len(todo), 32):
        rows = todo[start : start + 32]
        pixels = read_aligned([originals[k].path for k in rows], None)
        encoded = bench.encoder(pixels, bench.device, settings.encoding_steps)
        with torch.no_grad():
            decoded = bench.autoencoder.decode(encoded.x_T, encoded.z, settings.sampling_steps)
        for k, decoded_pixels in zip(rows, to_uint8(decoded), strict=True):
            write_image(folder / found[k].path.name, decoded_pixels)
    return found


@dataclass(frozen=True, kw_only=True)
class _Encoding(Attack):
    """No attack: what the workbench of the control needs."""

    resources = frozenset({"autoencoder", "encoder"})

    def begin(self, sources: Any, bench: Workbench) -> Any:
        raise NotImplementedError


def _vulnerability(
    cfg: DictConfig,
    directory: Path,
    test: Benchmark,
    files: Mapping[str, Mapping[str, Path]],
    degradations: Mapping[str, Any],
) -> None:
    """MMPMR after each degradation, as rows of `evaluate`, in ``vulnerability.json``.

    The scores are beside the degraded images, in ``degraded/<name>/scores.csv``. Thresholds are
    those of the degradation's own impostor comparisons.
    """
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    judges = morph.judges_of(cfg, cfg.assets.recognisers, profile)
    found = {}
    for name, change in degradations.items():
        benchmark = replace(test, degradation=change)
        table = score_morphs(
            benchmark, files, judges, test.pairs,
            everyone={judge.name for judge in judges}, copies=directory / "degraded" / name,
        )  # fmt: skip
        write_scores(table, directory / "degraded" / name / "scores.csv")
        _, found[name] = rates_of(cfg, table, {}, judges, benchmark)
    write_json(found, directory / "vulnerability.json")


def _control_rates(
    rows: Sequence[Mapping[str, Any]], control: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """How many reconstructed bona fide images a detector calls morphs, at its D-EER threshold.

    Returns:
        Per detector, training and degradation: ``k`` of ``n``, and the D-EER of the attacks.
    """

    def by_setting(these: Iterable[Mapping[str, Any]]) -> dict[tuple[str, ...], list]:
        found: dict[tuple[str, ...], list] = {}
        for row in these:
            key = row["detector"], row["trained_on"], row["degradation"]
            found.setdefault(key, []).append(row)
        return found

    scored, found = by_setting(rows), []
    for key, own in by_setting(control).items():
        mine = scored[key]
        attacks, scores = [row["attack"] for row in mine], [row["score"] for row in mine]
        d_eer, tau = scores_by_attack(attacks, scores).d_eer()
        flagged = sum(row["score"] > tau for row in own)
        names = dict(zip(("detector", "trained_on", "degradation"), key, strict=True))
        found.append({**names, "k": int(flagged), "n": len(own), "d_eer": d_eer})
    return found


def _score_all(
    detectors: Sequence[tuple[str, MorphDetector]],
    images: Sequence[SuspectImage],
    suspects: Suspects,
    degradation: str,
) -> list[dict[str, Any]]:
    """A row of ``detection.csv`` for each detector and image; says how many images a second.

    Args:
        detectors: What each was trained on, and it.
        images: What is scored.
        suspects: Their pixels, after the degradation.
        degradation: Its name; a detector whose scores are of a file may have none of it.
    """
    rows = []
    for trained_on, detector in detectors:
        if isinstance(detector, PrecomputedScores):
            if degradation not in detector.degradations:
                continue
            scores = detector.of(suspects.names, degradation)
        else:
            started = time.perf_counter()
            scores = score_in_batches(detector, suspects)
            if trained_on in (ALL, GIVEN):
                seconds = time.perf_counter() - started
                print_speed(f"{detector.name}, {degradation}", len(suspects), seconds)
        rows += rows_of_scores(detector, trained_on, degradation, images, scores)
    return rows
