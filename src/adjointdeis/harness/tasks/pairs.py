"""SYN-MAD's rule recomputed: the most similar neutral pairs of each sex, by one recogniser.

    python run.py task=pairs assets=paper task.info=/data/frll/london_faces_info.csv
    python run.py task=pairs ... task.compare=data/dim_frll/morphs/dim_a    its overlap with it

The published list of 489 pairs is not public; what is are the names of published morphs, which are
a list, and the rule.  How much of a given list the rule finds again is printed.
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adjointdeis.faces.datasets.folder import DatasetError, load_folder
from adjointdeis.faces.datasets.pairs import most_similar_pairs, overlap, read_pairs, write_pairs
from adjointdeis.harness import assets
from adjointdeis.harness.assets import MINI
from adjointdeis.harness.benchmark import SOURCE, read_people
from adjointdeis.harness.selection import embedded


def run(cfg: DictConfig) -> dict[str, Any]:
    """Writes the list, and says how much of ``task.compare`` is in it."""
    task = cfg.task
    faces = MINI / "faces" if cfg.data.faces == "mini" else Path(cfg.data.faces)
    info = faces / "subjects.csv" if task.info is None else Path(task.info)
    if not info.is_file():
        raise DatasetError(
            f"{info}: no table of sexes; give task.info=.../london_faces_info.csv, or a table with "
            "subject_id and sex"
        )
    sexes = {i: person.sex for i, person in read_people(info).by_id.items()}
    dataset = load_folder(faces)
    dataset.require((SOURCE,))
    dataset.refuse_one_picture_twice()
    unknown = [i for i in dataset.ids if i not in sexes]
    if unknown:
        raise DatasetError(f"{info}: no row for the subjects {', '.join(unknown)}")
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    system = assets.recogniser(task.recogniser, profile)
    embeddings = embedded(system, dataset, SOURCE)
    groups = [sexes[i] for i in dataset.ids]
    pairs = most_similar_pairs(embeddings, dataset.ids, groups, system, task.per_sex)
    write_pairs(Path(task.destination), pairs)
    result: dict[str, Any] = {"pairs": len(pairs), "recogniser": system.name}
    print(f"{len(pairs)} pairs by {system.label} in {task.destination}")
    if task.compare is not None:
        listed = read_pairs(Path(task.compare))
        # Several captures of two people are one pair of people.
        shared, total = overlap(listed, pairs)
        result |= {"shared": shared, "listed": total}
        print(f"{shared} of the {total} pairs of {task.compare} are among them")
    return result
