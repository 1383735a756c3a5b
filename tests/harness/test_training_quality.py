"""Quality of trained networks: formulas by their definitions, and reports of plausible numbers."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_profile import SIZE, draw_face, write_profile

from adjointdeis.faces.tensors import to_tensor
from adjointdeis.harness import assets
from adjointdeis.harness.training.quality import (
    autoencoder_quality,
    fine_energy,
    laplacian,
    whiteness,
)

# Autoencoders


def test_white_noise_is_white_and_smooth_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 0.9 * torch.randn(40, 3, 64, 64, generator=generator)
    white = whiteness(x, torch.randn(x.shape, generator=generator))
    assert white["std"] == pytest.approx(0.9, abs=0.01)
    assert white["block_means"] == pytest.approx(0.9, abs=0.03)
    assert abs(white["image_correlation"]) < 0.01
    # Equal within 8 x 8 blocks: the means are the values, 8 times them 8 times the deviation.
    blocks = x[..., :8, :8].repeat_interleave(8, -1).repeat_interleave(8, -2)
    assert whiteness(blocks, x)["block_means"] == pytest.approx(8 * float(blocks.std()), rel=1e-3)
    # A quarter of the image in the noise, by its share of the standard deviation.
    image = torch.randn(x.shape, generator=generator) + 3
    mixed = whiteness(0.6 * (image - 3) + 0.8 * x / 0.9, image)
    assert mixed["image_correlation"] == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize(
    ("cycles", "counted"), [((0, 20), False), ((0, 24), True), ((17, 17), True)]
)
def test_fine_energy_is_the_mean_square_above_its_frequency(cycles, counted) -> None:
    """24 cycles in 64 pixels are 0.375 a pixel; (17, 17) is .376 off the axes."""
    row, column = (torch.arange(64)[:, None], torch.arange(64))
    wave = torch.cos(2 * math.pi * (cycles[0] * row + cycles[1] * column) / 64)
    images = torch.stack([0.5 * wave + 0.2, wave - wave, wave])[None]
    wanted = torch.tensor([[0.25 / 2, 0.0, 0.5]]) * counted
    torch.testing.assert_close(fine_energy(images), wanted, atol=1e-5, rtol=1e-4)


def test_the_laplacian_of_a_wave_is_its_eigenvalue() -> None:
    column = torch.arange(66)
    wave = torch.cos(2 * math.pi * 8 * column / 64).expand(1, 3, 66, 66)
    eigenvalue = 2 - 2 * math.cos(2 * math.pi * 8 / 64)
    inner = wave[..., 1:-1, 1:-1]
    assert float(laplacian(wave)) == pytest.approx(eigenvalue * float(inner.std()), rel=1e-4)


def test_the_report_of_an_autoencoder(tmp_path) -> None:
    write_profile(tmp_path)
    autoencoder = assets.autoencoder("diffae.safetensors", assets.profile("mini", str(tmp_path)))
    faces = to_tensor(np.stack([draw_face(seed, False) for seed in range(5)]))
    quality = autoencoder_quality(autoencoder, faces, tmp_path)
    assert quality["images"] == 5
    for steps in (20, 100):
        noise = quality[f"random_noise_{steps}"]
        assert set(noise) == {"psnr", "ssim", "fine_energy_ratio", "laplacian_ratio"}
        assert all(math.isfinite(value) for value in noise.values())
    # Random weights invert their own sampler better than they draw faces.
    assert quality["reconstruction_psnr"] > quality["random_noise_20"]["psnr"]
    assert autoencoder_quality(autoencoder, faces, tmp_path) == quality
    assert Image.open(tmp_path / "autoencoder.png").size == (4 * SIZE, 5 * SIZE)
    assert Image.open(tmp_path / "morphs.png").size == (4 * SIZE, 2 * SIZE)
