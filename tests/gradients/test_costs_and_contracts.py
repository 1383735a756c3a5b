"""Counters, declared capabilities, warnings, refusals, and gradients that cannot arrive."""

import math
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    MLPDenoiser,
    Recorder,
    agree,
    differentiate,
    inputs,
    mixture,
    normal,
    unchecked,
)

from adjointdeis import DDPM, PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, ClassifierFreeGuidance, RecordedNoise
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    DiscreteAdjoint,
    LargeAdjointStepWarning,
    NotSupportedError,
    Truncated,
    UnreachableLeafError,
    UnusedConditionWarning,
)
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

quiet = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning"
)
N = 6
GRID = TimeGrid.uniform_time(VPLinear(), N)
METHODS = [Backprop(), DiscreteAdjoint(), AdjointDEIS(), AdjointDEIS("2M", states="resolved")]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)


@quiet
@pytest.mark.parametrize(
    ("method", "backward", "vjps", "latents", "graphs"),
    [
        (Backprop(), 0, N, N + 1, N),
        (DiscreteAdjoint(), N, N, N + 1, 1),
        (AdjointDEIS(), N, N, N, 1),
        (AdjointDEIS("2M"), N, N, N, 1),
        (AdjointDEIS(steps=3), 3, 3, 3, 1),
        (AdjointDEIS(steps=3, states="resolved"), 3 + 1, 3, 1, 1),
        (AdjointDEIS(steps=9, states="interpolated"), 9, 9, N + 1, 1),
    ],
)
def test_the_cost_of_a_gradient(method, backward, vjps, latents, graphs) -> None:
    x_T, z = inputs()
    cost = differentiate(MLPDenoiser(), x_T, z, method, solver=DDIM(), grid=GRID).rollout.cost
    assert cost.nfe_forward == N
    assert (cost.nfe_backward, cost.vjps) == (backward, vjps)
    assert cost.nfe == N + backward
    assert (cost.peak_latents, cost.peak_graphs) == (latents, graphs)


@quiet
@each_method
def test_the_backward_pass_adds_its_own_cost(method) -> None:
    x_T = inputs()[0].requires_grad_()
    rollout = sample(MLPDenoiser(), x_T, inputs()[1], solver=DDIM(), grid=GRID, gradient=method)
    before = (rollout.cost.nfe, rollout.cost.vjps)
    rollout.x_0.sum().backward()
    assert before == (N, 0)
    assert rollout.cost.vjps == N


def test_guidance_is_counted_as_two_evaluations() -> None:
    x_T, z = inputs()
    guided = ClassifierFreeGuidance(MLPDenoiser(), torch.zeros(3, dtype=torch.float64), 2.0)
    cost = differentiate(guided, x_T, z, DiscreteAdjoint(), solver=DDIM(), grid=GRID).rollout.cost
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (2 * N, 2 * N, 2 * N)


def test_the_history_of_a_multistep_solver_counts_as_latents() -> None:
    x_T, z = inputs()
    found = differentiate(
        MLPDenoiser(), x_T, z, DiscreteAdjoint(), solver=DPMSolverPP(2), grid=GRID
    )
    assert found.rollout.cost.peak_latents == (N + 1) + (N - 1)


@quiet
@each_method
def test_frozen_weights_cost_nothing_and_receive_nothing(method) -> None:
    denoiser = Recorder().requires_grad_(False)
    x_T, z = inputs()[0].requires_grad_(), inputs()[1]
    method = unchecked(method)
    sample(denoiser, x_T, z, solver=DDIM(), grid=GRID, gradient=method).x_0.sum().backward()
    assert x_T.grad is not None and x_T.grad.norm() > 0
    assert all(p.grad is None for p in denoiser.parameters())
    if not isinstance(method, Backprop):
        assert denoiser.graphs[:N] == [False] * N


def test_without_the_check_only_the_first_step_is_looked_at_with_trainable_weights() -> None:
    denoiser, (x_T, z) = Recorder(), inputs()
    method = DiscreteAdjoint(check=False)
    sample(denoiser, x_T.requires_grad_(), z, solver=DDIM(), grid=GRID, gradient=method)
    assert denoiser.graphs == [True] + [False] * (N - 1)


@quiet
@each_method
def test_only_what_is_asked_for_is_differentiated(method) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    full = differentiate(network, x_T, z, method, solver=DDIM(), grid=GRID)
    network.zero_grad()
    sample(network, x_T, z, solver=DDIM(), grid=GRID, gradient=method).x_0.mul(
        normal(BATCH, DIM, seed=99)
    ).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert agree(theta, full.theta) and x_T.grad is None and z.grad is None
    _, zs = inputs(N)
    zs[2].requires_grad_()
    network.requires_grad_(False)
    rollout = sample(network, x_T, PerStep(zs), solver=DDIM(), grid=GRID, gradient=method)
    rollout.x_0.sum().backward()
    assert zs[2].grad.norm() > 0 and all(v.grad is None for i, v in enumerate(zs) if i != 2)


@quiet
@each_method
def test_the_callers_context_decides_whether_there_is_a_graph(method) -> None:
    denoiser, (x_T, z) = Recorder(), inputs()
    x_T.requires_grad_()
    with torch.no_grad():
        rollout = sample(denoiser, x_T, z, solver=DDIM(), grid=GRID, gradient=method)
    assert not rollout.x_0.requires_grad and denoiser.graphs == [False] * N
    assert (rollout.cost.nfe, rollout.cost.peak_latents) == (N, 0)
    assert torch.is_grad_enabled()
    x_0 = sample(denoiser, x_T, z, solver=DDIM(), grid=GRID, gradient=method).x_0
    assert x_0.requires_grad and x_0.grad_fn is not None


@quiet
@each_method
def test_a_condition_that_is_ignored_has_a_zero_gradient(method) -> None:
    x_T, z = (value.requires_grad_() for value in inputs())
    denoiser = mixture()
    denoiser.weight = None
    x_0 = sample(denoiser, x_T, z, solver=DDIM(), grid=GRID, gradient=method).x_0
    said = (
        pytest.warns(UnusedConditionWarning)
        if method.exact and not isinstance(method, Backprop)
        else nullcontext()
    )
    with said:
        x_0.sum().backward()
    if isinstance(method, Backprop):
        assert z.grad is None
    else:
        assert torch.equal(z.grad, torch.zeros_like(z))


@quiet
@each_method
def test_gradients_accumulate_once_into_existing_ones(method) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    once = differentiate(network, x_T, z, method, solver=DDIM(), grid=GRID)
    network.zero_grad()
    x, condition = x_T.clone().requires_grad_(), z.clone().requires_grad_()
    for _ in range(2):
        x_0 = sample(network, x, condition, solver=DDIM(), grid=GRID, gradient=method).x_0
        (x_0 * normal(BATCH, DIM, seed=99)).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert agree(x.grad, 2 * once.x_T) and agree(condition.grad, 2 * once.z)
    assert agree(theta, 2 * once.theta)


@quiet
@each_method
def test_inputs_made_by_other_networks_pass_their_gradient_on(method) -> None:
    """x_T and z need not be leaves, and one tensor may serve as both."""
    network = MLPDenoiser(dim=3, cond=3)
    seed = normal(BATCH, 3, seed=1).requires_grad_()
    x_0 = sample(network, seed.sin(), seed.cos(), solver=DDIM(), grid=GRID, gradient=method).x_0
    (both,) = torch.autograd.grad(x_0.sum(), seed)
    a, b = (f(seed).detach().requires_grad_() for f in (torch.sin, torch.cos))
    x_0 = sample(network, a, b, solver=DDIM(), grid=GRID, gradient=method).x_0
    in_x, in_z = torch.autograd.grad(x_0.sum(), (a, b))
    assert agree(both, in_x * seed.cos() - in_z * seed.sin())


@quiet
@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: type(m).__name__)
def test_a_leaf_that_cannot_be_reached_is_named(method) -> None:
    network, (x_T, z) = MLPDenoiser().requires_grad_(False), inputs()
    hidden = normal(7, DIM, seed=3).requires_grad_()

    def closure(x, t, z):
        return network(x, t, z) + hidden.exp().mean(0)

    x_T.requires_grad_()
    with pytest.raises(UnreachableLeafError, match=r"shape \(7, 4\)"):
        sample(closure, x_T, z, solver=DDIM(), grid=GRID, gradient=method)
    reached = sample(
        closure, x_T, z, solver=DDIM(), grid=GRID, gradient=method, parameters=[hidden]
    )
    reached.x_0.sum().backward()
    assert hidden.grad.norm() > 0


@quiet
@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: type(m).__name__)
def test_weights_of_a_plain_callable_must_be_listed(method) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    with pytest.raises(UnreachableLeafError, match="parameters"):
        sample(
            lambda x, t, z: network(x, t, z), x_T.requires_grad_(), z, solver=DDIM(), grid=GRID,
            gradient=method,
        )  # fmt: skip


def test_noise_that_requires_a_gradient_gets_it_or_is_refused_by_name() -> None:
    noise = [normal(BATCH, DIM, seed=i).requires_grad_(i != 2) for i in range(N)]
    x_T, z = inputs()
    wanted, found = [n for n in noise if n.requires_grad], []
    for method in (Backprop(), DiscreteAdjoint(), DiscreteAdjoint(snapshots=2)):
        setting = {"solver": SDEDPMSolver(), "grid": GRID, "noise": noise, "gradient": method}
        x_0 = sample(MLPDenoiser(), x_T, z, **setting).x_0
        found.append(torch.autograd.grad(x_0.square().sum(), wanted))
    assert all(agree(a, b) for again in found[1:] for a, b in zip(again, found[0], strict=True))
    setting["gradient"] = AdjointDEIS()
    with pytest.raises(NotSupportedError, match="no gradient of the noise of the path"):
        sample(MLPDenoiser(), x_T, z, **setting)


@quiet
@pytest.mark.parametrize("method", METHODS[1:], ids=lambda m: type(m).__name__)
def test_changing_an_input_between_the_passes_is_noticed(method) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    for change in ("weights", "x_0"):
        x = x_T.clone().requires_grad_()
        x_0 = sample(network, x, z, solver=DDIM(), grid=GRID, gradient=method).x_0
        loss = x_0.sum()
        with torch.no_grad():
            (network.bias if change == "weights" else x_0.detach()).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_a_second_derivative_is_refused_by_stepwise_methods() -> None:
    x_T, z = inputs()
    x_T.requires_grad_()
    x_0 = sample(MLPDenoiser(), x_T, z, solver=DDIM(), grid=GRID).x_0
    (first,) = torch.autograd.grad(x_0.square().sum(), x_T, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@quiet
def test_the_network_is_evaluated_inside_the_unit_interval_in_both_passes() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    for grid in (TimeGrid.uniform_time(VPLinear(), N, t_min=0.0), TimeGrid.ddim_stride(DDPM(), 10)):
        for method in (*METHODS, AdjointDEIS(steps=4, states="interpolated")):
            times = []

            def watched(x, t, z, times=times):
                assert t.dtype == torch.float64 and t.ndim == 0
                times.append(float(t))
                return network(x, t, z)

            x = x_T.clone().requires_grad_()
            weights = list(network.parameters())
            sample(
                watched, x, z, solver=DDIM(), grid=grid, gradient=unchecked(method),
                parameters=weights,
            ).x_0.sum().backward()  # fmt: skip
            assert min(times) >= 0.0 and max(times) <= 1.0
            assert times[: grid.steps] == grid.t[:-1].tolist()
            if isinstance(method, DiscreteAdjoint):
                assert times[grid.steps :] == grid.t[:-1].flip(0).tolist()
            if isinstance(method, AdjointDEIS) and method.states != "interpolated":
                assert times[grid.steps :] == grid.t[1:].flip(0).tolist()


def test_a_time_outside_the_unit_interval_is_refused() -> None:
    class Overshooting:
        calculus = "ode"

        def step(self, denoiser, x, z, s, t, state, noise):
            return denoiser(x, t.t - 0.5, z), state

    x_T, z = inputs()
    with pytest.raises(ValueError, match=r"evaluated at t = -0\.16"):
        sample(MLPDenoiser(), x_T, z, solver=Overshooting(), grid=GRID)


@pytest.mark.parametrize(
    ("solver", "limit", "form"),
    [(DDIM(), math.log(2.0), "2 - e^h"), (SDEDPMSolver(), math.log(1.5), "3 - 2e^h")],
    ids=["ode", "sde"],
)
def test_steps_that_may_flip_the_sign_are_announced_once(solver, limit: float, form: str) -> None:
    schedule = VPLinear()
    span = float(schedule.lmbda(0.1) - schedule.lmbda(1.0))
    x_T, z = inputs()
    x_T.requires_grad_()
    few = math.floor(span / limit)

    def announced(steps: int, method) -> list[str]:
        grid = TimeGrid.uniform_lmbda(schedule, steps, t_min=0.1)
        noise = None
        if solver.calculus == "sde":
            noise = RecordedNoise.draw(steps, x_T.shape, seed=0, dtype=torch.float64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x_0 = sample(
                MLPDenoiser(), x_T, z, solver=solver, grid=grid, noise=noise, gradient=method
            ).x_0
            x_0.sum().backward()
        return [str(w.message) for w in caught if w.category is LargeAdjointStepWarning]

    assert announced(few + 1, AdjointDEIS()) == []
    (message,) = announced(few, AdjointDEIS())
    h = span / few
    factor = 2.0 - math.exp(h) if solver.calculus == "ode" else 3.0 - 2.0 * math.exp(h)
    assert form in message and f"{factor:.3g}" in message and "DiscreteAdjoint" in message
    assert f"of {few} (t = " in message
    assert len(announced(few + 1, AdjointDEIS(steps=few // 2))) == 1
    assert announced(few // 2, DiscreteAdjoint()) == []


def test_capabilities_are_declared() -> None:
    for method in METHODS:
        assert all(
            getattr(type(method), name) is True
            for name in ("ode", "sde", "x_T", "z", "z_t", "theta")
        )
        assert isinstance(type(method).memory, str)
    assert (Backprop.exact, DiscreteAdjoint.exact, AdjointDEIS.exact) == (True, True, False)


def test_methods_and_solvers_are_values() -> None:
    assert AdjointDEIS("2M") == AdjointDEIS(2) != AdjointDEIS(1)
    assert hash(DiscreteAdjoint()) == hash(DiscreteAdjoint())
    assert DPMSolverPP("2M") == DPMSolverPP(2)
    for value in (AdjointDEIS(), DiscreteAdjoint(), Backprop(), DDIM(), DPMSolverPP()):
        with pytest.raises(AttributeError):
            value.order = 3


@quiet
def test_impossible_methods_are_refused() -> None:
    x_T, z = inputs()
    x_T.requires_grad_()
    network = MLPDenoiser()

    def attempt(method, **changes):
        arguments = {"solver": DDIM(), "grid": GRID, "gradient": method, **changes}
        return sample(network, x_T, z, **arguments)

    for build, message in (
        (lambda: AdjointDEIS(7), "orders 1 to 4"),
        (lambda: AdjointDEIS(states="guessed"), "states"),
        (lambda: AdjointDEIS(steps=0), "at least 1"),
        (lambda: attempt(AdjointDEIS(steps=N + 1)), "states='interpolated'"),
        (
            lambda: attempt(
                AdjointDEIS(steps=N + 1, states="resolved"),
                solver=SDEDPMSolver(),
                noise=RecordedNoise.draw(N, x_T.shape, seed=0, dtype=torch.float64),
            ),
            "BrownianPath",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    path = BrownianPath(x_T.shape, seed=0)
    x_0 = attempt(
        AdjointDEIS(steps=N + 1, states="resolved"), solver=SDEDPMSolver(), noise=path
    ).x_0
    assert torch.autograd.grad(x_0.sum(), x_T)[0].isfinite().all()


@pytest.mark.parametrize(
    ("method", "settings", "name"),
    [
        (AdjointDEIS, {"steps": 1.5}, "AdjointDEIS.steps"),
        (AdjointDEIS, {"steps": "5"}, "AdjointDEIS.steps"),
        (Truncated, {"last": 1.5}, "Truncated.last"),
        (DiscreteAdjoint, {"snapshots": 2.5}, "snapshots"),
        (DiscreteAdjoint, {"snapshots": 0}, "snapshots.*None for all"),
        (DiscreteAdjoint, {"keep_activations": 1.5}, "keep_activations"),
        (DiscreteAdjoint, {"keep_activations": -1}, "keep_activations"),
        (DiscreteAdjoint, {"budget": float("nan")}, "bytes must be positive"),
        (DiscreteAdjoint, {"budget": [1]}, "bytes must be positive"),
    ],
)
def test_a_count_is_a_whole_number(method, settings, name) -> None:
    with pytest.raises(ValueError, match=name):
        method(**settings)
    assert DiscreteAdjoint(snapshots=np.int64(3)).snapshots == 3
