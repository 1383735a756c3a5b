"""Detectors of morphing attacks: trained, applied to the morphs of the run, their scores written.

    python run.py +experiment=detection

1. The test morphs are made, judged and reported as in every other run (:mod:`.morph`).
2. People of another role are rendered, whom no test knows; look-alikes among them are paired, and
   the attacks of ``task.seen`` and ``task.guided`` morph them.
3. Every detector is trained on: all seen attacks; each attack alone; all but one; all with the
   guided ones beside them (``hardened``); and all with shuffled labels, the control.
4. Every detector scores every test image, as it is and after each degradation. ``detection.csv``
   has a line for each, ``detection_control.csv`` those of bona fide images that were encoded and
   decoded: a detector that calls them morphs detects the autoencoder. ``vulnerability.json`` has
   who accepts the degraded morphs.

A suspect is a neutral image: bona fide, or a morph. Its live capture is the smiling one of its
person, or of one of the morph's two, drawn by the pair's name. No attack is made or changed by what
a detector says.
"""

import csv
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adjointdeis.detection.degradation import NONE
from adjointdeis.detection.detector import (
    DetectorError,
    Examples,
    MorphDetector,
    Suspects,
    score_in_batches,
)
from adjointdeis.detection.linear import LinearDetector
from adjointdeis.detection.plugged import PrecomputedScores, TorchDetector
from adjointdeis.evaluation import evaluate
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.storage import write_json
from adjointdeis.faces.datasets.folder import FaceDataset, load_folder
from adjointdeis.faces.datasets.pairs import MorphPair, most_similar_pairs, write_pairs
from adjointdeis.faces.image_io import AnyPath, read_image, write_image
from adjointdeis.faces.tensors import to_uint8
from adjointdeis.faces.weights import save_network
from adjointdeis.files import read_csv, write_atomically
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import (
    OTHER,
    SOURCE,
    Benchmark,
    load_benchmark,
    load_faces,
    read_aligned,
)
from adjointdeis.harness.degrading import degradation_of, degraded_copies, print_speed
from adjointdeis.harness.folds import in_folds, workbenches
from adjointdeis.harness.interruption import one_process
from adjointdeis.harness.provenance import digest
from adjointdeis.harness.records import write_record
from adjointdeis.harness.scoring import all_thresholds, score_morphs
from adjointdeis.harness.synthetic_people import choose_subjects, write_people
from adjointdeis.harness.tasks import morph
from adjointdeis.harness.trainer import make_trainer
from adjointdeis.morphing.attack import Attack, Workbench
from adjointdeis.reporting import write_report
from synthetic_faces.pool_spec import GENERATOR_VERSION

COLUMNS = (
    "detector", "kind", "trained_on", "degradation", "attack", "label", "subject_1", "subject_2",
    "image", "score",
)  # fmt: skip
ALL, HARDENED, SHUFFLED, GIVEN, WITHOUT = "all", "hardened", "shuffled", "given", "without:"


@dataclass(frozen=True)
class Picture:
    """One image that is learnt or scored.

    Attributes:
        name: Unique in its set, such as ``morphs/dim_a/001_002.png``: its degradation is drawn
            from it.
        path: The file.
        people: Its person, or the morph's two; the live capture is of the first.
        live: The file of the live capture.
        attack: Of a morph; empty for a bona fide image.
    """

    name: str
    path: AnyPath
    people: tuple[str, ...]
    live: AnyPath
    attack: str = ""


def run(cfg: DictConfig) -> dict[str, Any]:
    """Runs what is not done yet, and returns the result of the table."""
    directory, task = Path(cfg.paths.run), cfg.task
    if not one_process(cfg.trainer):
        raise ValueError("task=detection runs in one process; leave out trainer=, or trainer=cpu")
    if cfg.degradation:
        raise ValueError(
            "task=detection compares degradations with each other: list them in task.degradations "
            "and leave degradation=none"
        )
    recipes = [instantiate(node) for node in task.detectors.values() if node]
    degradations = {key: degradation_of(node) for key, node in task.degradations.items() if node}
    attacks = {attack.name: attack for attack in morph.chosen_attacks(cfg)}
    _require(recipes, degradations, attacks, task)
    result = morph.run(cfg)
    test = benchmark_of(cfg)
    pictures = [*bona_fide(test.dataset), *_morphs(directory / "morphs", test, attacks)]
    learnt = training_pictures(cfg, directory, [attacks[n] for n in (*task.seen, *task.guided)])
    detectors, trained = train(cfg, directory, recipes, learnt)
    control = reconstructed(cfg, directory, test) if task.reconstructed else []
    rows = {"detection": [], "detection_control": []}
    for name, change in {NONE: None, **degradations}.items():
        copies = directory / "degraded" / name
        for key, shown in (("detection", pictures), ("detection_control", control)):
            suspects = loaded(shown, change, copies) if shown else None
            for trained_on, detector in detectors if suspects is not None else ():
                if isinstance(detector, PrecomputedScores):
                    if name not in detector.degradations or key != "detection":
                        continue
                    scores = detector.of(suspects, name)
                else:
                    started = time.perf_counter()
                    scores = score_in_batches(detector, suspects)
                    if trained_on in (ALL, GIVEN):
                        seconds = time.perf_counter() - started
                        print_speed(f"{detector.name}, {name}", len(suspects), seconds)
                rows[key] += _rows(detector, trained_on, name, shown, scores)
    for key, found in rows.items():
        if found:
            write_scores_of_images(directory / f"{key}.csv", found)
    vulnerability(cfg, directory, test, attacks, degradations)
    result["run"]["detection"] = {
        "detectors": trained,
        "training": {a: sum(p.attack == a for p in learnt) for a in ("", *task.seen, *task.guided)},
        "control": control_rates(rows["detection"], rows["detection_control"]),
    }
    write_record(directory / "result.json", result)
    write_report(directory)
    return result


def benchmark_of(cfg: DictConfig) -> Benchmark:
    """The test faces and pairs."""
    return load_benchmark(load_faces(cfg.data.faces), cfg.data.pairs, cfg.data.limit)


def bona_fide(dataset: FaceDataset) -> list[Picture]:
    """Everybody's neutral image, with the smiling one as the live capture."""
    return [
        Picture(f"faces/{s.id}_{SOURCE}.png", s.images[SOURCE], (s.id,), s.images[OTHER])
        for s in dataset.subjects
    ]


def morph_picture(attack: str, pair: MorphPair, path: Path, dataset: FaceDataset) -> Picture:
    """A morph, with the live capture of one of its two people, drawn by the pair's name.

    Half of the time it is the second one: some attacks favour a side.
    """
    people = (pair.subject_a, pair.subject_b)
    if hashlib.sha256(pair.morph_id.encode()).digest()[0] % 2:
        people = people[::-1]
    name = f"morphs/{attack}/{pair.morph_id}.png"
    return Picture(name, path, people, dataset.subject(people[0]).images[OTHER], attack)


def training_people(cfg: DictConfig) -> FaceDataset:
    """The people that detectors learn from, rendered where they are not there yet.

    Raises:
        ValueError: Their role is that of the test, or they are not of the size of the test's.
    """
    people = cfg.task.people
    if people.role == "test":
        raise ValueError("task.people.role=test would train on the people of the test")
    made = {**OmegaConf.to_container(people), "generator": GENERATOR_VERSION}  # type: ignore[dict-item]
    folder = Path(cfg.paths.data) / "people" / f"{people.role}-{digest(made)}"
    if not (folder / "README.md").is_file():  # it is written last
        subjects = choose_subjects(people.per_sex, people.role, prefix="t")
        by = f"Made for detectors to learn from, role `{people.role}`."
        write_people(folder, subjects, people.size, "Synthetic people", by)
    return load_folder(folder, f"synthetic people, role {people.role}")


def training_pictures(cfg: DictConfig, directory: Path, attacks: Sequence[Attack]) -> list[Picture]:
    """Bona fide images and morphs of the people that no test knows."""
    task, dataset = cfg.task, training_people(cfg)
    sub = OmegaConf.merge(cfg, {"data": {"faces": str(dataset.root), "pairs": "", "limit": None}})
    assert isinstance(sub, DictConfig)
    folder = directory / "training"
    sub.data.pairs = str(folder / "pairs.csv")
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    _choose_pairs(dataset, profile, task.pairs, folder / "pairs.csv")
    found = bona_fide(dataset)
    benches = workbenches(sub, profile, dataset, attacks)
    for attack in attacks:
        benchmark = load_benchmark(dataset, sub.data.pairs, task.most_pairs.get(attack.name))
        parts = in_folds(benchmark, benches)
        into = folder / "morphs" / attack.name
        records = morph.make_morphs(sub, attack, parts, into, [])
        found += [
            morph_picture(attack.name, pair, into / f"{pair.morph_id}.png", dataset)
            for pair in benchmark.pairs
            if not records[pair.morph_id]["failed"]
        ]
    return found


def _choose_pairs(
    dataset: FaceDataset, profile: assets.Profile, settings: DictConfig, path: Path
) -> None:
    """The most similar pairs of each sex by a recogniser, of both sexes in turn."""
    selector = assets.recogniser(settings.selector, profile)
    embeddings, _ = selector.embed(
        read_aligned([subject.images[SOURCE] for subject in dataset.subjects], None)
    )
    lines = read_csv(Path(dataset.root) / "subjects.csv")
    header = next(lines)[1]
    sexes = {row[0]: row[header.index("sex")] for _, row in lines}
    groups = [sexes[i] for i in dataset.ids]
    pairs = most_similar_pairs(
        embeddings, dataset.ids, groups, selector, settings.per_sex, (), settings.most_per_person
    )
    columns = [[p for p in pairs if p.group == group] for group in sorted(set(groups))]
    write_pairs(path, [pair for row in zip(*columns, strict=True) for pair in row])


def train(
    cfg: DictConfig, directory: Path, recipes: Sequence[Any], pictures: Sequence[Picture]
) -> tuple[list[tuple[str, MorphDetector]], dict[str, Any]]:
    """Every detector on every set of examples, and what is to be said of each.

    Returns:
        (what it was trained on, detector), and per detector and set its training and fingerprint.
    """
    everything, sets = loaded(pictures), training_sets(cfg.task, pictures)
    found: list[tuple[str, MorphDetector]] = []
    said: dict[str, Any] = {}
    for recipe in recipes:
        weights = cfg.task.weights.get(recipe.name)
        if not hasattr(recipe, "train"):
            mine = [(GIVEN, recipe)]
        elif weights is not None:
            mine = [(GIVEN, recipe.load(weights))]
        else:
            started, mine = time.perf_counter(), []
            for name, (rows, labels, words) in sets.items():
                examples = Examples(everything.at(rows), labels, words)
                detector = recipe.train(examples, cfg.seed or 0, partial(make_trainer, cfg))
                save(detector, directory / "detectors" / recipe.name / name.replace(":", "_"))
                mine.append((name, detector))
            shown = sum(len(rows) for rows, _, _ in sets.values())
            print_speed(
                f"{recipe.name}, {len(sets)} trainings", shown, time.perf_counter() - started
            )
        found += mine
        said[recipe.name] = {
            "kind": recipe.kind,
            "trained": {
                name: {"training": detector.training, "fingerprint": detector.fingerprint}
                for name, detector in mine
            },
        }
    return found, said


def training_sets(
    task: DictConfig, pictures: Sequence[Picture]
) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Rows, labels and one line of words of every set of examples.

    The shuffled one calls half of the bona fide images and half of every attack's morphs morphs, by
    a seeded draw: what tells them apart is then worth nothing, whatever it is.
    """
    attack = np.array([picture.attack for picture in pictures])
    seen, guided = list(task.seen), list(task.guided)
    wanted: dict[str, list[str]] = {ALL: seen}
    wanted |= {name: [name] for name in (*seen, *guided)}
    if len(seen) > 1:
        wanted |= {WITHOUT + name: [other for other in seen if other != name] for name in seen}
    if guided:
        wanted[HARDENED] = [*seen, *guided]
    if task.only is not None:
        wanted = {name: of for name, of in wanted.items() if name in (ALL, *task.only)}
    sets = {}
    for name, of in wanted.items():
        rows = np.flatnonzero(np.isin(attack, ["", *of]))
        sets[name] = rows, attack[rows] != "", _words(attack[rows])
    rows = sets[ALL][0]
    labels, draw = np.zeros(len(rows), bool), np.random.default_rng(task.shuffle_seed)
    for group in ("", *seen):
        members = draw.permutation(np.flatnonzero(attack[rows] == group))
        labels[members[: len(members) // 2]] = True
    sets[SHUFFLED] = rows, labels, f"labels shuffled: {sets[ALL][2]}"
    return sets


def _words(attack: np.ndarray) -> str:
    counts = {name: int((attack == name).sum()) for name in dict.fromkeys(attack.tolist())}
    morphs = ", ".join(f"{n} {name}" for name, n in counts.items() if name)
    return f"{counts.get('', 0)} bona fide images and {morphs}, synthetic people"


def save(detector: MorphDetector, path: Path) -> None:
    """Writes what a training found, for ``task.weights`` of another run."""
    if isinstance(detector, LinearDetector):
        detector.save(path.with_suffix(".npz"))
    elif isinstance(detector, TorchDetector):
        save_network(
            detector.network,  # type: ignore[arg-type]
            path.with_suffix(".safetensors"),
            {"training": {"examples": detector.training}},
            torch.float32,
        )


def loaded(pictures: Sequence[Picture], change: Any = None, copies: Path | None = None) -> Suspects:
    """The images, after a degradation whose copies lie in a folder; live captures as they are."""
    paths: Mapping[str, AnyPath] = {picture.name: picture.path for picture in pictures}
    if change is not None:
        assert copies is not None
        paths = degraded_copies(paths, change, copies)
    size = read_image(pictures[0].live).shape[0]
    return Suspects(
        read_aligned(list(paths.values()), size),
        tuple(paths),
        read_aligned([picture.live for picture in pictures], size),
    )


def reconstructed(cfg: DictConfig, directory: Path, test: Benchmark) -> list[Picture]:
    """Bona fide images encoded and decoded by the autoencoder, nothing blended."""
    if cfg.assets.autoencoder is None:
        return []
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    (bench,) = workbenches(cfg, profile, test.dataset, [_Encoding(name="encoding")]).values()
    settings, found = cfg.task.reconstructed, []
    for picture in bona_fide(test.dataset):
        path = directory / "reconstructed" / Path(picture.name).name
        found.append(replace(picture, name=f"reconstructed/{path.name}", path=path))
    todo = [k for k, picture in enumerate(found) if not Path(picture.path).is_file()]
    originals = bona_fide(test.dataset)
    for start in range(0, len(todo), 32):
        rows = todo[start : start + 32]
        images = read_aligned([originals[k].path for k in rows], None)
        encoded = bench.encoder(images, bench.device, settings.encoding_steps)
        with torch.no_grad():
            decoded = bench.autoencoder.decode(encoded.x_T, encoded.z, settings.sampling_steps)
        for k, image in zip(rows, to_uint8(decoded), strict=True):
            write_image(Path(found[k].path), image)
    return found


@dataclass(frozen=True, kw_only=True)
class _Encoding(Attack):
    """No attack: what the workbench of the control needs."""

    resources = frozenset({"autoencoder", "encoder"})

    def begin(self, sources: Any, bench: Workbench) -> Any:
        raise NotImplementedError


def vulnerability(
    cfg: DictConfig,
    directory: Path,
    test: Benchmark,
    attacks: Mapping[str, Attack],
    degradations: Mapping[str, Any],
) -> None:
    """MMPMR after each degradation, as rows of `evaluate`, in ``vulnerability.json``.

    Thresholds are those of the degradation's own impostor comparisons.
    """
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    judges = morph.judges_of(cfg, cfg.assets.recognisers, profile)
    fmr, policies = morph.operating_conditions(cfg, test)
    found = {}
    for name, change in degradations.items():
        benchmark = replace(test, degradation=change)
        files = {
            attack: {
                pair.morph_id: path
                for pair in test.pairs
                if (path := directory / "morphs" / attack / f"{pair.morph_id}.png").is_file()
            }
            for attack in attacks
        }
        table = score_morphs(
            benchmark, files, judges, test.pairs,
            everyone={judge.name for judge in judges}, copies=directory / "degraded" / name,
        )  # fmt: skip
        wanted = all_thresholds(table, {}, judges, fmr, policies, benchmark.people)
        found[name] = evaluate(
            table, wanted, subjects=benchmark.people,
            replicates=cfg.protocol.replicates, seed=cfg.protocol.bootstrap_seed,
        )  # fmt: skip
    write_json(found, directory / "vulnerability.json")


def control_rates(
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
        attacks = list(dict.fromkeys(row["attack"] for row in mine if row["attack"]))
        by_attack = {
            name: np.array([row["score"] for row in mine if row["attack"] == name])
            for name in ("", *attacks)
        }
        d_eer, tau = DetectionScores(by_attack.pop(""), by_attack, "morph").d_eer()
        flagged = sum(row["score"] > tau for row in own)
        names = dict(zip(("detector", "trained_on", "degradation"), key, strict=True))
        found.append({**names, "k": int(flagged), "n": len(own), "d_eer": d_eer})
    return found


def write_scores_of_images(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table of scored images, a line each."""

    def write(file: IO[str]) -> None:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        # repr is the shortest text that reads back as the same float64.
        writer.writerows({**row, "score": repr(float(row["score"]))} for row in rows)

    write_atomically(path, write)


def _rows(
    detector: MorphDetector,
    trained_on: str,
    degradation: str,
    pictures: Sequence[Picture],
    scores: np.ndarray,
) -> list[dict[str, Any]]:
    return [
        {
            "detector": detector.name,
            "kind": detector.kind,
            "trained_on": trained_on,
            "degradation": degradation,
            "attack": picture.attack,
            "label": "morph" if picture.attack else "bona_fide",
            "subject_1": picture.people[0],
            "subject_2": picture.people[1] if picture.attack else "",
            "image": picture.name,
            "score": float(score),
        }
        for picture, score in zip(pictures, scores, strict=True)
    ]


def _morphs(folder: Path, test: Benchmark, attacks: Iterable[str]) -> list[Picture]:
    return [
        morph_picture(attack, pair, path, test.dataset)
        for attack in attacks
        for pair in test.pairs
        if (path := folder / attack / f"{pair.morph_id}.png").is_file()
    ]


def _require(
    recipes: Sequence[Any],
    degradations: Mapping[str, Any],
    attacks: Mapping[str, Attack],
    task: DictConfig,
) -> None:
    """Refuses what would only fail after the morphs were made."""
    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) < len(names):
        raise DetectorError(
            f"task.detectors: {', '.join(names) or 'none'}; expected at least one, each with a "
            "name of its own"
        )
    if NONE in degradations or None in degradations.values():
        raise DetectorError("task.degradations: images as they are (none) are always scored")
    unknown = [name for name in (*task.seen, *task.guided) if name not in attacks]
    if unknown or not task.seen:
        raise DetectorError(
            f"task.seen and task.guided name {', '.join(unknown) or 'no attack'}, and the rows of "
            f"the run are {', '.join(attacks)}: detectors learn from some of them"
        )
    if twice := set(task.seen) & set(task.guided):
        raise DetectorError(f"{min(twice)} is in task.seen and in task.guided; take one out")
    if strange := [name for name in task.weights if name not in names]:
        raise DetectorError(
            f"task.weights names {strange[0]}; the detectors are {', '.join(names)}"
        )
