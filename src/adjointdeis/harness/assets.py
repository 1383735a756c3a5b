"""Assets of a profile: network weights, thresholds, faces; found, checked and loaded.

A profile is a folder with a ``manifest.json`` that lists its files with their SHA-256. The profile
``mini`` ships inside the package; ``paper`` is a folder that the user fills.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import adjointdeis
from adjointdeis.evaluation import ThresholdRecord, read_thresholds
from adjointdeis.faces.networks import VGG16, DiffAE, IResNet, StyleGAN2
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.faces.weights import WeightsError, fingerprint, load_network
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.perceptual import TrunkMaps
from adjointdeis.morphing.style_generator import StyleGenerator

# Features of a recogniser's trunk have unit scale; the weight makes their loss as large as that of
# structure, as the published weight does for VGG16's.
TRUNK_WEIGHT = 0.2
FROZEN_THRESHOLDS = "thresholds.json"
MINI = Path(adjointdeis.__file__).parent / "assets" / "mini"


class AssetError(RuntimeError):
    """An asset is missing or is not what the manifest says."""


@dataclass(frozen=True)
class Profile:
    """Files of one profile.

    Args:
        name: "mini" or "paper".
        root: Folder with ``manifest.json``; the package's own for ``mini``.
        remedy: What to do about a missing or damaged file.
    """

    name: str
    root: Path
    remedy: str

    @cached_property
    def manifest(self) -> dict[str, dict[str, Any]]:
        """Entry per file name: sha256, kind, licence, and what loading needs."""
        path = self.root / "manifest.json"
        if not path.is_file():
            raise AssetError(f"{path} is missing; {self.remedy}")
        try:
            return json.loads(path.read_text())["files"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise AssetError(f"{path} is not a manifest ({error}); {self.remedy}") from error

    def entry(self, name: str) -> dict[str, Any]:
        """Manifest entry of a file."""
        if name not in self.manifest:
            raise AssetError(
                f"{self.root / 'manifest.json'} has no entry for {name}; it lists "
                f"{', '.join(sorted(self.manifest))}"
            )
        return self.manifest[name]

    def path(self, name: str) -> Path:
        """Path of a file, checked against the manifest.

        Raises:
            AssetError: The file is missing or its SHA-256 differs.
        """
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
    remedy = "run `python run.py task=assets` for what it is and where it comes from"
    return Profile(name, Path(root or "data/paper"), remedy)


def autoencoder(file: str, profile: Profile) -> Autoencoder:
    """The diffusion autoencoder of a profile, frozen."""
    entry = profile.entry(file)
    network = _load(profile, file)
    if not isinstance(network, DiffAE):
        raise WeightsError(f"{profile.root / file} holds a {type(network).__name__}, not a DiffAE")
    return Autoencoder(
        network,
        entry["prediction"],
        entry["sha256"],
        entry["licence"],
        spread=entry.get("spread", 0.0),
    )


def recogniser(file: str, profile: Profile) -> NetworkRecogniser:
    """A torch recogniser of a profile, frozen."""
    entry = profile.entry(file)
    return NetworkRecogniser(
        name=entry["name"],
        label=entry["label"],
        network=_load(profile, file),
        crop=FaceCrop(**entry["crop"]),
        fingerprint=entry["sha256"],
        licence=entry["licence"],
    )


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
            "of its networks buys blurred blobs, which say nothing of MIPGAN. Leave its rows out, "
            "read published morphs (attack=paper/mipgan_ii), or bring a generator of faces: "
            "assets.generator=<stylegan2.safetensors>, converted by `python run.py task=assets "
            "assets=paper` or trained by `python run.py task=train/generator`"
        )
    listed = file in profile.manifest
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
