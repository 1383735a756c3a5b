"""MIPGAN's losses by independent formulas, and its descent on a toy generator."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.morphing.mipgan import (
    MIPGAN,
    MIPGANLoss,
    MIPGANTerms,
    MIPGANWeights,
    ProjectionLoss,
    StyleDescent,
    StyleOptimisation,
)
from adjointdeis.morphing.perceptual import perceptual_distance

SIZE = 16


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


BASIS = torch.nn.functional.interpolate(draw(12, 3, 4, 4, seed=7), SIZE, mode="bicubic")
READER = draw(3 * SIZE * SIZE, 6, seed=8) / 20


@dataclass(frozen=True)
class Toy:
    """Images linear in two layers of styles, squashed; counts its evaluations."""

    calls: list

    @property
    def average_style(self) -> torch.Tensor:
        return torch.zeros(2, 6, dtype=torch.float64)

    def synthesise(self, styles: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(styles))
        return torch.tanh(torch.einsum("bk,kchw->bchw", styles.flatten(1), BASIS) / 3)


def embed(images: torch.Tensor) -> torch.Tensor:
    return torch.tanh(images.flatten(1) @ READER)


def maps(images: torch.Tensor) -> list[torch.Tensor]:
    return [images**2, 3 * images[:, :1, ::2, ::2]]


@pytest.fixture
def toy() -> Toy:
    return Toy([])


@pytest.fixture
def sources(toy) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(toy.synthesise(draw(2, 2, 6, seed=seed)) for seed in (1, 2))


# Losses


def test_perceptual_distance_is_a_sum_over_layers_of_mean_squares() -> None:
    x, y = draw(2, 3, 8, 8), draw(2, 3, 8, 8, seed=1)
    got = perceptual_distance(maps(x), maps(y))
    for k in range(2):
        a, b = (image[k].numpy() for image in (x, y))
        first = np.sum((a**2 - b**2) ** 2) / (3 * 8 * 8)
        second = np.sum((3 * a[0, ::2, ::2] - 3 * b[0, ::2, ::2]) ** 2) / (4 * 4)
        assert got[k].item() == pytest.approx(first + second, rel=1e-12)
    assert perceptual_distance(maps(x), maps(x)).abs().max() == 0
    torch.testing.assert_close(got, perceptual_distance(maps(y), maps(x)), rtol=0, atol=0)


def test_every_term_by_its_own_formula(sources, toy) -> None:
    a, b = sources
    morphs = toy.synthesise(draw(2, 2, 6, seed=3))
    terms = MIPGANLoss(maps, IdentityLoss(embed), a, b)(morphs)
    v, v_a, v_b = (embed(x).numpy() for x in (morphs, a, b))
    for k in range(2):
        cosines = [v[k] @ w[k] / np.linalg.norm(v[k]) / np.linalg.norm(w[k]) for w in (v_a, v_b)]
        d_a, d_b = 1 - cosines[0], 1 - cosines[1]
        assert terms.identity[k].item() == pytest.approx((d_a + d_b) / 2, rel=1e-10)
        assert terms.identity_difference[k].item() == pytest.approx(abs(d_a - d_b), rel=1e-10)
        per = [perceptual_distance(maps(morphs[k : k + 1]), maps(x[k : k + 1])) for x in (a, b)]
        assert terms.perceptual[k].item() == pytest.approx((per[0] + per[1]).item() / 2, rel=1e-12)
        similar = [
            multiscale_structural_similarity_index_measure(
                morphs[k : k + 1], x[k : k + 1], data_range=2.0, betas=(1.0,), normalize="relu"
            )
            for x in (a, b)
        ]
        expected = 1 - (similar[0] + similar[1]).item() / 2
        assert terms.ms_ssim[k].item() == pytest.approx(expected, rel=1e-9)


def test_equal_sources_and_morph_cost_nothing(sources) -> None:
    a, _ = sources
    terms = MIPGANLoss(maps, IdentityLoss(embed), a, a)(a)
    for name, value in vars(terms).items():
        assert value.abs().max() < 1e-12, name


def test_the_sources_are_interchangeable(sources, toy) -> None:
    a, b = sources
    morphs = toy.synthesise(draw(2, 2, 6, seed=3))
    one = MIPGANLoss(maps, IdentityLoss(embed), a, b)(morphs)
    other = MIPGANLoss(maps, IdentityLoss(embed), b, a)(morphs)
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(other, name), rtol=1e-12, atol=1e-14)


def test_the_published_weights() -> None:
    one = torch.ones(1, dtype=torch.float64)
    total = MIPGANTerms(1e4 * one, 0.2 * one, 0.03 * one, 0.004 * one).total(MIPGANWeights())
    assert total.item() == pytest.approx(2 + 2 + 0.03 + 0.004, rel=1e-12)


def test_every_term_sends_a_gradient_to_every_style(sources, toy) -> None:
    a, b = sources
    for name in vars(MIPGANWeights()):
        alone = MIPGANWeights(**{**dict.fromkeys(vars(MIPGANWeights()), 0.0), name: 1.0})
        styles = draw(2, 2, 6, seed=4).requires_grad_()
        terms = MIPGANLoss(maps, IdentityLoss(embed), a, b)(toy.synthesise(styles))
        terms.total(alone).sum().backward()
        assert (styles.grad.abs().sum(2) > 0).all(), name


def test_projection_loss_by_its_formula(sources) -> None:
    a, b = sources
    got = ProjectionLoss(maps, a, perceptual=2.0, ms_ssim=3.0, pixel=5.0)(b)
    for k in range(2):
        x, y = a[k : k + 1], b[k : k + 1]
        similar = multiscale_structural_similarity_index_measure(
            x, y, data_range=2.0, betas=(1.0,), normalize="relu"
        )
        expected = 2 * perceptual_distance(maps(x), maps(y)) + 3 * (1 - similar)
        expected = expected + 5 * ((x - y) ** 2).sum() / (3 * SIZE * SIZE)
        assert got[k].item() == pytest.approx(expected.item(), rel=1e-9)
    assert ProjectionLoss(maps, a)(a).abs().max() < 1e-12


# Descent


def test_rates_follow_the_schedule(sources, toy) -> None:
    descent = StyleDescent(steps=7, learning_rate=0.1, decay=0.5, decay_every=3)
    rates = [descent.rate(k) for k in range(7)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025])
    assert StyleDescent().rate(149) == StyleDescent().rate(0) == 0.03
    # The first step of Adam has the length of the rate in every coordinate; without curvature the
    # following ones too.
    optimisation = StyleOptimisation(
        toy, lambda images: torch.zeros(len(images)), draw(1, 2, 6), descent
    )
    slope = torch.ones(1, 2, 6, dtype=torch.float64)
    optimisation.objective = lambda images: (optimisation.styles * slope).sum([1, 2])
    for k in range(7):
        before = optimisation.styles.detach().clone()
        optimisation.step()
        moved = before - optimisation.styles.detach()
        torch.testing.assert_close(moved, rates[k] * slope, rtol=1e-6, atol=0)


def test_a_projection_finds_the_styles_of_a_generated_image(toy) -> None:
    styles = 0.5 * draw(2, 2, 6, seed=5)
    images = toy.synthesise(styles)
    attack = MIPGAN(toy, maps, IdentityLoss(embed), projection=StyleDescent(200, 0.1, 0.96, 4))
    found = attack.project(images)
    assert (found.images() - images).square().mean().sqrt() < 1e-2


def test_a_morph_descends_from_the_mean_of_the_sources(toy, sources) -> None:
    weights = MIPGANWeights(perceptual=0.1)
    attack = MIPGAN(
        toy, maps, IdentityLoss(embed), weights, StyleDescent(60, 0.05), StyleDescent(80, 0.03)
    )
    toy.calls.clear()
    morphs = attack(*sources)
    assert len(toy.calls) == 2 * (60 + 1) + 80 + 1
    assert morphs.nfe == 60 + 80 + 1
    assert morphs.losses.shape == (81, 2)
    assert (morphs.losses[-1] < 0.95 * morphs.losses[0]).all()
    first = MIPGANLoss(maps, IdentityLoss(embed), *sources)
    start = sum(attack.project(images).styles.detach() for images in sources) / 2
    torch.testing.assert_close(
        morphs.losses[0], first(toy.synthesise(start)).total(weights), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        morphs.losses[-1], first(morphs.images).total(weights), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(toy.synthesise(morphs.styles), morphs.images, rtol=1e-12, atol=1e-14)


def test_a_pair_does_not_feel_its_batch(toy, sources) -> None:
    attack = MIPGAN(
        toy, maps, IdentityLoss(embed), projection=StyleDescent(20), descent=StyleDescent(20)
    )
    together = attack(*sources)
    again = attack(*sources)
    assert torch.equal(together.images, again.images)
    for k in range(2):
        alone = attack(*(images[k : k + 1] for images in sources))
        torch.testing.assert_close(together.images[k], alone.images[0], rtol=1e-9, atol=1e-9)


def test_a_descent_that_was_stopped_goes_on(toy, sources) -> None:
    descent = StyleDescent(12, 0.05, 0.5, 5)
    objective = ProjectionLoss(maps, sources[0])
    whole = StyleOptimisation(toy, objective, draw(2, 2, 6), descent)
    losses = whole.run()
    part = StyleOptimisation(toy, objective, draw(2, 2, 6), descent)
    first = [part.step() for _ in range(4)]
    resumed = StyleOptimisation(toy, objective, draw(2, 2, 6, seed=9), descent)
    resumed.load_state_dict(part.state_dict())
    rest = resumed.run()
    assert torch.equal(torch.cat([torch.stack(first), rest]), losses)
    assert torch.equal(resumed.styles, whole.styles)
    assert len(resumed.run()) == 0


def test_a_loss_that_is_not_finite_stops_the_descent(toy) -> None:
    optimisation = StyleOptimisation(
        toy, lambda images: images.sum([1, 2, 3]) * float("inf"), draw(1, 2, 6), StyleDescent()
    )
    with pytest.raises(RuntimeError, match="step 0: the losses are"):
        optimisation.step()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"decay_every": 0}, "decay_every=0"),
    ],
)
def test_impossible_descents_are_refused(values, message) -> None:
    with pytest.raises(ValueError, match=message):
        StyleDescent(**values)
    with pytest.raises(ValueError, match="identity=-1"):
        MIPGANWeights(identity=-1)
