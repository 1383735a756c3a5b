"""Norms of samples in half precision: neither inf nor NaN nor zero, and the dtype is kept."""

import pytest
import torch
from torch import nn

from adjointdeis.guidance.dflow import radius_penalty
from adjointdeis.guidance.dno import Decorrelation
from adjointdeis.guidance.fine_tuning import clip
from adjointdeis.guidance.per_sample import Sphere, normalised, per_sample_norm, rms

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [300.0, 1e-5], ids=["large", "small"])
def test_norms_of_a_sample(dtype: torch.dtype, size: float) -> None:
    x = (size * torch.randn(2, 4, 16, 16)).to(dtype)
    exact = x.double().flatten(1).norm(dim=1)
    torch.testing.assert_close(per_sample_norm(x).double(), exact, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(rms(x).double(), exact / 32.0, rtol=1e-5, atol=0.0)
    unit = normalised(x)
    assert unit.dtype == dtype and (unit.double().flatten(1).norm(dim=1) - 1.0).abs().max() < 1e-2
    back = Sphere.through(x)(0.5 * x)
    assert back.dtype == dtype
    assert (back.double().flatten(1).norm(dim=1) / exact - 1.0).abs().max() < 2e-2


@pytest.mark.parametrize("dtype", HALVES)
def test_penalties_and_clipping(dtype: torch.dtype) -> None:
    x = (300.0 * torch.randn(2, 4, 16, 16)).to(dtype)
    assert radius_penalty(x).isfinite().all() and Decorrelation()(x).isfinite().all()
    weight = nn.Parameter(torch.zeros(64, 64, dtype=dtype))
    weight.grad = torch.full_like(weight, 300.0)
    assert clip([weight], 1.0) == pytest.approx(300.0 * 64.0, rel=1e-3)
    assert weight.grad.double().norm() == pytest.approx(1.0, rel=2e-2)
