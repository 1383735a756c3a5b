"""Margin heads against values worked out by hand."""

import math

import pytest
import torch

from adjointdeis.faces.margins import AdaMarginHead, ElasticMarginHead, MarginHead

THIRD = math.pi / 3


def with_weights(head: MarginHead) -> MarginHead:
    """Identity 0 at 60 degrees from the first axis, identity 1 at 90."""
    rows = [[3 * math.cos(THIRD), 3 * math.sin(THIRD)], [0.0, 0.2]]
    head.weight.data = torch.tensor(rows)
    return head


def test_arcface_adds_its_margin_to_the_true_angle_only():
    head = with_weights(MarginHead(2, 2, scale=10, margin=0.4))
    embeddings = torch.tensor([[5.0, 0.0], [2.0, 0.0]])
    expected = [
        [10 * math.cos(THIRD + 0.4), 0.0],
        [10 * 0.5, 10 * math.cos(math.pi / 2 + 0.4)],
    ]
    got = head(embeddings, torch.tensor([0, 1]))
    torch.testing.assert_close(got, torch.tensor(expected), rtol=0, atol=2e-6)


def test_without_a_margin_the_logits_are_scaled_cosines():
    head = with_weights(MarginHead(2, 2, scale=10, margin=0.0))
    got = head(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(got, torch.tensor([[5.0, 0.0]]), rtol=0, atol=2e-6)


def test_the_margin_never_turns_back_beyond_the_opposite_direction():
    head = with_weights(MarginHead(2, 2, scale=10, margin=0.5))
    opposite = -head.weight.detach()[:1]
    got = head(opposite, torch.tensor([0]))[0, 0]
    assert got.item() == pytest.approx(-10, abs=1e-4)


def test_gradients_are_finite_at_a_perfect_match():
    head = with_weights(MarginHead(2, 2))
    embeddings = head.weight.detach().clone().requires_grad_()
    labels = torch.tensor([0, 1])
    torch.nn.functional.cross_entropy(head(embeddings, labels), labels).backward()
    assert torch.isfinite(embeddings.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_elastic_margins_are_drawn_for_each_sample():
    head = with_weights(ElasticMarginHead(2, 2, scale=10, margin=0.4, spread=0.05))
    embeddings = torch.tensor([[5.0, 0.0]]).repeat(2000, 1)
    torch.manual_seed(0)
    logits = head(embeddings, torch.zeros(2000, dtype=torch.long))
    margins = (logits[:, 0] / 10).arccos() - THIRD
    assert margins.mean().item() == pytest.approx(0.4, abs=4 * 0.05 / 2000**0.5)
    assert margins.std().item() == pytest.approx(0.05, rel=0.08)
    torch.testing.assert_close(logits[:, 1], torch.zeros(2000), rtol=0, atol=2e-6)


def test_elastic_without_spread_is_arcface():
    embeddings = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 1, 0])
    elastic = with_weights(ElasticMarginHead(2, 2, spread=0.0))(embeddings, labels)
    torch.testing.assert_close(elastic, with_weights(MarginHead(2, 2))(embeddings, labels))


def test_adaface_margin_follows_the_norm():
    """Norm 5 under mean 20 and deviation 100: z = -15 / 100.001 * 0.333."""
    head = with_weights(AdaMarginHead(2, 2, scale=10, margin=0.4)).eval()
    quality = -15 / 100.001 * 0.333
    expected = 10 * (math.cos(THIRD - 0.4 * quality) - 0.4 * (1 + quality))
    got = head(torch.tensor([[5.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(got, torch.tensor([[expected, 0.0]]), rtol=0, atol=5e-6)


def test_adaface_limits_are_a_negative_angle_and_an_additive_margin():
    head = AdaMarginHead(2, 2, margin=0.4, concentration=1.0).eval()
    head.mean.fill_(50.0)
    head.deviation.fill_(1.0)
    angle, shift = head.margins(torch.tensor([[90.0, 0.0], [1.0, 0.0], [50.0, 0.0]]))
    # High quality: -m and 2 m. Low quality: +m, which is ArcFace. Average: 0 and m, CosFace.
    torch.testing.assert_close(angle, torch.tensor([-0.4, 0.4, 0.0]))
    torch.testing.assert_close(shift, torch.tensor([0.8, 0.0, 0.4]))


def test_adaface_statistics_move_in_training_only():
    head = AdaMarginHead(2, 2, momentum=0.01)
    embeddings = torch.tensor([[30.0, 0.0], [0.0, 50.0]])
    head.margins(embeddings)
    assert head.mean.item() == pytest.approx(0.99 * 20 + 0.01 * 40)
    assert head.deviation.item() == pytest.approx(0.99 * 100 + 0.01 * math.sqrt(200))
    before = head.mean.item(), head.deviation.item()
    head.eval().margins(embeddings)
    head.train().margins(embeddings[:1])  # one sample has no deviation
    assert (head.mean.item(), head.deviation.item()) == before


def test_the_norm_carries_no_gradient_through_the_adaface_margin():
    head = with_weights(AdaMarginHead(2, 2)).eval()
    embeddings = torch.tensor([[3.0, 1.0]], requires_grad=True)
    head(embeddings, torch.tensor([0]))[0, 0].backward()
    # Logits depend on the direction alone once the margin is a constant.
    assert (embeddings.grad @ embeddings.detach().T).abs().item() < 1e-4
    assert embeddings.grad.abs().max().item() > 1e-2


@pytest.mark.parametrize("margin", [-0.1, math.pi / 2])
@pytest.mark.parametrize("head", [MarginHead, ElasticMarginHead, AdaMarginHead])
def test_an_impossible_margin_is_named(head, margin):
    with pytest.raises(ValueError, match=r"margin=.* must lie in"):
        head(2, 2, margin=margin)
