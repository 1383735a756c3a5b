"""Landmark morphs: exact on affine warps, faithful to their weight, clear about bad points."""

import numpy as np
import pytest

from adjointdeis.morphing.landmark import (
    VARIANTS,
    LandmarkMorph,
    feathered_hull,
    frame_points,
)

SIZE = 64
WHOLE = ("webmorph", "opencv")


def grid_points(low=14.0, high=50.0, count=5):
    x, y = np.meshgrid(np.linspace(low, high, count), np.linspace(low, high, count))
    return np.column_stack([x.ravel(), y.ravel()])


def ramp(direction: str) -> np.ndarray:
    line = 20.0 + 3 * np.arange(SIZE)
    plane = np.broadcast_to(line[None, :] if direction == "x" else line[:, None], (SIZE, SIZE))
    return np.repeat(np.rint(plane)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_image_with_itself_is_itself(variant):
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    points = grid_points()
    np.testing.assert_array_equal(LandmarkMorph(variant)(image, image, points, points), image)


@pytest.mark.parametrize("variant", WHOLE)
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_without_a_warp_it_is_the_weighted_mean(variant, weight):
    a, b = np.random.default_rng(1).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    points = grid_points()
    morph = LandmarkMorph(variant, weight)(a, b, points, points)
    expected = (1 - weight) * a.astype(float) + weight * b
    assert np.abs(morph - expected).max() <= 0.51


def test_weight_zero_is_a_and_weight_one_is_b_whatever_the_landmarks():
    a, b = ramp("x"), ramp("y")
    points_a = grid_points()
    points_b = points_a + np.random.default_rng(2).normal(size=points_a.shape)
    np.testing.assert_array_equal(LandmarkMorph("opencv", 0.0)(a, b, points_a, points_b), a)
    np.testing.assert_array_equal(LandmarkMorph("opencv", 1.0)(a, b, points_a, points_b), b)


def test_swapping_the_sources_and_the_weight_changes_nothing():
    a, b = np.random.default_rng(3).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    points_a = grid_points()
    points_b = points_a + np.random.default_rng(4).normal(size=points_a.shape)
    one = LandmarkMorph("webmorph", 0.3)(a, b, points_a, points_b)
    two = LandmarkMorph("webmorph", 0.7)(b, a, points_b, points_a)
    assert np.abs(one.astype(int) - two).max() <= 1


def test_landmarks_meet_at_their_mean():
    # A dot at 20 in one image and at 40 in the other must become one dot at 30.
    y, x = np.mgrid[0:SIZE, 0:SIZE]

    def dot(centre):
        plane = 255 * np.exp(-((x - centre) ** 2 + (y - 32) ** 2) / 8)
        return np.repeat(np.rint(plane)[..., None], 3, 2).astype(np.uint8)

    around = np.array([[-5, -5], [5, -5], [5, 5], [-5, 5], [0, 0]], dtype=float)
    morph = LandmarkMorph("opencv")(
        dot(20), dot(40), around + np.array([20, 32]), around + np.array([40, 32])
    )
    row = morph[32, :, 0]
    assert row.argmax() == 30 and row.max() > 240
    assert row[20] < 30 and row[40] < 30


def test_a_warp_is_affine_on_each_triangle():
    # A linear ramp stays linear under an affine map: bilinear or cubic, nothing is to be lost.
    a = ramp("x")
    points_a, points_b = grid_points(20, 44), grid_points(16, 48)
    morph = LandmarkMorph("opencv")(a, a, points_a, points_b)
    inside = morph[32, 20:45, 0].astype(float)
    second = np.diff(inside, 2)
    assert np.abs(second).max() <= 1.01


def test_facemorpher_leaves_everything_outside_of_the_hull_to_a():
    a = np.full((SIZE, SIZE, 3), 40, dtype=np.uint8)
    b = np.full((SIZE, SIZE, 3), 200, dtype=np.uint8)
    points = grid_points()
    morph = LandmarkMorph("facemorpher", feather=0.05)(a, b, points, points)
    assert (morph[:13] == 40).all() and (morph[:, 52:] == 40).all()
    assert (morph[30:34, 30:34] == 120).all()


def test_the_feather_rises_from_zero_outside_to_one_inside():
    mask = feathered_hull(grid_points(), SIZE, SIZE, 6.0)
    assert mask[10, 32] == 0 and mask[32, 32] == 1
    rise = mask[12:26, 32]
    assert (np.diff(rise) >= 0).all() and 0 < rise[4] < 1


def test_frame_points_are_on_the_frame_and_all_different():
    points = frame_points(40, 30, 4)
    on_x = np.isin(points[:, 0], (-0.5, 39.5))
    on_y = np.isin(points[:, 1], (-0.5, 29.5))
    assert len(np.unique(points, axis=0)) == 16
    assert (on_x | on_y).all() and (on_x & on_y).sum() == 4


def test_points_outside_of_the_frame_and_doubles_are_left_out():
    a, b = ramp("x"), ramp("y")
    points = grid_points()
    more = np.concatenate([points, points[:3], [[-30.0, 5.0], [300.0, 20.0]]])
    morph = LandmarkMorph("opencv")
    np.testing.assert_array_equal(morph(a, b, points, points), morph(a, b, more, more))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "poisson"}, "webmorph, opencv, facemorpher"),
        ({"weight": 1.5}, "weight"),
        ({"feather": 0.0}, "feather"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        LandmarkMorph(**change)


def test_bad_input_is_refused():
    morph, image = LandmarkMorph("opencv"), ramp("x")
    with pytest.raises(ValueError, match="equal"):
        morph(image, image[:32], grid_points(), grid_points())
    with pytest.raises(ValueError, match="equal shapes"):
        morph(image, image, grid_points(), grid_points()[:5])
    with pytest.raises(ValueError, match="pixels of the images"):
        morph(image, image, grid_points() * 30, grid_points() * 30)
    with pytest.raises(ValueError, match="finite"):
        morph(image, image, grid_points() * np.nan, grid_points())
