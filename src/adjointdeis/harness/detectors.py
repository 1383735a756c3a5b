"""Detectors as a run makes them: parts from a profile, settings chosen on people of their own,
trained on every set of examples.

Settings are chosen by a rule and never by looking at the test: of a detector's candidates, each
trained on all seen attacks, the one of the lowest D-EER at its worst attack on the **validation**
people, who are neither learnt nor tested. The first of several that are equally good is taken.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from adjointdeis.detection.demorphing import Demorphing
from adjointdeis.detection.detector import (
    DetectorError,
    Examples,
    Kind,
    MorphDetector,
    Suspects,
    score_in_batches,
)
from adjointdeis.detection.linear import DifferenceDetection, LinearDetector
from adjointdeis.detection.plugged import PrecomputedScores, TorchDetector
from adjointdeis.faces.image_io import sha256_of
from adjointdeis.faces.weights import save_network
from adjointdeis.harness import assets
from adjointdeis.harness.degrading import print_speed
from adjointdeis.harness.detection_data import (
    ALL,
    GIVEN,
    SuspectImage,
    loaded,
    scores_by_attack,
    training_sets,
)
from adjointdeis.harness.trainer import make_trainer

EMBEDDED = assets.MINI / "detectors"
"""The trained detectors that the package ships, by the name of their recipe."""


def difference(
    name: str, recognisers: Sequence[str], profile: str, root: str | None = None, **settings: Any
) -> DifferenceDetection:
    """A differential detector on the embeddings of recognisers of a profile.

    Args:
        name: Of the detector.
        recognisers: Files, as ``assets.recognisers`` lists them.
        profile: Of which profile.
        root: Where its files are, as ``assets.root``.
        settings: Everything else of the recipe.

    Raises:
        AssetError: A file is missing.
    """
    files = assets.profile(profile, root)
    found = [assets.recogniser(file, files) for file in recognisers]
    return DifferenceDetection(name=name, recognisers=found, **settings)


def demorphing(
    name: str,
    autoencoder: str,
    recogniser: str,
    profile: str,
    root: str | None = None,
    **settings: Any,
) -> Demorphing:
    """Demorphing by the autoencoder of a profile.

    Args:
        name: Of the detector.
        autoencoder: File, as ``assets.autoencoder``.
        recogniser: File of the recogniser that compares.
        profile: Of which profile.
        root: Where its files are, as ``assets.root``.
        settings: Everything else of the detector.

    Raises:
        AssetError: A file is missing.
    """
    files = assets.profile(profile, root)
    return Demorphing(
        name=name,
        autoencoder=assets.autoencoder(autoencoder, files),
        recogniser=assets.recogniser(recogniser, files),
        **settings,
    )


def weights_of(name: str, choice: str) -> str:
    """The file of a trained detector.

    Args:
        name: Of the detector.
        choice: A path, or ``mini`` for those that the package ships.

    Raises:
        AssetError: The package ships none of this name.
    """
    if choice != "mini":
        return choice
    files = EMBEDDED.iterdir()
    shipped = {path.stem: path for path in files if path.suffix in (".npz", ".safetensors")}
    if name not in shipped:
        raise assets.AssetError(
            f"task.weights.{name}=mini: the package ships {', '.join(sorted(shipped))}; name a "
            "file, or leave it out to train"
        )
    return str(shipped[name])


@dataclass(frozen=True)
class Candidate:
    """One way to make a detector.

    Attributes:
        settings: What it sets otherwise than the configuration of the detector; empty for that one.
        recipe: A recipe, or a detector that is not trained here.
    """

    settings: Mapping[str, Any]
    recipe: Any


@dataclass(frozen=True, eq=False)
class OfFolds:
    """Of every image the score of that detector which has seen none of its people.

    Args:
        members: A detector for each fold, trained on the people of the other folds.
        fold: Fold of every image by its name.
    """

    members: Sequence[MorphDetector]
    fold: Mapping[str, int]

    @property
    def name(self) -> str:
        return self.members[0].name

    @property
    def kind(self) -> Kind:
        return self.members[0].kind

    @property
    def training(self) -> str:
        """Of each fold."""
        return "; ".join(f"fold {k}: {m.training}" for k, m in enumerate(self.members))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of those of the folds."""
        return sha256_of("\n".join(member.fingerprint for member in self.members).encode())

    def score(self, suspects: Suspects) -> np.ndarray:
        folds, found = np.array([self.fold[n] for n in suspects.names]), np.empty(len(suspects))
        for k in np.unique(folds):
            rows = np.flatnonzero(folds == k)
            found[rows] = score_in_batches(self.members[k], suspects.at(rows))
        return found


def candidates_of(task: DictConfig) -> dict[str, list[Candidate]]:
    """The ways to make each detector of a task, by its name: of ``candidates``, or as it is set.

    Raises:
        DetectorError: No detector, two of one name, weights of none, candidates of one that is not
            trained here, or a setting that it does not have.
    """
    found: dict[str, list[Candidate]] = {}
    for key, node in task.detectors.items():
        if not node:
            continue
        settings = OmegaConf.to_container(node, resolve=True)
        assert isinstance(settings, dict)
        options = settings.pop("candidates", None)
        where = f"task.detectors.{key}.candidates"
        if options is not None and not (
            isinstance(options, list) and options and all(isinstance(o, dict) for o in options)
        ):
            raise DetectorError(f"{where}: expected a list such as [{{cells: 4}}, {{cells: 8}}]")
        for name in (name for option in options or () for name in option):
            if name not in settings:
                known = ", ".join(map(str, settings))
                raise DetectorError(f"{where}: {name} is no setting of it; it has {known}")
        # Of a detector that is loaded, or without people to compare them on, nothing is chosen.
        chosen_here = task.validation and settings.get("name") not in task.weights
        tried = options if options and chosen_here else [{}]
        made = [Candidate(o, instantiate(OmegaConf.merge(settings, o))) for o in tried]
        name = made[0].recipe.name
        if name in found:
            raise DetectorError(
                f"task.detectors: two are called {name}; name one of them otherwise"
            )
        if options and not hasattr(made[0].recipe, "train"):
            raise DetectorError(
                f"{where}: it is not trained here, and nothing of it can be chosen; {where}=null"
            )
        found[name] = made
    if not found:
        raise DetectorError("task.detectors: none; expected at least one")
    if strange := [name for name in task.weights if name not in found]:
        raise DetectorError(
            f"task.weights names {strange[0]}; the detectors are {', '.join(found)}"
        )
    return found


def choose(
    cfg: DictConfig,
    candidates: Mapping[str, Sequence[Candidate]],
    learnt: Sequence[SuspectImage],
    validation: Sequence[SuspectImage],
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Of every detector the candidate that is best on the validation people.

    Args:
        cfg: The whole configuration.
        candidates: Of each detector.
        learnt: Images that candidates learn.
        validation: Images of other people, on which they are compared.

    Returns:
        The recipe of each detector; and of each that runs here what was tried: settings, d_eer,
        the attack where it is that high, n_morph and n_bonafide, and whether it was taken.
    """
    rows, labels, words = training_sets(cfg.task, learnt)[ALL]
    examples = Examples(loaded([learnt[k] for k in rows]), labels, words)
    held, recipes, tried = loaded(validation), {}, {}
    for name, options in candidates.items():
        recipes[name] = options[0].recipe
        if isinstance(recipes[name], PrecomputedScores):
            continue
        started, found = time.perf_counter(), []
        for option in options:
            detector = given(cfg, option.recipe) or _trained(cfg, option.recipe, examples)
            row = _worst_d_eer(validation, score_in_batches(detector, held))
            found.append({"settings": dict(option.settings), **row, "taken": False})
        at = int(np.argmin([row["d_eer"] for row in found]))
        recipes[name], found[at]["taken"], tried[name] = options[at].recipe, True, found
        shown = len(options) * (len(examples.suspects) + len(held))
        print_speed(f"{name}, {len(options)} candidates", shown, time.perf_counter() - started)
    return recipes, tried


def _worst_d_eer(images: Sequence[SuspectImage], scores: np.ndarray) -> dict[str, Any]:
    """The D-EER of scored images at their worst attack, with that attack and how many there are."""
    found = scores_by_attack([image.attack for image in images], scores)
    (d_eer, attack) = max((found.d_eer(name)[0], name) for name in found.attacks)
    sizes = {"n_morph": len(found.attacks[attack]), "n_bonafide": len(found.bona_fide)}
    return {"d_eer": d_eer, "attack": attack, **sizes}


def train(
    cfg: DictConfig, recipes: Mapping[str, Any], images: Sequence[SuspectImage], folder: Path
) -> list[tuple[str, MorphDetector]]:
    """Every detector on every set of examples: what it was trained on, and it.

    Args:
        cfg: The whole configuration.
        recipes: By the detectors' names.
        images: What they learn.
        folder: Where trained detectors are left.
    """
    everything, sets = loaded(images), training_sets(cfg.task, images)
    found: list[tuple[str, MorphDetector]] = []
    for name, recipe in recipes.items():
        if (ready := given(cfg, recipe)) is not None:
            found.append((GIVEN, ready))
            continue
        started = time.perf_counter()
        for trained_on, (rows, labels, words) in sets.items():
            detector = _trained(cfg, recipe, Examples(everything.at(rows), labels, words))
            save(detector, folder / name / trained_on.replace(":", "_"))
            found.append((trained_on, detector))
        shown = sum(len(rows) for rows, _, _ in sets.values())
        print_speed(f"{name}, {len(sets)} trainings", shown, time.perf_counter() - started)
    return found


def train_folds(
    cfg: DictConfig, recipes: Mapping[str, Any], images: Sequence[SuspectImage],
    fold: Mapping[str, int], folder: Path,
) -> list[tuple[str, MorphDetector]]:  # fmt: skip
    """As :func:`train`, on the test's own people: of each image by those who have not seen them.

    Args:
        cfg, recipes, images, folder: As there; ``images`` are those of the test.
        fold: Fold of every image by its name.
    """
    members: dict[tuple[str, str], list[MorphDetector]] = {}
    for k in range(cfg.task.folds):
        others = [image for image in images if fold[image.name] != k]
        for trained_on, detector in train(cfg, recipes, others, folder / f"fold{k}"):
            members.setdefault((trained_on, detector.name), []).append(detector)
    return [
        (trained_on, own[0] if trained_on == GIVEN else OfFolds(own, fold))
        for (trained_on, _), own in members.items()
    ]


def given(cfg: DictConfig, recipe: Any) -> MorphDetector | None:
    """The detector that needs no training here: untrained, or of ``task.weights``; else None."""
    if not hasattr(recipe, "train"):
        return recipe
    weights = cfg.task.weights.get(recipe.name)
    return None if weights is None else recipe.load(weights_of(recipe.name, weights))


def _trained(cfg: DictConfig, recipe: Any, examples: Examples) -> MorphDetector:
    return recipe.train(examples, cfg.seed or 0, partial(make_trainer, cfg))


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
