"""The FFHQ crop and the ArcFace similarity, against their own geometry and against insightface."""

import numpy as np
import pytest

from adjointdeis.faces.alignment import (
    ARCFACE_TEMPLATE,
    align_arcface,
    align_ffhq,
    ffhq_quad,
    five_points_of_68,
    quad_to_square,
    similarity_transform,
)


def schematic_landmarks(scale: float = 1.0, angle: float = 0.0, centre=(200.0, 210.0)):
    """68 points of which only eyes, nose tip and mouth corners make a face."""
    points = np.zeros((68, 2))
    points[:, 0] = np.linspace(-60, 60, 68)
    points[36:42] = np.array([-30.0, -20.0]) + 4 * np.eye(2)[[0, 0, 1, 1, 0, 1]] - 2
    points[42:48] = points[36:42] + np.array([60.0, 0.0])
    points[30] = (0.0, 5.0)
    points[48], points[54] = (-22.0, 35.0), (22.0, 35.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return scale * points @ turn.T + np.array(centre)


def smooth_values(x: np.ndarray, y: np.ndarray, wave: float = 1.0) -> np.ndarray:
    x, y = x / wave, y / wave
    return np.stack(
        [128 + 90 * np.sin(x / 37 + k) * np.cos(y / (29 + 5 * k)) for k in range(3)], -1
    )


def smooth_image(height: int, width: int, wave: float = 1.0) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.rint(smooth_values(x, y, wave)).astype(np.uint8)


@pytest.mark.parametrize("angle", [0.0, 0.3, -0.7])
def test_the_quad_is_a_square_that_turns_with_the_face(angle):
    quad = ffhq_quad(schematic_landmarks(1.7, angle))
    sides = np.roll(quad, -1, axis=0) - quad
    np.testing.assert_allclose(np.linalg.norm(sides, axis=1), np.linalg.norm(sides[0]), rtol=1e-12)
    assert abs(sides[0] @ sides[1]) < 1e-9
    right = quad[3] - quad[0]
    assert np.arctan2(right[1], right[0]) == pytest.approx(angle, abs=1e-12)


def test_the_quad_by_hand():
    # Eyes 60 apart and level, mouth 55 below their midpoint: |x| = max(2 * 60, 1.8 * 55) = 120.
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = (70, 100), (130, 100)
    points[48], points[54] = (80, 155), (120, 155)
    centre = np.array([100.0, 105.5])
    expected = centre + 120 * np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]])
    np.testing.assert_allclose(ffhq_quad(points), expected, atol=1e-12)


def test_a_long_face_is_measured_by_its_mouth():
    points = np.zeros((68, 2))
    points[36:42], points[42:48] = (90, 100), (110, 100)
    points[48], points[54] = (95, 200), (105, 200)
    quad = ffhq_quad(points)
    assert np.linalg.norm(quad[3] - quad[0]) == pytest.approx(2 * 1.8 * 100)


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("scale", [0.8, 2.0, 6.0])
def test_every_pixel_of_the_crop_is_where_quad_to_square_says(size, scale):
    # At scale 6 the recipe shrinks first, which moves everything by a fraction of a pixel.
    side = int(400 * max(scale, 1.0))
    landmarks = schematic_landmarks(scale, 0.2, (side / 2, side / 2))
    aligned = align_ffhq(smooth_image(side, side, scale), landmarks, size, transform_size=512)
    assert aligned.shape == (size, size, 3)
    y, x = np.mgrid[0:size, 0:size]
    u, v = (x[..., None] + 0.5) / size, (y[..., None] + 0.5) / size
    quad = ffhq_quad(landmarks)
    photo = quad[0] + u * (quad[3] - quad[0]) + v * (quad[1] - quad[0])
    back = quad_to_square(photo, quad, size)
    np.testing.assert_allclose(back, np.stack([x, y], -1), atol=1e-9)
    expected = smooth_values(photo[..., 0], photo[..., 1], scale)
    middle = slice(size // 4, 3 * size // 4)
    assert np.abs(aligned - expected)[middle, middle].mean() < 1.5


def test_quad_to_square_maps_corners_to_pixel_edges():
    quad = ffhq_quad(schematic_landmarks(1.3, 0.4))
    corners = quad_to_square(quad, quad, 256)
    expected = np.array([[0, 0], [0, 256], [256, 256], [256, 0]]) - 0.5
    np.testing.assert_allclose(corners, expected, atol=1e-9)


def test_a_face_at_the_border_is_padded_by_reflection_not_black():
    image = np.full((240, 240, 3), 180, dtype=np.uint8)
    aligned = align_ffhq(image, schematic_landmarks(1.0, 0.0, (60, 60)), 64, 256)
    assert aligned.min() >= 178 and aligned.max() <= 182


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        (np.zeros((5, 2)), r"\(68, 2\)"),
        (np.full((68, 2), 7.0), "coincide"),
        (np.full((68, 2), np.nan), "not finite"),
    ],
)
def test_impossible_landmarks_are_refused(landmarks, message):
    with pytest.raises(ValueError, match=message):
        ffhq_quad(landmarks)


def test_a_face_outside_of_the_image_is_refused():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="outside"):
        align_ffhq(image, schematic_landmarks(0.2, 0.0, (900, 900)), 64, 128)


def test_a_float_image_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        align_ffhq(np.zeros((100, 100, 3)), schematic_landmarks())


def test_similarity_recovers_a_known_transform():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(5, 2))
    angle, scale = 0.8, 2.3
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity_transform(source, source @ linear.T + [3.0, -4.0])
    np.testing.assert_allclose(found, np.column_stack([linear, [3.0, -4.0]]), atol=1e-12)


def test_similarity_never_mirrors():
    source = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])
    found = similarity_transform(source, source * [-1.0, 1.0])
    assert np.linalg.det(found[:, :2]) > 0


def test_similarity_is_least_squares():
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(2, 5, 2))
    best = similarity_transform(source, target)

    def error(a, b, tx, ty):
        moved = source @ np.array([[a, b], [-b, a]]) + [tx, ty]
        return ((moved - target) ** 2).sum()

    parameters = np.array([best[0, 0], best[1, 0], best[0, 2], best[1, 2]])
    least = error(*parameters)
    for step in np.concatenate([np.eye(4), -np.eye(4)]) * 1e-3:
        assert error(*(parameters + step)) > least


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_similarity_equals_insightface():
    face_align = pytest.importorskip("insightface.utils.face_align")
    rng = np.random.default_rng(3)
    for _ in range(5):
        points = ARCFACE_TEMPLATE * rng.uniform(1, 5) + rng.normal(size=(5, 2)) * 4
        expected = face_align.estimate_norm(points.astype(np.float64), 112)
        found = similarity_transform(points, ARCFACE_TEMPLATE)
        np.testing.assert_allclose(found, np.asarray(expected)[:2], rtol=1e-5, atol=1e-5)


def test_coinciding_points_are_refused():
    with pytest.raises(ValueError, match="coincide"):
        similarity_transform(np.ones((5, 2)), ARCFACE_TEMPLATE)


def test_align_arcface_is_the_identity_on_the_template():
    image = smooth_image(112, 112)
    difference = align_arcface(image, ARCFACE_TEMPLATE).astype(int) - image
    assert np.abs(difference).max() <= 1  # Pillow truncates where rounding errs by 1e-15


def test_align_arcface_doubles_the_template():
    image = smooth_image(224, 224)
    # Pixel centres: a point p of the small image is 2 p + 0.5 in the large one.
    aligned = align_arcface(image, ARCFACE_TEMPLATE * 2 + 0.5)
    expected = image.reshape(112, 2, 112, 2, 3).mean((1, 3))
    assert np.abs(aligned - expected).max() <= 2


def test_five_points_of_68():
    points = schematic_landmarks()
    five = five_points_of_68(points)
    np.testing.assert_allclose(five[0], points[36:42].mean(0))
    np.testing.assert_allclose(five[2:], points[[30, 48, 54]])
