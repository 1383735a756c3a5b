"""Interpolation of latents: endpoints, norms, the formula, and vectors that are nearly parallel."""

import math

import pytest
import torch

from adjointdeis.morphing.blend import lerp, slerp

SHAPE = (3, 2, 4, 4)


def normals(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(SHAPE, generator=generator, dtype=torch.float64)


A, B = normals(1), normals(2)


@pytest.mark.parametrize(("weight", "end"), [(0.0, A), (1.0, B)])
@pytest.mark.parametrize("blend", [slerp, lerp])
def test_endpoints(blend, weight: float, end: torch.Tensor) -> None:
    torch.testing.assert_close(blend(A, B, weight), end, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.8])
def test_agrees_with_the_formula_for_each_sample(weight: float) -> None:
    blended = slerp(A, B, weight)
    for k in range(SHAPE[0]):
        a, b = A[k].flatten(), B[k].flatten()
        theta = math.acos(float(a @ b / (a.norm() * b.norm())))
        wanted = math.sin((1 - weight) * theta) * a + math.sin(weight * theta) * b
        wanted = wanted / math.sin(theta)
        torch.testing.assert_close(blended[k].flatten(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight", [0.1, 0.5, 0.9])
def test_keeps_the_norm_of_vectors_on_a_sphere(weight: float) -> None:
    unit_a, unit_b = (x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for x in (A, B))
    norms = slerp(unit_a, unit_b, weight).flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(SHAPE[0], dtype=torch.float64))
    # The mean of two nearly orthogonal noises is too short by about the square root of two.
    assert (lerp(unit_a, unit_b, 0.5).flatten(1).norm(dim=1) < 0.85).all()


def test_half_way_divides_the_angle() -> None:
    a, b = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (A, B))
    middle = slerp(a, b, 0.5)
    whole, half = (a * b).sum(1).arccos(), (a * middle).sum(1).arccos()
    torch.testing.assert_close(half, whole / 2)


def test_parallel_vectors_are_interpolated_linearly() -> None:
    blended = slerp(A, 3 * A, 0.25)
    torch.testing.assert_close(blended, 1.5 * A, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slerp(A, A, 0.3), A, rtol=1e-12, atol=1e-12)


def test_nearly_parallel_vectors_are_continuous() -> None:
    for step in (1e-3, 1e-5, 1e-7, 1e-9):
        near = A + step * B
        blended = slerp(A, near, 0.5)
        torch.testing.assert_close(blended, (A + near) / 2, rtol=0, atol=10 * step**2 + 1e-9)


def test_zero_vectors_give_numbers() -> None:
    assert torch.isfinite(slerp(torch.zeros(SHAPE), A.float(), 0.5)).all()


def test_dtype_is_kept_and_the_angle_is_found_in_float64() -> None:
    blended = slerp(A.float(), B.float(), 0.5)
    assert blended.dtype == torch.float32
    wanted = slerp(A.float().double(), B.float().double(), 0.5)
    torch.testing.assert_close(blended.double(), wanted, rtol=1e-6, atol=1e-7)
