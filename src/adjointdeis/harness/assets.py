"""Assets of a profile: network weights, thresholds, faces; found, checked and loaded.

A profile is a folder with a ``manifest.json`` that lists its files with their SHA-256. The profile
``mini`` ships inside the package; ``paper`` is a folder that the user fills; ``real`` lists real
recognisers that packages ship, and takes every other file from ``mini``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import adjointdeis
from adjointdeis.evaluation import ThresholdRecord, read_thresholds
from adjointdeis.faces.dlib_resnet import dlib_port
from adjointdeis.faces.networks import VGG16, DiffAE, IResNet, StyleGAN2
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.graph_file import GraphSpec, graph_recogniser
from adjointdeis.faces.recognisers.network import Guides, NetworkRecogniser
from adjointdeis.faces.weights import WeightsError, fingerprint, load_network, read_header
from adjointdeis.files import read_json
from adjointdeis.harness.option_values import shown
from adjointdeis.harness.packages import obtain, read_spec
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.perceptual import TrunkMaps
from adjointdeis.morphing.style_generator import StyleGenerator

# Features of a recogniser's trunk have unit scale; the weight makes their loss as large as that of
# structure, as the published weight does for VGG16's.
TRUNK_WEIGHT = 0.2
FROZEN_THRESHOLDS = "thresholds.json"
MINI = Path(adjointdeis.__file__).parent / "assets" / "mini"
REAL = MINI.parent / "real" / "manifest.json"


class AssetError(RuntimeError):
    """An asset is missing or is not what the manifest says."""


@dataclass(frozen=True)
class Profile:
    """Files of one profile.

    Args:
        name: "mini", "paper" or "real".
        root: Folder of the files; the package's own for ``mini``.
        remedy: What to do about a missing or damaged file.
        listing: The manifest; ``root/manifest.json`` if None.
        behind: Profile of the files that this one does not list, if any.
    """

    name: str
    root: Path
    remedy: str
    listing: Path | None = None
    behind: "Profile | None" = None

    @cached_property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """Entry per file name: sha256, kind, licence, and what loading needs."""
        path = self.listing or self.root / "manifest.json"
        if not path.is_file():
            raise AssetError(f"{path} is missing; {self.remedy}")
        try:
            files = read_json(path)["files"]
            for name, entry in files.items():
                # Of a graph in several files it is one each.
                if not isinstance(entry.get("sha256", ""), str | dict | None):
                    raise TypeError(f"the SHA-256 of {name} is no text")
            return files
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AssetError(f"{path} is not a manifest ({error}); {self.remedy}") from error

    def lists(self, name: str) -> bool:
        """Whether this profile, or the one behind it, lists a file."""
        return name in self.manifest or (self.behind is not None and self.behind.lists(name))

    def entry(self, name: str) -> dict[str, Any]:
        """Manifest entry of a file."""
        return self.holder(name).manifest[name]

    def holder(self, name: str) -> "Profile":
        """This profile, or the one behind it, whichever lists a file.

        Raises:
            AssetError: Neither does.
        """
        if name in self.manifest:
            return self
        if self.behind is not None and self.lists(name):
            return self.behind.holder(name)
        raise AssetError(
            f"{self.listing or self.root / 'manifest.json'} has no entry for {name}; it lists "
            f"{', '.join(sorted(self.manifest))}"
        )

    def path(self, name: str) -> Path:
        """Path of a file, checked against the manifest.

        Raises:
            AssetError: The file is missing or its SHA-256 differs.
        """
        holder = self.holder(name)
        if holder is not self:
            return holder.path(name)
        path, expected = self.root / name, self.entry(name)["sha256"]
        if not path.is_file():
            raise AssetError(f"{path} is missing; {self.remedy}")
        if (found := fingerprint(path)) != expected:
            raise AssetError(
                f"{path} has SHA-256 {found[:16]}..., the manifest says {expected[:16]}...: it was "
                f"altered or cut short; {self.remedy}"
            )
        return path


def profile(name: str = "mini", root: str | None = None) -> Profile:
    """The profile of a name; ``root`` overrides where its files are."""
    if name == "mini":
        remedy = "restore it with `git checkout -- src/adjointdeis/assets/mini`"
        return Profile(name, Path(root) if root else MINI, remedy)
    if name == "real":
        remedy = "run `python run.py task=assets assets=real` for how to fetch it"
        return Profile(name, Path(root or "data/real"), remedy, REAL, profile("mini"))
    remedy = "run `python run.py task=assets assets=paper` for what it is and where it comes from"
    return Profile(name, Path(root or "data/paper"), remedy)


def autoencoder(file: str, profile: Profile) -> Autoencoder:
    """A diffusion autoencoder, frozen.

    Args:
        file: A file that the profile lists, or the path of weights of your own, as
            ``task=train/autoencoder`` leaves them (``weights.safetensors``).
        profile: Where listed files are.

    Raises:
        AssetError, WeightsError: There is no such file; it is damaged or another network.
    """
    path = Path(file)
    listed = path.name == file and (profile.lists(file) or not path.is_file())
    if listed:
        entry, network = profile.entry(file), _load(profile, file)
        prediction, spread = entry["prediction"], entry.get("spread", 0.0)
        sha256, licence = entry["sha256"], entry["licence"]
    else:
        remedy = "give the path of the weights.safetensors of a training"
        network = load_network(path, remedy=remedy).requires_grad_(False)
        prediction, spread = _trained(path)
        sha256, licence = fingerprint(path), "your own weights"
    if not isinstance(network, DiffAE):
        held = profile.root / file if listed else path
        raise WeightsError(f"{held} holds a {type(network).__name__}, not a DiffAE")
    return Autoencoder(network, prediction, sha256, licence, spread=spread)


def _trained(path: Path) -> tuple[Any, float]:
    """What a training's weights predict, and their spread, as its header says."""
    training = read_header(path).get("training", {})
    recipe = training.get("recipe", {}) if isinstance(training, dict) else None
    if isinstance(recipe, dict):
        # Trainings before there was a choice predicted v, and did not say so.
        prediction, spread = recipe.get("prediction", "v"), recipe.get("spread", 0.0)
        if isinstance(prediction, str) and isinstance(spread, int | float):
            return prediction, spread
    raise WeightsError(
        f"weight file {path}: its header says training={shown(training)}, expected a recipe whose "
        "prediction is a text and whose spread is a number; train it again, or restore the file"
    )


def recogniser(file: str, profile: Profile) -> NetworkRecogniser:
    """A torch recogniser, frozen.

    Args:
        file: A file or key that the profile lists, or the path of a JSON file that describes a
            recogniser of your own in the graph file beside it, with the keys of
            :class:`adjointdeis.faces.recognisers.graph_file.GraphSpec`.
        profile: Where listed files are.

    Raises:
        AssetError, WeightsError, GraphError, PackageError: A file is missing or is not what its
            description says.
    """
    if file.endswith(".json"):
        path = Path(file)
        name, entry = read_spec(path)
        return graph_recogniser(GraphSpec.from_mapping(name, entry), path.parent)
    if not profile.lists(file) and Path(file).exists():
        raise AssetError(
            f"{file}: a recogniser of your own is named by the JSON file that describes it, beside "
            "the network (docs/recognisers.md); an ONNX file that only judges, by "
            "judges=onnx judges.onnx.file=..."
        )
    entry = profile.entry(file)
    if entry.get("kind") == "dlib":
        return dlib_port()
    if entry.get("kind") == "graph":
        folder = obtain(file, entry, profile.root)
        return graph_recogniser(GraphSpec.from_mapping(file, entry), folder)
    return NetworkRecogniser(
        name=entry["name"],
        label=entry["label"],
        network=_load(profile, file),
        crop=FaceCrop(**entry["crop"]),
        fingerprint=entry["sha256"],
        licence=entry["licence"],
    )


def guides(files: str | Sequence[str], profile: Profile) -> NetworkRecogniser | Guides:
    """The recognisers of the identity loss: one, or several whose losses are averaged."""
    names = [files] if isinstance(files, str) else list(files)
    if not names:
        raise AssetError("assets.identity is an empty list; name at least one recogniser")
    found = tuple(recogniser(name, profile) for name in names)
    return found[0] if len(found) == 1 else Guides(found)


def style_generator(file: str | None, features: str, profile: Profile) -> StyleGenerator:
    """A StyleGAN2 and the features of its perceptual loss, frozen.

    Args:
        file: The generator's file: of the profile, or a path; None where the profile has none.
        features: A VGG16's file of the profile, or an IResNet recogniser's for want of one.
        profile: Where they are.

    Raises:
        AssetError: There is no generator: the profile ``mini`` has none.
        WeightsError: A file holds another network.
    """
    if file is None:
        raise AssetError(
            f"MIPGAN draws with a StyleGAN2, and the profile {profile.name} has none: the budget "
            "of its networks buys blurred blobs, which say nothing of MIPGAN. Leave its rows out "
            "(~rows.mipgan_i ~rows.mipgan_ii), read published morphs "
            "(+attack@rows.mipgan_ii=paper/mipgan_ii), or bring a generator of faces: "
            "assets.generator=<stylegan2.safetensors>, converted by `python run.py task=assets "
            "assets=paper`"
        )
    listed = profile.lists(file)
    path = profile.path(file) if listed else Path(file)
    network = load_network(path, remedy="name it in assets.generator").requires_grad_(False)
    behind = _load(profile, features)
    if not isinstance(network, StyleGAN2):
        raise WeightsError(f"{path} holds a {type(network).__name__}, not a StyleGAN2")
    if isinstance(behind, VGG16):
        maps, weight = behind, 0.0002  # the published weight
    elif isinstance(behind, IResNet):
        maps, weight = TrunkMaps(behind), TRUNK_WEIGHT
    else:
        raise WeightsError(
            f"{profile.root / features} holds a {type(behind).__name__}; the perceptual loss takes "
            "a VGG16 or an IResNet"
        )
    own = {"sha256": fingerprint(path), "licence": "the user's"}
    entry = profile.entry(file) if listed else own
    return StyleGenerator(
        network=network,
        maps=maps,
        maps_network=behind,
        perceptual_weight=weight,
        fingerprint=entry["sha256"],
        maps_fingerprint=profile.entry(features)["sha256"],
        licence=entry["licence"],
    )


def thresholds(file: str, profile: Profile) -> list[ThresholdRecord]:
    """Threshold records of a profile."""
    return read_thresholds(profile.path(file))


def _load(profile: Profile, file: str):
    path = profile.path(file)
    return load_network(path, remedy=profile.remedy).requires_grad_(False)
