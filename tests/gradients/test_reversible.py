"""The reversible gradient: autograd of the same chain, from two latents, at the stated cost."""

import gc
import warnings
import weakref
from functools import cache

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    Autocast,
    Dropout,
    Gradients,
    MLPDenoiser,
    agree,
    continuous_gradient,
    differentiate,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)
from torch import nn

from adjointdeis import DDPM, PerStep, TimeGrid, VPCosine, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath, ClassifierFreeGuidance, RecordedNoise
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    DiscreteAdjoint,
    FlowGrad,
    NotSupportedError,
    OneStep,
    Reversible,
    UnreachableLeafError,
)
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    AmplificationWarning,
    Pair,
    Rex,
    SDEDPMSolver,
)

quiet = pytest.mark.filterwarnings("ignore::adjointdeis.solvers.reversible.AmplificationWarning")
N = 6
SOLVERS = {
    "edict": EDICT(),
    "bdia": BDIA(),
    "bdia-half": BDIA(0.5),
    "obelm": OBELM(),
    "rex-euler": Rex(),
    "rex-midpoint": Rex("midpoint", zeta=0.95),
    "rex-rk4": Rex("rk4"),
    "rex-noise": Rex("kutta3", "noise"),
    "rex-sde": Rex(calculus="sde"),
    "rex-sde-midpoint": Rex("midpoint", calculus="sde", zeta=0.9),
    "rex-sde-noise": Rex("heun", "noise", "sde"),
    "pair": Pair(EDICT(), tied=True),
}
GRIDS = {
    "lmbda": TimeGrid.uniform_lmbda(VPLinear(), 7, t_min=0.05, t_max=0.6),
    "time": TimeGrid.uniform_time(VPCosine(), N, t_min=0.1, t_max=0.8),
    "sigma0": TimeGrid.from_times(DDPM(), [0.6, 0.5, 0.35, 0.2, 0.0]),
}


def noise_for(solver, kind: str = "brownian", steps: int = N):
    if solver.calculus == "ode":
        return None
    if kind == "recorded":
        return RecordedNoise.draw(steps, (BATCH, DIM), seed=3, dtype=torch.float64)
    return BrownianPath((BATCH, DIM), seed=4)


def square(x: torch.Tensor) -> torch.Tensor:
    return (x * x.sin()).sum()


@pytest.mark.parametrize("scheduled", [False, True], ids=["z", "z_t"])
@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_reversible_gradient_is_autograd(name: str, spacing: str, scheduled: bool) -> None:
    solver, grid, network = SOLVERS[name], GRIDS[spacing], MLPDenoiser()
    x_T, z = inputs(grid.steps if scheduled else 0)
    noise = noise_for(solver)
    exact, stored, found = (
        differentiate(network, x_T, z, m, solver=solver, grid=grid, noise=noise, loss=square)
        for m in (Backprop(), DiscreteAdjoint(), Reversible())
    )
    assert torch.equal(exact.rollout.x_0, found.rollout.x_0)
    for part, value in exact.parts().items():
        assert float(value.norm()) > 1e-3, part
        assert relative_error(stored.parts()[part], value) < 1e-12, part
        # The SDE forgets x_T, so undoing its path amplifies rounding most.
        assert relative_error(found.parts()[part], value) < 1e-10, part
    if name in ("bdia", "edict", "pair", "rex-noise"):
        for part, value in exact.parts().items():
            assert relative_error(found.parts()[part], value) < 1e-12, part


@pytest.mark.parametrize("name", ["edict", "bdia", "obelm", "rex-euler", "rex-rk4"])
def test_it_holds_on_the_whole_time_range(name: str) -> None:
    solver, (x_T, z) = SOLVERS[name], inputs()
    network = mixture()
    for build in (TimeGrid.uniform_lmbda, TimeGrid.uniform_time):
        grid = build(VPLinear(), 50 if name != "rex-rk4" else 12)
        exact, found = (
            differentiate(network, x_T, z, m, solver=solver, grid=grid)
            for m in (DiscreteAdjoint(), Reversible())
        )
        for part, value in exact.parts().items():
            assert relative_error(found.parts()[part], value) < 1e-10, part


def test_it_is_correct_by_finite_differences() -> None:
    grid, network = TimeGrid.uniform_time(VPLinear(), 3, t_min=0.1), MLPDenoiser()
    x_T, zs = inputs(3)
    leaves = [value.requires_grad_() for value in (x_T, *zs)]
    noise = [normal(BATCH, DIM, seed=i) for i in range(3)]
    for solver in (EDICT(), OBELM(), Rex("midpoint", calculus="sde", zeta=0.9)):

        def chain(x, *conditions, solver=solver):
            return sample(
                network, x, PerStep(conditions), solver=solver, grid=grid,
                noise=noise if solver.calculus == "sde" else None, gradient=Reversible(),
            ).x_0  # fmt: skip

        assert torch.autograd.gradcheck(chain, leaves, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["recorded", "brownian"])
def test_both_passes_see_the_same_path(kind: str) -> None:
    solver, grid, (x_T, z) = Rex(calculus="sde"), GRIDS["time"], inputs()
    noise = noise_for(solver, kind)
    exact, found = (
        differentiate(MLPDenoiser(), x_T, z, m, solver=solver, grid=grid, noise=noise)
        for m in (Backprop(), Reversible())
    )
    other = BrownianPath((BATCH, DIM), seed=9)
    elsewhere = differentiate(
        MLPDenoiser(), x_T, z, Reversible(), solver=solver, grid=grid, noise=other
    )
    assert relative_error(found.x_T, exact.x_T) < 1e-11
    assert relative_error(elsewhere.x_T, exact.x_T) > 1e-3


def test_both_latents_of_a_pair_are_differentiable() -> None:
    """DOODL's loss: the mean over both decoded latents of one tied x_T."""
    grid, network, (x_T, z) = GRIDS["time"], MLPDenoiser(), inputs()
    tied = Pair(EDICT(), tied=True)

    def mean_of_both(pair):
        return 0.5 * (square(pair[0]) + square(2.0 * pair[1]))

    exact, found = (
        differentiate(network, x_T, z, m, solver=tied, grid=grid, loss=mean_of_both)
        for m in (Backprop(), Reversible())
    )
    assert found.rollout.x_0.shape == (2, BATCH, DIM)
    for part, value in exact.parts().items():
        assert relative_error(found.parts()[part], value) < 1e-12
    # A given pair: one gradient for each latent, and their sum is that of the tied one.
    pair = torch.stack((x_T, x_T))
    apart = differentiate(
        network, pair, z, Reversible(), solver=Pair(EDICT()), grid=grid, loss=mean_of_both
    )
    assert apart.x_T.shape == pair.shape
    assert relative_error(apart.x_T.sum(0), exact.x_T) < 1e-12


@pytest.mark.parametrize("method", [AdjointDEIS(), FlowGrad(), OneStep()], ids=repr)
def test_methods_that_follow_one_latent_refuse_a_pair(method) -> None:
    x_T, z = inputs()
    with pytest.raises(NotSupportedError, match=r"x of Pair\(.*holds two.*Reversible"):
        sample(
            MLPDenoiser(), x_T.requires_grad_(), z, solver=Pair(EDICT(), tied=True),
            grid=GRIDS["time"], gradient=method,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["edict", "bdia", "obelm", "rex-midpoint", "rex-sde"])
def test_the_gradient_of_an_exact_encoding_is_autograd(name: str) -> None:
    solver, network = SOLVERS[name], MLPDenoiser()
    grid = TimeGrid.uniform_time(VPLinear(), 5, t_min=0.2, t_max=0.8)
    found = []
    for method in (Backprop(), DiscreteAdjoint(), Reversible()):
        x_0, z = (value.requires_grad_() for value in inputs())
        x_T = encode(
            network, x_0, z, solver=solver, grid=grid.reversed(), gradient=method,
            noise=noise_for(solver),
        ).x_T  # fmt: skip
        loss = square(x_T / x_T.detach().norm())
        found.append(torch.autograd.grad(loss, (x_0, z, *network.parameters())))
    for other in found[1:]:
        for value, exact in zip(other, found[0], strict=True):
            assert relative_error(value, exact) < 1e-10


@cache
def fine_gradient() -> Gradients:
    """That of the flow between the ends of the grids below."""
    grid = TimeGrid.uniform_lmbda(VPLinear(), 1, t_min=5e-3)
    return continuous_gradient(mixture(), *inputs(), grid, steps=300)


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [
        (BDIA(), 2, [40, 80, 160]),
        (OBELM(), 2, [40, 80, 160]),
        (EDICT(), 1, [80, 160]),
        (Rex(), 1, [20, 40, 80]),
        (Rex("midpoint"), 2, [20, 40, 80]),
    ],
    ids=repr,
)
@quiet
def test_the_gradient_converges_at_the_order_of_the_sampler(solver, order: int, steps) -> None:
    network, (x_T, z) = mixture(), inputs()
    reference = fine_gradient()
    errors: dict[str, list[float]] = {"x_T": [], "z": [], "theta": []}
    grids = [TimeGrid.uniform_lmbda(VPLinear(), n, t_min=5e-3) for n in steps]
    for grid in grids:
        # States of EDICT cannot be reconstructed over 160 steps, but its gradient can be had.
        method = DiscreteAdjoint() if isinstance(solver, EDICT) else Reversible()
        found = differentiate(network, x_T, z, method, solver=solver, grid=grid)
        for part, value in reference.parts().items():
            errors[part].append(relative_error(found.parts()[part], value))
    for part in errors:
        slope = observed_order(steps, errors[part])
        assert slope > order - 0.25, (part, errors[part])
        if not isinstance(solver, Rex):  # whose symmetry near zeta = 1 gains up to an order
            assert slope < order + 0.4, (part, errors[part])


@pytest.mark.parametrize(
    ("solver", "forward", "vjps", "graphs"),
    [
        (EDICT(), 2 * N, 2 * N, 1),
        (BDIA(), N, N, 1),
        (OBELM(), N, N, 1),
        # The partner's last increment leads to nothing that the loss sees.
        (Rex(), 2 * N, 2 * N - 1, 1),
        (Rex("midpoint"), 4 * N, 4 * N - 2, 2),
        (Rex("rk4", "noise"), 8 * N, 8 * N - 4, 4),
        (Pair(Rex("midpoint"), tied=True), 4 * N, 4 * N, 2),
    ],
    ids=repr,
)
def test_the_cost_of_a_gradient(solver, forward: int, vjps: int, graphs: int) -> None:
    x_T, z = inputs()
    rollout = differentiate(
        MLPDenoiser(), x_T, z, Reversible(), solver=solver, grid=GRIDS["time"]
    ).rollout
    cost = rollout.cost
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (forward, forward, vjps)
    assert (cost.peak_latents, cost.peak_graphs) == (2, graphs)


def test_guidance_is_counted_as_two_evaluations() -> None:
    x_T, z = inputs()
    guided = ClassifierFreeGuidance(MLPDenoiser(), torch.zeros(3, dtype=torch.float64), 2.0)
    cost = differentiate(
        guided, x_T, z, Reversible(), solver=EDICT(), grid=GRIDS["time"]
    ).rollout.cost
    assert (cost.nfe_forward, cost.vjps, cost.peak_graphs) == (4 * N, 4 * N, 2)


class Census(nn.Module):
    """A denoiser that counts how many of the latents it was ever given are still alive.

    Args:
        hoard: where it keeps them all, to show that the count sees it.
    """

    def __init__(self, hoard: list | None = None) -> None:
        super().__init__()
        self.network = MLPDenoiser()
        self.seen: list[weakref.ref] = []
        self.most, self.hoard = 0, hoard

    def forward(self, x, t, z):
        if self.hoard is not None:
            self.hoard.append(x)
        self.seen.append(weakref.ref(x))
        self.most = max(self.most, sum(ref() is not None for ref in self.seen))
        return self.network(x, t, z)


@pytest.mark.parametrize("solver", [EDICT(), BDIA(), OBELM(), Rex()], ids=repr)
def test_states_are_freed_in_both_passes(solver) -> None:
    x_T, z = inputs()

    def census(method, steps: int, hoard: list | None = None) -> tuple[int, int, int]:
        grid = TimeGrid.uniform_time(VPLinear(), steps, t_min=0.2, t_max=0.8)
        denoiser, x, saved = Census(hoard), x_T.clone().requires_grad_(), []

        def pack(tensor):
            kept = tensor.detach()  # itself, an output would hold the node that saved it
            saved.append(weakref.ref(kept))
            return kept

        gc.disable()  # nothing may wait for the collector of cycles
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                x_0 = sample(denoiser, x, z, solver=solver, grid=grid, gradient=method).x_0
            alive = sum(ref() is not None for ref in denoiser.seen)
            held = sum(ref() is not None for ref in saved)
            x_0.sum().backward()
        finally:
            gc.enable()
        return alive, denoiser.most, held

    short, long = census(Reversible(), 4), census(Reversible(), 24)
    assert short == long
    assert long[1] <= 5
    # The counts do see what is held: by a denoiser, or as the activations of every step.
    assert census(Reversible(), 24, [])[0] > census(Reversible(), 4, [])[0] + 15
    assert census(Backprop(), 24)[2] > census(Backprop(), 4)[2] + 15


def test_the_random_state_is_kept_once_unless_the_network_draws() -> None:
    grid, x_T = GRIDS["time"], inputs()[0].requires_grad_()

    def generator_states(denoiser) -> int:
        x_0 = sample(
            denoiser, x_T, inputs()[1], solver=EDICT(), grid=grid, gradient=Reversible()
        ).x_0
        return len({id(one) for one in x_0.grad_fn.record.contexts})

    assert generator_states(MLPDenoiser()) == 1
    assert generator_states(Dropout()) == 2 * N


@pytest.mark.parametrize("solver", [EDICT(), OBELM(), Rex("midpoint")], ids=repr)
def test_random_layers_draw_the_same_masks_again(solver) -> None:
    network, (x_T, z) = Dropout(), inputs()
    found, after = [], []
    for method in (Backprop(), Reversible()):
        torch.manual_seed(5)
        found.append(differentiate(network, x_T, z, method, solver=solver, grid=GRIDS["time"]))
        after.append(torch.rand(2))
    for part, value in found[0].parts().items():
        assert relative_error(found[1].parts()[part], value) < 1e-10
    assert torch.equal(*after)


def test_the_backward_pass_repeats_the_callers_autocast() -> None:
    network, found = Autocast(), []
    for method in (Backprop(), Reversible()):
        x = normal(BATCH, DIM, seed=1).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_0 = sample(network, x, solver=OBELM(), grid=GRIDS["time"], gradient=method).x_0
        x_0.sum().backward()
        found.append(x.grad)
    assert set(network.seen) == {torch.bfloat16}
    assert relative_error(found[1], found[0]) < 1e-2


def test_only_what_is_asked_for_is_differentiated_and_twice_if_asked_twice() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    options = {"solver": EDICT(), "grid": GRIDS["time"], "gradient": Reversible()}
    full = differentiate(network, x_T, z, Reversible(), solver=EDICT(), grid=GRIDS["time"])
    cotangent = normal(BATCH, DIM, seed=99)
    network.zero_grad()
    x_0 = sample(network, x_T, z, **options).x_0
    for _ in range(2):
        x_0.backward(cotangent, retain_graph=True)
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert agree(theta, 2.0 * full.theta) and x_T.grad is None and z.grad is None
    network.requires_grad_(False)
    condition = z.clone().requires_grad_()
    sample(network, x_T, condition, **options).x_0.backward(cotangent)
    assert agree(condition.grad, full.z)


def test_a_leaf_that_cannot_be_reached_is_named() -> None:
    hidden = normal(7, DIM, seed=3).requires_grad_()
    network = MLPDenoiser().requires_grad_(False)

    def closure(x, t, z):
        return network(x, t, z) + hidden.exp().mean(0)

    x_T, z = inputs()
    options = {"solver": EDICT(), "grid": GRIDS["time"], "gradient": Reversible()}
    with pytest.raises(UnreachableLeafError, match=r"shape \(7, 4\)"):
        sample(closure, x_T.requires_grad_(), z, **options)
    sample(closure, x_T, z, **options, parameters=[hidden]).x_0.sum().backward()
    assert hidden.grad.norm() > 0


def test_changing_an_input_between_the_passes_is_noticed() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    options = {"solver": BDIA(), "grid": GRIDS["time"], "gradient": Reversible()}
    for change in ("weights", "x_0"):
        x_0 = sample(network, x_T.clone().requires_grad_(), z, **options).x_0
        loss = x_0.sum()
        with torch.no_grad():
            (network.bias if change == "weights" else x_0.detach()).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=repr)
def test_a_sampler_without_inverse_is_refused_by_name(solver) -> None:
    x_T, z = inputs()
    name = type(solver).__name__
    with pytest.raises(NotSupportedError, match=f"{name} has none.*OBELM.*DiscreteAdjoint"):
        sample(
            MLPDenoiser(), x_T.requires_grad_(), z, solver=solver, grid=GRIDS["time"],
            noise=noise_for(solver), gradient=Reversible(),
        )  # fmt: skip


def test_the_warning_comes_at_its_threshold() -> None:
    """float32: 0.93^-2N eps passes 1e-3 between N = 62 and N = 63."""
    network = MLPDenoiser().float()
    x_T, z = (value.float() for value in inputs())

    def announced(solver, steps: int, dtype=torch.float32) -> list[str]:
        grid = TimeGrid.uniform_time(VPLinear(), steps, t_min=0.1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = x_T.to(dtype).requires_grad_()
            sample(
                network.to(dtype), x, z.to(dtype), solver=solver, grid=grid, gradient=Reversible()
            )
        return [str(w.message) for w in caught if w.category is AmplificationWarning]

    assert announced(EDICT(), 62) == []
    (message,) = announced(EDICT(), 63)
    for part in ("63 steps", "EDICT(p=0.93)", "float32", "DiscreteAdjoint", "float64"):
        assert part in message
    assert f"{0.93**-126:.3g} times" in message
    assert announced(EDICT(), 63, torch.float64) == []
    assert len(announced(BDIA(0.5), 14)) == 1 and announced(BDIA(0.5), 13) == []
    assert announced(BDIA(), 100) == announced(OBELM(), 100) == []
    assert len(announced(EDICT(), 4, torch.bfloat16)) == 1


def test_a_reconstruction_that_fails_is_reported_after_the_fact() -> None:
    """BDIA with a rough network: nothing is predicted, but x_T is missed, and that is said."""
    grid = TimeGrid.uniform_time(VPLinear(), 40)
    x_T = normal(BATCH, DIM, seed=1).float().requires_grad_()

    def rough(x, t, z):
        return torch.sin(40.0 * x)

    x_0 = sample(rough, x_T, solver=Rex(prediction="noise"), grid=grid, gradient=Reversible()).x_0
    with pytest.warns(AmplificationWarning, match=r"missed x_T by .* of its norm"):
        x_0.sum().backward()


def test_capabilities_are_declared() -> None:
    for name in ("ode", "sde", "x_T", "z", "z_t", "theta", "exact"):
        assert getattr(Reversible, name) is True
    assert Reversible.memory == "2 latents"
    assert Reversible() == Reversible() and hash(EDICT()) == hash(EDICT(0.93))
