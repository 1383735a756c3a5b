"""What a detector of morphing attacks is: an image, or an image and a live capture, to a score.

A **single-image** detector (S-MAD) sees the suspect image alone, as a person who checks an
application by post does. A **differential** one (D-MAD) also sees a trusted live capture of whoever
presents the document, as a gate at a border does. **Demorphing** is differential too: it takes the
live person out of the suspect image and looks at who is left.

Every score is higher for a morph. What is called a morph is for a threshold to say, which belongs
to the evaluation (:mod:`adjointdeis.evaluation.detection`).

References:
    | Face Morphing Attack Generation and Detection: A Comprehensive Survey (Venkatesh et al., 2021)
    | https://arxiv.org/abs/2011.02045
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np

from adjointdeis.faces.image_io import sha256_of

Kind = Literal["s_mad", "d_mad", "demorphing"]
"""What a detector sees: the suspect image; with a live capture; or it removes the live person."""
DIFFERENTIAL = ("d_mad", "demorphing")
TrainerFactory = Callable[..., Any]
"""Makes a Lightning trainer; recipes without gradient steps do not call it."""


class DetectorError(ValueError):
    """A detector cannot score what it was given, or returned what is no score."""


@dataclass(frozen=True, eq=False)
class Suspects:
    """Images of one size to be scored, and who presented them.

    Attributes:
        images: (B, H, W, 3) uint8 RGB: what lies in the document.
        names: B names, for errors and for detectors that look scores up.
        live: (B, H, W, 3) uint8 RGB, a trusted live capture of who presents it; None where there
            is none.
    """

    images: np.ndarray
    names: tuple[str, ...]
    live: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[-1] != 3 or self.images.dtype != np.uint8:
            raise DetectorError(
                f"images of shape {self.images.shape} and type {self.images.dtype}: expected "
                "(B, H, W, 3) uint8 RGB"
            )
        if len(self.names) != len(self.images):
            raise DetectorError(f"{len(self.images)} images and {len(self.names)} names")
        if self.live is not None and (
            self.live.shape != self.images.shape or self.live.dtype != np.uint8
        ):
            raise DetectorError(
                f"live captures of shape {self.live.shape} and type {self.live.dtype} for images "
                f"of shape {self.images.shape}: expected one each, of the same size, uint8 RGB"
            )

    def __len__(self) -> int:
        return len(self.images)

    def require_live(self, detector: str) -> np.ndarray:
        """The live captures.

        Raises:
            DetectorError: There are none.
        """
        if self.live is None:
            raise DetectorError(
                f"{detector} compares a suspect image with a trusted live capture, and there is "
                "none: give Suspects(images, names, live=...), or take a detector of kind s_mad"
            )
        return self.live

    def at(self, rows: Sequence[int] | np.ndarray | slice) -> "Suspects":
        """Some of them, in the order of ``rows``."""
        chosen = np.arange(len(self))[rows]
        return Suspects(
            self.images[chosen],
            tuple(self.names[k] for k in chosen),
            None if self.live is None else self.live[chosen],
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """What a detector is trained on.

    Attributes:
        suspects: Images, with live captures where a differential detector is to be trained.
        morph: (B,) bool, the label that is learnt.
        description: One line for whoever reads the scores: which attacks, how many of each.
    """

    suspects: Suspects
    morph: np.ndarray
    description: str

    def __post_init__(self) -> None:
        both = {bool(value) for value in np.unique(self.morph)}
        if len(self.morph) != len(self.suspects) or both != {False, True}:
            raise DetectorError(
                f"{len(self.suspects)} training images with {len(self.morph)} labels, "
                f"{int(np.sum(self.morph))} of them morphs: expected a label each, and some of both"
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of images and labels."""
        digest = hashlib.sha256(sha256_of(self.suspects.images).encode())
        if self.suspects.live is not None:
            digest.update(sha256_of(self.suspects.live).encode())
        digest.update(np.asarray(self.morph, bool).tobytes())
        return digest.hexdigest()


@runtime_checkable
class MorphDetector(Protocol):
    """Scores suspect images; higher is more like a morph.

    Attributes:
        name: Short name in score files.
        kind: What it sees.
        training: What it was trained on, one line; "none" where it was not.
        fingerprint: SHA-256 of its weights, or of what stands for them.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def training(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    def score(self, suspects: Suspects) -> np.ndarray:
        """(B,) finite floats, higher for a morph.

        Raises:
            DetectorError: It needs what is not there, such as live captures.
        """
        ...


class DetectorRecipe(Protocol):
    """How a detector is trained: settings, and :meth:`train`.

    Attributes:
        name: Name of the detectors it makes.
        kind: What they see.
    """

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Kind: ...

    def train(self, examples: Examples, seed: int, trainer: TrainerFactory) -> MorphDetector:
        """A detector that learnt ``examples``; the same for the same seed.

        Args:
            examples: What it learns.
            seed: Of everything random.
            trainer: Makes the Lightning trainer of a recipe that needs one.
        """
        ...

    def load(self, path: str) -> MorphDetector:
        """The detector of a file that a training left."""
        ...


def require_kind(kind: str, name: str) -> None:
    """Refuses a kind of detector that there is not.

    Raises:
        DetectorError: Naming the detector and the kinds.
    """
    if kind not in get_args(Kind):
        raise DetectorError(
            f"detector {name}: kind {kind!r} is none of {', '.join(get_args(Kind))}"
        )


def checked(scores: Any, suspects: Suspects, detector: str) -> np.ndarray:
    """Scores as (B,) float64.

    Raises:
        DetectorError: Another number of them, or one that is not finite; the image is named.
    """
    found = np.asarray(scores, dtype=np.float64)
    if found.shape != (len(suspects),):
        raise DetectorError(
            f"{detector} returned scores of shape {found.shape} for {len(suspects)} images: "
            f"expected ({len(suspects)},), one number each, higher for a morph"
        )
    wrong = [name for name, ok in zip(suspects.names, np.isfinite(found), strict=True) if not ok]
    if wrong:
        raise DetectorError(
            f"{detector} has no finite score of {len(wrong)} images, such as {wrong[0]}: leave "
            "them out, or have it score them"
        )
    return found


def score_in_batches(
    detector: MorphDetector, suspects: Suspects, batch_size: int = 256
) -> np.ndarray:
    """Scores of any number of images, checked.

    Args:
        detector: Who scores.
        suspects: What.
        batch_size: Images at a time, which bounds the memory.
    """
    parts = [suspects.at(slice(k, k + batch_size)) for k in range(0, len(suspects), batch_size)]
    if not parts:
        return np.empty(0)
    return np.concatenate([checked(detector.score(p), p, detector.name) for p in parts])
