"""Orders 3 and 4 and the data-prediction form of AdjointDEIS."""

import math
import warnings
from functools import cache

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    AffineDenoiser,
    Gradients,
    MLPDenoiser,
    agree,
    continuous_gradient,
    differentiate,
    gaussian,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)
from scipy.integrate import quad
from torch import nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, RecordedNoise
from adjointdeis.gradients import (
    AdjointDEIS,
    DiscreteAdjoint,
    LargeAdjointStepWarning,
    NotSupportedError,
)
from adjointdeis.gradients.adjoint_kernel import Form
from adjointdeis.gradients.large_steps import largest_root, sign_limit
from adjointdeis.gradients.multistep import interpolation_weights, moments
from adjointdeis.solvers import DDIM, RungeKutta, SDEDPMSolver

quiet = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.large_steps.LargeAdjointStepWarning"
)
SCHEDULE = VPLinear()
GRID = TimeGrid.uniform_time(SCHEDULE, 6, t_min=0.02)


@pytest.mark.parametrize("x", [1e-4, 0.3, 2.0, 9.0])
def test_moments_are_the_phi_functions(x: float) -> None:
    """i! P(i+1, x) / (1 - e^-x), P(i+1, x) = e^-x x^(i+1) phi_(i+1)(x), against quadrature."""
    mass = -math.expm1(-x)
    for i, value in enumerate(moments(4, x)):
        exact = quad(lambda u, i=i: (u / x) ** i * math.exp(-u), 0, x, epsabs=0)[0] * x**i / mass
        assert value == pytest.approx(exact, rel=1e-11)
        # phi_(i+1)(x) = sum_j x^j / (j + i + 1)!
        phi = sum(x**j / math.factorial(j + i + 1) for j in range(60))
        recovered = math.factorial(i) * math.exp(-x) * x ** (i + 1) * phi / mass
        assert value == pytest.approx(recovered, rel=1e-11)


@pytest.mark.parametrize("places", [[0.4], [0.4, 0.9], [0.0, 0.4, 1.1], [0.4, 0.7, 1.3, 2.0]])
def test_weights_integrate_polynomials_exactly(places: list[float]) -> None:
    x = 0.4
    weights = interpolation_weights(places, x)
    assert sum(weights) == pytest.approx(1.0, abs=1e-13)
    for degree in range(len(places)):
        exact = quad(lambda u, d=degree: u**d * math.exp(-u), 0, x)[0] / -math.expm1(-x)
        found = sum(w * p**degree for w, p in zip(weights, places, strict=True))
        assert found == pytest.approx(exact, abs=1e-13)


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_each_form_integrates_polynomials_in_lmbda_over_its_own_clock(prediction, factor) -> None:
    """The mean over d(rho) = -e^-lmbda d(lmbda), or over d(Gamma) = c e^(c lmbda) d(lmbda)."""
    form, (s, t) = Form(prediction, factor), (GRID[2], GRID[3])
    nodes = [GRID[3], GRID[4], GRID[6]]
    density = (lambda u: math.exp(-u)) if prediction == "noise" else lambda u: math.exp(factor * u)
    mass = quad(density, s.lmbda, t.lmbda)[0]
    for degree in range(3):
        exact = quad(lambda u, d=degree: u**d * density(u), s.lmbda, t.lmbda)[0] / mass
        weights = form.weights(s, t, nodes)
        found = sum(w * n.lmbda**degree for w, n in zip(weights, nodes, strict=True))
        assert found == pytest.approx(exact, rel=1e-10, abs=1e-10)
    gap = {"noise": -factor * (s.rho - t.rho), "data": t.rho**-factor - s.rho**-factor}
    assert form.weight(s, t) == pytest.approx(gap[prediction], rel=1e-12)


@pytest.mark.parametrize("spacing", ["time", "lmbda"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_constant_velocity_is_integrated_exactly_on_any_grid(order: int, spacing: str) -> None:
    """J = 0, and alpha J constant for order 1: equal to the exact gradient of DDIM."""
    spaced = TimeGrid.uniform_time if spacing == "time" else TimeGrid.uniform_lmbda
    for n in (3, 20):
        setting = {"solver": DDIM(), "grid": spaced(SCHEDULE, n)}
        for slope in (0.0, 0.02) if order == 1 else (0.0,):
            denoiser = AffineDenoiser(SCHEDULE, slope=slope)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LargeAdjointStepWarning)
                found = differentiate(denoiser, *inputs(), AdjointDEIS(order), **setting)
            exact = differentiate(denoiser, *inputs(), DiscreteAdjoint(), **setting)
            assert agree(found.x_T, exact.x_T) and agree(found.z, exact.z, 1e-11)


SPACINGS = {
    "lmbda": lambda n: TimeGrid.uniform_lmbda(SCHEDULE, n, t_min=0.3, t_max=0.9),
    "time": lambda n: TimeGrid.uniform_time(SCHEDULE, n, t_min=0.3, t_max=0.9),
}


@cache
def reference(spacing: str) -> Gradients:
    return continuous_gradient(mixture(), *inputs(), SPACINGS[spacing](2), steps=300)


@cache
def on_rk4(order: int, prediction: str, spacing: str, n: int) -> Gradients:
    """By n steps from states of fourth order."""
    method = AdjointDEIS(order, prediction=prediction)
    setting = {"solver": RungeKutta("rk4"), "grid": SPACINGS[spacing](n)}
    return differentiate(mixture(), *inputs(), method, **setting)


@quiet
@pytest.mark.parametrize("prediction", ["noise", "data"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("order", [3, 4])
def test_each_order_is_reached_on_both_grids(order: int, spacing: str, prediction: str) -> None:
    """On fourth-order states; the start is corrected, or order 2 is all one would see."""
    steps, errors = [80, 160], {"x_T": [], "z": [], "theta": []}
    for n in steps:
        found = on_rk4(order, prediction, spacing, n)
        for part, value in reference(spacing).parts().items():
            errors[part].append(relative_error(found.parts()[part], value))
    for part, values in errors.items():
        assert observed_order(steps, values) == pytest.approx(order, abs=0.25), (part, values)


@quiet
@pytest.mark.parametrize("order", [1, 2])
def test_low_orders_hold_in_data_prediction(order: int) -> None:
    steps, errors = [80, 160], []
    for n in steps:
        found = differentiate(
            mixture(), *inputs(), AdjointDEIS(order, prediction="data"),
            solver=RungeKutta("midpoint"), grid=SPACINGS["lmbda"](n),
        )  # fmt: skip
        errors.append(relative_error(found.x_T, reference("lmbda").x_T))
    assert observed_order(steps, errors) == pytest.approx(order, abs=0.25), errors


@quiet
@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_increments_of_a_scheduled_condition_are_of_third_order(prediction: str) -> None:
    """Each z_i against the gradient of a fourth-order sampler on the same steps."""
    method, steps, errors = AdjointDEIS("3M", prediction=prediction), [80, 160], []
    x_T, z = inputs()
    for n in steps:
        setting = {"solver": RungeKutta("rk4"), "grid": SPACINGS["lmbda"](n)}
        found = differentiate(mixture(), x_T, [z] * n, method, **setting)
        exact = differentiate(mixture(), x_T, [z] * n, DiscreteAdjoint(), **setting)
        errors.append(relative_error(found.z, exact.z))
        constant = on_rk4(3, prediction, "lmbda", n)  # 3M is 3
        # The scheduled solve refines its start, the constant one does not need to.
        assert relative_error(found.z.sum(0), constant.z) < errors[-1]
        assert found.rollout.cost.vjps == constant.rollout.cost.vjps + 2
    assert observed_order(steps, errors) > 2.75, errors


@quiet
def test_high_orders_cost_what_they_say() -> None:
    for order, extra in ((3, 0), (4, 3)):
        found = differentiate(
            MLPDenoiser(), *inputs(), AdjointDEIS(order), solver=DDIM(), grid=GRID
        )
        cost = found.rollout.cost
        assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (6, 6 + extra, 6 + extra)


@quiet
@pytest.mark.parametrize("order", [3, 4])
def test_short_and_clean_grids_lower_the_order(order: int) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    one = differentiate(network, x_T, z, AdjointDEIS(order, steps=1), solver=DDIM(), grid=GRID)
    first = differentiate(network, x_T, z, AdjointDEIS(1, steps=1), solver=DDIM(), grid=GRID)
    assert agree(one.x_T, first.x_T) and agree(one.z, first.z)
    clean = TimeGrid.uniform_time(SCHEDULE, 6, t_min=0.0)
    for steps in (2, 6):
        method = AdjointDEIS(order, steps=steps)
        found = differentiate(network, x_T, z, method, solver=DDIM(), grid=clean)
        assert all(part.isfinite().all() for part in found.parts().values())
    # The infinitely wide first interval is the Euler step; what follows starts anew.
    near = TimeGrid.from_times(SCHEDULE, clean.t[:-1])
    rest = AdjointDEIS(order)
    x = sample(network, x_T, z, solver=DDIM(), grid=near).x_0
    s, t = clean[5], clean[6]
    x_0 = sample(network, x_T, z, solver=DDIM(), grid=clean).x_0.detach().requires_grad_()
    a = normal(BATCH, DIM, seed=99)
    (pull,) = torch.autograd.grad(network(x_0, t.t, z), x_0, a)
    a_s = t.alpha / s.alpha * (a - (s.rho - t.rho) * t.alpha * pull)
    assert x.shape == a_s.shape
    found = differentiate(network, x_T, z, rest, solver=DDIM(), grid=clean)
    expected = differentiate(
        network, x_T, z, rest, solver=DDIM(), grid=near, loss=lambda x: (x * a_s).sum()
    )
    assert agree(found.x_T, expected.x_T)


def data_adjoint(network, grid, states, z, a_x, c):
    """The data form written in x: the linear factor of SDE-DPM-Solver++ has one e^-h more."""
    a_z, a_theta = 0.0, 0.0
    weights = list(network.parameters())
    for j in range(grid.steps, 0, -1):
        s, t = grid[j - 1], grid[j]
        h = t.lmbda - s.lmbda
        x, condition = states[j].clone().requires_grad_(), z.clone().requires_grad_()
        x0 = (x - t.sigma * network(x, t.t, condition)) / t.alpha
        in_x, in_z, *in_theta = torch.autograd.grad(x0, (x, condition, *weights), a_x)
        weight = t.alpha * (1.0 - math.exp(-c * h))
        a_z = a_z + weight * in_z
        a_theta = a_theta + weight * torch.cat([g.flatten() for g in in_theta])
        linear = t.sigma / s.sigma * (math.exp(-h) if c == 2 else 1.0)
        a_x = linear * (a_x + weight * in_x)
    return a_x, a_z, a_theta


def states_of(network, x_T, z, solver, noise) -> list[torch.Tensor]:
    states = [x_T]
    with torch.no_grad():
        for i in range(GRID.steps):
            s, t = GRID[i], GRID[i + 1]
            n = None if noise is None else noise.normal(s, t, x_T)
            states.append(solver.step(network, states[-1], z, s, t, (), n)[0])
    return states


@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_the_data_form_is_its_equation_in_x(solver) -> None:
    network, (x_T, z), sde = MLPDenoiser(), inputs(), solver.calculus == "sde"
    noise = RecordedNoise.draw(6, (BATCH, DIM), seed=2, dtype=torch.float64) if sde else None
    method = AdjointDEIS(prediction="data")
    found = differentiate(network, x_T, z, method, solver=solver, grid=GRID, noise=noise)
    states = states_of(network, x_T, z, solver, noise)
    a_0 = normal(BATCH, DIM, seed=99)
    a_x, a_z, a_theta = data_adjoint(network, GRID, states, z, a_0, 2 if sde else 1)
    assert agree(found.x_T, a_x) and agree(found.z, a_z) and agree(found.theta, a_theta)


def test_resolved_states_of_the_data_form_undo_dpm_solver_pp() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    method = AdjointDEIS(prediction="data", states="resolved")
    found = differentiate(network, x_T, z, method, solver=DDIM(), grid=GRID)
    states = [found.rollout.x_0.detach()]
    with torch.no_grad():
        for j in range(GRID.steps, 0, -1):
            s, t, x = GRID[j - 1], GRID[j], states[0]
            x0 = (x - t.sigma * network(x, t.t, z)) / t.alpha
            states.insert(0, s.sigma / t.sigma * (x - t.alpha * (1 - t.rho / s.rho) * x0))
    a_x, a_z, _ = data_adjoint(network, GRID, states, z, normal(BATCH, DIM, seed=99), 1)
    assert agree(found.x_T, a_x, 1e-11) and agree(found.z, a_z, 1e-11)


class PointMass(nn.Module):
    """eps = (x - alpha m) / sigma: data of no width, J = I / sigma and K = 0."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(normal(DIM, seed=1))

    def forward(self, x, t, z):
        return (x - float(SCHEDULE.alpha(t)) * self.m) / float(SCHEDULE.sigma(t))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_where_the_data_have_no_width_the_data_form_is_exact(solver, order: int) -> None:
    """On any grid: a_x = (alpha_0/alpha_T) (rho_0/rho_T)^c a_0, and 1 - that for the mean."""
    network, x_T, sde = PointMass(), inputs()[0], solver.calculus == "sde"
    noise = BrownianPath((BATCH, DIM), seed=1) if sde else None
    c, (T, end) = (2 if sde else 1), (GRID[0], GRID[-1])
    with warnings.catch_warnings():
        # Order 3 warns of the other, clean end of this grid.
        warnings.simplefilter("error" if order < 3 else "ignore", LargeAdjointStepWarning)
        x = x_T.clone().requires_grad_()
        x_0 = sample(
            network, x, None, solver=solver, grid=GRID, noise=noise,
            gradient=AdjointDEIS(order, prediction="data"),
        ).x_0  # fmt: skip
        a_0 = normal(BATCH, DIM, seed=99)
        (x_0 * a_0).sum().backward()
    kept = (end.rho / T.rho) ** c
    assert agree(x.grad, end.alpha / T.alpha * kept * a_0)
    assert agree(network.m.grad, end.alpha * (1.0 - kept) * a_0.sum(0), 1e-11)
    # One factor e^-h too few would be off by this much.
    assert kept < 1e-3


@quiet
@pytest.mark.parametrize("solver", [DDIM(), SDEDPMSolver()], ids=["ode", "sde"])
def test_on_a_gaussian_only_the_noise_form_flips_the_sign(solver) -> None:
    """Steps a little beyond the limit; the true factor is positive in every direction."""
    sde = solver.calculus == "sde"
    limit, oracle = (math.log(1.5) if sde else math.log(2.0)), gaussian(SCHEDULE, scale=0.1)
    span = 1.2 * limit
    last = float(SCHEDULE.t_of(float(SCHEDULE.lmbda(1.0)) + span))
    grid = TimeGrid.uniform_lmbda(SCHEDULE, 1, t_min=last)
    noise = BrownianPath((BATCH, DIM), seed=1) if sde else None
    factor = {}
    for prediction in ("noise", "data"):
        method = AdjointDEIS(prediction=prediction)
        found = differentiate(oracle, *inputs(), method, solver=solver, grid=grid, noise=noise)
        factor[prediction] = float((found.x_T / normal(BATCH, DIM, seed=99)).mean())
    assert factor["noise"] < 0.0 < factor["data"]
    true = grid[-1].alpha / grid[0].alpha * math.exp(-(2 if sde else 1) * span)
    assert factor["data"] == pytest.approx(true, rel=0.02)


@quiet
def test_the_data_form_converges_on_an_sde_path() -> None:
    """Order 1 towards the gradient of the sampled path; a factor e^-h too few would not."""
    steps, errors = [40, 80, 160], {"x_T": [], "z": [], "theta": []}
    path = BrownianPath((BATCH, DIM), seed=6)
    for n in steps:
        setting = {"solver": SDEDPMSolver(), "grid": SPACINGS["lmbda"](n), "noise": path}
        exact = differentiate(mixture(), *inputs(), DiscreteAdjoint(), **setting)
        method = AdjointDEIS(prediction="data")
        found = differentiate(mixture(), *inputs(), method, **setting)
        for part, values in errors.items():
            values.append(relative_error(found.parts()[part], exact.parts()[part]))
    for part, values in errors.items():
        assert observed_order(steps, values) == pytest.approx(1.0, abs=0.25), (part, values)


@pytest.mark.parametrize("factor", [1.0, 2.0])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_sign_is_lost_where_the_warning_says(order: int, factor: float) -> None:
    """The kernel itself, run on J = I / sigma, alternates just beyond the limit."""
    solver = DDIM() if factor == 1.0 else SDEDPMSolver()
    limit = sign_limit(order, factor)
    widths = [0.02, 0.01]
    misses = [abs(largest_root(order, factor, h) - math.exp(-h * factor)) for h in widths]
    assert math.log2(misses[0] / misses[1]) == pytest.approx(order + 1, abs=0.3)

    def signs(h: float) -> tuple[int, list[str]]:
        first, steps = -4.0, 30
        lmbda = first + h * torch.arange(steps + 1, dtype=torch.float64)
        grid = TimeGrid.from_times(SCHEDULE, SCHEDULE.t_of(lmbda))
        noise = BrownianPath((BATCH, DIM), seed=1) if factor == 2.0 else None
        changes, seen, before = 0, [], None
        for m in range(steps - 8, steps):
            part = grid.at(range(steps - m, steps + 1))
            x = inputs()[0].requires_grad_()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                x_0 = sample(
                    PointMass(), x, None, solver=solver, grid=part, noise=noise,
                    gradient=AdjointDEIS(order),
                ).x_0  # fmt: skip
            seen += [str(w.message) for w in caught]
            (a,) = torch.autograd.grad(x_0[0, 0], x)
            sign = bool(a[0, 0] > 0)
            changes, before = changes + (before is not None and sign != before), sign
        return changes, seen

    inside, outside = signs(0.85 * limit), signs(1.5 * limit)
    assert inside == (0, [])
    assert outside[0] >= 5 and len(outside[1]) == 8
    assert ("prediction='data'" in outside[1][0] and f"{limit:.3g}" in outside[1][0]) or order == 1


@pytest.mark.parametrize("steps", [20, 40, 80])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_data_form_warns_where_high_orders_undershoot(order: int, steps: int) -> None:
    """Wide data, alpha K about 1: the warning comes exactly where the true run flips the sign."""
    oracle, grid = gaussian(SCHEDULE, scale=100.0), TimeGrid.uniform_time(SCHEDULE, steps)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method = AdjointDEIS(order, prediction="data")
        found = differentiate(oracle, *inputs(), method, solver=DDIM(), grid=grid)
    flipped = float((found.x_T / normal(BATCH, DIM, seed=99)).mean()) < 0.0
    assert flipped == (order == 3 and steps <= 40)
    messages = [str(w.message) for w in caught if w.category is LargeAdjointStepWarning]
    assert len(messages) == flipped
    assert not flipped or ("undershoots" in messages[0] and "order 2" in messages[0])


def test_impossible_combinations_are_refused() -> None:
    x_T, z = inputs()
    x_T.requires_grad_()
    for build, message in (
        (lambda: AdjointDEIS(5), "orders 1 to 4"),
        (lambda: AdjointDEIS(3, states="resolved"), "recorded"),
        (lambda: AdjointDEIS(prediction="v"), "'noise' or 'data'"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    clean = TimeGrid.uniform_time(SCHEDULE, 4, t_min=0.0)
    method = AdjointDEIS(prediction="data")
    with pytest.raises(ValueError, match="sigma = 0"):
        sample(MLPDenoiser(), x_T, z, solver=DDIM(), grid=clean, gradient=method)
    method = AdjointDEIS(prediction="data", states="resolved")
    with pytest.raises(NotSupportedError, match="recorded"):
        sample(
            MLPDenoiser(), x_T, z, solver=SDEDPMSolver(), grid=GRID, gradient=method,
            noise=BrownianPath((BATCH, DIM), seed=0),
        )  # fmt: skip
    assert AdjointDEIS("3M") == AdjointDEIS(3)
