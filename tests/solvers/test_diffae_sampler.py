"""Parity with the official DiffAE sampler on a closed-form model.

Skipped where the reference values, which are not part of the repository, are absent.
"""

import json
from pathlib import Path

import pytest
import torch

from adjointdeis import DDPM, TimeGrid, encode, sample
from adjointdeis.diffusion import FromTimesteps
from adjointdeis.solvers import DDIM

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference" / "diffae_sampler.json"
pytestmark = pytest.mark.skipif(not REFERENCE.exists(), reason="no reference values here")


def closed_form(x, timesteps, z):
    t = timesteps.to(x.dtype).reshape(-1, 1, 1, 1)
    return (
        0.6 * torch.tanh(x) + 0.3 * torch.sin(t / 200.0) * x + 0.1 * z.mean(1)[:, None, None, None]
    )


def image(*shape: int, phase: float) -> torch.Tensor:
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.sin(0.0137 * count + phase).reshape(shape).float()


def code(*shape: int, phase: float = 0.3) -> torch.Tensor:
    count = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return torch.cos(0.11 * count + phase).reshape(shape).float()


def check(value: torch.Tensor, expected: dict) -> None:
    assert list(value.shape) == expected["shape"]
    scale = expected["std"]
    picked = value.flatten()[torch.tensor(expected["index"])]
    torch.testing.assert_close(picked, torch.tensor(expected["value"]), rtol=0.0, atol=1e-4 * scale)
    assert float(value.mean()) == pytest.approx(expected["mean"], abs=1e-4 * scale)
    assert float(value.std()) == pytest.approx(scale, rel=1e-4)


def test_encoding_and_decoding_reproduce_the_official_sampler() -> None:
    reference = json.loads(REFERENCE.read_text())
    schedule = DDPM()
    denoiser = FromTimesteps(closed_form, schedule)
    x_0, z = 0.9 * image(2, 3, 4, 4, phase=0.2), code(2, 8)
    solver = DDIM(clip_x0=True)
    for steps in (20, 100, 250):
        grid = TimeGrid.ddim_stride(schedule, steps, encode=True)
        x_T = encode(denoiser, x_0, z, solver=solver, grid=grid).x_T
        check(x_T, reference[f"encode_{steps}"])
    for steps in (20, 100):
        grid = TimeGrid.ddim_stride(schedule, steps)
        decoded = sample(denoiser, x_T, z, solver=solver, grid=grid).x_0
        check(decoded, reference[f"decode_{steps}_from_encode_250"])
