r"""Landmark morphs: two faces warped to their mean shape, triangle by triangle, and averaged.

With corresponding points :math:`p^a_k, p^b_k` and weight :math:`w`, the shape is
:math:`p_k = (1 - w) p^a_k + w p^b_k`; on each triangle of its Delaunay mesh an affine map leads
back to both sources, whose pixels are mixed with the same weight:

.. math:: m(x) = (1 - w) \, I_a(A^a_{\triangle(x)} x) + w \, I_b(A^b_{\triangle(x)} x).

Three published styles:

=============  =====================================  ===========================================
`webmorph`     189 points of a .tem template          whole frame averaged; points on hair and neck
`opencv`       68 points                              whole frame averaged; ghosts around the hair
`facemorpher`  68 points                              only their hull is averaged, then spliced into
                                                      a (warped to the mean shape), feathered;
                                                      without `splice` it stands on black
=============  =====================================  ===========================================

These re-implement the methods, not the tools: MAD22's Webmorph morphs were made by webmorph.org at
full resolution, its FaceMorpher morphs with 77 STASM points.

References:
    | WebMorph (DeBruine, 2018)
    | https://doi.org/10.5281/zenodo.1162670
    | Face Morph Using OpenCV (Mallick, 2016)
    | https://learnopencv.com/face-morph-using-opencv-cpp-python/
    | FaceMorpher (Quek, 2019)
    | https://github.com/alyssaq/face_morpher
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import distance_transform_edt, map_coordinates
from scipy.spatial import Delaunay

Variant = Literal["webmorph", "opencv", "facemorpher"]
VARIANTS: tuple[Variant, ...] = ("webmorph", "opencv", "facemorpher")

_COINCIDENT = 0.5
"""Points of the mean shape closer than this many pixels make sliver triangles; one is kept."""


@dataclass(frozen=True)
class LandmarkMorph:
    """Morphs two aligned images of equal size by their landmarks.

    Attributes:
        variant: Style, see the module. It decides what happens outside of the face; which landmarks
            belong to it is the caller's part (`points_for`).
        weight: Share of b in shape and texture; 0.5 in every published set.
        feather: Width of the blend at the seam of `facemorpher`, fraction of the frame.
        border_points: Points per side of the frame that keep the background in place.
        splice: Whether `facemorpher` puts the averaged hull into the first source, or leaves it on
            black; the other styles average the whole frame and take no notice.
    """

    variant: Variant = "webmorph"
    weight: float = 0.5
    feather: float = 0.06
    border_points: int = 4
    splice: bool = True

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"variant: expected one of {', '.join(VARIANTS)}, got {self.variant!r}"
            )
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight: expected a share in [0, 1], got {self.weight}")
        if not self.feather > 0 or self.border_points < 1:
            raise ValueError(
                f"feather={self.feather}, border_points={self.border_points}: expected more than 0 "
                "and at least 1"
            )

    @property
    def points_for(self) -> Literal["tem", "dlib68"]:
        """Which landmarks the published style uses."""
        return "tem" if self.variant == "webmorph" else "dlib68"

    def __call__(
        self,
        image_a: np.ndarray,
        image_b: np.ndarray,
        points_a: np.ndarray,
        points_b: np.ndarray,
    ) -> np.ndarray:
        """The morph of two images.

        Args:
            image_a, image_b: (H, W, 3) uint8, equal shapes.
            points_a, points_b: (K, 2) corresponding points (x, y), pixel centres at integers.
                Points outside of either frame are left out.

        Returns:
            (H, W, 3) uint8.

        Raises:
            ValueError: Shapes differ, or fewer than three points are usable.
        """
        if image_a.shape != image_b.shape or image_a.ndim != 3:
            raise ValueError(
                f"images: expected equal (H, W, 3), got {image_a.shape} and {image_b.shape}"
            )
        height, width = image_a.shape[:2]
        shape_a, shape_b = _usable(points_a, points_b, width, height, self.weight)
        border = frame_points(width, height, self.border_points)
        mean = (1 - self.weight) * shape_a + self.weight * shape_b
        mesh = Delaunay(np.concatenate([mean, border]))
        pixels = _pixel_centres(width, height)
        triangle = mesh.find_simplex(pixels)
        warped_a, warped_b = (
            _sample(image, _pull_back(mesh, triangle, pixels, np.concatenate([shape, border])))
            for image, shape in ((image_a, shape_a), (image_b, shape_b))
        )
        morph = (1 - self.weight) * warped_a + self.weight * warped_b
        if self.variant == "facemorpher":
            mask = feathered_hull(mean, width, height, self.feather * width)[..., None]
            morph = mask * morph + (1 - mask) * (warped_a if self.splice else 0.0)
        return np.clip(np.rint(morph), 0, 255).astype(np.uint8)


def frame_points(width: int, height: int, per_side: int) -> np.ndarray:
    """Points around the frame's outer edge (4 * per_side, 2), corners included.

    Args:
        width, height: Of the frame, in pixels.
        per_side: Points on each side, 1 or more.
    """
    steps = np.arange(per_side) / per_side
    x, y = steps * width - 0.5, steps * height - 0.5
    right, bottom = width - 0.5, height - 0.5
    return np.concatenate(
        [
            np.column_stack([x, np.full(per_side, -0.5)]),
            np.column_stack([np.full(per_side, right), y]),
            np.column_stack([right - 0.5 - x, np.full(per_side, bottom)]),
            np.column_stack([np.full(per_side, -0.5), bottom - 0.5 - y]),
        ]
    )


def feathered_hull(points: np.ndarray, width: int, height: int, feather: float) -> np.ndarray:
    """A mask (H, W) of the convex hull: 0 outside, smoothly 1 at `feather` pixels inside.

    Args:
        points: (K, 2), x and y in pixels.
        width, height: Of the mask, in pixels.
        feather: Width of the soft edge in pixels, 0 or more.
    """
    pixels = _pixel_centres(width, height)
    inside = (Delaunay(points).find_simplex(pixels) >= 0).reshape(height, width)
    # One ring of outside pixels, so that a hull that fills the frame still fades at its edge.
    depth = np.asarray(distance_transform_edt(np.pad(inside, 1)))[1:-1, 1:-1]
    ramp = np.clip(depth / feather, 0, 1)
    return ramp * ramp * (3 - 2 * ramp)


def _usable(
    points_a: np.ndarray, points_b: np.ndarray, width: int, height: int, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(points_a, np.float64), np.asarray(points_b, np.float64)
    if a.shape != b.shape or a.ndim != 2 or a.shape[1] != 2:
        raise ValueError(f"points: expected two equal shapes (K, 2), got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("points: a landmark is not finite")
    limit = np.array([width - 1, height - 1])
    keep = np.all((a >= 0) & (a <= limit) & (b >= 0) & (b <= limit), axis=1)
    a, b = a[keep], b[keep]
    mean = (1 - weight) * a + weight * b
    near = np.less(np.linalg.norm(mean[:, None] - mean[None], axis=-1), _COINCIDENT)
    first = ~np.tril(near, -1).any(1)
    if first.sum() < 3:
        raise ValueError(
            f"points: {int(first.sum())} of {len(keep)} landmarks lie inside both frames of "
            f"{width} x {height}; at least 3 are needed. Expected landmarks in pixels of the images"
        )
    return a[first], b[first]


def _pixel_centres(width: int, height: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.column_stack([x.ravel(), y.ravel()]).astype(np.float64)


def _pull_back(
    mesh: Delaunay, triangle: np.ndarray, pixels: np.ndarray, source: np.ndarray
) -> np.ndarray:
    """Where each pixel of the mean shape lies in a source: same barycentric coordinates."""
    transform = mesh.transform[triangle]
    partial = np.einsum("pij,pj->pi", transform[:, :2], pixels - transform[:, 2])
    barycentric = np.column_stack([partial, 1 - partial.sum(1)])
    return np.einsum("pk,pkd->pd", barycentric, source[mesh.simplices[triangle]])


def _sample(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    height, width, channels = image.shape
    rows_columns = at[:, ::-1].T
    sampled = [
        map_coordinates(image[..., c].astype(np.float64), rows_columns, order=3, mode="nearest")
        for c in range(channels)
    ]
    return np.clip(np.stack(sampled, -1).reshape(height, width, channels), 0, 255)
