"""What attacks work with: how each resource is loaded, identified, moved to a device and timed.

An attack lists the names of its resources; a run loads those that some attack lists, once each. A
new resource is one entry of :data:`RESOURCES`, and its file in ``conf/assets``. Where autoencoders
are those of folds of people, every fold has a workbench of its own, and makes the pairs of people
whom its autoencoder never saw.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from adjointdeis.faces.datasets.folder import FaceDataset
from adjointdeis.faces.datasets.pairs import PairListError
from adjointdeis.faces.recognisers.network import Guides
from adjointdeis.faces.weights import WeightsError, read_header
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import Benchmark
from adjointdeis.harness.dry_run import UnitTimes, time_autoencoder, time_identity
from adjointdeis.harness.encodings import Encodings
from adjointdeis.harness.landmarks import BenchmarkLandmarks
from adjointdeis.morphing.attack import Attack, Workbench
from adjointdeis.plugins import plugins


@dataclass(frozen=True, eq=False)
class Loading:
    """Where resources are loaded from; each is loaded once.

    Args:
        cfg: The whole configuration.
        profile: Files of the profile.
        dataset: The faces of the run.
    """

    cfg: DictConfig
    profile: assets.Profile
    dataset: FaceDataset
    loaded: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str) -> Any:
        """The resource of a name.

        Raises:
            ValueError: There is none of that name.
        """
        if name not in self.loaded:
            self.loaded[name] = resource(name).load(self)
        return self.loaded[name]


@dataclass(frozen=True, eq=False)
class Resource:
    """One kind of thing that attacks work with.

    Attributes:
        load: Loads it.
        identity: What of it a morph depends on, by name: a changed value makes the morph again.
        modules: Its networks, which are moved to the device.
        times: Seconds of its evaluations on a device, by counter of a cost; None where a dry run
            has nothing to time.
    """

    load: Callable[[Loading], Any]
    identity: Callable[[Any], dict[str, str]] = lambda _: {}
    modules: Callable[[Any], tuple[nn.Module, ...]] = lambda _: ()
    times: Callable[[Any, Workbench, int], UnitTimes] | None = None


def _autoencoder(loading: Loading) -> Any:
    cfg = loading.cfg
    loaded = assets.autoencoder(cfg.assets.autoencoder, loading.profile)
    return replace(loaded, execution=instantiate(cfg.execution))


def _autoencoder_identity(autoencoder: Any) -> dict[str, str]:
    found = {"autoencoder": autoencoder.fingerprint}
    if not autoencoder.execution.plain:
        found["execution"] = repr(autoencoder.execution)
    return found


RESOURCES: dict[str, Resource] = {
    "autoencoder": Resource(
        load=_autoencoder,
        identity=_autoencoder_identity,
        modules=lambda autoencoder: (autoencoder.network,),
        times=time_autoencoder,
    ),
    # Its encodings, kept on disk.
    "encoder": Resource(
        load=lambda loading: Encodings(
            loading("autoencoder"), Path(loading.cfg.paths.data) / "encodings"
        ),
    ),
    "identity": Resource(
        load=lambda loading: assets.guides(loading.cfg.assets.identity, loading.profile),
        identity=lambda guides: {"identity": guides.fingerprint},
        modules=lambda guides: (guides.network,),
        times=time_identity,
    ),
    "generator": Resource(
        load=lambda loading: assets.style_generator(
            loading.cfg.assets.generator, loading.cfg.assets.perceptual, loading.profile
        ),
        identity=lambda generator: {
            "generator": generator.fingerprint,
            "perceptual": generator.maps_fingerprint,
            "perceptual_weight": str(generator.perceptual_weight),
        },
        modules=lambda generator: (generator.network, generator.maps_network),
    ),
    "landmarks": Resource(load=lambda loading: BenchmarkLandmarks(loading.dataset)),
}


def resource(name: str) -> Resource:
    """The resource of a name: ours, or one of an installed package (entry point
    ``adjointdeis.resources``).

    Raises:
        ValueError: There is none.
    """
    known = {**plugins("resources"), **RESOURCES}
    if name not in known:
        raise ValueError(
            f"an attack works with {name!r}, which is no resource; known are {', '.join(known)}"
        )
    return known[name]


def make_workbench(loading: Loading, attacks: Iterable[Attack]) -> Workbench:
    """Every resource that some attack lists; a profile may lack what none does."""
    for attack in attacks:
        for name in sorted(attack.resources):
            loading(name)
    cfg = loading.cfg
    return Workbench(
        torch.device("cpu"),
        dict(loading.loaded),
        cfg.seed or 0,
        cfg.optimisation.measure_gradient,
    )


def identity_of(attack: Attack, bench: Workbench) -> dict[str, str]:
    """What of its resources, and of its own files, an attack's morphs depend on."""
    found = dict(attack.fingerprints())
    for name in sorted(attack.resources):
        found |= resource(name).identity(bench.resource(name))
    return found


def modules_of(bench: Workbench) -> list[nn.Module]:
    """Networks of all resources."""
    return [
        module
        for name, loaded in bench.resources.items()
        for module in resource(name).modules(loaded)
    ]


def times_of(bench: Workbench, batch: int) -> dict[str, UnitTimes]:
    """Seconds of the evaluations of every resource that can be timed, by its name.

    Args:
        bench: Resources, and the device.
        batch: Pairs at a time.
    """
    return {
        name: times(loaded, bench, batch)
        for name, loaded in bench.resources.items()
        if (times := resource(name).times) is not None
    }


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
    """People that the training of a weight file of your own left out; nobody if it does not say."""
    header = read_header(file) if Path(file).is_file() else {}
    return frozenset(header.get("training", {}).get("held_out") or ())


def in_folds(
    benchmark: Benchmark, benches: Mapping[str, Workbench]
) -> list[tuple[Workbench, Benchmark]]:
    """The pairs that each workbench makes: all, or those whose people its autoencoder never saw.

    Raises:
        WeightsError: A file of several does not say whom its training left out.
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
        if not people:
            raise WeightsError(
                f"{file} does not say whom its training left out; a list of autoencoders is of "
                "folds: the weights.safetensors of `python run.py -m task=train/photographs "
                "task.fold=0,1,2`"
            )
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
    people = _held_out(file)
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
