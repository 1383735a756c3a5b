"""Quality of a style generator: the Frechet distance, and a report of plausible numbers."""

import numpy as np
import pytest
import torch
from scipy import linalg
from tiny_profile import SIZE, draw_face, write_profile

from adjointdeis.harness import assets
from adjointdeis.harness.training.generator_quality import frechet_distance, generator_quality


def test_frechet_distance_by_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(5, 5, generator=generator, dtype=torch.float64) + 1
    y = torch.randn(300, 5, generator=generator, dtype=torch.float64) * torch.arange(1, 6)
    cov_x, cov_y = np.cov(x.numpy().T), np.cov(y.numpy().T)
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum().item()
    common = linalg.sqrtm(cov_x @ cov_y).real
    expected = shift + np.trace(cov_x + cov_y - 2 * common)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-8)
    assert abs(frechet_distance(x, x)) < 1e-6
    # Two normal distributions in one dimension: (m - n)^2 + (s - t)^2.
    line = torch.tensor([[-1.0], [1.0]])
    assert frechet_distance(line, 3 * line + 2) == pytest.approx(4 + 2 * (3 - 1) ** 2)


def test_the_report_of_a_generator(tmp_path) -> None:
    write_profile(tmp_path)
    profile = assets.profile("mini", str(tmp_path))
    gan = assets.style_generator("stylegan2.safetensors", "guide.safetensors", profile)
    pool = np.stack([draw_face(seed, False) for seed in range(40)])
    recogniser = assets.recogniser("arcface.safetensors", profile)
    settings = {"samples": 48, "projected": 2, "projection_steps": 3}
    quality = generator_quality(gan, recogniser, pool, tmp_path, **settings)
    assert quality["frechet"] > quality["frechet_of_two_halves"] > 0
    assert quality["projected"] == 2 and quality["projection_steps"] == 3
    assert -1 <= quality["projection_similarity_least"] <= quality["projection_similarity"] <= 1
    assert quality["nearest_training_face"] <= 1
    assert generator_quality(gan, recogniser, pool, tmp_path, **settings) == quality
    from PIL import Image

    assert Image.open(tmp_path / "generator.png").size == (2 * SIZE, 4 * SIZE)
