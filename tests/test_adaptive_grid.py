"""Steps by tolerance: the pair that estimates, the controller, gradients on the accepted grid."""

import math
from functools import cache, partial

import pytest
import torch
from oracles import MLPDenoiser, agree, inputs, observed_order, relative_error
from torch import Tensor

from adjointdeis import DDPM, PerStep, TimeGrid, VPLinear, adaptive_grid, sample
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    Certified,
    DiscreteAdjoint,
    InconsistentStepError,
    SymplecticAdjoint,
    UnreachableLeafError,
)
from adjointdeis.problems import PARTS, gaussian, mixture
from adjointdeis.solvers import DDIM, Rex, RungeKutta, SDEDPMSolver, ToleranceError
from adjointdeis.solvers.tableau import TABLEAUS

PAIRS = [name for name, table in TABLEAUS.items() if table.embedded]
each_pair = pytest.mark.parametrize("name", PAIRS)
each_form = pytest.mark.parametrize("prediction", ["noise", "data"])


def found_for(problem, solver: RungeKutta, tolerance: float, first: int = 20):
    return adaptive_grid(
        problem.denoiser, problem.x_T, problem.z, solver=solver,
        grid=problem.grid("log-SNR", first), rtol=tolerance, atol=tolerance,
    )  # fmt: skip


@each_pair
def test_the_embedded_result_is_of_one_order_less(name: str) -> None:
    """Its quadrature conditions hold to order p - 1, and one of order p does not."""
    table = TABLEAUS[name]
    ended = len(table.embedded) > table.stages
    c = torch.tensor([*table.c, *([1.0] if ended else [])], dtype=torch.float64)
    rows = [*table.a, *([table.b] if ended else [])]
    b = torch.tensor(table.embedded, dtype=torch.float64)
    for k in range(1, table.order):
        assert float(b @ c ** (k - 1)) == pytest.approx(1 / k, abs=1e-12)
    missed = [float(b @ c ** (table.order - 1)) - 1 / table.order]
    inner = torch.tensor(
        [sum(a * float(c[j]) for j, a in enumerate(row)) for row in rows], dtype=torch.float64
    )
    missed.append(float(b @ inner) - 1 / 6)
    assert any(abs(value) > 1e-4 for value in missed[: 1 if name == "heun" else 2])


@each_form
@each_pair
def test_the_estimate_of_a_step_falls_with_the_order_of_the_lesser(name: str, prediction) -> None:
    """From one state, the steps that the controller takes have errors of order p."""
    problem, solver = mixture(), RungeKutta(name, prediction)
    grid = TimeGrid.uniform_lmbda(VPLinear(), 6)
    s, table = grid[3], solver.tableau
    sizes, errors = [0.2, 0.1, 0.05], []
    for width in sizes:
        lmbda = torch.tensor([s.lmbda, s.lmbda + width], dtype=torch.float64)
        s_, t_ = TimeGrid.from_times(VPLinear(), VPLinear().t_of(lmbda))
        with torch.no_grad():
            slopes = solver.stages(problem.denoiser, problem.x_T, problem.z, s_, t_)
            high = solver.moved(problem.x_T, s_, t_, table.b, slopes)
            if len(table.embedded) > table.stages:
                form = solver.variables(s_, t_)
                slopes.append(form.slope(problem.denoiser, high, t_, problem.z))
            low = solver.moved(problem.x_T, s_, t_, table.embedded, slopes)
        errors.append(float((high - low).norm()))
    order = math.log(errors[0] / errors[2]) / math.log(4.0)
    assert order == pytest.approx(table.order, abs=0.35), errors


@cache
def flow_of_mixture() -> Tensor:
    problem = mixture()
    grid = problem.grid("log-SNR", 400)
    with torch.no_grad():
        return sample(
            problem.denoiser, problem.x_T, problem.z, solver=RungeKutta("dopri5"), grid=grid
        ).x_0


@each_form
@each_pair
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_the_error_follows_the_tolerance(data: str, name: str, prediction) -> None:
    problem = {"gaussian": gaussian, "mixture": mixture}[data]()
    if data == "gaussian":
        with torch.no_grad():
            exact = problem.denoiser.flow(
                problem.x_T, problem.schedule.t_max, problem.t_min, problem.z
            )
    else:
        exact = flow_of_mixture()
    tolerances, errors, counts = [1e-2, 1e-3, 1e-4, 1e-5], [], []
    solver = RungeKutta(name, prediction)
    for tolerance in tolerances:
        found = found_for(problem, solver, tolerance)
        with torch.no_grad():
            x_0 = sample(
                problem.denoiser, problem.x_T, problem.z, solver=solver, grid=found.grid
            ).x_0
        errors.append(float((x_0 - exact).abs().max()))
        counts.append(found.cost.nfe)
    assert all(
        error < 50.0 * tolerance for error, tolerance in zip(errors, tolerances, strict=True)
    )
    assert errors[-1] < 0.05 * errors[0] and counts == sorted(counts)


@each_pair
def test_its_evaluations_are_those_that_were_made(name: str) -> None:
    problem, calls = mixture(), 0

    def counted(x, t, z):
        nonlocal calls
        calls += 1
        return problem.denoiser(x, t, z)

    solver = RungeKutta(name)
    found = adaptive_grid(
        counted, problem.x_T, problem.z, solver=solver, grid=problem.grid("log-SNR", 1),
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    table, steps = solver.tableau, found.grid.steps
    trials = steps + found.rejected
    # The first slope of a step is known after a rejected one, and where the pair evaluates the end.
    expected = (
        1 + trials * table.stages
        if len(table.embedded) > table.stages
        else trials * table.stages - found.rejected
    )
    assert found.rejected > 0
    assert found.cost.nfe_forward == found.cost.nfe == calls == expected


@each_form
@each_pair
def test_gradients_on_the_accepted_grid_are_those_of_autograd(name: str, prediction) -> None:
    """Of steps written out here, without the package's solver or its gradients."""
    problem, solver = mixture(), RungeKutta(name, prediction)
    grid, table = found_for(problem, solver, 1e-2).grid, TABLEAUS[name]
    h = grid.h
    assert float(h.max() / h.min()) > 1.5  # it has chosen

    def by_hand(x: Tensor, z: Tensor) -> Tensor:
        schedule = grid.schedule
        for s, t in zip(grid.t[:-1], grid.t[1:], strict=True):
            levels = lambda time: (float(schedule.alpha(time)), float(schedule.sigma(time)))  # noqa: E731
            (a_s, s_s), (a_t, s_t) = levels(s), levels(t)
            clock = (s_s / a_s, s_t / a_t) if prediction == "noise" else (a_s / s_s, a_t / s_t)
            y, width, k = x / (a_s if prediction == "noise" else s_s), clock[1] - clock[0], []
            for row, c in zip(table.a, table.c, strict=True):
                place = torch.tensor(clock[0] + c * width, dtype=torch.float64).log()
                time = schedule.t_of(-place if prediction == "noise" else place)
                a, sd = levels(time)
                state = y + width * sum(
                    (w * one for w, one in zip(row, k, strict=True)), torch.zeros_like(y)
                )
                eps = problem.denoiser((a if prediction == "noise" else sd) * state, time, z)
                if prediction == "data":
                    eps = (sd * state - sd * eps) / a
                k.append(eps)
            y = y + width * sum(w * one for w, one in zip(table.b, k, strict=True))
            x = (a_t if prediction == "noise" else s_t) * y
        return x

    x_T, z = problem.x_T.clone().requires_grad_(), problem.z.clone().requires_grad_()
    weights = list(problem.denoiser.requires_grad_().parameters())
    found = torch.autograd.grad(problem.loss(by_hand(x_T, z)), [x_T, z, *weights])
    exact = [found[0].flatten(), found[1].flatten(), torch.cat([g.flatten() for g in found[2:]])]
    methods = [Backprop(), DiscreteAdjoint(), DiscreteAdjoint(snapshots=2)]
    methods += [SymplecticAdjoint()] if prediction == "noise" else []
    methods += [Certified(problem.loss)]
    for method in methods:
        gradients = problem.differentiate(method, solver, grid).gradients
        for part, value in zip(PARTS, exact, strict=True):
            assert agree(gradients[part], value, 1e-12), (method, part)


@each_form
@each_pair
def test_the_accepted_states_are_those_of_the_replay(name: str, prediction) -> None:
    """Every evaluation of the replay was made by the search, at the same time and the same x."""
    problem, solver, seen = mixture(), RungeKutta(name, prediction), []

    def watched(x, t, z):
        seen.append((float(t), x.clone()))
        return problem.denoiser(x, t, z)

    setting = {"solver": solver, "grid": problem.grid("log-SNR", 3)}
    with torch.no_grad():
        found = adaptive_grid(watched, problem.x_T, problem.z, **setting)
        search, seen = seen, []
        sample(watched, problem.x_T, problem.z, solver=solver, grid=found.grid)
    assert len(search) > len(seen) == found.grid.steps * solver.tableau.stages
    for t, x in seen:
        assert any(abs(t - u) < 1e-12 and agree(x, y, 1e-12) for u, y in search)


@pytest.mark.parametrize("name, prediction", [("bosh3", "noise"), ("dopri5", "data")])
def test_known_states_are_not_computed_again(name: str, prediction) -> None:
    """The gradient is that without them, for evaluations of four steps instead of all."""
    problem, solver = mixture(), RungeKutta(name, prediction)
    problem.denoiser.requires_grad_()
    weights = list(problem.denoiser.parameters())
    found = found_for(problem, solver, 1e-6, first=40)
    steps, stages = found.grid.steps, solver.tableau.stages
    assert steps > 8 and len(found.states) == steps + 1
    gradients, results = [], []
    for settings in (found.settings, {"solver": solver, "grid": found.grid}):
        x_T, z = problem.x_T.clone().requires_grad_(), problem.z.clone().requires_grad_()
        rollout = sample(problem.denoiser, x_T, z, **settings)
        results.append((rollout, rollout.cost.nfe))
        gradients.append(torch.autograd.grad(problem.loss(rollout.x_0), [x_T, z, *weights]))
    (known, spent), (anew, all_of_them) = results
    assert (spent, all_of_them) == (4 * stages, steps * stages)
    assert known.cost.nfe_backward == anew.cost.nfe_backward == steps * stages
    assert agree(known.x_0, anew.x_0, 1e-12)
    for one, other in zip(*gradients, strict=True):
        assert agree(one, other, 1e-11)
    assert not any(x.requires_grad for x in found.states)


def test_states_of_another_run_are_refused_by_name() -> None:
    problem, solver = mixture(), RungeKutta("bosh3")
    problem.denoiser.requires_grad_(False)
    found = found_for(problem, solver, 1e-3)
    x_T, z = problem.x_T.clone().requires_grad_(), problem.z.clone().requires_grad_()
    run = partial(sample, problem.denoiser)
    again = r"sample\(denoiser, x_T, z, solver=found.solver"
    for message, wrong in (
        ("not those of this run", {"x_T": x_T + 1e-9}),
        (f"expected {found.grid.steps + 1} tensors", {"states": found.states[1:]}),
        ("expected", {"states": [x.float() for x in found.states]}),
        (again, {"gradient": Backprop()}),
        (again, {"gradient": AdjointDEIS()}),
        (again, {"gradient": DiscreteAdjoint(check=False)}),
        (again, {"gradient": Certified(problem.loss)}),
        (again, {"microbatch": 1}),
        (again, {"trajectory": True}),
        (again, {"solver": DDIM()}),
        (r"x_0 is found.states\[-1\]", {"x_T": problem.x_T, "z": problem.z}),
    ):
        with pytest.raises(ValueError, match=message):
            run(**{"x_T": x_T, "z": z} | found.settings | wrong)
    stale = r"call adaptive_grid\(\) again"
    with pytest.raises(InconsistentStepError, match=stale):  # before the loss has been seen
        run(x_T, z + 0.01, **found.settings)
    with pytest.raises(InconsistentStepError, match=stale):
        run(x_T, z, **found.settings | {"solver": RungeKutta("heun")})
    middle = found.grid.steps // 2 - 1
    moved = [x + 1e-3 * (i == middle) for i, x in enumerate(found.states)]
    rollout = run(x_T, z, **found.settings | {"states": moved})
    with pytest.raises(InconsistentStepError, match=rf"step {middle} of .*{stale}"):
        problem.loss(rollout.x_0).backward()


def test_known_states_hide_no_leaf_and_no_state_of_the_network() -> None:
    problem, solver, late = mixture(), RungeKutta("bosh3"), torch.ones((), dtype=torch.float64)
    problem.denoiser.requires_grad_(False)
    found = found_for(problem, solver, 1e-4)
    x_T, third = problem.x_T.clone().requires_grad_(), float(found.grid.t[3])

    def with_a_late_weight(x, t, z):
        return problem.denoiser(x, t, z) * (late if float(t) < third else 1.0)

    late.requires_grad_()
    with pytest.raises(UnreachableLeafError):
        problem.loss(sample(with_a_late_weight, x_T, problem.z, **found.settings).x_0).backward()
    calls = 0

    def counting(x, t, z):
        nonlocal calls
        calls += 1
        return problem.denoiser(x, t, z) * (1.0 + 1e-3 * (calls % 7 == 0))

    with pytest.raises(InconsistentStepError):
        problem.loss(sample(counting, x_T, problem.z, **found.settings).x_0).backward()


def test_more_tolerance_is_fewer_steps_between_the_same_ends() -> None:
    problem, solver = mixture(), RungeKutta("bosh3")
    fine, coarse = (found_for(problem, solver, tolerance) for tolerance in (1e-4, 1e-1))
    assert coarse.grid.steps < fine.grid.steps and coarse.cost.nfe < fine.cost.nfe
    span = problem.grid("log-SNR", 20)
    for found in (fine, coarse):
        assert found.grid.sampling
        assert torch.equal(found.grid.t[[0, -1]], span.t[[0, -1]])
    # Already at its own grid, the controller changes nothing of the first step.
    again = adaptive_grid(
        problem.denoiser, problem.x_T, problem.z, solver=solver, grid=fine.grid,
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
    assert float(again.grid.t[1]) == pytest.approx(float(fine.grid.t[1]), rel=1e-9)


def test_the_worst_sample_decides() -> None:
    problem, solver = mixture(), RungeKutta("bosh3")
    steps = []
    for rows in (slice(0, 8), *(slice(k, k + 1) for k in range(8))):
        found = adaptive_grid(
            problem.denoiser, problem.x_T[rows], problem.z[rows], solver=solver,
            grid=problem.grid("log-SNR", 20), rtol=1e-4, atol=1e-4,
        )  # fmt: skip
        steps.append(found.grid.steps)
    assert steps[0] >= max(steps[1:]) - 1 and min(steps[1:]) < steps[0]


def test_data_prediction_of_euler_is_ddim_and_ends_where_sigma_is_zero() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    for t_min in (1e-3, 0.0):
        grid = TimeGrid.uniform_time(VPLinear(), 6, t_min=t_min)
        with torch.no_grad():
            one, other = (
                sample(network, x_T, z, solver=solver, grid=grid).x_0
                for solver in (RungeKutta("euler", "data"), DDIM())
            )
        assert agree(one, other)


@each_pair
def test_data_prediction_reaches_the_order(name: str) -> None:
    problem, steps = mixture(), [80, 160, 320] if name != "dopri5" else [32, 48, 64]
    errors = []
    for n in steps:
        with torch.no_grad():
            x_0 = sample(
                problem.denoiser, problem.x_T, problem.z, solver=RungeKutta(name, "data"),
                grid=problem.grid("log-SNR", n),
            ).x_0  # fmt: skip
        errors.append(relative_error(x_0, flow_of_mixture()))
    order = TABLEAUS[name].order
    assert (
        order - 0.25 < observed_order(steps, errors) < order + (1.5 if name == "dopri5" else 0.25)
    )


def test_what_cannot_be_served_is_refused_by_name() -> None:
    problem = mixture()
    given = {"denoiser": problem.denoiser, "x_T": problem.x_T, "z": problem.z}
    good = {"solver": RungeKutta("bosh3"), "grid": problem.grid("log-SNR", 20)}
    for wrong, message in (
        ({"solver": DDIM()}, r'no embedded pair.*RungeKutta\("bosh3"\)'),
        ({"solver": RungeKutta("rk4")}, "no embedded pair"),
        ({"solver": SDEDPMSolver()}, r"takes ODE samplers.*solver=SDEDPMSolverPP\(\)"),
        ({"solver": Rex(calculus="sde")}, "takes ODE samplers, and Rex is one of an SDE"),
        ({"grid": good["grid"].reversed()}, "from noise to data"),
        ({"grid": TimeGrid.uniform_time(VPLinear(), 5, t_min=0.0)}, "finite log-SNR at both ends"),
        ({"grid": TimeGrid.ddim_stride(DDPM(), 10)}, "finite log-SNR at both ends"),
        ({"rtol": 0.0, "atol": 0.0}, "neither below 0"),
        ({"rtol": -1.0}, "neither below 0"),
        ({"atol": math.nan}, "neither below 0"),
        ({"z": PerStep([problem.z])}, "pass one z"),
    ):
        with pytest.raises(ValueError, match=message):
            adaptive_grid(**given | good | wrong)
    with pytest.raises(ToleranceError, match=r"rtol=1e-20 .* below the rounding of torch.float64"):
        adaptive_grid(**given, **good, rtol=1e-20, atol=0.0)
    with pytest.raises(ToleranceError, match=r"tolerances\. Rounding in"):
        noisy = lambda x, t, z: problem.denoiser(x, t, z) + torch.randn_like(x)  # noqa: E731
        adaptive_grid(noisy, problem.x_T, problem.z, **good, rtol=1e-9, atol=1e-9)
    with pytest.raises(ToleranceError, match="is off by nan"):
        adaptive_grid(lambda x, t, z: x * math.nan, problem.x_T, problem.z, **good)
    with pytest.raises(ValueError, match="'data' or 'noise': 'x_0'"):
        RungeKutta("rk4", "x_0")


def test_a_leaf_of_a_step_that_is_not_taken_is_no_silent_loss() -> None:
    """Known states leave out steps in which it would be seen; the backward pass sees it."""
    problem = gaussian()
    problem.denoiser.requires_grad_(False)
    found = found_for(problem, RungeKutta("bosh3"), 1e-5)
    late, x_T = torch.full((), 1.0, dtype=torch.float64, requires_grad=True), problem.x_T.clone()
    start, end = map(float, found.grid.t[2:4])  # of a step that is not taken
    assert found.grid.steps > 8

    def denoiser(x, t, z):
        eps = problem.denoiser(x, t, z)
        return eps * late if end < float(t) < start else eps

    x_0 = sample(
        denoiser, x_T.requires_grad_(), problem.z, solver=found.solver, grid=found.grid,
        states=found.states,
    ).x_0  # fmt: skip
    with pytest.raises(UnreachableLeafError, match="requires a gradient but is neither"):
        x_0.sum().backward()
