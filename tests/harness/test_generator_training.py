"""Adversarial training against its equations: losses, penalty, mixing, averages."""

import math

import pytest
import torch
import torch.nn.functional as F

from adjointdeis.faces.networks import StyleGAN2Config
from adjointdeis.harness.training.discriminator import Discriminator, ScaledConvolution
from adjointdeis.harness.training.generator import GeneratorTraining

CONFIG = StyleGAN2Config(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


@pytest.fixture
def training() -> GeneratorTraining:
    torch.manual_seed(0)
    return GeneratorTraining(CONFIG).double()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_the_penalty_is_the_mean_squared_norm_of_the_gradient(training) -> None:
    images = draw(4, 3, 16, 16)
    slope = training.slope(images)
    norms = []
    for k in range(4):
        # The discriminator compares the images of a group: one gradient of the sum for all.
        x = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(training.discriminator(x).sum(), x)
        norms.append(gradient[k].square().sum())
    torch.testing.assert_close(slope, torch.stack(norms).mean(), rtol=1e-6, atol=0)
    slope.backward()
    assert training.discriminator.from_rgb.weight.grad.abs().sum() > 0


def test_a_step_moves_each_network_down_its_own_loss(training) -> None:
    """Adam without momentum moves every weight against the sign of its own loss's gradient."""
    real = draw(4, 3, 16, 16, seed=1)
    before = {name: value.detach().clone() for name, value in training.named_parameters()}

    class Steps:
        global_step = 1  # not a penalty step

    generator, discriminator = training.configure_optimizers()
    discriminator.optimizer = discriminator
    training.optimizers = lambda: (generator, discriminator)  # type: ignore[method-assign]
    training.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign]
    training.log = lambda *_, **__: None  # type: ignore[method-assign]
    training._trainer = Steps()  # type: ignore[assignment]
    training._fabric = None
    images = [draw(4, 3, 16, 16, seed=k) for k in (2, 3)]
    served = iter(images)
    weight = training.network.synthesis.b4.const
    # Generated images: fixed ones, tied to a weight so that a gradient flows to it.
    training.generate = lambda count: next(served) * weight.sum()  # type: ignore[method-assign]
    torch.manual_seed(5)
    training.training_step((real, torch.zeros(4)), 0)

    torch.manual_seed(5)
    real = torch.where(torch.rand(4, 1, 1, 1) < 0.5, real.flip(-1), real)
    critic = Discriminator(CONFIG).double()
    stored = {
        name.removeprefix("discriminator."): value
        for name, value in before.items()
        if name.startswith("discriminator.")
    }
    critic.load_state_dict(stored, strict=False)
    total = before["network.synthesis.b4.const"].sum()
    loss = -(F.logsigmoid(critic(real)) + F.logsigmoid(-critic(images[0] * total))).mean()
    loss.backward()
    moved = dict(training.discriminator.named_parameters())
    for name, value in critic.named_parameters():
        step = moved[name].detach() - stored[name]
        large = value.grad.abs() > 1e-6
        assert large.any()
        assert torch.equal(step[large].sign(), -value.grad[large].sign())
    # The generator then fools the discriminator as it has become.
    const = before["network.synthesis.b4.const"].clone().requires_grad_()
    fooled = -F.logsigmoid(training.discriminator(images[1] * const.sum())).mean()
    (slope,) = torch.autograd.grad(fooled, const)
    step = weight.detach() - before["network.synthesis.b4.const"]
    assert torch.equal(step.sign(), -slope.sign())


def test_the_average_style_follows_the_styles(training) -> None:
    training.style_mixing, training.w_avg_decay = 0.0, 0.75
    torch.manual_seed(3)
    training.float().generate(4)
    torch.manual_seed(3)
    w = training.network.mapping(torch.randn(8, 8))
    torch.testing.assert_close(training.network.mapping.w_avg, 0.25 * w.mean(0))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_style_mixing_gives_fine_layers_another_style(training, share) -> None:
    training.style_mixing = share
    seen = []
    training.network.synthesise = lambda styles, noise: seen.append(styles)
    training.float().generate(64)
    (styles,) = seen
    changes = (styles[:, 1:] != styles[:, :-1]).any(2).sum(1)
    assert (changes == int(share)).all()


def test_a_spread_of_features_is_shown_to_the_last_layer() -> None:
    network = Discriminator(CONFIG).double()
    x = draw(8, 3, 2, 2)
    # Four images a group: 0, 2, 4, 6 and 1, 3, 5, 7.
    expected = [
        math.sqrt(1) * (x[k::2].var(0, unbiased=False) + 1e-8).sqrt().mean().item() for k in (0, 1)
    ]
    got = network._variety(x)
    assert got.shape == (8, 1, 2, 2)
    for k in range(8):
        torch.testing.assert_close(
            got[k], torch.full((1, 2, 2), expected[k % 2]).double(), rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("down", [False, True])
def test_convolutions_keep_unit_variance_and_halve(size, down) -> None:
    torch.manual_seed(0)
    out = ScaledConvolution(32, 16, size, down)(torch.randn(4, 32, 32, 32))
    assert out.shape == (4, 16, 16, 16) if down else (4, 16, 32, 32)
    inner = out[..., 2:-2, 2:-2]
    # The low-pass filter keeps the energy of (1 + 9 + 9 + 1) / 64 per axis.
    assert inner.std().item() == pytest.approx(20 / 64 if down else 1, rel=0.05)
