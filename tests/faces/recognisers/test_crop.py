"""From an aligned image to a recogniser's input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from adjointdeis.faces.alignment import FFHQ_RESIZE112
from adjointdeis.faces.recognisers.crop import FaceCrop


def picture(size: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch, 3, size, size, generator=generator) * 2 - 1


def ramp(size: int) -> torch.Tensor:
    """x in the first channel and y in the second, as fractions of the side."""
    at = (torch.arange(size) + 0.5) / size
    x, y = at.expand(size, size), at[:, None].expand(size, size)
    return torch.stack([x, y, torch.zeros(size, size)])[None]


def test_the_papers_input_is_the_whole_image_at_112():
    crop = FaceCrop(112)
    assert crop.label == FFHQ_RESIZE112
    expected = F.interpolate(picture(256), (112, 112), mode="bilinear", antialias=True)
    torch.testing.assert_close(crop(picture(256)), expected, rtol=0, atol=0)


def test_antialiasing_is_part_of_the_label_and_of_the_pixels():
    aliased = FaceCrop(112, antialias=False)
    assert aliased.label == "ffhq-resize112-aliased"
    expected = F.interpolate(picture(256), (112, 112), mode="bilinear", antialias=False)
    torch.testing.assert_close(aliased(picture(256)), expected, rtol=0, atol=0)
    assert (FaceCrop(112)(picture(256)) - expected).abs().max() > 0.1


def test_an_image_of_the_right_size_is_left_alone():
    x = picture(112)
    torch.testing.assert_close(FaceCrop(112)(x), x, rtol=0, atol=0)


def test_bgr_reverses_the_channels_and_nothing_else():
    x = picture(64)
    torch.testing.assert_close(FaceCrop(32, bgr=True)(x), FaceCrop(32)(x)[:, [2, 1, 0]])
    assert FaceCrop(32, bgr=True).label == FaceCrop(32).label


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_box_is_in_fractions_of_any_image(size):
    crop = FaceCrop(16, box=(0.25, 0.375, 0.75, 0.875))
    got = crop(ramp(size))[0]
    at = (torch.arange(16) + 0.5) / 32
    interior = slice(1, -1)  # an antialiasing filter has less support at the border
    torch.testing.assert_close(got[0, 8, interior], 0.25 + at[interior], rtol=0, atol=1e-4)
    torch.testing.assert_close(got[1, interior, 8], 0.375 + at[interior], rtol=0, atol=1e-4)
    assert crop.label == "ffhq-crop25_37.5_75_87.5-resize16"


def test_gradients_reach_the_box_and_only_the_box():
    x = picture(32).requires_grad_()
    FaceCrop(8, box=(0.25, 0.25, 0.75, 0.75))(x).sum().backward()
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[8:24, 8:24] = True
    assert (x.grad[..., inside] > 0).all()
    assert (x.grad[..., ~inside] == 0).all()


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0.9, 1, 0.1), (-0.1, 0, 1, 1), (0, 0, 1, 2)])
def test_a_box_outside_the_image_is_named(box):
    with pytest.raises(ValueError, match="within"):
        FaceCrop(112, box=box)


def test_a_crop_from_json_equals_one_from_python():
    assert FaceCrop(112, box=[0, 0, 1, 1]) == FaceCrop(112)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [40, 112])
def test_edges_between_pixels_are_resampled_as_pillow_does(size, antialias):
    box = (0.121, 0.116, 0.873, 0.868)
    x = picture(64, 1)
    got = FaceCrop(size, box, antialias=antialias)(x)[0, 0]
    if antialias or size > 64:
        edges = tuple(64 * v for v in box)
        image = Image.fromarray(x[0, 0].numpy())
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, edges))
        np.testing.assert_allclose(got.numpy(), expected, atol=2e-5)
    else:
        at = torch.tensor([[0.121 + 0.752 * (i + 0.5) / size for i in range(size)]])
        y = torch.tensor([0.116 + 0.752 * (i + 0.5) / size for i in range(size)])[:, None]
        grid = torch.stack(torch.broadcast_tensors(at, y), -1)[None] * 2 - 1
        expected = F.grid_sample(x, grid, mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
