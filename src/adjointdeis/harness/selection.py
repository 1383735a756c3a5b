"""Pairs of a data set of photographs: look-alikes by one recogniser whom no recogniser confuses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from adjointdeis.evaluation.thresholds import threshold_at_fmr
from adjointdeis.faces.datasets.folder import FaceDataset
from adjointdeis.faces.datasets.pairs import MorphPair, most_similar_pairs
from adjointdeis.faces.recogniser import Recogniser, require_faces
from adjointdeis.harness.benchmark import OTHER, SOURCE, read_aligned


@dataclass(frozen=True, eq=False)
class BonaFide:
    """What one recogniser makes of everybody's two photographs.

    Attributes:
        neutral, smiling: Embeddings (N, D).
        similarity: (N, N), every neutral photograph against every smiling one.
        threshold: Of the target FMR, over all pairs of different people.
        fnmr: Share of people whose two photographs do not match at it.
    """

    neutral: np.ndarray
    smiling: np.ndarray
    similarity: np.ndarray
    threshold: float
    fnmr: float


def embedded(system: Recogniser, dataset: FaceDataset, capture: str) -> np.ndarray:
    """Embeddings (N, D) of everybody's image of a capture.

    Raises:
        NoFaceError: The recogniser finds no face in some image; all are named.
        ValueError: Images that cannot be read, or are of several sizes.
    """
    paths = [subject.images[capture] for subject in dataset.subjects]
    found, acquired = system.embed(read_aligned(paths, None))
    require_faces(acquired, [path.name for path in paths], system.name)
    return found


def bona_fide(system: Recogniser, dataset: FaceDataset, fmr: float) -> BonaFide:
    """Compares every neutral photograph with every smiling one, and finds the threshold at an FMR.

    Args:
        system: The recogniser.
        dataset: Photographs of people in both captures.
        fmr: Target false match rate, a share; the impostors are the data set's own people.

    Raises:
        NoFaceError: The recogniser finds no face in some photograph; all are named.
        ValueError: Photographs that cannot be read, or are of several sizes.
    """
    neutral, smiling = (embedded(system, dataset, capture) for capture in (SOURCE, OTHER))
    similarity = np.asarray(system.compare(neutral[:, None], smiling[None]))
    others = ~np.eye(len(neutral), dtype=bool)
    threshold = threshold_at_fmr(similarity[others], fmr).value
    fnmr = float((np.diag(similarity) <= threshold).mean())
    return BonaFide(neutral, smiling, similarity, threshold, fnmr)


def false_matches(system: Recogniser, found: BonaFide, ids: Sequence[str]) -> set[frozenset[str]]:
    """Pairs of people who are taken for each other without a morph: two of their photographs match.

    Args:
        system: The recogniser.
        found: What :func:`bona_fide` found with it.
        ids: The people, in the order of the data set.
    """
    among = np.asarray(system.compare(found.neutral[:, None], found.neutral[None]))
    cross = np.maximum(found.similarity, found.similarity.T)
    closest = np.maximum(among, cross)
    return {
        frozenset((ids[i], ids[j]))
        for i, j in combinations(range(len(ids)), 2)
        if closest[i, j] > found.threshold
    }


def select_pairs(
    dataset: FaceDataset,
    systems: Mapping[str, Recogniser],
    found: Mapping[str, BonaFide],
    selector: str,
    folds: Sequence[Sequence[str]],
    per_group: int,
    most_per_person: int | None,
    groups: Mapping[str, str],
) -> tuple[list[MorphPair], dict[str, int]]:
    """The most similar pairs of each group of each fold, and the false matches of each recogniser.

    Pairs of all groups and folds take turns, most similar first, so that the head of the list is a
    sample of the whole.

    Args:
        dataset: The people.
        systems: Recognisers by name, the selector among them.
        found: What each one makes of everybody.
        selector: Name of the recogniser whose similarity ranks the pairs.
        folds: People of each fold; a pair lies within one.
        per_group: Pairs of each group of each fold.
        most_per_person: Pairs that one person may be in.
        groups: Group of each person; pairs never cross groups.
    """
    ids = list(dataset.ids)
    confused = {name: false_matches(systems[name], found[name], ids) for name in systems}
    excluded = set().union(*confused.values())
    columns = []
    for people in folds:
        rows = [ids.index(person) for person in people]
        chosen = most_similar_pairs(
            found[selector].neutral[rows],
            list(people),
            [groups[person] for person in people],
            systems[selector],
            per_group,
            excluded,
            most_per_person,
        )
        for group in sorted({pair.group for pair in chosen}):
            columns.append([pair for pair in chosen if pair.group == group])
    pairs = [pair for row in zip(*columns, strict=True) for pair in row]
    return pairs, {name: len(pairs_of) for name, pairs_of in confused.items()}
