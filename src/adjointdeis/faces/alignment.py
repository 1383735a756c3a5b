r"""Alignment of faces: the FFHQ crop from 68 landmarks, and the ArcFace 5-point similarity.

A verification threshold belongs to one alignment. Each alignment therefore has a label that travels
with every score:

===================  ==========================================================================
`ffhq-256`           FFHQ crop of 256 x 256, what diffusion autoencoders are trained on
`ffhq-resize112`     the same crop resized to 112 x 112, what the paper feeds its recognisers
`arcface-5pt`        similarity transform of five points to ArcFace's 112 x 112 template
`dlib-chip150`       similarity transform of dlib's five points to its 150 x 150 chip, made by dlib
===================  ==========================================================================

Coordinates are (x, y) in pixels with pixel *centres* at integers, as landmark detectors give them.

References:
    | A Style-Based Generator Architecture for GANs, appendix C (Karras et al., 2019)
    | https://arxiv.org/abs/1812.04948
    | Least-squares estimation of transformation parameters between two point patterns
      (Umeyama, 1991)
    | https://doi.org/10.1109/34.88573
    | ArcFace: Additive Angular Margin Loss for Deep Face Recognition (Deng et al., 2019)
    | https://arxiv.org/abs/1801.07698
"""

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from adjointdeis.faces.image_io import require_rgb

FFHQ_256 = "ffhq-256"
FFHQ_RESIZE112 = "ffhq-resize112"
ARCFACE_5PT = "arcface-5pt"
DLIB_CHIP = "dlib-chip150"

ARCFACE_TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
"""Left eye, right eye, nose tip, left and right mouth corner (of the viewer) at 112 x 112."""


def ffhq_quad(landmarks: np.ndarray) -> np.ndarray:
    r"""Corners of the oriented square that FFHQ crops around a face.

    With eye centres :math:`e_l, e_r` (means of points 36-41 and 42-47), their midpoint :math:`e`,
    and the mean :math:`m` of the mouth corners 48 and 54,

    .. math::
        x \propto (e_r - e_l) - R(m - e), \quad
        |x| = \max(2 |e_r - e_l|, 1.8 |m - e|), \quad
        c = e + 0.1 (m - e),

    where :math:`R` is a quarter turn, so that eyes and mouth vote on the roll; y is x turned by a
    quarter, and the corners are :math:`c \mp x \mp y`.

    Args:
        landmarks: (68, 2) points in iBUG-68 order.

    Returns:
        (4, 2) corners: top left, bottom left, bottom right, top right.

    Raises:
        ValueError: The shape is not (68, 2), or the points are degenerate or not finite.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    if points.shape != (68, 2):
        raise ValueError(f"landmarks: expected shape (68, 2) in iBUG order, got {points.shape}")
    eye_left, eye_right = points[36:42].mean(0), points[42:48].mean(0)
    eyes, mouth = (eye_left + eye_right) / 2, (points[48] + points[54]) / 2
    eye_to_eye, eye_to_mouth = eye_right - eye_left, mouth - eyes
    x = eye_to_eye + np.array([eye_to_mouth[1], -eye_to_mouth[0]])
    length = np.hypot(*x)
    if not np.isfinite(length) or length == 0:
        raise ValueError("landmarks: eyes and mouth coincide or are not finite; no crop exists")
    x *= max(2.0 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth)) / length
    y = np.array([-x[1], x[0]])
    centre = eyes + 0.1 * eye_to_mouth
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


def quad_to_square(points: np.ndarray, quad: np.ndarray, size: int) -> np.ndarray:
    """Points of the photograph as points of the aligned square.

    Args:
        points: (..., 2) in pixels of the photograph.
        quad: (4, 2) from `ffhq_quad`.
        size: Side of the aligned image in pixels.

    Returns:
        (..., 2) in pixels of the aligned image. Exact up to the fraction of a pixel by which the
        recipe's intermediate resize rounds the image size.
    """
    right, down = quad[3] - quad[0], quad[1] - quad[0]
    basis = np.stack([right, down], axis=1)
    local = np.linalg.solve(basis, (np.asarray(points, np.float64) - quad[0])[..., None])[..., 0]
    return local * size - 0.5


def align_ffhq(
    image: np.ndarray, landmarks: np.ndarray, size: int = 256, transform_size: int = 4096
) -> np.ndarray:
    """The FFHQ crop of a face: shrink, crop, reflect-pad with blur, warp the quad, resize.

    Args:
        image: (H, W, 3) uint8.
        landmarks: (68, 2) in pixels of `image`.
        size: Output side; 256 is `ffhq-256`.
        transform_size: Side of the intermediate warp; 4096 is the official recipe, 1024 is ten
            times faster and differs by 0.1 grey levels on average over FRLL.

    Returns:
        (size, size, 3) uint8.

    Raises:
        ValueError: Wrong image type, or landmarks from which no crop can be made.
    """
    require_rgb(image)
    quad = ffhq_quad(landmarks)
    side = np.hypot(*(quad[3] - quad[0]))
    picture = Image.fromarray(image)

    shrink = int(side / size * 0.5)
    if shrink > 1:
        # A plain bilinear warp would alias; half the resolution of the target is kept in reserve.
        smaller = (round(picture.width / shrink), round(picture.height / shrink))
        picture = picture.resize(smaller, Image.Resampling.LANCZOS)
        quad, side = quad / shrink, side / shrink

    border = max(int(np.rint(side * 0.1)), 3)
    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    extent = np.array(picture.size)
    crop_low, crop_high = np.maximum(low - border, 0), np.minimum(high + border, extent)
    if np.any(crop_high <= crop_low):
        raise ValueError("landmarks: the face lies outside of the image")
    if np.any(crop_high - crop_low < extent):
        picture = picture.crop((*crop_low.tolist(), *crop_high.tolist()))
        quad = quad - crop_low

    low, high = np.floor(quad.min(0)).astype(int), np.ceil(quad.max(0)).astype(int)
    before = np.maximum(border - low, 0)
    after = np.maximum(high - np.array(picture.size) + border, 0)
    if max(before.max(), after.max()) > border - 4:
        reach = int(np.rint(side * 0.3))
        before, after = np.maximum(before, reach), np.maximum(after, reach)
        picture = Image.fromarray(_reflect_and_fade(np.asarray(picture), before, after, side))
        quad = quad + before

    warped = picture.transform(
        (transform_size, transform_size),
        Image.Transform.QUAD,
        tuple((quad + 0.5).ravel().tolist()),
        Image.Resampling.BILINEAR,
    )
    if transform_size != size:
        warped = warped.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(warped)


def _reflect_and_fade(
    image: np.ndarray, before: np.ndarray, after: np.ndarray, side: float
) -> np.ndarray:
    """Mirrors the image beyond its border; blurs the mirror image and fades it to the median."""
    widths = ((before[1], after[1]), (before[0], after[0]), (0, 0))
    padded = np.pad(image.astype(np.float32), widths, mode="reflect")
    height, width = padded.shape[:2]

    def outward(length: int, first: int, last: int) -> np.ndarray:
        # 1 at the outer edge, 0 where the photograph begins, negative inside it.
        index = np.arange(length, dtype=np.float32)
        return np.maximum(1 - index / first, 1 - (length - 1 - index) / last)

    rows, columns = outward(height, before[1], after[1]), outward(width, before[0], after[0])
    mask = np.maximum(rows[:, None], columns[None, :])[..., None]
    blurred = gaussian_filter(padded, (side * 0.02, side * 0.02, 0))
    padded += (blurred - padded) * np.clip(3 * mask + 1, 0, 1)
    padded += (np.median(padded, axis=(0, 1)) - padded) * np.clip(mask, 0, 1)
    return np.clip(np.rint(padded), 0, 255).astype(np.uint8)


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    r"""Least-squares similarity (scale, rotation, translation) from one point set to another.

    Umeyama's closed form: with the covariance :math:`\Sigma = U D V^T` of the centred sets,
    :math:`R = U S V^T`, :math:`s = \operatorname{tr}(D S) / \sigma^2_{source}`, where S flips the
    last direction when a reflection would otherwise fit better.

    Args:
        source: (K, 2), K >= 2.
        target: (K, 2).

    Returns:
        (2, 3) matrix A with target ~ A[:, :2] @ source + A[:, 2].

    Raises:
        ValueError: Shapes differ, or the source points coincide or are not finite.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2:
        raise ValueError(
            f"points: expected two equal shapes (K, 2), got {source.shape}, {target.shape}"
        )
    source_mean, target_mean = source.mean(0), target.mean(0)
    centred_source, centred_target = source - source_mean, target - target_mean
    variance = (centred_source**2).sum() / len(source)
    if not np.isfinite(variance) or variance < 1e-12:
        raise ValueError("points: the landmarks coincide or are not finite; no similarity exists")
    u, d, vt = np.linalg.svd(centred_target.T @ centred_source / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    rotation = (u * sign) @ vt
    scale = (d * sign).sum() / variance
    return np.column_stack([scale * rotation, target_mean - scale * rotation @ source_mean])


def align_arcface(image: np.ndarray, five_points: np.ndarray, size: int = 112) -> np.ndarray:
    """The ArcFace crop: five points moved to the template by a similarity, black outside.

    Args:
        image: (H, W, 3) uint8.
        five_points: (5, 2), eye centres, nose tip, mouth corners; see `five_points_of_68`.
        size: Output side; the template is scaled from 112.

    Returns:
        (size, size, 3) uint8.
    """
    forward = similarity_transform(five_points, ARCFACE_TEMPLATE * (size / 112))
    linear = np.linalg.inv(forward[:, :2])
    # Pillow maps output pixel *centres* at +0.5, the points have their centres at integers.
    offset = -linear @ forward[:, 2] + 0.5 - linear @ np.array([0.5, 0.5])
    coefficients = np.column_stack([linear, offset]).ravel().tolist()
    warped = Image.fromarray(image).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.asarray(warped)


def five_points_of_68(landmarks: np.ndarray) -> np.ndarray:
    """Eye centres, nose tip and mouth corners (5, 2) from 68 landmarks (68, 2)."""
    points = np.asarray(landmarks, np.float64)
    return np.stack(
        [points[36:42].mean(0), points[42:48].mean(0), points[30], points[48], points[54]]
    )
