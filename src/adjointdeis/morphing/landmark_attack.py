"""Landmark morphs as an attack: OpenCV, FaceMorpher and Webmorph styles, without any network.

References:
    | WebMorph (DeBruine, 2018)
    | https://doi.org/10.5281/zenodo.1162670
    | Face Morph Using OpenCV (Mallick, 2016)
    | https://learnopencv.com/face-morph-using-opencv-cpp-python/
    | FaceMorpher (Quek, 2019)
    | https://github.com/alyssaq/face_morpher
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from adjointdeis.faces.recogniser import NoFaceError
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.morphing.attack import (
    Attack,
    MorphCost,
    Morphs,
    Progress,
    Sources,
    Template,
    Workbench,
)
from adjointdeis.morphing.landmark import LandmarkMorph, Variant


@dataclass(frozen=True, kw_only=True)
class LandmarkAttack(Attack):
    """A landmark morph of every pair.

    Args:
        variant: Style, see :mod:`adjointdeis.morphing.landmark`.
        points: Landmarks: "auto" takes those of the published style ("tem" for Webmorph, else the
            68 of iBUG), "dlib68" or "tem" takes these.
        weight: Share of the second source.
        feather: Width of the seam of `facemorpher`, fraction of the frame.
        border_points: Points per side of the frame.
        splice: Whether `facemorpher` puts the face into the first source or leaves it on black.

    A pair with a source whose landmarks cannot be found is recorded as failed; the others go on.
    """

    variant: Variant = "opencv"
    points: Literal["auto", "dlib68", "tem"] = "auto"
    weight: float = 0.5
    feather: float = 0.06
    border_points: int = 4
    splice: bool = True

    resources: ClassVar[frozenset[str]] = frozenset({"landmarks"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points not in ("auto", "dlib68", "tem"):
            raise ValueError(
                f"attack {self.name}: points={self.points!r} must be auto, dlib68 or tem"
            )
        self.morph()  # raises for settings that no style has

    def _derived_label(self) -> str:
        return self.variant

    def morph(self) -> LandmarkMorph:
        """The method, without the program around it."""
        return LandmarkMorph(
            self.variant, self.weight, self.feather, self.border_points, self.splice
        )

    def begin(self, sources: Sources, bench: Workbench) -> "_Warping":
        return _Warping(self, sources, bench)


class _Warping:
    def __init__(self, attack: LandmarkAttack, sources: Sources, bench: Workbench) -> None:
        self.attack, self.sources, self.bench = attack, sources, bench

    def step(self) -> Progress:
        raise RuntimeError("a landmark morph makes no steps")

    def finish(self) -> Morphs:
        points = None if self.attack.points == "auto" else self.attack.points
        images, failed = landmark_morphs(self.attack.morph(), self.sources, self.bench, points)
        return Morphs(to_tensor(images).to(self.bench.device), MorphCost(), failed)


def landmark_morphs(
    morph: LandmarkMorph, sources: Sources, bench: Workbench, points: Template | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Landmark morphs of a batch.

    Args:
        morph: The method.
        sources: The pairs.
        bench: Where the landmarks come from.
        points: Which landmarks; None takes those of the published style.

    Returns:
        (B, H, W, 3) uint8, and why pairs have none; their image is the first source.
    """
    landmarks = bench.resource("landmarks")
    template: Template = points or morph.points_for
    images, failed = sources.images_a.copy(), {}
    for k in range(len(sources)):
        sides = (
            (sources.paths_a[k], sources.images_a[k]),
            (sources.paths_b[k], sources.images_b[k]),
        )
        try:
            at = [landmarks(path, image, template) for path, image in sides]
            images[k] = morph(sides[0][1], sides[1][1], *at)
        except NoFaceError as error:
            failed[k] = str(error)
    return images, failed
