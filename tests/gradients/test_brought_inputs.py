"""What researchers bring with a network, against loops that are written out here.

Nothing of the package samples in the reference: DDIM and BDIA are their formulas, differentiated by
autograd in float64. Every case is exact to 1e-10, or refused by a sentence that names what works.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, agree, inputs, normal
from torch import Tensor, nn
from torch.autograd import forward_ad

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    DiscreteAdjoint,
    ForwardMode,
    MemoryBudgetError,
    NotFiniteWarning,
    NotSupportedError,
    Reversible,
    UnreachableLeafError,
)
from adjointdeis.solvers import BDIA, DDIM, SDEDPMSolver

STEPS = 6
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS, t_min=0.05, t_max=0.6)
METHODS = {
    "exact": (DiscreteAdjoint(), DDIM()),
    "snapshots": (DiscreteAdjoint(snapshots=2), DDIM()),
    "kept": (DiscreteAdjoint(keep_activations=3), DDIM()),
    "budget": (DiscreteAdjoint(budget="1 GiB"), DDIM()),
    "reversible": (Reversible(), BDIA()),
    "forward": (ForwardMode(), DDIM()),
}
Sampler = Callable[..., Tensor]


def by_hand(denoiser, x: Tensor, z=None, *, leapfrog: bool = False, parameters=None) -> Tensor:
    """DDIM, or BDIA with gamma = 1, as their papers print them."""
    del parameters
    levels = [(float(a), float(s)) for a, s in zip(GRID.alpha, GRID.sigma, strict=True)]
    zs = list(z.values) if isinstance(z, PerStep) else [z] * STEPS
    before = None
    for i in range(STEPS):
        (alpha, sigma), (alpha_t, sigma_t) = levels[i], levels[i + 1]
        eps = denoiser(x, GRID.t[i], zs[i])
        x_0 = (x - sigma * eps) / alpha
        moved = alpha_t * x_0 + sigma_t * eps
        if leapfrog and before is not None:
            alpha_b, sigma_b = levels[i - 1]
            moved = before + moved - (alpha_b * x_0 + sigma_b * eps)
        before, x = x, moved
    return x


def ours(name: str) -> Sampler:
    method, solver = METHODS[name]

    def run(denoiser, x: Tensor, z=None, parameters=None) -> Tensor:
        return sample(
            denoiser, x, z, solver=solver, grid=GRID, gradient=method, parameters=parameters
        ).x_0

    return run


def duplicates(run: Sampler) -> list[Tensor]:
    """All weights, and once more those that were added to them."""
    network, (x, z) = MLPDenoiser(), inputs()
    weights = list(network.parameters())
    x_0 = run(network, x, z, parameters=[*weights, weights[0], *weights])
    return [x_0, *torch.autograd.grad(x_0.square().sum(), weights)]


def hooks(run: Sampler) -> list[Tensor]:
    """Clipping and scaling by hooks on a weight, an embedding, x_T and z: once, of the whole."""
    network, (x, z) = MLPDenoiser(), inputs()
    text, weights = normal(BATCH, COND, seed=4).requires_grad_(), list(network.parameters())
    embedding = text * 2.0
    embedding.register_hook(lambda g: g.clamp(-0.1, 0.1))
    weights[0].register_hook(lambda g: 2.0 * g)
    weights[1].register_hook(lambda g: g.clamp(-0.05, 0.05))
    for leaf in (x, z):
        leaf.requires_grad_().register_hook(lambda g: g.clamp(-0.1, 0.1))
    seen: list[Tensor] = []
    weights[2].register_post_accumulate_grad_hook(lambda w: seen.append(w.grad.clone()))
    x_0 = run(lambda x, t, z: network(x, t, z * embedding), x, z, parameters=[embedding, *weights])
    x_0.square().sum().backward()
    assert len(seen) == 1
    return [x_0, x.grad, z.grad, text.grad, *(w.grad for w in weights)]


def no_numbers(run: Sampler, batch: int = 0) -> list[Tensor]:
    network, x = MLPDenoiser().requires_grad_(False), normal(batch, DIM, seed=1).requires_grad_()
    x_0 = run(network, x, normal(batch, COND, seed=2))
    return [x_0, *torch.autograd.grad(x_0.square().sum(), x)]


def nothing_moves(run: Sampler) -> list[Tensor]:
    x = inputs()[0].requires_grad_()
    x_0 = run(lambda x, t, z: torch.zeros_like(x), x)
    return [x_0, *torch.autograd.grad(x_0.square().sum(), x)]


def complex_numbers(run: Sampler) -> list[Tensor]:
    x = torch.complex(normal(BATCH, DIM, seed=1), normal(BATCH, DIM, seed=2)).requires_grad_()
    weight = torch.complex(normal(DIM, DIM, seed=3), normal(DIM, DIM, seed=4)).requires_grad_()
    x_0 = run(lambda x, t, z: 0.3 * torch.tanh(x @ weight), x, parameters=[weight])
    return [x_0, *torch.autograd.grad(x_0.abs().square().sum(), (x, weight))]


def inference_tensors(run: Sampler) -> list[Tensor]:
    """Latents and a prompt that a pipeline made."""
    layer = nn.Linear(COND, DIM).double()
    nn.init.constant_(layer.weight, 0.1), nn.init.constant_(layer.bias, 0.2)
    hand = isinstance(run, partial)
    with torch.inference_mode(not hand):
        x, z = inputs()
    x_0 = run(lambda x, t, z: layer(z) * x, x, z, parameters=list(layer.parameters()))
    return [x_0, *torch.autograd.grad(x_0.square().sum(), list(layer.parameters()))]


def some_steps_without_a_condition(run: Sampler) -> list[Tensor]:
    network, (x, zs) = MLPDenoiser(), inputs(STEPS)
    z = PerStep([None if i in (0, 3) else value.requires_grad_() for i, value in enumerate(zs)])

    def denoiser(x, t, z):
        return network(x, t, torch.zeros(BATCH, COND).to(x) if z is None else z)

    x_0 = run(denoiser, x, z, parameters=list(network.parameters()))
    wanted = [value for value in zs if value.requires_grad]
    return [x_0, *torch.autograd.grad(x_0.square().sum(), [*wanted, *network.parameters()])]


def views(run: Sampler) -> list[Tensor]:
    """x_T and z cut out of larger leaves, shared by all samples, lying across memory."""
    network, big = MLPDenoiser().requires_grad_(False), normal(3, 9, seed=1).requires_grad_()
    shared = normal(1, COND, seed=2).requires_grad_()
    x_0 = run(network, big.t()[1:5, ::2].t(), shared.expand(BATCH, -1))
    return [x_0, *torch.autograd.grad(x_0.square().sum(), (big, shared))]


def one_leaf_in_all_places(run: Sampler) -> list[Tensor]:
    """x_T, z and a weight are the same tensor."""
    x = normal(BATCH, DIM, seed=1).requires_grad_()
    x_0 = run(lambda x, t, z: torch.tanh(x * z) + 0.1 * leaf, leaf := x, x, parameters=[x])
    return [x_0, *torch.autograd.grad((x_0 * x).sum(), x)]


def energy(run: Sampler) -> list[Tensor]:
    """The network is the slope of an energy, taken by torch.func."""
    network, (x, z) = MLPDenoiser().requires_grad_(False), inputs()
    slope = torch.func.grad(lambda x, t, z: network(x, t, z).square().sum())
    x_0 = run(slope, x.requires_grad_(), z.requires_grad_())
    return [x_0, *torch.autograd.grad(x_0.square().sum(), (x, z))]


def sparse_and_dense(run: Sampler) -> list[Tensor]:
    """A table whose gradient is sparse in some steps, as that of torch's embedding may be."""
    network, x = MLPDenoiser().requires_grad_(False), inputs()[0]
    table, labels = normal(5, COND, seed=7).requires_grad_(), torch.tensor([1, 3])

    def denoiser(x, t, z):
        looked_up = nn.functional.embedding(labels, table, sparse=float(t) < 0.3)
        return network(x, t, looked_up if float(t) < 0.5 else looked_up + table[:2])

    x_0 = run(denoiser, x, parameters=[table])
    (found,) = torch.autograd.grad(x_0.square().sum(), table)
    return [x_0, found.to_dense()]


def batched_products(run: Sampler) -> list[Tensor]:
    network, (x, z) = MLPDenoiser().requires_grad_(False), inputs()
    x_0 = run(network, x.requires_grad_(), z)
    rows = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    return [x_0, *torch.autograd.grad(x_0, x, rows, is_grads_batched=True)]


CASES = {
    one.__name__: one
    for one in (
        duplicates, hooks, no_numbers, nothing_moves, complex_numbers, inference_tensors,
        some_steps_without_a_condition, views, one_leaf_in_all_places, energy, batched_products,
        sparse_and_dense,
    )
}  # fmt: skip
# A product for each number of x_T and z, and none of weights or complex numbers.
FORWARD = ("nothing_moves", "batched_products", "views", "no_numbers")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", METHODS)
def test_it_is_the_gradient_of_the_loop(name: str, case: str) -> None:
    if name == "forward" and case not in FORWARD:
        pytest.skip("ForwardMode says that it gives none")
    if (name, case) == ("budget", "energy"):
        with pytest.raises(MemoryBudgetError, match=r"torch.func.*snapshots=\.\.\."):
            CASES[case](ours(name))
        return
    wanted = CASES[case](partial(by_hand, leapfrog=name == "reversible"))
    found = CASES[case](ours(name))
    assert all(agree(a, b, 1e-10) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "forward"])
def test_a_value_laid_aside_is_no_silent_part_of_the_loss(name: str) -> None:
    """A penalty of every step, collected by the denoiser: its path through x would be missing."""
    network, (x, z) = MLPDenoiser(), inputs()
    penalties: list[Tensor] = []

    def denoiser(x, t, z):
        eps = network(x, t, z)
        penalties.append(eps.square().mean())
        return eps

    for by in ([x.requires_grad_()], list(network.parameters())):
        penalties.clear()
        x_0 = ours(name)(denoiser, x, z, parameters=list(network.parameters()))
        with pytest.raises(UnreachableLeafError, match=r"laid aside.*Backprop\(\)"):
            torch.autograd.grad(x_0.sum() + sum(penalties), by)
        # It may be looked at.
        penalties.clear()
        x_0 = ours(name)(denoiser, x, z, parameters=list(network.parameters()))
        assert all(penalty > 0 for penalty in penalties)
        assert torch.autograd.grad(x_0.sum(), by)[0].norm() > 0
    run = sample(network, x, z, solver=DDIM(), grid=GRID, trajectory=True)
    later = [x, *run.states[1:-1]]
    again = [network(x, GRID.t[i], z).square().mean() for i, x in enumerate(later)]
    found = torch.autograd.grad(run.x_0.sum() + sum(again), x)
    kept: list[Tensor] = []

    def keeping(x, t, z):
        kept.append(network(x, t, z))
        return kept[-1]

    total = by_hand(keeping, x, z).sum() + sum(eps.square().mean() for eps in kept)
    assert agree(found[0], torch.autograd.grad(total, x)[0])


LONG = TimeGrid.uniform_lmbda(VPLinear(), 20, t_min=0.05, t_max=0.6)


def begins_late(network: nn.Module, found: list[Tensor]):
    def denoiser(x, t, z):
        eps = network(x, t, z)
        if 0.2 < float(t) < 0.5:
            found.append(eps.square().mean())
        return eps

    return denoiser


def by_a_hook(network: nn.Module, found: list[Tensor]):
    network.register_forward_hook(lambda module, given, eps: found.append(eps[:, 0].mean()))
    return lambda x, t, z: network(x, t, z)


def by_a_generator(network: nn.Module, found: list[Tensor]):
    def collected():
        for step in range(100):
            eps = yield
            if 4 < step % 20 < 8:
                found.append(eps.chunk(2, 1)[1].mean())

    collector = collected()
    next(collector)

    def denoiser(x, t, z):
        eps = network(x, t, z)
        collector.send(eps)
        return eps

    return denoiser


def into_a_tensor(network: nn.Module, found: list[Tensor]):
    table = torch.zeros(40, dtype=torch.float64)

    def denoiser(x, t, z):
        eps = network(x, t, z)
        if 0.2 < float(t) < 0.4:
            table[int(40 * float(t))] = eps.square().mean()
        return eps

    found[:] = [table] * 8
    return denoiser


@pytest.mark.parametrize("kind", [begins_late, by_a_hook, by_a_generator, into_a_tensor])
@pytest.mark.parametrize("name", METHODS)
def test_a_value_of_some_steps_in_the_middle_is_no_silent_part_of_the_loss(name: str, kind) -> None:
    method, solver = METHODS[name]
    weights_too = name != "forward"
    network, (x, z), found = MLPDenoiser().requires_grad_(weights_too), inputs(), []
    for by in ([x.requires_grad_()], list(network.parameters()) if weights_too else [x]):
        found.clear()
        with pytest.raises((UnreachableLeafError, NotSupportedError), match=r"Backprop\(\)"):
            x_0 = sample(
                kind(network, found), x, z, solver=solver, grid=LONG, gradient=method,
                parameters=list(network.parameters()),
            ).x_0  # fmt: skip
            chosen = found[4:8] if len(found) > 8 else found
            torch.autograd.grad(x_0.sum() + sum(value.sum() for value in chosen), by)
        assert found


class Lazy(nn.Module):
    """Weights that the first evaluation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(DIM, dtype=torch.float64)

    def forward(self, x, t, z):
        return self.layer(x)


def clipped_by_data(x, t, z):
    x.data.clamp_(-0.5, 0.5)
    return torch.tanh(x)


class Clipped(nn.Module):
    """A network that clips the gradient of one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Tanh()
        self.layer.register_full_backward_hook(lambda layer, inner, outer: (inner[0].clamp(-1, 1),))

    def forward(self, x, t, z):
        return self.layer(x)


def refused(kind: str):
    """A call that is refused, and what its message says."""
    network, (x, z) = MLPDenoiser().requires_grad_(False), inputs()
    weight = normal(COND, COND, seed=5).requires_grad_()
    call = {"denoiser": network, "x_T": x.requires_grad_(), "z": z, "solver": DDIM(), "grid": GRID}
    made = weight.t()
    return {
        "lazy": (call | {"denoiser": Lazy()}, r"denoiser\(x_T, grid\[0\].t, z\)"),
        "made of each other": (
            call
            | {
                "denoiser": lambda x, t, z: network(x, t, z @ made),
                "parameters": [made, weight],
            },
            r"count twice: pass the first as z",
        ),
        "written by .data": (
            call | {"denoiser": clipped_by_data, "solver": BDIA(), "gradient": Reversible()},
            "changes its x in place",
        ),
        "a schedule inside": (
            call | {"z": {"a": PerStep([z] * STEPS)}},
            r"write z=PerStep\(\[\{",
        ),
        "z in place, graphs kept": (
            call
            | {
                "denoiser": lambda x, t, z: network(x, t, z.mul_(0.9)),
                "z": z.clone().requires_grad_() * 1.0,
                "gradient": DiscreteAdjoint(budget="1 GiB"),
            },
            "changes its condition z in place",
        ),
        "more channels": (
            call
            | {
                "denoiser": lambda x, t, z: torch.cat([x, x], 1),
                "solver": BDIA(),
                "gradient": Reversible(),
            },
            "BDIA takes as many channels",
        ),
        "a sparse condition": (
            call
            | {
                "z": torch.eye(DIM, dtype=torch.float64).to_sparse().requires_grad_(),
                "denoiser": lambda x, t, z: torch.tanh(torch.sparse.mm(z, x.mT).mT),
            },
            r"layout torch.sparse_coo: pass z.to_dense\(\)",
        ),
        "hooks, forward": (
            call | {"denoiser": Clipped(), "gradient": ForwardMode()},
            "Tanh has a hook that changes its gradient",
        ),
        "an object around z": (
            call | {"z": nn.ParameterList([z]), "denoiser": lambda x, t, z: network(x, t, z[0])},
            "tuple or dict: other objects are not looked into",
        ),
    }[kind]


REFUSED = (
    "lazy", "made of each other", "written by .data", "a schedule inside",
    "z in place, graphs kept", "more channels", "a sparse condition", "hooks, forward",
    "an object around z",
)  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_served_is_refused_by_name(kind: str) -> None:
    call, message = refused(kind)
    with pytest.raises((ValueError, UnreachableLeafError), match=message):
        sample(call.pop("denoiser"), call.pop("x_T"), call.pop("z"), **call)


@pytest.mark.parametrize("name", METHODS)
def test_tangents_that_nobody_carries_are_no_silent_zeros(name: str) -> None:
    network, (x, z) = MLPDenoiser().requires_grad_(False), inputs()
    other = torch.ones_like(x)
    with pytest.raises(NotSupportedError, match=r"use gradient=Backprop\(\)"):
        torch.func.jvp(lambda x: ours(name)(network, x, z), (x,), (other,))
    with pytest.raises(NotSupportedError, match=r"use gradient=Backprop\(\)"):
        torch.func.vmap(lambda x: ours(name)(network, x[None], z[:1]))(x)
    with forward_ad.dual_level(), pytest.raises(NotSupportedError, match="tangents"):
        ours(name)(network, forward_ad.make_dual(x, other), z)
    with forward_ad.dual_level():
        assert ours(name)(network, x, z).shape == x.shape

    def plain(x):
        return sample(network, x, z, solver=DDIM(), grid=GRID, gradient=Backprop()).x_0

    found = torch.func.jvp(plain, (x,), (other,))[1]
    assert agree(found, torch.autograd.functional.jvp(partial(by_hand, network, z=z), x, other)[1])


def test_conditions_of_several_lengths_share_no_product() -> None:
    x = inputs()[0]
    zs = [normal(BATCH, COND + i, seed=i).requires_grad_() for i in range(STEPS)]

    def run(steps):
        return sample(
            lambda x, t, z: torch.tanh(x * z.mean(1, keepdim=True)), x, PerStep(zs),
            solver=DDIM(), grid=GRID, gradient=AdjointDEIS(steps=steps),
        ).x_0.sum()  # fmt: skip

    assert torch.autograd.grad(run(None), zs)[0].norm() > 0
    with pytest.raises(NotSupportedError, match="conditions of different shapes"):
        run(3).backward()


def test_noise_may_be_one_tensor() -> None:
    network, (x, z) = MLPDenoiser().requires_grad_(False), inputs()
    noise, found = normal(STEPS, BATCH, DIM, seed=6).requires_grad_(), []
    for given, method in ((list(noise), Backprop()), (noise, DiscreteAdjoint())):
        x_0 = sample(
            network, x, z, solver=SDEDPMSolver(), grid=GRID, noise=given, gradient=method
        ).x_0
        found.append(torch.autograd.grad(x_0.square().sum(), noise)[0])
    assert agree(found[1], found[0]) and found[0].norm() > 0
    with pytest.raises(ValueError, match="5 recorded noises for a grid of 6 steps"):
        sample(network, x, z, solver=SDEDPMSolver(), grid=GRID, noise=noise[1:])


@pytest.mark.parametrize("name", ["exact", "snapshots", "kept", "reversible"])
def test_where_a_sample_went_wrong_is_said(name: str) -> None:
    """As a warning: scaled losses in half precision count on gradients that are not finite."""
    (x, z), bad = inputs(), float(GRID.t[3])

    def denoiser(x, t, z):
        return torch.tanh(x) * (torch.inf if float(t) == bad else 1.0)

    x_0 = ours(name)(denoiser, x.requires_grad_(), z)
    where = "steps 0 to 5" if name == "reversible" else "steps? [0-3]"
    with pytest.warns(NotFiniteWarning, match=rf"{where}.* of 6 is where that began"):
        (found,) = torch.autograd.grad(x_0.sum(), x)
    assert not found.isfinite().all()
    x_0 = ours(name)(lambda x, t, z: torch.tanh(x), x * torch.nan, z)
    with pytest.warns(NotFiniteWarning, match="x_T, before any step"):
        x_0.sum().backward()
