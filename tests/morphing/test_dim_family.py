"""What each member of the DiM family encodes, under which code, along which grid."""

import numpy as np
import pytest
import torch

from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.morphing.attack import EncodedFace, Sources, Workbench
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.morphing.dim import DiM
from adjointdeis.morphing.landmark import LandmarkMorph

SIZE = 12
POINTS = np.array([[2.0, 2], [9, 2], [5, 5], [2, 9], [9, 9]])


class Asked:
    """An encoder that returns what it was asked, so that the answer can be read."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __call__(self, images, device, steps, grid="ddim_stride", codes_of=None) -> EncodedFace:
        coded = images if codes_of is None else codes_of
        self.calls.append((images, coded, steps, grid))
        noise = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
        code = torch.from_numpy(coded.astype(np.float64)).mean((1, 2))
        return EncodedFace(code, noise, steps)


@pytest.fixture
def sources(tmp_path) -> Sources:
    a, b = np.random.default_rng(2).integers(0, 256, (2, 2, SIZE, SIZE, 3), dtype=np.uint8)
    paths = tuple(tmp_path / f"{k}_03.png" for k in ("001", "002"))
    return Sources((MorphPair("001", "002"), MorphPair("003", "004")), a, b, paths, paths)


def latents(attack: DiM, sources: Sources):
    encoder = Asked()

    def landmarks(path, image, template):
        assert template == "dlib68"
        return POINTS + (0.5 if np.array_equal(image, sources.images_b[0]) else 0)

    resources = {"autoencoder": object(), "encoder": encoder, "landmarks": landmarks}
    bench = Workbench(torch.device("cpu"), resources)
    return attack.latents(sources, bench), encoder.calls


def test_a_encodes_the_photographs_and_interpolates_on_the_sphere(sources) -> None:
    found, calls = latents(DiM(name="a"), sources)
    for call, side in zip(calls, (sources.images_a, sources.images_b), strict=True):
        assert np.array_equal(call[0], side) and np.array_equal(call[1], side)
        assert call[2:] == (250, "ddim_stride")
    x_a, x_b = (torch.from_numpy(c[0].astype(float)).permute(0, 3, 1, 2) for c in calls)
    torch.testing.assert_close(found.x_T, slerp(x_a, x_b, 0.5))
    z_a, z_b = (torch.from_numpy(c[1].astype(float)).mean((1, 2)) for c in calls)
    torch.testing.assert_close(found.z, lerp(z_a, z_b, 0.5))
    assert found.nfe == 250 and not found.failed


def test_b_interpolates_the_noises_on_the_line(sources) -> None:
    found, calls = latents(DiM(name="b", noise_blend="lerp", weight=0.25), sources)
    x_a, x_b = (torch.from_numpy(c[0].astype(float)).permute(0, 3, 1, 2) for c in calls)
    torch.testing.assert_close(found.x_T, 0.75 * x_a + 0.25 * x_b)


@pytest.mark.parametrize("pre_morph", ["average", "landmark"])
def test_c_and_d_encode_one_pre_morph_under_both_original_codes(sources, pre_morph: str) -> None:
    _, calls = latents(DiM(name="c", pre_morph=pre_morph), sources)  # type: ignore[arg-type]
    assert np.array_equal(calls[0][0], calls[1][0])
    for call, side in zip(calls, (sources.images_a, sources.images_b), strict=True):
        assert np.array_equal(call[1], side)
    mixed = calls[0][0]
    if pre_morph == "average":
        mean = (sources.images_a.astype(float) + sources.images_b) / 2
        assert np.abs(mixed - mean).max() <= 0.5
    else:
        expected = LandmarkMorph("opencv")(
            sources.images_a[0], sources.images_b[0], POINTS, POINTS + 0.5
        )
        assert np.array_equal(mixed[0], expected)


def test_fast_dim_ode_encodes_along_the_schedulers_grid(sources) -> None:
    attack = DiM(name="f", encoding_steps=100, encoding_grid="greedy_dim")
    found, calls = latents(attack, sources)
    assert [call[2:] for call in calls] == [(100, "greedy_dim")] * 2
    assert found.nfe == 100
