"""AdjointDPM and Backsolve: the continuous adjoint by integrators of torchdiffeq."""

import sys
import warnings
from functools import cache

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    Gradients,
    MLPDenoiser,
    Recorder,
    agree,
    continuous_gradient,
    differentiate,
    gaussian,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
    unchecked,
)
from torch import nn

from adjointdeis import PerStep, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    AdjointDEIS,
    AdjointDPM,
    Backsolve,
    DiscreteAdjoint,
    LargeAdjointStepWarning,
    MissingPackageError,
    NotSupportedError,
    UnreachableLeafError,
    adjoint_dpm,
)
from adjointdeis.gradients.augmented import Coefficients
from adjointdeis.solvers import DDIM, DPMSolverPP, RungeKutta, SDEDPMSolver

torchdiffeq = pytest.importorskip("torchdiffeq")
pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.large_steps.LargeAdjointStepWarning"
)
SCHEDULE = VPLinear()
SPACINGS = {
    "lmbda": lambda n: TimeGrid.uniform_lmbda(SCHEDULE, n, t_min=0.02, t_max=0.9),
    "time": lambda n: TimeGrid.uniform_time(SCHEDULE, n, t_min=0.05),
}


@cache
def reference(spacing: str) -> Gradients:
    return continuous_gradient(mixture(), *inputs(), SPACINGS[spacing](2), steps=400)


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(2)], ids=["ddim", "2m"])
@pytest.mark.parametrize("states", ["recorded", "resolved"])
def test_euler_over_rho_is_adjoint_deis_of_order_one(states: str, solver) -> None:
    """x_T, and z and theta through the augmented state; sigma = 0 included."""
    for grid in (
        SPACINGS["lmbda"](12),
        SPACINGS["time"](9),
        TimeGrid.uniform_time(SCHEDULE, 6, t_min=0.0),
    ):
        for denoiser in (mixture(), MLPDenoiser()):
            found, same = (
                differentiate(denoiser, *inputs(), method, solver=solver, grid=grid)
                for method in (AdjointDPM(states=states), AdjointDEIS(states=states))
            )
            assert torch.equal(found.rollout.x_0, same.rollout.x_0)
            for part, value in same.parts().items():
                assert agree(found.parts()[part], value), part
            cost = found.rollout.cost
            # Re-solved states are those of no evaluation, and the first step is taken again.
            again = states == "resolved"
            assert (cost.nfe_backward, cost.vjps) == (grid.steps + again, grid.steps)
            assert cost.peak_graphs == 1
            assert cost.peak_latents == (grid.steps + 1 if states == "recorded" else 1)


def orders(method: AdjointDPM, solver, spacing: str, steps: list[int]) -> dict[str, float]:
    errors: dict[str, list[float]] = {"x_T": [], "z": [], "theta": []}
    for n in steps:
        grid = SPACINGS[spacing](n)
        found = differentiate(mixture(), *inputs(), method, solver=solver, grid=grid)
        for part, value in reference(spacing).parts().items():
            errors[part].append(relative_error(found.parts()[part], value))
    return {part: observed_order(steps, values) for part, values in errors.items()}


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("method", "order"), [("heun2", 2), ("rk4", 4)])
def test_each_method_has_its_order_with_the_exact_time_map(method, order, spacing) -> None:
    for part, found in orders(AdjointDPM(method), RungeKutta("rk4"), spacing, [30, 60]).items():
        assert found == pytest.approx(order, abs=0.35), part


def test_snapping_stages_to_grid_nodes_loses_the_order(monkeypatch) -> None:
    """What the published code does to the time of a stage."""

    def nearest(clock, rho: float) -> Coefficients:
        node = clock.grid[int((clock.grid.rho - rho).abs().argmin())]
        return Coefficients(node.t, node.alpha, 0.0, 1.0)

    monkeypatch.setattr(adjoint_dpm._Clock, "__call__", nearest)
    found = orders(AdjointDPM("rk4"), RungeKutta("rk4"), "lmbda", [40, 80])
    assert all(order < 2.3 for order in found.values()), found


@pytest.mark.parametrize("method", ["midpoint", "heun3", "rk4"])
def test_resolved_solves_run_over_the_whole_grid(method: str) -> None:
    found = differentiate(
        mixture(), *inputs(), AdjointDPM(method, states="resolved"),
        solver=RungeKutta("rk4"), grid=SPACINGS["lmbda"](80),
    )  # fmt: skip
    for part, value in reference("lmbda").parts().items():
        assert relative_error(found.parts()[part], value) < 0.02, part


ADAPTIVE = {
    "backsolve": lambda tol, method="dopri5": Backsolve(method, rtol=tol, atol=tol),
    "dpm-resolved": lambda tol, method="dopri5": AdjointDPM(method, "resolved", tol, tol),
    "dpm-recorded": lambda tol, method="bosh3": AdjointDPM(method, "recorded", tol, tol),
}


@pytest.mark.parametrize("name", ["backsolve", "dpm-resolved"])
def test_the_error_follows_the_tolerance(name: str) -> None:
    tolerances, errors = [1e-2, 1e-4, 1e-6], {"x_T": [], "z": [], "theta": []}
    evaluations = []
    for tol in tolerances:
        found = differentiate(
            mixture(), *inputs(), ADAPTIVE[name](tol), solver=RungeKutta("rk4"),
            grid=SPACINGS["lmbda"](160),
        )  # fmt: skip
        for part, value in reference("lmbda").parts().items():
            errors[part].append(relative_error(found.parts()[part], value))
        evaluations.append(found.rollout.cost.vjps)
        # The first step of the sampler, taken again, has four.
        assert found.rollout.cost.nfe_backward == evaluations[-1] + 4
        assert found.rollout.cost.peak_latents == 1
    for part, values in errors.items():
        slope = observed_order([1 / tol for tol in tolerances], values)
        assert 0.7 < slope < 1.4 and values[-1] < 1e-5, (part, values)
    assert evaluations == sorted(evaluations)


def test_backsolve_is_odeint_adjoint() -> None:
    """The equations in t once more, by torchdiffeq's own adjoint of the forward flow."""
    network, (x_T, z) = mixture(), inputs()
    grid = SPACINGS["time"](160)

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.z = network, nn.Parameter(z.clone())

        def forward(self, t, x):
            t = t.clamp(grid.t[-1], grid.t[0])
            half_g2 = -float(SCHEDULE.sigma(t)) * float(SCHEDULE.dlmbda(t))
            return float(SCHEDULE.dlog_alpha(t)) * x + half_g2 * self.network(x, t, self.z)

    flow, x = Flow(), x_T.clone().requires_grad_()
    x_0 = torchdiffeq.odeint_adjoint(
        flow, x, grid.t[[0, -1]], rtol=1e-9, atol=1e-9, method="dopri5",
        options={"step_t": grid.t[-1:]}, adjoint_options={"step_t": grid.t[:1]},
    )[-1]  # fmt: skip
    (x_0 * normal(BATCH, DIM, seed=99)).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    found = differentiate(
        network, x_T, z, Backsolve(rtol=1e-9, atol=1e-9), solver=RungeKutta("rk4"), grid=grid
    )
    assert relative_error(found.x_T, x.grad) < 1e-6
    assert relative_error(found.z, flow.z.grad) < 1e-6
    assert relative_error(found.theta, theta) < 1e-6


def test_backsolve_has_the_analytic_gradient_of_a_gaussian() -> None:
    oracle, (x_T, z) = gaussian(), inputs()
    grid = SPACINGS["lmbda"](60)
    found = differentiate(
        oracle, x_T, z, Backsolve(rtol=1e-8, atol=1e-8), solver=RungeKutta("rk4"), grid=grid
    )
    x, condition = x_T.clone().requires_grad_(), z.clone().requires_grad_()
    exact = oracle.flow(x, grid.t[0], grid.t[-1], condition)
    in_x, in_z = torch.autograd.grad(exact, (x, condition), normal(BATCH, DIM, seed=99))
    assert relative_error(found.x_T, in_x) < 1e-6 and relative_error(found.z, in_z) < 1e-6


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_network_is_never_evaluated_outside_the_grid(name: str, tol: float) -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    for dtype in (torch.float64, torch.float32):
        for grid in (SPACINGS["time"](4), TimeGrid.uniform_lmbda(SCHEDULE, 4)):
            times: list[float] = []

            def watched(x, t, z, times=times):
                assert t.dtype == torch.float64 and t.ndim == 0
                times.append(float(t))
                return network(x.double(), t, z.double()).to(x.dtype)

            x = x_T.detach().to(dtype, copy=True).requires_grad_()
            sample(
                watched, x, z.to(dtype), solver=DDIM(), grid=grid,
                gradient=unchecked(ADAPTIVE[name](tol)), parameters=list(network.parameters()),
            ).x_0.sum().backward()  # fmt: skip
            assert len(times) > 2 * grid.steps and x.grad.dtype == dtype
            assert float(grid.t[-1]) <= min(times) and max(times) <= float(grid.t[0])


def test_without_the_remedy_the_integrator_leaves_the_grid(monkeypatch) -> None:
    """The trap is real: by itself torchdiffeq steps over the end and interpolates."""
    odeint = torchdiffeq.odeint

    def unguarded(*arguments, options, **rest):
        del options
        return odeint(*arguments, **rest)

    monkeypatch.setattr(torchdiffeq, "odeint", unguarded)
    x_T, z = inputs()
    x_0 = sample(
        MLPDenoiser(), x_T.requires_grad_(), z, solver=DDIM(), grid=SPACINGS["time"](8),
        gradient=Backsolve(),
    ).x_0  # fmt: skip
    with pytest.raises(ValueError, match="outside"):
        x_0.sum().backward()


def test_backsolve_differentiates_encodings() -> None:
    network, (x_0, z) = mixture(), inputs()
    grid = SPACINGS["lmbda"](80).reversed()
    found = []
    for method in (Backsolve(rtol=1e-8, atol=1e-8), DiscreteAdjoint()):
        x = x_0.clone().requires_grad_()
        x_T = encode(network, x, z, solver=RungeKutta("rk4"), grid=grid, gradient=method).x_T
        found.append(torch.autograd.grad(x_T.square().sum(), x)[0])
    assert relative_error(*found) < 1e-4
    with pytest.raises(ValueError, match="noise to data"):
        encode(network, x, z, solver=DDIM(), grid=grid, gradient=AdjointDPM())


@pytest.mark.parametrize("method", [AdjointDPM(), Backsolve()], ids=lambda m: type(m).__name__)
def test_what_they_cannot_do_is_refused_by_name(method, monkeypatch) -> None:
    network, (x_T, zs) = MLPDenoiser(), inputs(8)
    x_T.requires_grad_()
    setting = {"grid": SPACINGS["time"](8), "gradient": method}
    with pytest.raises(NotSupportedError, match="sde"):
        sample(
            network, x_T, zs[0], solver=SDEDPMSolver(), noise=BrownianPath((BATCH, DIM), 0),
            **setting,
        )  # fmt: skip
    with pytest.raises(NotSupportedError, match="scheduled condition"):
        sample(network, x_T, PerStep([z.requires_grad_() for z in zs]), solver=DDIM(), **setting)
    with pytest.raises(UnreachableLeafError, match="parameters"):
        sample(lambda x, t, z: network(x, t, z), x_T, zs[0], solver=DDIM(), **setting)
    for wrong, message in (({"method": "rk5"}, "dopri5"), ({"rtol": 0.0}, "positive")):
        with pytest.raises(ValueError, match=message):
            type(method)(**wrong)
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    x_0 = sample(network, x_T, zs[0].detach(), solver=DDIM(), **setting).x_0
    with pytest.raises(MissingPackageError, match=r"need torchdiffeq.*adjointdeis\[ode\]"):
        x_0.sum().backward()


@pytest.mark.parametrize("method", [AdjointDPM("midpoint"), Backsolve()], ids=lambda m: m.method)
def test_only_what_is_asked_for_is_differentiated(method) -> None:
    network, (x_T, z) = Recorder(), inputs()
    setting = {"solver": DDIM(), "grid": SPACINGS["time"](8), "gradient": unchecked(method)}
    a_0 = normal(BATCH, DIM, seed=99)
    full = differentiate(network, x_T, z, setting["gradient"], solver=DDIM(), grid=setting["grid"])
    # Weights alone, twice: they accumulate.
    network.zero_grad()
    for _ in range(2):
        sample(network, x_T, z, **setting).x_0.mul(a_0).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert relative_error(theta, 2 * full.theta) < 1e-3
    # Frozen weights: no graph in the sampling run, and no gradient.
    network.requires_grad_(False).zero_grad()
    network.graphs.clear()
    x = x_T.clone().requires_grad_()
    sample(network, x, z, **setting).x_0.mul(a_0).sum().backward()
    assert network.graphs[:8] == [False] * 8 and all(network.graphs[8:])
    assert relative_error(x.grad, full.x_T) < 1e-3
    # z alone; and a z that the network ignores has a gradient of zero.
    condition = z.clone().requires_grad_()
    sample(network, x_T, condition, **setting).x_0.mul(a_0).sum().backward()
    assert relative_error(condition.grad, full.z) < 1e-3
    ignored = z.clone().requires_grad_()
    sample(lambda x, t, z: network(x, t, z.detach()), x_T, ignored, **setting).x_0.sum().backward()
    assert torch.equal(ignored.grad, torch.zeros_like(z))


@pytest.mark.filterwarnings("default::adjointdeis.gradients.large_steps.LargeAdjointStepWarning")
def test_euler_over_rho_warns_like_adjoint_deis() -> None:
    grid, (x_T, z) = TimeGrid.uniform_lmbda(SCHEDULE, 8), inputs()
    x_T.requires_grad_()
    setting = {"solver": DDIM(), "grid": grid}
    with pytest.warns(LargeAdjointStepWarning, match=r"AdjointDPM: .* > ln 2.*DiscreteAdjoint"):
        sample(MLPDenoiser(), x_T, z, gradient=AdjointDPM(), **setting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(MLPDenoiser(), x_T, z, gradient=AdjointDPM("rk4"), **setting)


@pytest.mark.parametrize("method", [AdjointDPM(), Backsolve()], ids=str)
def test_numbers_of_another_kind_than_the_state(method) -> None:
    """One state holds all of them: a sparse gradient is made dense, an imaginary part refused."""
    network, (x, z), found = MLPDenoiser().requires_grad_(False), inputs(), []
    call = {"solver": DDIM(), "grid": SPACINGS["lmbda"](4), "gradient": method}
    for sparse in (False, True):
        table = nn.Embedding(5, z.shape[1], sparse=sparse, _weight=normal(5, z.shape[1], seed=6))
        labels, weights = torch.arange(x.shape[0]), list(table.parameters())
        x_0 = sample(
            lambda x, t, z, table=table: network(x, t, table(z)), x, labels, parameters=weights,
            **call,
        ).x_0  # fmt: skip
        found.append(torch.autograd.grad(x_0.sum(), weights)[0])
    assert agree(*found) and found[0].norm() > 0
    x_0 = sample(
        lambda x, t, z: network(x, t, z.real + z.imag), x, (z + 1j * z).requires_grad_(), **call
    ).x_0
    with pytest.raises(NotSupportedError, match=r"complex and x is not.*view_as_real\(z\)"):
        x_0.sum().backward()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="rk4"):
        AdjointDPM("implicit_adams")
    with pytest.raises(ValueError, match="'recorded' or 'resolved'"):
        AdjointDPM(states="interpolated")
    clean = TimeGrid.uniform_time(SCHEDULE, 4, t_min=0.0)
    x_T, z = inputs()
    with pytest.raises(ValueError, match="singular"):
        sample(
            MLPDenoiser(), x_T.requires_grad_(), z, solver=DDIM(), grid=clean, gradient=Backsolve()
        )
