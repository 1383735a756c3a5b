"""Detectors whose parts are files of a profile, as a configuration names them."""

from collections.abc import Sequence
from typing import Any

from adjointdeis.detection.demorphing import Demorphing
from adjointdeis.detection.linear import DifferenceDetection
from adjointdeis.harness import assets

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
