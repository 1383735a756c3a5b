"""Equations of the autoencoder's blocks, each against a plain transcription, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adjointdeis.faces.networks.blocks import (
    Norm,
    Resample,
    ResidualBlock,
    SelfAttention,
    Stage,
    TimeEmbedding,
)


def randomise(network: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights everywhere: several convolutions begin at zero and would hide an error."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = 0.3 * noise
    return network.eval()


def tensor(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def conditioned() -> ResidualBlock:
    return randomise(ResidualBlock(6, 4, embed_channels=5, code_channels=7))


def test_norm_uses_32_groups_at_the_official_widths():
    assert [Norm(channels).num_groups for channels in (128, 256, 512, 768, 1024)] == [32] * 5


def test_norm_of_half_precision_is_taken_in_float32():
    x = 200 * torch.rand(2, 32, 8, 8, generator=torch.Generator().manual_seed(0)) + 60000
    norm = Norm(32)
    got = norm(x.clamp(max=65000).half())
    expected = norm(x.clamp(max=65000).half().float()).half()
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("direction", [0, 1, -1])
def test_conditioned_block_follows_the_equation(direction):
    block = randomise(ResidualBlock(6, 4, embed_channels=5, code_channels=7, direction=direction))
    x, embedding, z = tensor(2, 6, 4, 4), tensor(2, 5, seed=2), tensor(2, 7, seed=3)
    weights = dict(block.named_parameters())

    def conv(h, name, padding):
        return F.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def norm(h, name):
        groups = math.gcd(32, h.shape[1])
        return F.group_norm(h, groups, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def linear(h, name):
        return F.linear(F.silu(h), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def resample(h):
        if direction > 0:
            return h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).mean((3, 5)) if direction else h

    h = conv(resample(F.silu(norm(x, "in_layers.0"))), "in_layers.2", 1)
    time = linear(embedding, "emb_layers.1")[:, :, None, None]
    scale_t, shift_t = time[:, :4], time[:, 4:]
    scale_z = linear(z, "cond_emb_layers.1")[:, :, None, None]
    normed = norm(h, "out_layers.0")
    modulated = (normed * (1 + scale_t) + shift_t) * (1 + scale_z)
    skip = conv(resample(x), "skip_connection", 0)
    expected = skip + conv(F.silu(modulated), "out_layers.3", 1)
    torch.testing.assert_close(block(x, embedding, z), expected, rtol=1e-12, atol=1e-12)

    # The other order, code before time, is a different function.
    swapped = (normed * (1 + scale_z)) * (1 + scale_t) + shift_t
    other = skip + conv(F.silu(swapped), "out_layers.3", 1)
    assert (block(x, embedding, z) - other).abs().max() > 1e-3


def test_the_code_only_scales(conditioned):
    """With the time's scale at -1 and its shift at 0 nothing is left that a scale could move."""
    assert conditioned.cond_emb_layers[1].out_features == 4
    assert conditioned.emb_layers[1].out_features == 8
    linear = conditioned.emb_layers[1]
    linear.weight.data.zero_()
    linear.bias.data = torch.tensor([-1.0] * 4 + [0.0] * 4, dtype=torch.float64)
    x, embedding = tensor(1, 6, 4, 4), tensor(1, 5)
    first = conditioned(x, embedding, tensor(1, 7, seed=4))
    second = conditioned(x, embedding, tensor(1, 7, seed=5))
    torch.testing.assert_close(first, second, rtol=0, atol=0)

    linear.bias.data = torch.tensor([-1.0] * 4 + [0.5] * 4, dtype=torch.float64)
    first = conditioned(x, embedding, tensor(1, 7, seed=4))
    second = conditioned(x, embedding, tensor(1, 7, seed=5))
    assert (first - second).abs().max() > 1e-3


def test_encoder_block_has_no_second_convolution():
    block = randomise(ResidualBlock(6, 6))
    keys = ["in_layers.0.weight", "in_layers.0.bias", "in_layers.2.weight", "in_layers.2.bias"]
    assert list(block.state_dict()) == keys
    x = tensor(2, 6, 4, 4)
    torch.testing.assert_close(block(x), x + block.in_layers(x), rtol=1e-14, atol=1e-14)


def test_dropout_is_off_in_evaluation_mode():
    block = randomise(ResidualBlock(4, 4, embed_channels=5, dropout=0.5))
    arguments = tensor(1, 4, 4, 4), tensor(1, 5), tensor(1, 5)
    torch.testing.assert_close(block(*arguments), block(*arguments), rtol=0, atol=0)
    block.train()
    assert (block(*arguments) - block.eval()(*arguments)).abs().max() > 1e-3


def test_resampling_down_undoes_resampling_up():
    x = tensor(1, 3, 4, 4)
    torch.testing.assert_close(Resample(-1)(Resample(1)(x)), x, rtol=0, atol=1e-15)
    assert Resample(0)(x) is x


def test_attention_equals_a_naive_implementation():
    attention = randomise(SelfAttention(8))
    x = tensor(2, 8, 3, 4)
    flat = x.reshape(2, 8, 12)
    qkv = F.conv1d(attention.norm(flat), attention.qkv.weight, attention.qkv.bias)
    q, k, v = qkv[:, :8], qkv[:, 8:16], qkv[:, 16:]
    scale = 8**-0.25
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
    h = torch.einsum("bts,bcs->bct", weight, v)
    h = F.conv1d(h, attention.proj_out.weight, attention.proj_out.bias)
    torch.testing.assert_close(attention(x), x + h.reshape(x.shape), rtol=1e-12, atol=1e-12)


def test_attention_starts_as_the_identity():
    x = torch.randn(1, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(SelfAttention(8)(x), x, rtol=0, atol=0)


def test_time_embedding_puts_cosines_first():
    embedding = TimeEmbedding(6, 6).double()
    for layer in (0, 2):
        embedding.time_embed[layer].weight.data = torch.eye(6, dtype=torch.float64)
        embedding.time_embed[layer].bias.data.zero_()
    t = 37
    frequencies = [10000 ** (-i / 3) for i in range(3)]
    waves = [math.cos(t * f) for f in frequencies] + [math.sin(t * f) for f in frequencies]
    expected = F.silu(torch.tensor(waves, dtype=torch.float64))
    got = embedding(torch.tensor([t]))[0]
    # The official code takes the angles in float32.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_stage_gives_the_condition_to_residual_blocks_only(conditioned):
    attention = randomise(SelfAttention(4))
    x, embedding, z = tensor(1, 6, 4, 4), tensor(1, 5), tensor(1, 7)
    got = Stage(conditioned, attention)(x, embedding, z)
    expected = attention(conditioned(x, embedding, z))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
