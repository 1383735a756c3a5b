"""Pictures: deterministic, finite, framed, and sensitive to what they should show."""

import numpy as np
import pytest
import torch

from synthetic_faces.capture import Capture, sample_capture
from synthetic_faces.expression import neutral, smile
from synthetic_faces.geometry import camera_of, landmarks, pose_of
from synthetic_faces.identity import sample_identity
from synthetic_faces.process import single_thread
from synthetic_faces.renderer import Renderer


@pytest.fixture(scope="module")
def renderer():
    with single_thread():
        yield Renderer()


@pytest.mark.parametrize("kind", ["studio", "wild"])
@pytest.mark.parametrize("seed", range(6))
def test_pictures_are_finite_in_range_and_show_a_face(renderer, seed, kind):
    rng = np.random.default_rng(seed)
    identity, capture = sample_identity(seed), sample_capture(rng, kind)
    picture = renderer.render(identity, neutral(rng), capture, 48)
    assert picture.shape == (3, 48, 48)
    assert picture.dtype == torch.float32
    assert torch.isfinite(picture).all()
    assert picture.min() >= 0 and picture.max() <= 1
    wall = torch.tensor(capture.background)[:, None, None]
    centre = picture[:, 18:34, 18:30]
    assert ((centre - wall).abs().amax(0) > 0.05).float().mean() > 0.7


def test_same_seeds_same_bits_in_any_order():
    def picture(renderer, seed):
        rng = np.random.default_rng(seed)
        return renderer.render(sample_identity(seed), neutral(rng), sample_capture(rng), 32)

    one, two = Renderer(), Renderer()
    forward = [picture(one, seed) for seed in (3, 4, 5)]
    backward = [picture(two, seed) for seed in (5, 4, 3)]
    assert all(a.equal(b) for a, b in zip(forward, reversed(backward), strict=True))


def test_smile_changes_the_mouth_and_not_the_wall(renderer):
    identity = sample_identity(2)
    rest = renderer.render(identity, size=48)
    happy = renderer.render(identity, smile(identity.shape), size=48)
    change = (rest - happy).abs().amax(0)
    assert change[28:40, 14:34].max() > 0.1
    assert change[:4, :4].max() == 0


def test_smile_of_amount_zero_is_the_rest_position(renderer):
    shape = sample_identity(2).shape
    assert renderer.mesh(shape, smile(shape, 0.0)).equal(renderer.mesh(shape))


def test_identities_and_appearances_differ_but_captures_of_one_differ_less(renderer):
    a, b = sample_identity(30), sample_identity(31)
    rng = np.random.default_rng(0)
    shots = [renderer.render(a, capture=sample_capture(rng), size=32) for _ in range(3)]
    own = max(float((x - shots[0]).abs().mean()) for x in shots[1:])
    assert own > 0
    assert float((renderer.render(b, size=32) - shots[0]).abs().mean()) > 1.5 * own
    other = renderer.render(a.with_appearance(1), size=32)
    assert float((other - renderer.render(a, size=32)).abs().mean()) > own


def test_yaw_turns_the_head_to_one_side(renderer):
    identity = sample_identity(12)
    left = renderer.render(identity, capture=Capture(yaw=0.4), size=48)
    right = renderer.render(identity, capture=Capture(yaw=-0.4), size=48)
    straight = float((left - right).abs().mean())
    mirrored = float((left - right.flip(2)).abs().mean())
    assert mirrored < 0.6 * straight


def test_eyes_stand_on_the_line_of_the_framing(renderer):
    """Framing is an alignment: the eyes' midpoint is where the capture puts it."""
    capture = Capture(yaw=0.1, pitch=-0.05, roll=0.02, shift=(0.03, -0.02))
    assets = renderer.assets
    mesh = renderer.mesh(sample_identity(6).shape)
    posed = pose_of(assets, mesh, capture).points(mesh, assets.mean[:, 1])
    camera = camera_of(assets, posed, capture, 64)
    at = landmarks(assets)
    eyes = [camera.pixels(posed[v])[:, :2].mean(0) for v in (at.left_eye, at.right_eye)]
    middle = (eyes[0] + eyes[1]) / 2
    torch.testing.assert_close(middle, torch.tensor([64 * 0.53, 64 * 0.465]), atol=0.05, rtol=0)


@pytest.mark.parametrize(("size", "supersample"), [(0, 2), (32, 0)])
def test_bad_sizes_are_refused(renderer, size, supersample):
    with pytest.raises(ValueError, match="1 or more"):
        renderer.render(sample_identity(1), size=size, supersample=supersample)


def test_unknown_capture_kind_is_refused():
    with pytest.raises(ValueError, match="studio, wild"):
        sample_capture(np.random.default_rng(0), "street")
