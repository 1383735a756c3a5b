"""Pairs of people and the autoencoders that never saw them: one workbench for every fold."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from adjointdeis.faces.datasets.folder import FaceDataset
from adjointdeis.faces.datasets.pairs import PairListError
from adjointdeis.faces.recognisers.network import Guides
from adjointdeis.faces.weights import WeightsError, read_header
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import Benchmark
from adjointdeis.harness.resources import Loading, make_workbench
from adjointdeis.morphing.attack import Attack, Workbench

_OF_A_FOLD = ("autoencoder", "encoder")
"""Resources that each fold has of its own; the others are shared."""


def workbenches(
    cfg: DictConfig, profile: assets.Profile, dataset: FaceDataset, attacks: Sequence[Attack]
) -> dict[str, Workbench]:
    """A workbench for each file in ``assets.autoencoder``: one, or one for every fold of people.

    Args:
        cfg: The whole configuration.
        profile: Where the files are.
        dataset: The faces of the run.
        attacks: What the workbenches have to hold resources for.
    """
    wanted = cfg.assets.autoencoder
    files: list[Any] = [wanted] if isinstance(wanted, str) or wanted is None else list(wanted)
    if not files:
        raise ValueError("assets.autoencoder is an empty list; name a file, or those of the folds")
    benches: dict[str, Workbench] = {}
    shared: dict[str, Any] = {}
    for file in files:
        own = OmegaConf.merge(cfg, {"assets": {"autoencoder": file}})
        assert isinstance(own, DictConfig)
        benches[file] = make_workbench(Loading(own, profile, dataset, dict(shared)), attacks)
        resources = benches[file].resources
        if "autoencoder" not in resources:
            break
        shared = {name: item for name, item in resources.items() if name not in _OF_A_FOLD}
    return benches


def _held_out(file: str) -> frozenset[str]:
    """People that the training of a weight file of your own left out.

    Raises:
        WeightsError: The file does not say.
    """
    header = read_header(file) if Path(file).is_file() else {}
    people = header.get("training", {}).get("held_out")
    if not people:
        raise WeightsError(
            f"{file} does not say whom its training left out; a list of autoencoders is of folds: "
            "the weights.safetensors of `python run.py -m task=train/photographs task.fold=0,1,2`"
        )
    return frozenset(people)


def in_folds(
    benchmark: Benchmark, benches: Mapping[str, Workbench]
) -> list[tuple[Workbench, Benchmark]]:
    """The pairs that each workbench makes: all, or those whose people its autoencoder never saw.

    Raises:
        PairListError: A pair of people that no autoencoder left out of its training.
    """
    if len(benches) == 1:
        ((file, bench),) = benches.items()
        if "autoencoder" in bench.resources:
            _refuse_seen(file, benchmark)
        return [(bench, benchmark)]
    left, parts = list(benchmark.pairs), []
    for file, bench in benches.items():
        people = _held_out(file)
        mine = tuple(pair for pair in left if pair.subjects <= people)
        left = [pair for pair in left if pair not in mine]
        if mine:
            parts.append((bench, replace(benchmark, pairs=mine)))
    if left:
        raise PairListError(
            f"{len(left)} pairs, such as {left[0].image_a} + {left[0].image_b}, are of people whom "
            "every autoencoder of assets.autoencoder was trained on, or of two folds: pairs must "
            "lie within one fold"
        )
    return parts


def _refuse_seen(file: str, benchmark: Benchmark) -> None:
    """Raises where one autoencoder of a fold is to morph people that it was trained on."""
    header = read_header(file) if Path(file).is_file() else {}
    people = frozenset(header.get("training", {}).get("held_out") or ())
    seen = [pair for pair in benchmark.pairs if people and not pair.subjects <= people]
    if seen:
        raise PairListError(
            f"{file} was trained on people of {len(seen)} pairs, such as {seen[0].image_a} + "
            f"{seen[0].image_b}: name the autoencoders of all folds in assets.autoencoder, or "
            "leave those pairs out"
        )


def guided_by(attack: Attack, bench: Workbench) -> dict[str, str]:
    """Recognisers that an attack sees the gradient or the loss of: fingerprint by name."""
    if "identity" not in attack.resources:
        return {}
    guides = bench.resource("identity")
    members = guides.members if isinstance(guides, Guides) else (guides,)
    return {member.name: member.fingerprint for member in members}


def made_of(benches: Mapping[str, Workbench]) -> dict[str, dict[str, str]]:
    """Fingerprint and licence of every network; autoencoders of folds are numbered."""
    found: dict[str, Any] = {}
    for k, bench in enumerate(benches.values()):
        for name, item in bench.resources.items():
            several = name in _OF_A_FOLD and len(benches) > 1
            found[f"{name} of fold {k}" if several else name] = item
    return {
        name: {"fingerprint": item.fingerprint, "licence": item.licence}
        for name, item in found.items()
        if hasattr(item, "fingerprint")
    }
