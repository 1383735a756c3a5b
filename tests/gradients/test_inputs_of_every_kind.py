"""Conditions as pytrees, schedules, trajectories, tensors that are no leaves: equal to autograd."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, RungeKutta4, agree, inputs, normal
from torch import nn

from adjointdeis import PerStep, RectifiedFlow, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, EpsFromFlow
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    DiscreteAdjoint,
    ForwardMode,
    NotSupportedError,
    Reversible,
    SecondDerivativeError,
    SymplecticAdjoint,
    Truncated,
    UnreachableLeafError,
)
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    DPMSolverPP,
    FlowEuler,
    Pair,
    Rex,
    RungeKutta,
    SDEDPMSolver,
    SDEDPMSolverPP,
)
from adjointdeis.solvers.tableau import TABLEAUS

STEPS = 7
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS, t_min=0.05, t_max=0.6)
SOLVERS = {
    "ddim": DDIM(), "2m": DPMSolverPP(2), "sde": SDEDPMSolver(), "sde 2m": SDEDPMSolverPP(2),
    "outside": RungeKutta4(),
}  # fmt: skip
EXACT = [
    DiscreteAdjoint(),
    DiscreteAdjoint(snapshots=2),
    DiscreteAdjoint(keep_activations=3),
    DiscreteAdjoint(budget="4 KB"),
]
each_solver = pytest.mark.parametrize("name", SOLVERS)


class Prompt(NamedTuple):
    embedding: torch.Tensor
    scale: float


class Tree(nn.Module):
    """Takes a nested condition with constants in it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = MLPDenoiser()

    def forward(self, x, t, z):
        assert z["mask"].dtype == torch.int64 and z["none"] is None and z["flag"] is True
        prompt, pooled = z["both"]
        return self.body(x, t, prompt.embedding * prompt.scale + z["mask"] * pooled)


def tree(seed: int, wanted: bool = True) -> tuple[dict, list[torch.Tensor]]:
    embedding = normal(BATCH, COND, seed=seed).requires_grad_(wanted)
    pooled = normal(COND, seed=seed + 1).requires_grad_()
    mask = torch.tensor([1, 0, 1])
    z = {"both": (Prompt(embedding, 0.5), pooled), "mask": mask, "none": None, "flag": True}
    return z, [embedding, pooled] if wanted else [pooled]


def setting(name: str) -> dict:
    solver = SOLVERS[name]
    noise = BrownianPath((BATCH, DIM), seed=4) if solver.calculus == "sde" else None
    return {"solver": solver, "grid": GRID, "noise": noise}


def loss(x_0: torch.Tensor) -> torch.Tensor:
    return (x_0 * normal(BATCH, DIM, seed=9)).sum() + x_0.square().sum()


@each_solver
def test_every_leaf_of_a_pytree_gets_its_gradient(name: str) -> None:
    network, (z, leaves) = Tree(), tree(20)
    wanted = [inputs()[0].requires_grad_(), *leaves, *network.parameters()]
    found = [
        torch.autograd.grad(
            loss(sample(network, wanted[0], z, gradient=m, **setting(name)).x_0), wanted
        )
        for m in (Backprop(), *EXACT)
    ]
    for again in found[1:]:
        assert all(agree(a, b) for a, b in zip(again, found[0], strict=True))


@each_solver
def test_a_schedule_of_pytrees(name: str) -> None:
    network, trees = Tree(), [tree(20 + 2 * i, wanted=i != 2) for i in range(STEPS)]
    z, wanted = PerStep([t for t, _ in trees]), [leaf for _, each in trees for leaf in each]
    found = [
        torch.autograd.grad(
            loss(sample(network, inputs()[0], z, gradient=m, **setting(name)).x_0), wanted
        )
        for m in (Backprop(), *EXACT)
    ]
    for again in found[1:]:
        assert all(agree(a, b) for a, b in zip(again, found[0], strict=True))


def test_a_step_whose_neighbour_wants_nothing_still_gets_its_share() -> None:
    """With M < N one product serves several steps, of which only some want a gradient."""
    network, grid = MLPDenoiser(), GRID
    full = [normal(BATCH, COND, seed=i).requires_grad_() for i in range(STEPS)]
    some = [z.detach().requires_grad_(i == 4) for i, z in enumerate(full)]
    grads = []
    for zs in (full, some):
        method = AdjointDEIS(steps=3)
        x_0 = sample(
            network, inputs()[0], PerStep(zs), solver=DDIM(), grid=grid, gradient=method
        ).x_0
        grads.append(torch.autograd.grad(loss(x_0), zs[4])[0])
    assert agree(*grads) and grads[0].norm() > 0


def test_schedules_that_cannot_be_read_are_refused() -> None:
    x, z = inputs()
    with pytest.raises(ValueError, match="PerStep"):
        sample(MLPDenoiser(), x, [z] * STEPS, solver=DDIM(), grid=GRID)
    with pytest.raises(ValueError, match="one condition per step: 7, got 2"):
        sample(MLPDenoiser(), x, PerStep([z, z]), solver=DDIM(), grid=GRID)
    with pytest.raises(ValueError, match="of one structure"):
        sample(MLPDenoiser(), x, PerStep([z, (z, z)] + [z] * 5), solver=DDIM(), grid=GRID)


@each_solver
@pytest.mark.parametrize("method", EXACT, ids=str)
def test_the_trajectory_is_differentiable(name: str, method) -> None:
    network, (x_T, z) = MLPDenoiser(), (value.requires_grad_() for value in inputs())
    wanted, found = [x_T, z, *network.parameters()], []
    for one in (Backprop(), method):
        run = sample(network, x_T, z, gradient=one, trajectory=True, **setting(name))
        assert len(run.states) == STEPS + 1 and len(run.predictions) == STEPS
        assert run.states[0] is x_T and run.states[-1] is run.x_0
        value = sum((i + 1) * x.sin().sum() for i, x in enumerate(run.states[:-2]))
        value = value + sum((i + 1) * x.cos().sum() for i, x in enumerate(run.predictions))
        found.append([value, *run.predictions, *torch.autograd.grad(value, wanted)])
    assert all(agree(a, b) for a, b in zip(*found, strict=True))
    eps = network(x_T, GRID[0].t, z)
    assert agree(found[1][1], (x_T - GRID[0].sigma * eps) / GRID[0].alpha)
    with torch.no_grad():
        again = sample(network, x_T, z, trajectory=True, **setting(name))
    assert all(torch.equal(a, b) for a, b in zip(again.states, run.states, strict=True))


OTHER_EXACT = [
    *((SymplecticAdjoint(), RungeKutta(name)) for name in TABLEAUS),
    *((Reversible(), s) for s in (EDICT(), BDIA(), OBELM(), Rex("midpoint"), Rex(calculus="sde"))),
    *((Reversible(), Pair(s, tied=True)) for s in (EDICT(), OBELM())),
    (Reversible(), Pair(OBELM())),
]


@pytest.mark.parametrize("rest", ["states", "predictions", "both and x_0"])
@pytest.mark.parametrize(("method", "solver"), OTHER_EXACT, ids=str)
def test_the_trajectory_is_differentiable_where_states_or_stages_are_found_again(
    method, solver, rest: str
) -> None:
    """Each state by itself would pass a test that forgets the others: weights tell them apart."""
    network, found = MLPDenoiser(), []
    x_T, zs = inputs(STEPS)
    x_T = torch.stack((x_T, 1.1 * x_T)) if isinstance(solver, Pair) and not solver.tied else x_T
    noise = BrownianPath((BATCH, DIM), seed=8) if solver.calculus == "sde" else None
    x_T, zs = x_T.requires_grad_(), [z.requires_grad_() for z in zs]
    wanted = [x_T, *zs, *network.parameters()]
    for one in (Backprop(), method):
        run = sample(
            network, x_T, PerStep(zs), solver=solver, grid=GRID, noise=noise, gradient=one,
            trajectory=True,
        )  # fmt: skip
        assert len(run.states) == STEPS + 1 and len(run.predictions) == STEPS
        value = torch.zeros((), dtype=torch.float64)
        if rest != "predictions":
            value = sum((i + 1) * x.sin().sum() for i, x in enumerate(run.states[1:-1]))
        if rest != "states":
            value = value + sum((i + 2) * x.cos().sum() for i, x in enumerate(run.predictions))
        if rest == "both and x_0":
            value = value + 3.0 * run.x_0.square().sum()
        grads = torch.autograd.grad(value, wanted, allow_unused=True, materialize_grads=True)
        found.append([*run.states, *run.predictions, value, *grads])
    # Undoing the steps of an SDE, which forgets where it began, amplifies rounding.
    tolerance = 1e-10 if solver.calculus == "sde" else 1e-12
    assert all(agree(b, a, tolerance) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("method", "solver"), [OTHER_EXACT[-1], OTHER_EXACT[4]], ids=str)
def test_a_denoiser_that_makes_its_own_leaf_has_a_trajectory(method, solver) -> None:
    """What the denoiser remembers for a prediction must not keep the graph of a step alive."""
    network, (x_T, z) = MLPDenoiser().requires_grad_(False), inputs()
    solver = solver.solver if isinstance(solver, Pair) else solver
    x_T.requires_grad_()

    def guided(x, t, z):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(leaf.sin().sum(), leaf)
        return network(x, t, z) + 0.1 * slope + 0.1 * leaf

    run = sample(guided, x_T, z, solver=solver, grid=GRID, gradient=method, trajectory=True)
    sum(x.sum() for x in (*run.states[1:], *run.predictions)).backward()
    assert x_T.grad.norm() > 0


def test_a_trajectory_that_has_no_gradient_is_refused() -> None:
    x, z = inputs()
    for method in (Truncated(last=2), AdjointDEIS()):
        with pytest.raises(NotSupportedError, match="no gradient of the trajectory"):
            sample(
                MLPDenoiser(), x, z.requires_grad_(), solver=DDIM(), grid=GRID, gradient=method,
                trajectory=True,
            )  # fmt: skip


def test_predictions_of_a_velocity_are_those_of_its_eps() -> None:
    grid = TimeGrid.uniform_time(RectifiedFlow(), 4, t_min=0.1, t_max=0.9)
    network, (x, z) = MLPDenoiser(), inputs()
    with torch.no_grad():
        one = sample(network, x, z, solver=FlowEuler(), grid=grid, trajectory=True)
        other = sample(
            EpsFromFlow(network, RectifiedFlow()), x, z, solver=DDIM(), grid=grid, trajectory=True
        )
    assert all(agree(a, b) for a, b in zip(one.predictions, other.predictions, strict=True))


@each_solver
def test_parameters_need_not_be_leaves(name: str) -> None:
    """The output of a text encoder, captured by the denoiser."""
    network, encoder = MLPDenoiser(), nn.Linear(5, COND).double()
    text, found = normal(BATCH, 5, seed=3), []
    for method in (Backprop(), *EXACT):
        x_T = inputs()[0].requires_grad_()
        embedding = encoder(text)
        x_0 = sample(
            lambda x, t, z, e=embedding: network(x, t, e), x_T, gradient=method,
            parameters=[embedding, *network.parameters()], **setting(name),
        ).x_0  # fmt: skip
        wanted = [x_T, *encoder.parameters(), *network.parameters()]
        found.append(torch.autograd.grad(loss(x_0), wanted))
    for again in found[1:]:
        assert all(agree(a, b) for a, b in zip(again, found[0], strict=True))


def test_a_leaf_that_nobody_named_is_an_error_even_if_nothing_else_wants_a_gradient() -> None:
    network, (x, z) = MLPDenoiser().requires_grad_(False), inputs()
    hidden = normal(DIM, seed=3).requires_grad_()

    def late(x, t, z):
        return network(x, t, z) + (hidden if float(t) < float(GRID.t[4]) else 0.0)

    for method in (None, DiscreteAdjoint(), AdjointDEIS()):
        with pytest.raises(UnreachableLeafError, match=r"shape \(4,\)"):
            sample(late, x, z, solver=DDIM(), grid=GRID, gradient=method)
    x_0 = sample(late, x, z, solver=DDIM(), grid=GRID, gradient=Backprop()).x_0
    assert torch.autograd.grad(x_0.sum(), hidden)[0].norm() > 0
    with torch.no_grad():
        assert torch.equal(sample(late, x, z, solver=DDIM(), grid=GRID).x_0, x_0)


def test_a_denoiser_may_take_a_gradient_of_its_own() -> None:
    network, found = MLPDenoiser(), []

    def guided(x, t, z):
        with torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            eps = network(leaf, t, z)
            (slope,) = torch.autograd.grad(eps.square().sum(), leaf, retain_graph=True)
        return network(x, t, z) + 0.1 * slope + 0.01 * eps

    for method in (Backprop(), DiscreteAdjoint(), AdjointDEIS()):
        x_T, z = (value.requires_grad_() for value in inputs())
        x_0 = sample(
            guided, x_T, z, solver=DDIM(), grid=GRID, gradient=method,
            parameters=list(network.parameters()),
        ).x_0  # fmt: skip
        found.append(torch.autograd.grad(loss(x_0), x_T)[0])
    assert agree(found[1], found[0]) and found[2].norm() > 0


@pytest.mark.parametrize("method", [DiscreteAdjoint(), AdjointDEIS(), Reversible()], ids=str)
def test_every_second_derivative_is_an_error_that_names_backprop(method) -> None:
    solver = BDIA() if isinstance(method, Reversible) else DDIM()
    network, (x, z) = MLPDenoiser(), inputs()

    def value(z, one):
        return loss(sample(network, x, z, solver=solver, grid=GRID, gradient=one).x_0)

    linear = lambda z: sample(  # noqa: E731
        network, x, z, solver=solver, grid=GRID, gradient=method
    ).x_0.sum()
    for function in (lambda z: value(z, method), linear):
        with pytest.raises(SecondDerivativeError, match=r"Backprop\(\)"):
            torch.autograd.functional.hessian(function, z)
    with pytest.raises(NotSupportedError, match=r"Backprop\(\)"):
        torch.func.grad(lambda z: value(z, method))(z)
    assert torch.autograd.functional.hessian(lambda z: value(z, Backprop()), z).norm() > 0


def test_z_and_t_changed_in_place_are_named() -> None:
    network, (x, z) = MLPDenoiser(), inputs()
    with pytest.raises(ValueError, match="changes its condition z in place"):
        sample(
            lambda x, t, z: network(x, t, z.mul_(0.9)), x.requires_grad_(), z.clone(),
            solver=DDIM(), grid=GRID, parameters=list(network.parameters()),
        )  # fmt: skip
    scheduled = PerStep([z.clone() for _ in range(GRID.steps)])
    with pytest.raises(ValueError, match="changes its condition z in place"):
        sample(
            lambda x, t, z: network(x, t, z.mul_(0.9) if float(t) < 0.5 else z), x, scheduled,
            solver=DDIM(), grid=GRID, parameters=list(network.parameters()),
        )  # fmt: skip
    network.requires_grad_(False)

    def writing(x, t, z):
        z["own"] = z["own"] * 0.9
        return network(x, t, z["own"])

    for method, solver in (
        (DiscreteAdjoint(), DDIM()), (DiscreteAdjoint(keep_activations=9), DDIM()),
        (Reversible(), BDIA()), (ForwardMode(), DDIM()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="nothing into a dictionary that is z"):
            sample(
                writing, x.detach(), {"own": z.clone().requires_grad_()}, solver=solver, grid=GRID,
                gradient=method,
            )  # fmt: skip
    for changed in (lambda t: t.mul_(0.9), lambda t: t.data.mul_(0.9)):
        own = TimeGrid.uniform_time(VPLinear(), 3)
        with pytest.raises(ValueError, match="changes t in place"):
            sample(
                lambda x, t, z, by=changed: network(x, by(t), z), x.detach(), z, solver=DDIM(),
                grid=own,
            )  # fmt: skip


def test_a_time_in_float64_is_explained() -> None:
    layer = nn.Linear(DIM + 1, DIM)

    def denoiser(x, t, z):
        return layer(torch.cat([x, t.expand(x.shape[0], 1)], 1))

    with pytest.raises(RuntimeError) as caught:
        sample(denoiser, torch.zeros(2, DIM), solver=DDIM(), grid=GRID)
    assert any("write t.to(x)" in note for note in caught.value.__notes__)


def test_a_network_that_is_called_wrongly_says_how_it_was_called() -> None:
    table = nn.Embedding(1000, DIM)
    with pytest.raises(RuntimeError) as caught:
        sample(
            lambda x, t, z: x + table(t), torch.zeros(2, DIM), {"a": torch.zeros(2, 3)},
            solver=DDIM(), grid=GRID, parameters=table.parameters(),
        )  # fmt: skip
    (note,) = caught.value.__notes__
    assert f"x torch.float32 (2, {DIM})" in note and "'a': 'torch.float32 (2, 3)'" in note
    assert "FromTimesteps(network, DDPM(betas))" in note


class _Step:
    """A sampler of somebody else, whose step returns something else."""

    calculus = "ode"

    def __init__(self, returns) -> None:
        self.returns = returns

    def step(self, denoiser, x, z, s, t, state, noise):
        return self.returns(denoiser(x, t.t, z))


class _Noise:
    """A source of somebody else, that draws one noise for the whole batch."""

    def normal(self, s, t, like):
        return torch.ones_like(like[:1])


class _Output:
    """What a network of a model library returns."""

    def __init__(self, sample) -> None:
        self.sample = sample


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"solver": DDIM}, TypeError, r"the class DDIM.*solver=DDIM\(\)"),
        ({"solver": "ddim"}, TypeError, "kind str.*StepFunction"),
        ({"gradient": DiscreteAdjoint}, TypeError, r"write gradient=DiscreteAdjoint\(\)"),
        ({"gradient": Truncated}, TypeError, r"class Truncated: write gradient=Truncated\(\)"),
        ({"gradient": "exact"}, TypeError, "kind str"),
        ({"grid": 20}, TypeError, "grid=TimeGrid.uniform_lmbda"),
        ({"x_T": torch.ones(BATCH, DIM, dtype=torch.int64)}, TypeError, "x_T is of kind.*int64"),
        ({"x_T": np.ones((BATCH, DIM))}, TypeError, "write x_T="),
        ({"denoiser": torch.ones(2)}, TypeError, r"called as denoiser\(x, t, z\)"),
        ({"parameters": torch.ones(2)}, TypeError, r"parameters=\[weight\]"),
        ({"parameters": torch.ones(())}, TypeError, r"parameters=\[weight\]"),
        ({"parameters": 3}, TypeError, "parameters is a int"),
        ({"parameters": [("w", torch.ones(2))]}, TypeError, "a list, expected a list of ten"),
        ({"microbatch": 1.5}, ValueError, "microbatch must be at least 1, and a whole number"),
        ({"noise": 0, "solver": SDEDPMSolver()}, TypeError, "noise is 0: write noise="),
        ({"noise": _Noise(), "solver": SDEDPMSolver()}, ValueError, r"_Noise gives \(1, "),
        ({"solver": _Step(lambda x: x)}, ValueError, r"_Step.step must return \(x, state\)"),
        ({"solver": _Step(lambda x: (x[:1], ()))}, ValueError, "x of shape"),
        ({"solver": _Step(lambda x: (x, [0.5]))}, ValueError, "state a tuple of tensors.*0.5"),
        ({"denoiser": lambda x, t, z: x[:, :1]}, ValueError, "of x's shape"),
        ({"denoiser": lambda x, t, z: x[:1]}, ValueError, "of x's shape"),
        (
            {"denoiser": lambda x, t, z: torch.cat([x, x], 1)},
            ValueError,
            "DDIM takes as many channels.*variance",
        ),
        (
            {"denoiser": lambda x, t, z: torch.cat([x, x], 1), "x_T": torch.ones(BATCH, 1)},
            ValueError,
            "DDIM takes as many channels.*variance",
        ),
        ({"denoiser": lambda x, t, z: (x,)}, ValueError, r"a tuple.*network\(...\)\[0\]"),
        ({"denoiser": lambda x, t, z: _Output(x)}, ValueError, "an? _Output.*or .sample"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:30],
)
@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_of_another_kind_or_would_be_broadcast_is_refused(
    given, error, message, enabled
) -> None:
    grid = TimeGrid.uniform_lmbda(VPLinear(), 4, t_min=0.05, t_max=0.6)
    x_T = normal(BATCH, DIM, seed=1).requires_grad_()
    call = {"denoiser": lambda x, t, z: 0.5 * x, "x_T": x_T, "solver": DDIM(), "grid": grid}
    assert sample(**call).x_0.shape == x_T.shape
    with torch.set_grad_enabled(enabled), pytest.raises(error, match=message):
        sample(**call | given)
