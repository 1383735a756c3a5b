"""The experiment on photographs of people: from the downloaded set to the table, in one run.

    python run.py +experiment=frll/table1 data.root=/data/frll

1. Faces are aligned to the generator's size.
2. The generator is adapted once per fold of people, to the people of the other folds; or
   ``task.adapt=false`` takes ``assets.autoencoder``, a list of folds or one file.
3. Pairs are chosen: look-alikes of one sex within a fold, ranked by a recogniser that neither
   guides nor judges, without pairs whom some recogniser confuses before any morphing.
4. Morphs are made, judged and reported as in every other run (:mod:`.morph`).
5. With ``task.detection`` detectors of morphs look at them
   (:mod:`adjointdeis.harness.tasks.detection`), such as those that learnt from synthetic people,
   and others that learn from the people of the other folds.

Everything is kept in the run's folder and is taken up again by the same command. It holds pictures
of people and weights made from them: the folder is ignored by git, and stays where it is.
"""

import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adjointdeis.evaluation import read_scores
from adjointdeis.evaluation.outside_pair import decisions_outside_pair
from adjointdeis.faces.datasets.folder import DatasetError, FaceDataset, load_folder
from adjointdeis.faces.datasets.pairs import read_pairs, write_pairs
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.weights import fingerprint
from adjointdeis.files import read_record, write_csv
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import OTHER, SOURCE
from adjointdeis.harness.packages import fetch_command
from adjointdeis.harness.records import write_record
from adjointdeis.harness.resources import workbenches
from adjointdeis.harness.selection import bona_fide, select_pairs
from adjointdeis.harness.tasks import align, detection, morph, train
from adjointdeis.harness.tasks.assets import UNUSABLE
from adjointdeis.harness.trainer import OtherTraining
from adjointdeis.harness.training.data import held_out
from adjointdeis.reporting import write_report

DRY_RUN = True
REUSED = ("faces", "fold*", "pairs.*", *detection.REUSED)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Runs what is not done yet, and returns the result of the table."""
    directory, task = Path(cfg.paths.run), cfg.task
    source = align.photographs(cfg)
    profile = assets.profile(cfg.assets.name, cfg.assets.root)
    missing: list[str] = []
    guides = _available(_names(cfg.assets.identity), profile, missing) or ["dlib"]
    judged = _available(_names(cfg.assets.recognisers), profile, missing)
    selector = (
        None if task.pairs else _available(_names(task.selectors), profile, missing, first=True)[0]
    )
    if selector in judged:
        judged.remove(selector)
        missing.append(f"{selector} ranks the pairs, and therefore does not judge")
    if selector is not None:
        missing += _check_selector(cfg, selector, guides, judged, profile)
    for line in dict.fromkeys(missing):
        print(line)
    if cfg.dry_run:
        return _dry_run(cfg, source, profile, guides)
    source.refuse_one_picture_twice()
    faces = aligned(cfg, source, Path(task.faces or directory / "faces"))
    folds = _folds(cfg, faces)
    weights = [adapted(cfg, faces, k, directory) for k in folds] if task.adapt else None
    sub = _changed(cfg, task={"_target_": "adjointdeis.harness.tasks.morph.run", "name": cfg.name})
    sub.assets.recognisers, sub.assets.identity = judged, guides
    sub.data = {
        "faces": str(faces.root),
        "pairs": str(task.pairs or directory / "pairs.csv"),
        "limit": cfg.data.get("limit"),
        "originals": str(cfg.data.root) if task.originals else None,
    }
    if weights is not None:
        sub.assets.autoencoder = weights if len(weights) > 1 else weights[0]
    plan = None
    if task.detection is not None:
        # What a detector takes from the profile is what is there of it.
        there = OmegaConf.merge(cfg, {"assets": {"recognisers": judged or ["dlib"]}})
        wanted = OmegaConf.to_container(there.task.detection, resolve=True)
        plan = detection.planned(_changed(sub, task=wanted))
    groups = {subject.id: subject.gender or "" for subject in source.subjects}
    if selector is None:
        facts = {"rule": f"the list {task.pairs}"}
    else:
        facts = _choose_pairs(cfg, faces, profile, judged, selector, folds, groups, directory)
    result = morph.run(sub, plots=False)
    if result:
        scores = read_scores(directory / "scores.csv")
        result["run"] |= {
            "pairs": facts,
            "missing": list(dict.fromkeys(missing)),
            "outside_pair": decisions_outside_pair(scores, float(cfg.protocol.fmr[0])),
        }
        write_record(directory / "result.json", result)
        if plan is None:
            write_report(directory)
        else:
            detection.examined(plan, result)
    return result


def _dry_run(
    cfg: DictConfig, source: FaceDataset, profile: assets.Profile, guides: list[str]
) -> dict[str, Any]:
    """What the morphs of a run that begins with nothing will cost; no photograph is read."""
    task, attacks = cfg.task, morph.chosen_attacks(cfg)
    people = _folds(cfg, source)
    if task.pairs:
        pairs = len(read_pairs(task.pairs))
    else:
        sexes = {subject.gender for subject in source.subjects}
        pairs = task.pairs_per_group * len(sexes) * len(people)
    pairs = min(pairs, cfg.data.get("limit") or pairs)
    own = _changed(cfg)
    own.assets.identity = guides
    bench = next(iter(workbenches(own, profile, source, attacks).values()))
    priced = morph.priced(own, bench, attacks, {attack.name: pairs for attack in attacks})
    beside = f"aligning {2 * len(source.subjects)} photographs"
    if task.adapt:
        beside += f", adapting {len(people)} generators ({task.training.steps} steps each)"
    if task.detection is not None:
        beside += ", the detectors"
    print(
        f"Not in these hours: {beside}, choosing the pairs (at most {pairs}). Morphs that the run "
        "has made already are counted as well."
    )
    return priced


def _available(
    names: list[str], profile: assets.Profile, missing: list[str], first: bool = False
) -> list[str]:
    """The recognisers that can be loaded; of the others, ``missing`` gets a line with the command.

    Args:
        names: Keys, files or descriptions, as :func:`assets.recogniser` takes them.
        profile: Where they are.
        missing: Gets a line for each that is not there.
        first: Stop at the first that is there.
    """
    found = []
    for name in names:
        try:
            assets.recogniser(name, profile)
        except UNUSABLE as error:
            entry = profile.manifest.get(name)
            if entry is None:
                raise  # a file of the user's own, which no package would bring
            how = fetch_command(entry, profile.root)
            missing.append(f"without {name} ({error.__class__.__name__}: {error}); {how}")
            continue
        found.append(name)
        if first:
            break
    return found


def _check_selector(
    cfg: DictConfig, selector: str, guides: list[str], judged: list[str], profile: assets.Profile
) -> list[str]:
    """A line for the report where who ranks the pairs judges their morphs as well.

    Raises:
        ValueError: It guides them.
    """
    own = assets.recogniser(selector, profile).fingerprint
    guided = any("identity" in attack.resources for attack in morph.chosen_attacks(cfg))
    if guided and own in [assets.recogniser(name, profile).fingerprint for name in guides]:
        raise ValueError(
            f"{selector} ranks the pairs and would guide their morphs too (assets.identity): rank "
            "by another one, task.selectors=[...]"
        )
    if own in [judge.fingerprint for judge in morph.judges_of(cfg, judged, profile)]:
        return [f"{selector} ranks the pairs and judges their morphs: attacks look better by it"]
    return []


def aligned(cfg: DictConfig, source: FaceDataset, folder: Path) -> FaceDataset:
    """The aligned faces, made where they are not there yet, and the people's sexes beside them.

    Args:
        cfg: The whole configuration.
        source: The photographs.
        folder: Where the aligned faces go, unless `task.faces` names some.
    """
    wanted = {f"{s.id}_{c}" for s in source.subjects for c in (SOURCE, OTHER)}
    there = {path.stem for path in folder.glob("*.png")} if folder.is_dir() else set()
    if cfg.task.faces is None:
        settings = {key: cfg.task[key] for key in ("size", "transform_size", "detection_side")}
        made_of, record = settings | {"data_set": source.fingerprint}, folder / "aligned.json"
        if read_record(record) != made_of or wanted - there:
            # Faces of other photographs or settings look just like these.
            shutil.rmtree(folder, ignore_errors=True)
            align.run(_changed(cfg, task={"destination": str(folder), **settings}))
            write_record(record, made_of)
    elif wanted - there:
        raise DatasetError(
            f"task.faces={folder}: {len(wanted - there)} faces of {source.root} are missing, "
            f"such as {min(wanted - there)}.png; task.faces=null aligns them"
        )
    about = [(s.id, s.gender, s.ethnicity, s.age) for s in source.subjects]
    write_csv(folder / "subjects.csv", [("subject_id", "sex", "group", "age"), *about])
    return load_folder(folder, source.name)


def _folds(cfg: DictConfig, faces: FaceDataset) -> dict[int, tuple[str, ...]]:
    """People of each fold that is used; all in one where nothing is trained."""
    task = cfg.task
    if task.folds is None:
        if task.adapt:
            raise ValueError(
                "task.folds=null makes pairs of everybody, and task.adapt=true trains on people: "
                "a generator must not have seen whom it morphs; give task.folds=3, or "
                "task.adapt=false"
            )
        return {0: tuple(sorted(faces.ids))}
    numbers = range(task.folds) if task.use_folds is None else task.use_folds
    return {int(k): held_out(faces.ids, int(k), task.folds) for k in numbers}


def adapted(cfg: DictConfig, faces: FaceDataset, fold: int, directory: Path) -> str:
    """The generator's weights of a fold, trained where they are not there yet.

    Args:
        cfg: The whole configuration.
        faces: Aligned faces of everybody.
        fold: Number of the fold whose people the generator must not see.
        directory: Of the run.
    """
    folder = directory / f"fold{fold}"
    settings = OmegaConf.to_container(cfg.task.training, resolve=True)
    assert isinstance(settings, dict)
    settings |= {"faces": str(faces.root), "fold": fold, "folds": cfg.task.folds}
    path, record = folder / "weights.safetensors", train.whole_record(folder)
    if record is None and path.is_file():
        print(f"{path}: not the weights that {train.RECORD} beside it tells of: made again")
    if record is None or record["recipe"] != settings:
        print(f"fold {fold}: the generator is adapted to the people of the other folds")
    sub = _changed(cfg, task=settings)
    sub.paths.run = str(folder)
    try:
        train.autoencoder(sub, free=train.NO_EFFECT)
    except OtherTraining:
        # Nobody asked for that one by name: it belongs to earlier settings of this run.
        shutil.rmtree(folder)
        train.autoencoder(sub)
    return str(path)


def _choose_pairs(
    cfg: DictConfig,
    faces: FaceDataset,
    profile: assets.Profile,
    judged: list[str],
    selector: str,
    folds: dict[int, tuple[str, ...]],
    groups: dict[str, str],
    directory: Path,
) -> dict[str, Any]:
    """Writes ``pairs.csv``, and what it was made of, unless that is what is there."""
    task, fmr = cfg.task, float(cfg.protocol.fmr[0])
    ranking = assets.recogniser(selector, profile)
    systems: dict[str, Recogniser] = {
        judge.name: judge for judge in morph.judges_of(cfg, judged, profile)
    }
    systems[ranking.name] = ranking
    made_of: dict[str, Any] = {
        "selector": ranking.name,
        "recognisers": {name: system.fingerprint for name, system in systems.items()},
        "data_set": faces.fingerprint,
        "folds": {str(k): list(people) for k, people in folds.items()},
        "of": task.folds,
        "per_group": task.pairs_per_group,
        "most_per_person": task.most_per_person,
        "fmr": fmr,
    }
    record = directory / "pairs.json"
    if (directory / "pairs.csv").is_file():
        facts = read_record(record) or {}
        # The list could have been cut short or changed since: it is what the record says it is.
        sha256 = fingerprint(directory / "pairs.csv")
        if (facts.get("made_of"), facts.get("sha256")) == (made_of, sha256):
            return facts
    found = {name: bona_fide(system, faces, fmr) for name, system in systems.items()}
    pairs, confused = select_pairs(
        faces,
        systems,
        found,
        ranking.name,
        list(folds.values()),
        task.pairs_per_group,
        task.most_per_person,
        groups,
    )
    write_pairs(directory / "pairs.csv", pairs)
    facts = {
        "made_of": made_of,
        "sha256": fingerprint(directory / "pairs.csv"),
        "count": len(pairs),
        "people": len({person for pair in pairs for person in pair.subjects}),
        "rule": f"the {task.pairs_per_group} most similar neutral pairs of each sex of each fold "
        f"by {ranking.name}, a person in at most {task.most_per_person}, without false matches",
        "false_matches": confused,
        "fnmr": {name: of.fnmr for name, of in found.items()},
        "threshold": {name: of.threshold for name, of in found.items()},
    }
    write_record(record, facts)
    return facts


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


def _changed(cfg: DictConfig, **sections: Any) -> DictConfig:
    """A copy of the configuration with sections replaced."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return OmegaConf.create(plain | sections)
