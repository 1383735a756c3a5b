"""Surrogate gradients: exact where the setting says so, the literature's formulas elsewhere."""

import ast
import os
import runpy
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from oracles import BATCH, DIM, MLPDenoiser, agree, differentiate, inputs, normal, relative_error

from adjointdeis import PerStep, RectifiedFlow, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.gradients import (
    Chain,
    DiscreteAdjoint,
    NotSupportedError,
    OneStep,
    Surrogate,
    Truncated,
    surrogates,
)
from adjointdeis.gradients.surrogate import Lagrange, Parts, Rescaled, leaps, scaled
from adjointdeis.solvers import (
    DDIM,
    DPMSolverPP,
    FlowEuler,
    RungeKutta,
    SDEDPMSolver,
    StepFunction,
)
from adjointdeis.solvers.base import count_evaluations

N = 8
GRID = TimeGrid.uniform_lmbda(VPLinear(), N)
FLOW = TimeGrid.uniform_time(RectifiedFlow(), N, t_min=0.0)
SIGMA = [float(node.sigma) for node in FLOW]
COTANGENT = normal(BATCH, DIM, seed=99)


def gradients(method, network=None, solver=None, grid=GRID, noise=None, zs=None) -> dict:
    network = network or MLPDenoiser()
    x_T, z = inputs()
    zs = [z] if zs is None else zs
    for leaf in (x_T, *zs):
        leaf.requires_grad_()
    rollout = sample(
        network, x_T, PerStep(zs) if len(zs) > 1 else zs[0], solver=solver or DDIM(), grid=grid,
        noise=noise, gradient=method,
    )  # fmt: skip
    (rollout.x_0 * COTANGENT).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    return {"x_T": x_T.grad, "zs": torch.stack([z.grad for z in zs]), "theta": theta,
            "cost": rollout.cost}  # fmt: skip


def of_flow(method) -> torch.Tensor:
    """The weights' gradient on an Euler flow."""
    return gradients(method, solver=FlowEuler(), grid=FLOW)["theta"]


def by_formula(surrogate) -> torch.Tensor:
    """The weights' gradient of x_0 as a function of (v, states), for a flow's sampled states."""
    network, (x, z) = MLPDenoiser(), inputs()

    def v(x, i):
        return network(x, FLOW[i].t, z)

    states = [x]
    with torch.no_grad():
        for i in range(N):
            states.append(states[-1] + (SIGMA[i + 1] - SIGMA[i]) * v(states[-1], i))
    (surrogate(v, states) * COTANGENT).sum().backward()
    return torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("scheduled", [False, True], ids=["z", "z_t"])
@pytest.mark.parametrize(
    "solver", [DDIM(), DPMSolverPP(2), RungeKutta(), SDEDPMSolver()], ids=lambda s: type(s).__name__
)
def test_all_steps_with_full_weights_and_bridge_are_exact(solver, scheduled: bool) -> None:
    noise = None
    if solver.calculus == "sde":
        noise = RecordedNoise.draw(N, (BATCH, DIM), seed=1, dtype=torch.float64)
    grid = TimeGrid.uniform_lmbda(VPLinear(), N, t_min=0.02, t_max=0.6)
    found = []
    for method in (DiscreteAdjoint(), Surrogate(), surrogates.lookahead(N)):
        zs = inputs(N)[1] if scheduled else None
        found.append(gradients(method, solver=solver, grid=grid, noise=noise, zs=zs))
    for part in ("x_T", "zs", "theta"):
        for other in found[1:]:
            assert relative_error(other[part], found[0][part]) < 1e-12, part


def test_truncation_and_one_step_are_settings_of_it() -> None:
    for name in ("theta", "zs"):
        zs = inputs(N)[1]
        last = gradients(Surrogate(active=(-3, -2, -1)), zs=zs)[name]
        x_T, zs = inputs(N)
        network = MLPDenoiser()
        for z in zs:
            z.requires_grad_()
        x_0 = sample(
            network, x_T, PerStep(zs), solver=DDIM(), grid=GRID, gradient=Truncated(last=3)
        ).x_0
        (x_0 * COTANGENT).sum().backward()
        theta = torch.cat([p.grad.flatten() for p in network.parameters()])
        assert agree(last, {"theta": theta, "zs": torch.stack([z.grad for z in zs])}[name])
    one, look = gradients(OneStep()), gradients(surrogates.lookahead(1))
    assert all(agree(one[part], look[part]) for part in ("x_T", "zs", "theta"))


@pytest.mark.parametrize("discount", [0.0, 0.3, 1.0])
def test_leapalign(discount: float) -> None:
    """x_j = x_k + (s_j - s_k) v(x_k); x_0 = x_j + (s_0 - s_j) v(sampled x_j, discounted)."""
    k, j = 2, 5

    def two_leaps(v, states):
        x_j = states[k] + (SIGMA[j] - SIGMA[k]) * v(states[k], k)
        pinned = x_j + (states[j] - x_j).detach()
        seen = discount * pinned + (1.0 - discount) * pinned.detach()
        return pinned + (SIGMA[N] - SIGMA[j]) * v(seen, j)

    found = of_flow(Surrogate(active=(k, j), weights="leaps", bridge=discount))
    assert relative_error(found, by_formula(two_leaps)) < 1e-12


def test_drtune_and_flowbp_sparse() -> None:
    """x_0 = x_T + sum h_i v(sg x_i), and the same with one factor on the active steps."""
    active = (1, 3, 6)
    h = [b - a for a, b in pairwise(SIGMA)]
    covered = sum(h[i] for i in active) / sum(h)
    for share in (0.0, 0.5, 1.0):
        factor = 1.0 + share * (1.0 / covered - 1.0)

        def reconstructed(v, states, factor=factor):
            return factor * sum(h[i] * v(states[i], i) for i in active)

        found = of_flow(Surrogate(active=active, weights=Rescaled(share), bridge=0.0))
        assert relative_error(found, by_formula(reconstructed)) < 1e-12


def test_flowbp_bridge() -> None:
    """Only the network at j sees, by a factor, what the steps before it did."""
    active, j, bridge = (0, 2, 4, 7), 4, 0.5

    def bridged(v, states):
        def of_euler(x, steps):
            for i in steps:
                if i in active and i != j:
                    out = v(states[i], i)
                elif i == j:
                    out = v(states[j] + bridge * (x - x.detach()), j)
                else:
                    out = v(states[i], i).detach()
                x = x + (SIGMA[i + 1] - SIGMA[i]) * out
            return x

        return of_euler(states[0], range(N))

    found = of_flow(Surrogate(active=active, bridge=(0.0, 0.0, bridge, 0.0)))
    assert relative_error(found, by_formula(bridged)) < 1e-12


def test_refl_is_published_refl_where_sampling_stops_at_its_step() -> None:
    """The reward of the data predicted at the step, differentiated through that prediction."""
    stop = 5
    grid = FLOW.at([*range(stop + 1), N])
    method = Surrogate(active=(-1,), weights="leaps", bridge=0.0)
    found = gradients(method, solver=FlowEuler(), grid=grid)["theta"]

    def predicted(v, states):
        return states[stop] - SIGMA[stop] * v(states[stop], stop)

    assert SIGMA[N] == 0.0
    assert relative_error(found, by_formula(predicted)) < 1e-12


def test_one_kept_step_of_sdo() -> None:
    """x_0 as a sum over all outputs, of which one keeps its graph and stands for all."""
    step, h = 3, [b - a for a, b in pairwise(SIGMA)]
    found = of_flow(Surrogate(active=(step,), weights=Rescaled(1.0)))
    assert relative_error(found, by_formula(lambda v, x: sum(h) * v(x[step], step))) < 1e-12
    # Of x_T the network at that step sees the path that led to it: 1 + sum(h) J.
    network, (x, z) = MLPDenoiser(), inputs()
    with torch.no_grad():
        for i in range(step):
            x = x + h[i] * network(x, FLOW[i].t, z)
    leaf = x.requires_grad_()
    ((leaf + sum(h) * network(leaf, FLOW[step].t, z)) * COTANGENT).sum().backward()
    method = Surrogate(active=(step,), weights=Rescaled(1.0))
    assert agree(gradients(method, solver=FlowEuler(), grid=FLOW)["x_T"], leaf.grad)


def test_weights_of_leaps_and_quadrature() -> None:
    clock = [1.0, 0.7, 0.4, 0.3, 0.0]
    assert leaps(clock, [0, 2]) == pytest.approx([0.6 / 0.3, 0.4 / 0.1])
    assert leaps(clock, [0, 1, 2, 3]) == pytest.approx([1.0] * 4)
    assert Rescaled(1.0)(clock, [0, 2]) == pytest.approx([1.0 / 0.4] * 2)
    assert Lagrange(1)(clock, [0, 2]) == pytest.approx(leaps(clock, [0, 2]))
    # Two points, 1.0 and 0.7, over [0, 1]: the integral of (0.7 - c) / (0.7 - 1.0) is -1/1.5.
    (found,) = Lagrange(2)([1.0, 0.7, 0.0], [0])
    assert found == pytest.approx((0.5 - 0.7) / 0.3 / 0.3)
    assert Parts(3)(10) == [0, 3, 6] and Parts(3, first=1)(10) == [3, 6]


def test_a_leap_of_the_reverse_sde_is_one_towards_a_constant_prediction_of_the_data() -> None:
    """y_t = x_0 + (rho_t / rho_s)^2 (y_s - x_0) with x_0 = y_s - rho_s eps."""
    noise = RecordedNoise.draw(N, (BATCH, DIM), seed=0)
    chain = Chain.of(MLPDenoiser(), SDEDPMSolver(), GRID, inputs()[0], noise=noise)
    weight, _ = Surrogate(active=(2,), weights="leaps").plan(chain)[2]
    rho = [float(node.rho) for node in GRID]
    own = 2.0 * (rho[3] - rho[2])  # what a step of the sampler multiplies eps with
    whole = -rho[2] * (1.0 - (rho[N] / rho[2]) ** 2)
    step = -rho[2] * (1.0 - (rho[3] / rho[2]) ** 2)
    assert weight * own == pytest.approx(whole * own / step)


def test_draws_are_the_papers_and_repeatable() -> None:
    def draws(method, count=400):
        generator = torch.Generator().manual_seed(0)
        return [method.rule(10, generator) for _ in range(count)]

    assert {m.steps(10)[0] for m in draws(surrogates.refl(last=3))} == {7, 8, 9}
    starts = Counter(m.steps(10)[0] for m in draws(surrogates.alignprop()))
    assert sorted(starts) == list(range(10)) and min(starts.values()) > 15
    assert {tuple(m.steps(10)) for m in draws(surrogates.drtune(3))} == {
        (0, 3, 6), (1, 4, 7), (2, 5, 8), (3, 6, 9)
    }  # fmt: skip
    pairs = {tuple(m.steps(10)) for m in draws(surrogates.leapalign())}
    assert len(pairs) == 45 and all(k < j for k, j in pairs)
    late = Counter(i for m in draws(surrogates.flowbp_sparse(3, 4.0)) for i in m.steps(10))
    assert late[9] > 300 > 60 > late[0]
    for method in draws(surrogates.flowbp_bridge(count=4), 100):
        active, bridged = method.steps(10), [b for b in method.bridge if b]
        assert len(active) == 4 and bridged == [0.5] and method.bridge[0] == 0.0
    for make in (surrogates.sdo, surrogates.flowbp_lagrange):
        one, other = (draws(make(), 5) for _ in range(2))
        assert [m.active for m in one] == [m.active for m in other]
    # As a gradient method it draws in every rollout.
    generator = torch.Generator().manual_seed(0)
    method = surrogates.sdo(generator)
    found = {round(float(gradients(method)["theta"].norm()), 9) for _ in range(6)}
    assert len(found) > 2


def test_cost_is_one_evaluation_and_one_product_for_each_active_step() -> None:
    cost = gradients(Surrogate(active=(2, 5), weights="leaps", bridge=0.3))["cost"]
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (N, 2, 2)
    assert (cost.peak_latents, cost.peak_graphs) == (1 + N + N - 2, 1)


@pytest.mark.parametrize(
    "plan", [{"snapshots": 2}, {"keep_activations": 5}, {"budget": "1 MB"}], ids=str
)
def test_the_memory_plan_does_not_change_it(plan: dict) -> None:
    setting = {"active": (2, 5, 6), "weights": (0.5, 2.0, 1.0), "bridge": (1.0, 0.3, 0.0)}
    plain, planned = (gradients(Surrogate(**setting, **p)) for p in ({}, plan))
    assert all(agree(plain[part], planned[part]) for part in ("x_T", "zs", "theta"))


def test_a_factor_on_the_gradient_leaves_the_number() -> None:
    x = torch.tensor([torch.inf, -1.0], dtype=torch.float64, requires_grad=True)
    for factor in (0.0, 0.3, 1.0):
        found = scaled(x, factor)
        assert torch.equal(found, x)
        expected = torch.full((2,), factor, dtype=torch.float64)
        if factor:
            assert torch.equal(torch.autograd.grad(found.sum(), x)[0], expected)
        else:
            assert not found.requires_grad


def test_what_cannot_be_served_is_refused() -> None:
    for given, message in [
        ({"active": ()}, "at least one"),
        ({"active": (9,)}, "between -8 and 7"),
        ({"active": (7, -1)}, "none twice"),
        ({"weights": (1.0, 2.0)}, "2 numbers for 8 active steps"),
        ({"active": (1, 2), "bridge": (1.0,)}, "1 numbers for 2"),
        ({"active": Parts(9)}, "8 steps cannot be divided into 9 parts"),
    ]:
        with pytest.raises(ValueError, match=message):
            gradients(Surrogate(**given))
    for given in ({"active": "some"}, {"weights": "euler"}):
        with pytest.raises(ValueError, match="expected"):
            Surrogate(**given)
    network = MLPDenoiser()

    def hidden(denoiser, x, z, s, t):
        count_evaluations(denoiser)
        return DDIM().step(network, x, z, s, t, (), None)[0]

    def differentiated(method):
        x_T, z = inputs()
        x_0 = sample(
            lambda x, t, z: x, x_T.requires_grad_(), z, solver=StepFunction(hidden), grid=GRID,
            parameters=list(network.parameters()), gradient=method,
        ).x_0  # fmt: skip
        x_0.sum().backward()

    differentiated(Surrogate())
    for method in (Surrogate(active=(2,)), Surrogate(bridge=0.5)):
        with pytest.raises(NotSupportedError, match="evaluates a network of its own"):
            differentiated(method)
    flow = TimeGrid.uniform_time(RectifiedFlow(), 4, t_max=1.0)
    with pytest.raises(NotSupportedError, match="no known length"):
        differentiate(
            MLPDenoiser(), *inputs(), Surrogate(weights="leaps"), solver=StepFunction(hidden),
            grid=flow,
        )  # fmt: skip


FLOWBP = Path(os.environ.get("FLOWBP", "no checkout"))


@pytest.mark.skipif(not FLOWBP.is_dir(), reason="FLOWBP names no checkout of RuoyuWang-2077/FlowBP")
@pytest.mark.parametrize("order", [1, 3, 4])
def test_flowbp_lagrange_is_that_of_the_released_code(order: int) -> None:
    """Its own connector, from k to j to the end, in its single precision."""
    utils = runpy.run_path(str(FLOWBP / "flowbp/trainers/common/flowbp_lagrange_utils.py"))
    predict, k, j, bridge = utils["_lagrange_quadrature_predict"], 1, 4, 0.3
    sigmas = torch.tensor(SIGMA, dtype=torch.float64)

    def released(v, states):
        cached = [v(x, i).detach() for i, x in enumerate(states[:-1])]
        x_j, _ = predict(states[k], v(states[k], k), cached, sigmas, k, j, order=order)
        pinned = x_j + (states[j] - x_j).detach()
        seen = bridge * pinned + (1 - bridge) * pinned.detach()
        return predict(pinned, v(seen, j), cached, sigmas, j, N, order=order)[0]

    found = of_flow(Surrogate(active=(k, j), weights=Lagrange(order), bridge=bridge))
    assert relative_error(found, by_formula(released)) < 1e-6


@pytest.mark.skipif(not FLOWBP.is_dir(), reason="FLOWBP names no checkout of RuoyuWang-2077/FlowBP")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_flowbp_sparse_is_that_of_the_released_code(share: float) -> None:
    """Two functions of its trainer, which as a whole needs the libraries of its models."""
    tree = ast.parse((FLOWBP / "flowbp/trainers/flux1/flowbp_sparse.py").read_text())
    wanted = ("_scale_active_v_gradient", "_compose_x0_from_velocities")
    tree.body = [n for n in tree.body if getattr(n, "name", "") in wanted]
    names: dict = {"torch": torch}
    exec(compile(tree, "flowbp_sparse", "exec"), names)
    active, sigmas = (1, 3, 6), torch.tensor(SIGMA)
    (factor, *_) = Rescaled(share)(SIGMA, active)

    def released(v, states):
        cached = [v(x, i).detach() for i, x in enumerate(states[:-1])]
        fresh = {i: v(states[i].detach(), i) for i in active}
        return names["_compose_x0_from_velocities"](states[0], sigmas, cached, fresh, factor)

    found = of_flow(Surrogate(active=active, weights=Rescaled(share), bridge=0.0))
    assert relative_error(found, by_formula(released)) < 1e-6
