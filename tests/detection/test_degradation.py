"""Degradations: the sizes and tones that they promise; what is random is drawn by image name."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_profile import ROOT

from adjointdeis.detection import (
    Degradation,
    DegradationError,
    Degradations,
    Jpeg,
    Jpeg2000,
    PrintScan,
    Resize,
)
from adjointdeis.detection.print_scan import _blurred

NOTHING = {
    "halftone": 0.0, "blur": 0.0, "rotation": 0.0, "scale": 0.0, "shift": 0.0, "black": 0.0,
    "white": 1.0, "gamma": 1.0, "gamma_spread": 0.0, "noise": 0.0, "oversampling": 1,
}  # fmt: skip
EVERY = [
    Jpeg(), Jpeg2000(), Resize(), PrintScan(), Degradations((PrintScan(), Jpeg2000(side=96))),
]  # fmt: skip


def faces(count: int = 3, size: int = 64) -> np.ndarray:
    paths = sorted((ROOT / "src/adjointdeis/assets/mini/faces").glob("*_03.png"))[:count]
    images = [Image.open(p).convert("RGB").resize((size, size)) for p in paths]
    return np.stack([np.array(image) for image in images])


NAMES = ("001_03.png", "002_03.png", "003_03.png")


@pytest.mark.parametrize("degradation", EVERY, ids=lambda d: d.name)
def test_what_is_random_depends_on_the_name_alone(degradation: Degradation) -> None:
    images = faces()
    before = images.copy()
    together = degradation(images, NAMES)
    assert (images == before).all()
    assert together.shape == images.shape and together.dtype == np.uint8
    assert (together != images).any()
    turned = degradation(images[::-1], NAMES[::-1])[::-1]
    alone = np.concatenate([degradation(images[k : k + 1], NAMES[k : k + 1]) for k in range(3)])
    assert (turned == together).all() and (alone == together).all()
    assert degradation(images[:0], ()).shape == (0, 64, 64, 3)


def test_another_name_or_seed_gives_another_print() -> None:
    image = np.repeat(faces(1), 2, axis=0)
    one, other = PrintScan()(image, ("a", "b"))
    assert (one != other).any()
    assert (PrintScan(seed=1)(image[:1], ("a",))[0] != one).any()
    # A second print of the same image is no repetition of the first one's draws.
    assert (PrintScan(name="again")(image[:1], ("a",))[0] != one).any()


def test_a_print_scan_that_does_nothing_is_the_image() -> None:
    images = faces()
    assert (PrintScan(**NOTHING)(images, NAMES) == images).all()


def test_tones_are_those_of_the_formula() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (1, 256, 256, 3)[1:])
    model = PrintScan(**{**NOTHING, "black": 0.1, "white": 0.9, "gamma": 2.0})
    tones = model(np.ascontiguousarray(ramp)[None], ("ramp",))[0, 0, :, 0]
    wanted = np.rint(255 * (0.1 + 0.8 * (np.arange(256) / 255) ** 2))
    np.testing.assert_array_equal(tones, wanted)


def test_noise_and_moves_are_as_large_as_they_say() -> None:
    grey = np.full((1, 128, 128, 3), 128, np.uint8)
    noisy = PrintScan(**{**NOTHING, "noise": 0.02})(grey, ("grey",)).astype(float)
    assert abs(noisy.std() / 255 - 0.02) < 0.001 and abs(noisy.mean() - 128) < 0.2
    edge = np.zeros((200, 40, 40, 3), np.uint8)
    edge[:, :, 20:] = 255
    names = [str(k) for k in range(200)]
    moved = PrintScan(**{**NOTHING, "shift": 2.0})(edge, names)
    # Where a row's mean tone puts the edge: uniform in +-2 pixels, standard deviation 4 / sqrt 12.
    at = moved[:, 20, :, 0].mean(1) / 255 * 40
    assert np.abs(at - 20).max() <= 2.02 and abs(at.std() - 4 / 12**0.5) < 0.12
    # The same with a printer of more dots: lengths are in pixels of the image.
    fine = PrintScan(**{**NOTHING, "shift": 2.0, "oversampling": 4})(edge, names)
    np.testing.assert_allclose(fine[:, 20, :, 0].mean(1), moved[:, 20, :, 0].mean(1), atol=2)


def test_rotation_turns_about_the_centre_by_its_degrees() -> None:
    size = 101
    image = np.zeros((1, size, size, 3), np.uint8)
    image[0, 50, 10:91] = 255
    for name in ("a", "b", "c"):
        turned = PrintScan(**{**NOTHING, "rotation": 8.0})(image, (name,))[0, :, :, 0].astype(float)
        y, x = np.mgrid[0:size, 0:size] - 50
        mass = turned / turned.sum()
        covariance = [[(mass * a * b).sum() for b in (x, y)] for a in (x, y)]
        axis = np.linalg.eigh(covariance)[1][:, 1]
        angle = abs(np.degrees(np.arctan(axis[1] / axis[0])))
        assert 0.05 < angle < 8.05


def test_the_screen_keeps_the_mean_of_middle_grey_and_has_its_period() -> None:
    model = PrintScan(period=8.0)
    screen = model._screen(256, 256)
    assert float(screen.min()) >= 0 and float(screen.max()) <= 1
    assert abs(float(screen.mean()) - 0.5) < 0.01
    # The ink of 0 degrees is a cosine of the period along the rows.
    power = torch.fft.rfft(screen[2].mean(0) - screen[2].mean()).abs()
    assert int(power.argmax()) == 256 // 8
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    printed = PrintScan(**{**NOTHING, "halftone": 1.0, "oversampling": 4})(grey, ("grey",))
    assert abs(printed.astype(float).mean() - 128) < 4 and printed.std() > 1


def test_the_blur_has_its_deviation_and_loses_no_light() -> None:
    x = torch.zeros(1, 1, 41, 41, dtype=torch.float64)
    x[0, 0, 20, 20] = 1
    blurred = _blurred(x, 2.0)[0, 0]
    at = torch.arange(41, dtype=torch.float64) - 20
    assert abs(float(blurred.sum()) - 1) < 1e-12
    for dimension in (0, 1):
        spread = float((blurred.sum(dimension) * at**2).sum() ** 0.5)
        assert abs(spread - 2.0) < 0.05


@pytest.mark.parametrize("size", [64, 413, 700])
def test_jpeg_2000_takes_what_a_passport_has_room_for(size: int) -> None:
    degradation = Jpeg2000()
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    for image in (faces(1, size)[0], noise):
        assert 15_000 <= len(degradation.file_of(image)) <= 20_000
    with pytest.raises(DegradationError, match="widen the range"):
        Jpeg2000(smallest=10, largest=20).file_of(noise)


def test_a_plain_image_keeps_its_lossless_file() -> None:
    plain = np.full((64, 64, 3), 200, np.uint8)
    degradation = Jpeg2000()
    assert len(degradation.file_of(plain)) < 15_000
    assert (degradation(plain[None], ("plain",)) == plain).all()


def test_jpeg_loses_more_at_lower_quality_and_resize_at_a_smaller_share() -> None:
    images = faces().astype(float)

    def loss(degradation: Degradation) -> float:
        changed = degradation(images.astype(np.uint8), NAMES)
        return float(((changed - images) ** 2).mean())

    assert loss(Jpeg(quality=20)) > loss(Jpeg(quality=60)) > loss(Jpeg(quality=95)) > 0
    assert loss(Resize(share=0.25)) > loss(Resize(share=0.5)) > loss(Resize(share=0.9)) > 0


def test_steps_follow_their_order() -> None:
    images = faces()
    print_scan, jpeg = PrintScan(), Jpeg(quality=30)
    both = Degradations((print_scan, jpeg))
    assert both.name == "print_scan+jpeg"
    assert (both(images, NAMES) == jpeg(print_scan(images, NAMES), NAMES)).all()


@pytest.mark.parametrize(
    ("kind", "setting", "words"),
    [
        (Jpeg, {"quality": 0}, "quality of 1 to 95"),
        (Jpeg, {"quality": 75.5}, "whole quality"),
        (Jpeg2000, {"smallest": 5, "largest": 5}, "smallest < largest"),
        (Resize, {"share": 1.0}, "share=1.0"),
        (PrintScan, {"noise": -1.0}, "noise=-1.0: expected a number of 0 to 1"),
        (PrintScan, {"noise": float("nan")}, "noise=nan"),
        (PrintScan, {"blur": float("inf")}, "blur=inf"),
        (PrintScan, {"oversampling": 1.5}, "oversampling=1.5: expected a whole number of 1 to 16"),
        # Whose exponent may be negative, which makes black infinitely bright.
        (PrintScan, {"gamma_spread": 1.2}, "gamma_spread=1.2"),
        (PrintScan, {"black": 0.9, "white": 0.2}, "black below white"),
        (Degradations, {"steps": ()}, "no degradations"),
    ],
)
def test_settings_out_of_range_are_refused(kind, setting: dict, words: str) -> None:
    with pytest.raises(DegradationError, match=words):
        kind(**setting)
