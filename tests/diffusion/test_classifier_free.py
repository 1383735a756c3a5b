"""Guidance: the formula, its branches, its gradients, and the pipelines' own."""

import pytest
import torch
from oracles import relative_error
from torch import Tensor, nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import Guidance
from adjointdeis.gradients import Backprop, DiscreteAdjoint
from adjointdeis.solvers import DDIM

GRID = TimeGrid.uniform_lmbda(VPLinear(), 5)
T = torch.tensor(0.5, dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Attending(nn.Module):
    """Takes texts of any length, and a pooled vector in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * normal(4, 4, seed=0))
        self.batches: list[int] = []

    def forward(self, x: Tensor, t: Tensor, z: Tensor | dict) -> Tensor:
        self.batches.append(x.shape[0])
        text, pooled = (z["prompt"], z["pooled"]) if isinstance(z, dict) else (z, 0.0)
        attention = torch.softmax(torch.einsum("bd,bld->bl", x, text), -1)
        read = torch.einsum("bl,bld->bd", attention, text)
        return torch.tanh(x @ self.weight + read + pooled + t)


X, Z = normal(3, 4, seed=1), normal(3, 6, 4, seed=2)
POOLED = normal(3, 4, seed=3)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("length", [6, 2])
def test_the_formula_for_texts_of_any_length(batched: bool, length: int) -> None:
    network, negative = Attending(), normal(1, length, 4, seed=4)
    guided = Guidance(network, negative, 2.5, batched=batched)
    found = guided(X, T, Z)
    assert network.batches == ([6] if batched and length == 6 else [3, 3])
    without, given = network(X, T, negative.expand(3, -1, -1)), network(X, T, Z)
    torch.testing.assert_close(found, without + 2.5 * (given - without))
    each = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    torch.testing.assert_close(
        Guidance(network, negative, each, batched=batched)(X, T, Z),
        without + each[:, None] * (given - without),
    )


@pytest.mark.parametrize("batched", [True, False])
def test_a_negative_of_several_parts_shares_what_it_leaves_out(batched: bool) -> None:
    network, z = Attending(), {"prompt": Z, "pooled": POOLED}
    for negative in ({"prompt": -Z}, {"prompt": -Z, "pooled": torch.zeros(1, 4).double()}):
        other = {"prompt": -Z, "pooled": negative.get("pooled", POOLED)}
        without, given = network(X, T, other), network(X, T, z)
        found = Guidance(network, negative, 3.0, batched=batched)(X, T, z)
        torch.testing.assert_close(found, without + 3.0 * (given - without))
    with pytest.raises(ValueError, match="negative has 'poled', which z, with 'prompt', 'pooled'"):
        Guidance(network, {"poled": POOLED}, 2.0)(X, T, z)
    with pytest.raises(ValueError, match="negative has the structure"):
        Guidance(network, (Z, POOLED), 2.0)(X, T, z)


def test_rescale_and_norm_and_variance() -> None:
    network, negative = Attending(), normal(1, 6, 4, seed=4)
    without, given = network(X, T, negative.expand(3, -1, -1)), network(X, T, Z)
    plain = without + 4.0 * (given - without)
    spread = plain * given.std(1, keepdim=True) / plain.std(1, keepdim=True)
    torch.testing.assert_close(
        Guidance(network, negative, 4.0, rescale=0.7)(X, T, Z), 0.7 * spread + 0.3 * plain
    )
    normed = plain * given.norm(dim=-1, keepdim=True) / plain.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(Guidance(network, negative, 4.0, keep_norm=True)(X, T, Z), normed)

    def with_variance(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return torch.cat([x * z.mean(), z.sum() * torch.ones_like(x)], dim=1)

    x = normal(2, 3, 2, 2, seed=5)
    z, none = 2 * torch.ones(2, 1).double(), torch.ones(2, 1).double()
    found = Guidance(with_variance, none, 3.0, batched=False)(x, T, z)
    torch.testing.assert_close(found[:, :3], x + 3.0 * x)
    torch.testing.assert_close(found[:, 3:], 4.0 * torch.ones_like(x))


def test_an_interval_costs_what_it_evaluates() -> None:
    network, negative = Attending(), normal(1, 6, 4, seed=4)
    inside = Guidance(network, negative, 4.0, interval=(0.2, 0.6))
    always, never = Guidance(network, negative, 4.0), network
    for t, wanted in ((0.1, never), (0.2, always), (0.4, always), (0.6, always), (0.7, never)):
        time = torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(inside(X, time, Z), wanted(X, time, Z))
    cost = sample(inside, X, Z, solver=DDIM(), grid=GRID).cost
    guided = sum(bool(0.2 <= float(t) <= 0.6) for t in GRID.t[:-1])
    assert 0 < guided < 5 and cost.nfe_forward == 5 + guided
    for wrong in ((0.6, 0.2), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="interval must be"):
            Guidance(network, negative, 4.0, interval=wrong)
    with pytest.raises(ValueError, match="rescale must lie"):
        Guidance(network, negative, 4.0, rescale=1.5)


@pytest.mark.parametrize("kind", ["parameters", "tensors"])
def test_scale_and_negative_receive_their_gradient(kind: str) -> None:
    negative, scale = normal(1, 6, 4, seed=4), torch.tensor(3.0, dtype=torch.float64)
    if kind == "parameters":
        negative, scale = nn.Parameter(negative), nn.Parameter(scale)
    else:
        negative.requires_grad_(), scale.requires_grad_()
    guided = Guidance(Attending(), negative, scale)
    assert len(list(guided.parameters())) == 3
    leaves = (negative, scale, guided.denoiser.weight)
    found = []
    for method in (DiscreteAdjoint(), Backprop()):
        x_0 = sample(guided, X, Z, solver=DDIM(), grid=GRID, gradient=method).x_0
        found.append(torch.autograd.grad((1 + x_0**2).sqrt().sum(), leaves))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.norm() > 0 and relative_error(ours, theirs) < 1e-12


def test_it_moves_with_its_tensors() -> None:
    negative = normal(1, 6, 4, seed=4)
    guided = Guidance(Attending(), {"prompt": negative}, torch.tensor(2.0).double()).float()
    z = {"prompt": Z.float(), "pooled": POOLED.float()}
    assert guided(X.float(), T.float(), z).dtype == torch.float32
    assert guided.state_dict().keys() == {"negative_0", "scale", "denoiser.weight"}


@pytest.mark.parametrize("method", [Backprop(), DiscreteAdjoint()], ids=str)
def test_a_guidance_around_a_guidance(method) -> None:
    """Two conditions, each with a negative and a scale of its own, as in InstructPix2Pix."""
    network, x, z = Attending(), normal(2, 4, seed=1), normal(2, 5, 4, seed=2)
    one, two = (normal(2, 5, 4, seed=seed).requires_grad_() for seed in (3, 4))
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    found = []
    inside = Guidance(network, one, scale)

    def by_hand(x, t, z):
        first = [network(x, t, one), network(x, t, two), network(x, t, z)]
        without, given = (first[0] + scale[:, None] * (out - first[0]) for out in first[1:])
        return without + 4.0 * (given - without)

    for denoiser, way in ((by_hand, Backprop()), (Guidance(inside, two, 4.0), method)):
        grid = TimeGrid.uniform_lmbda(VPLinear(), 3, t_min=0.05, t_max=0.6)
        x_0 = sample(denoiser, x, z, solver=DDIM(), grid=grid, gradient=way).x_0
        found.append([x_0, *torch.autograd.grad(x_0.square().sum(), (one, two, scale))])
    assert all(relative_error(b, a) < 1e-12 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("scale", "negative", "message"),
    [
        (torch.ones(3), torch.zeros(5, 4), r"scale has shape \(3,\) for a batch of 2"),
        (torch.ones(2, 2), torch.zeros(5, 4), r"scale has shape \(2, 2\)"),
        (torch.ones(2), torch.zeros(3, 5, 4), r"negative has shape \(3, 5, 4\) for a batch of 2"),
    ],
)
def test_what_belongs_to_another_batch_is_named(scale, negative, message: str) -> None:
    guided = Guidance(Attending(), negative.double(), scale.double())
    with pytest.raises(ValueError, match=message):
        guided(normal(2, 4, seed=1), torch.tensor(0.5), normal(2, 5, 4, seed=2))
