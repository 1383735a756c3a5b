"""Images that detectors learn from and score, and the table of their scores."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from adjointdeis.detection.detector import DetectorError, MorphDetector, Suspects
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.detection_matrix import COLUMNS
from adjointdeis.faces.datasets.folder import FaceDataset, load_folder
from adjointdeis.faces.datasets.pairs import MorphPair, most_similar_pairs, write_pairs
from adjointdeis.faces.image_io import AnyPath, read_image
from adjointdeis.files import read_table, write_csv
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import OTHER, SOURCE, read_aligned
from adjointdeis.harness.degrading import degraded_copies
from adjointdeis.harness.provenance import digest
from adjointdeis.harness.selection import embedded
from adjointdeis.harness.synthetic_people import choose_subjects, write_people
from adjointdeis.harness.training.data import held_out
from synthetic_faces.pool_spec import GENERATOR_VERSION

ALL, HARDENED, SHUFFLED, GIVEN, WITHOUT = "all", "hardened", "shuffled", "given", "without:"


@dataclass(frozen=True)
class SuspectImage:
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


def bona_fide(dataset: FaceDataset) -> list[SuspectImage]:
    """Everybody's neutral image, with the smiling one as the live capture."""
    return [
        SuspectImage(f"faces/{s.id}_{SOURCE}.png", s.images[SOURCE], (s.id,), s.images[OTHER])
        for s in dataset.subjects
    ]


def morph_image(attack: str, pair: MorphPair, path: Path, dataset: FaceDataset) -> SuspectImage:
    """A morph, with the live capture of one of its two people, drawn by the pair's name.

    Half of the time it is the second one: some attacks favour a side.

    Args:
        attack: Name of the attack.
        pair: Whose morph it is.
        path: Its file.
        dataset: The faces, from which the live capture is taken.
    """
    people = (pair.subject_a, pair.subject_b)
    if hashlib.sha256(pair.morph_id.encode()).digest()[0] % 2:
        people = people[::-1]
    name = f"morphs/{attack}/{pair.morph_id}.png"
    return SuspectImage(name, path, people, dataset.subject(people[0]).images[OTHER], attack)


def synthetic_people(data: Path | str, role: str, per_sex: int, size: int) -> FaceDataset:
    """People of a role, rendered where they are not there yet.

    Args:
        data: The folder of data of the run's configuration.
        role: Whose, see :mod:`synthetic_faces.roles`.
        per_sex: How many.
        size: Side of a picture in pixels.

    Raises:
        ValueError: Their role is that of the test.
    """
    if role == "test":
        raise ValueError("role=test would train or choose on the people of the test")
    made = {"role": role, "per_sex": per_sex, "size": size, "generator": GENERATOR_VERSION}
    folder = Path(data) / "people" / f"{role}-{digest(made)}"
    if not (folder / "README.md").is_file():  # it is written last
        # No id in two folders: t001 of those who are learnt, v001 of those who are chosen on.
        subjects = choose_subjects(per_sex, role, prefix="v" if role == "validation" else "t")
        by = f"Made for detectors of morphs, role `{role}`."
        write_people(folder, subjects, size, "Synthetic people", by)
    return load_folder(folder, f"synthetic people, role {role}")


def choose_pairs(
    dataset: FaceDataset, profile: assets.Profile, settings: DictConfig, per_sex: int, path: Path
) -> None:
    """The most similar pairs of each sex by a recogniser, of both sexes in turn.

    Args:
        dataset: The faces, with a `subjects.csv` that has their sexes.
        profile: Where the recogniser is.
        settings: `selector`, the recogniser's file, and `most_per_person`.
        per_sex: How many pairs of each sex.
        path: The pair list to write.
    """
    selector = assets.recogniser(settings.selector, profile)
    embeddings = embedded(selector, dataset, SOURCE)
    _, rows = read_table(Path(dataset.root) / "subjects.csv")
    sexes = {row["subject_id"]: row["sex"] for _, row in rows}
    groups = [sexes[i] for i in dataset.ids]
    pairs = most_similar_pairs(
        embeddings, dataset.ids, groups, selector, per_sex, (), settings.most_per_person
    )
    columns = [[p for p in pairs if p.group == group] for group in sorted(set(groups))]
    write_pairs(path, [pair for row in zip(*columns, strict=True) for pair in row])


def folds_of(images: Sequence[SuspectImage], ids: Sequence[str], folds: int) -> dict[str, int]:
    """Fold of every image by its name: that of its people.

    Args:
        images: Bona fide images and morphs.
        ids: Everybody in the data set.
        folds: How many folds.

    Raises:
        DetectorError: A morph of people of two folds, who could be neither learnt nor tested.
    """
    fold = {person: k for k in range(folds) for person in held_out(ids, k, folds)}
    found = {}
    for image in images:
        of = {fold[person] for person in image.people}
        if len(of) > 1:
            raise DetectorError(
                f"{image.name} is of people of two folds ({', '.join(image.people)}), so that no "
                "detector may learn it and none may be tested on it: take pairs within folds, as "
                "+experiment=frll/detection chooses them, or task.folds=null"
            )
        (found[image.name],) = of
    return found


def training_sets(
    task: DictConfig, images: Sequence[SuspectImage]
) -> dict[str, tuple[np.ndarray, np.ndarray, str]]:
    """Rows, labels and one line of words of every set of examples.

    The shuffled one calls half of the bona fide images and half of every attack's morphs morphs, by
    a seeded draw: what tells them apart is then worth nothing, whatever it is.
    """
    attack = np.array([image.attack for image in images])
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
    return f"{counts.get('', 0)} bona fide images and {morphs}"


def scores_by_attack(
    attacks: Sequence[str], scores: Sequence[float] | np.ndarray
) -> DetectionScores:
    """Scores, high for a morph, of images whose attack is named; empty for bona fide ones."""
    attack, score = np.array(attacks), np.asarray(scores, np.float64)
    groups = {str(name): score[attack == name] for name in dict.fromkeys(attack.tolist())}
    return DetectionScores(groups.pop(""), groups, "morph")


def loaded(
    images: Sequence[SuspectImage], change: Any = None, copies: Path | None = None
) -> Suspects:
    """The images, after a degradation whose copies lie in a folder; live captures as they are.

    Args:
        images: What is scored.
        change: The degradation; None leaves the images as they are.
        copies: Folder of the degraded copies; needed with a degradation.
    """
    paths: Mapping[str, AnyPath] = {image.name: image.path for image in images}
    if change is not None:
        assert copies is not None
        paths = degraded_copies(paths, change, copies)
    size = read_image(images[0].live).shape[0]
    return Suspects(
        read_aligned(list(paths.values()), size),
        tuple(paths),
        read_aligned([image.live for image in images], size),
    )


def write_scores_of_images(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table of scored images, a line each."""
    # repr is the shortest text that reads back as the same float64.
    exact = ({**row, "score": repr(float(row["score"]))} for row in rows)
    write_csv(path, [COLUMNS, *([row[name] for name in COLUMNS] for row in exact)])


def rows_of_scores(
    detector: MorphDetector,
    trained_on: str,
    degradation: str,
    images: Sequence[SuspectImage],
    scores: np.ndarray,
) -> list[dict[str, Any]]:
    """A row of the table for each image that a detector scored."""
    return [
        {
            "detector": detector.name,
            "kind": detector.kind,
            "trained_on": trained_on,
            "degradation": degradation,
            "attack": image.attack,
            "label": "morph" if image.attack else "bona_fide",
            "subject_1": image.people[0],
            "subject_2": image.people[1] if image.attack else "",
            "image": image.name,
            "score": float(score),
        }
        for image, score in zip(images, scores, strict=True)
    ]
