"""What attacks work with: how each resource is loaded, identified, moved to a device and timed.

An attack lists the names of its resources; a run loads those that some attack lists, once each. A
new resource is one entry of :data:`RESOURCES`, and its file in ``conf/assets``.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from adjointdeis.faces.datasets.folder import FaceDataset
from adjointdeis.harness import assets
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
