"""The identity loss of the paper against hand computation and finite differences."""

import pytest
import torch

from adjointdeis.morphing.identity_loss import IdentityDistances, IdentityLoss


def flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def test_by_hand() -> None:
    # Morph at 45 degrees to a and at 90 degrees to b.
    morph = torch.tensor([[1.0, 1.0, 0.0]], dtype=torch.float64)
    v_a = torch.tensor([[5.0, 0.0, 0.0]], dtype=torch.float64)
    v_b = torch.tensor([[0.0, 0.0, 0.3]], dtype=torch.float64)
    distances = IdentityLoss(flat)(morph, v_a, v_b)
    a, b = 1 - 0.5**0.5, 1.0
    assert distances.a.item() == pytest.approx(a, abs=1e-12)
    assert distances.b.item() == pytest.approx(b, abs=1e-12)
    assert distances.loss.item() == pytest.approx(a + b + (b - a), abs=1e-12)


def test_is_the_larger_distance_twice() -> None:
    distances = IdentityDistances(torch.tensor([0.2, 0.7]), torch.tensor([0.5, 0.1]))
    torch.testing.assert_close(distances.loss, torch.tensor([1.0, 1.4]))


def test_range_and_symmetry() -> None:
    x, v_a, v_b = torch.randn(3, 16, 6, dtype=torch.float64)
    loss = IdentityLoss(flat)
    one, other = loss(x, v_a, v_b), loss(x, v_b, v_a)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.a, other.b)
    assert (one.loss >= 0).all() and (one.loss <= 4).all()
    assert loss(v_a, v_a, v_a).loss.abs().max() < 1e-12
    torch.testing.assert_close(loss(-v_a, v_a, v_a).loss, torch.full((16,), 4.0).double())


def test_gradient_by_finite_differences() -> None:
    weights = torch.randn(12, 5, dtype=torch.float64)
    loss = IdentityLoss(lambda images: torch.tanh(images.flatten(1) @ weights))
    morphs = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    v_a, v_b = torch.randn(2, 2, 5, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(morphs, v_a, v_b).loss.sum(), morphs)
    h, flat_morphs = 1e-6, morphs.detach().flatten()
    for index in (0, 5, 13, 23):
        step = torch.zeros_like(flat_morphs)
        step[index] = h
        up, down = (
            loss((flat_morphs + sign * step).view_as(morphs), v_a, v_b).loss.sum()
            for sign in (1, -1)
        )
        slope = (up - down) / (2 * h)
        assert gradient.flatten()[index].item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-9)


def test_a_sample_does_not_feel_its_batch() -> None:
    x, v_a, v_b = torch.randn(3, 4, 6, dtype=torch.float64)
    loss = IdentityLoss(flat)
    alone = torch.cat([loss(x[k : k + 1], v_a[k : k + 1], v_b[k : k + 1]).loss for k in range(4)])
    torch.testing.assert_close(loss(x, v_a, v_b).loss, alone, rtol=1e-14, atol=0)


def test_several_guides_count_equally() -> None:
    x, v_a, v_b = torch.randn(3, 8, 10, dtype=torch.float64)
    several = IdentityLoss(flat, ((4, "cosine"), (6, "euclidean")))(x, v_a, v_b)
    first = IdentityLoss(flat)(x[:, :4], v_a[:, :4], v_b[:, :4])
    a, b = (x[:, 4:] - v_a[:, 4:]).norm(dim=1), (x[:, 4:] - v_b[:, 4:]).norm(dim=1)
    second = a + b + (a - b).abs()
    torch.testing.assert_close(several.loss, (first.loss + second) / 2)
    farthest = torch.stack([first.a, first.b, a, b]).amax(0)
    torch.testing.assert_close(several.farthest, farthest)
    torch.testing.assert_close(several.mean[1], (first.b + b) / 2)
    # The mean of the losses is not the loss of mean distances: guides disagree on who is nearer.
    mean = IdentityDistances((first.a + a) / 2, (first.b + b) / 2).loss
    assert (several.loss - mean).max() > 1e-3
