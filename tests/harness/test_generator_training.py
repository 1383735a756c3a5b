"""Adversarial training against its equations: losses, penalty, mixing, averages."""

import math

import pytest
import torch
import torch.nn.functional as F

from adjointdeis.faces.networks import IResNet, IResNetConfig, StyleGAN2, StyleGAN2Config
from adjointdeis.harness.training.discriminator import Discriminator, ScaledConvolution
from adjointdeis.harness.training.generator import GeneratorTraining

CONFIG = StyleGAN2Config(16, z_dim=8, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)


@pytest.fixture
def training() -> GeneratorTraining:
    torch.manual_seed(0)
    trunk = IResNet(IResNetConfig(16, (1, 1, 1, 1), (4, 4, 4, 4), embedding_dim=4)).double()
    return GeneratorTraining(CONFIG, trunk).double()


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


class Alone:
    """What a step asks of its trainer, without one."""

    def __init__(self, training: GeneratorTraining, step: int) -> None:
        self.global_step, self.logged = step, {}
        optimizers = training.configure_optimizers()
        optimizers[1].optimizer = optimizers[1]
        training.optimizers = lambda: optimizers  # type: ignore[method-assign]
        self.descended: list[float] = []

        def backward(loss: torch.Tensor) -> None:
            self.descended.append(loss.item())
            loss.backward()

        training.manual_backward = backward  # type: ignore[method-assign]
        training.log = lambda name, value, **_: self.logged.update({name: value})
        training._trainer = self  # type: ignore[assignment]


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def assert_descends(moved, before, gradients) -> None:
    """Adam without momentum moves every weight against the sign of its gradient."""
    for name, gradient in gradients.items():
        large = gradient.abs() > 1e-6
        step = moved[name] - before[name]
        assert large.any(), name
        assert torch.equal(step[large].sign(), -gradient[large].sign()), name


def test_the_reconstruction_is_of_pixels_and_features(training) -> None:
    drawn, faces = draw(4, 3, 16, 16), draw(4, 3, 16, 16, seed=1)
    training.pixel, training.perceptual = 3.0, 0.5
    (maps,) = training._maps
    features = 0.0
    for x, y in zip(maps(drawn), maps(faces), strict=True):
        features += ((x - y) ** 2).mean()
    expected = 3 * (drawn - faces).abs().mean() + 0.5 * features
    torch.testing.assert_close(training.reconstruction(drawn, faces), expected)
    assert training.reconstruction(faces, faces) == 0


def test_before_the_game_the_generator_draws_the_faces_of_their_codes(training) -> None:
    trainer = Alone(training, step=3)
    training.adversarial_from = 4
    real, codes = draw(4, 3, 16, 16, seed=1), draw(4, 8, seed=2)
    critic, before = weights(training.discriminator), weights(training.network)
    drawn = training.network.synthesise(training.network.map(codes))
    loss = training.reconstruction(drawn, real)
    names = ("synthesis.b16.conv1.weight", "mapping.fc0.weight", "synthesis.b4.const")
    parameters = dict(training.network.named_parameters())
    gradients = torch.autograd.grad(loss, [parameters[name] for name in names])
    # No noise enters yet: its strength begins at zero.
    training.training_step((real, codes), 0)
    torch.testing.assert_close(trainer.logged["train/loss"], loss.detach())
    gradients = dict(zip(names, gradients, strict=True))
    assert_descends(weights(training.network), before, gradients)
    assert all(torch.equal(v, critic[k]) for k, v in weights(training.discriminator).items())


def test_in_the_game_each_network_descends_its_own_loss(training) -> None:
    trainer = Alone(training, step=1)  # not a penalty step
    real, codes = draw(4, 3, 16, 16, seed=1), draw(4, 8, seed=2)
    styles = draw(4, CONFIG.styles, 8, seed=3)
    seen = []
    training.styles = lambda codes, normal: seen.append((len(codes), normal)) or styles
    critic, before = weights(training.discriminator), weights(training.network)
    twin = Discriminator(CONFIG).double()
    twin.load_state_dict(training.discriminator.state_dict())
    fake = training.network.synthesise(styles)
    loss = -(F.logsigmoid(twin(real)) + F.logsigmoid(-twin(fake.detach()))).mean()
    loss.backward()
    training.training_step((real, codes), 0)
    assert seen == [(2, 2), (2, 2)]
    torch.testing.assert_close(trainer.logged["train/discriminator"], loss.detach())
    gradients = {name: value.grad for name, value in twin.named_parameters()}
    moved = weights(training.discriminator)
    assert_descends(moved, critic, gradients)
    # The generator then fools the discriminator as it has become, and keeps to its faces.
    twin.load_state_dict(moved, strict=False)
    generator = StyleGAN2(CONFIG).double()
    generator.load_state_dict(training.network.state_dict())
    generator.load_state_dict(before, strict=False)
    fake = generator.synthesise(styles)
    game = -F.logsigmoid(twin(fake)).mean()
    torch.testing.assert_close(trainer.logged["train/game"], game.detach())
    names = ("synthesis.b16.conv1.weight", "synthesis.b4.const")
    parameters = dict(generator.named_parameters())
    total = game + training.reconstruction(fake[:2], real[:2])
    gradients = torch.autograd.grad(total, [parameters[name] for name in names])
    assert_descends(weights(training.network), before, dict(zip(names, gradients, strict=True)))


def test_the_penalty_enters_every_few_steps_for_the_steps_between(training) -> None:
    training.penalty, training.penalty_every = 0.7, 8
    real, codes = draw(4, 3, 16, 16, seed=1), draw(4, 8, seed=2)
    slope = training.slope(real).item()
    for step, expected in ((8, 8 * 0.7 / 2 * slope), (9, 0.0)):
        torch.manual_seed(0)
        trainer = Alone(training, step)
        state = training.discriminator.state_dict()
        state = {name: value.clone() for name, value in state.items()}
        training.training_step((real, codes), 0)
        training.discriminator.load_state_dict(state)
        extra = trainer.descended[0] - trainer.logged["train/discriminator"].item()
        assert extra == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_average_style_follows_the_styles(training) -> None:
    training.style_mixing, training.w_avg_decay = 0.0, 0.75
    torch.manual_seed(3)
    codes = draw(3, 8).float()
    training.float().styles(codes, 2)
    torch.manual_seed(3)
    w = training.network.mapping(torch.cat([codes, torch.randn(4, 8)]))
    torch.testing.assert_close(training.network.mapping.w_avg, 0.25 * w.mean(0))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_style_mixing_gives_fine_layers_of_normal_latents_another_style(training, share) -> None:
    training.style_mixing = share
    styles = training.styles(draw(5, 8), 64)
    assert styles.shape == (69, CONFIG.styles, 8)
    torch.testing.assert_close(styles[:5], training.network.map(draw(5, 8)))
    changes = (styles[:, 1:] != styles[:, :-1]).any(2).sum(1)
    assert (changes[:5] == 0).all() and (changes[5:] == int(share)).all()


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
