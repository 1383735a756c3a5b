"""Runge-Kutta steps over rho: order conditions, exact stage times, observed orders."""

import math
from functools import cache

import pytest
import torch
from oracles import MLPDenoiser, RungeKutta4, agree, inputs, mixture, observed_order, relative_error

from adjointdeis import DDPM, RectifiedFlow, TimeGrid, VPCosine, VPLinear, sample
from adjointdeis.solvers import DDIM, RungeKutta
from adjointdeis.solvers.tableau import TABLEAUS, Tableau, tableau

METHODS = {name: table.order for name, table in TABLEAUS.items()}
SPACINGS = {"lmbda": TimeGrid.uniform_lmbda, "time": TimeGrid.uniform_time}


def solve(denoiser, solver, grid):
    x_T, z = inputs()
    with torch.no_grad():
        return sample(denoiser, x_T, z, solver=solver, grid=grid).x_0


@cache
def exact() -> torch.Tensor:
    """The flow of the mixture, by a fine solve in lmbda; on a Gaussian the midpoint is lucky."""
    return solve(mixture(), RungeKutta4(), TimeGrid.uniform_lmbda(VPLinear(), 1000))


@pytest.mark.parametrize("name", METHODS)
def test_tableaus_meet_the_conditions_of_their_order(name: str) -> None:
    """The quadrature conditions sum b c^(k-1) = 1/k, and b a c = 1/6 from order 3."""
    table = tableau(name)
    b, c = torch.tensor(table.b), torch.tensor(table.c)
    for k in range(1, table.order + 1):
        assert float((b * c ** (k - 1)).sum()) == pytest.approx(1 / k, abs=1e-6)
    if table.order >= 3:
        inner = [sum(a * table.c[j] for j, a in enumerate(row)) for row in table.a]
        assert float((b * torch.tensor(inner)).sum()) == pytest.approx(1 / 6, abs=1e-6)


def test_impossible_tableaus_are_refused() -> None:
    with pytest.raises(ValueError, match="row i"):
        Tableau("implicit", 1, ((1.0,),), (1.0,))
    with pytest.raises(ValueError, match="sum to 1"):
        Tableau("short", 1, ((),), (0.5,))
    with pytest.raises(ValueError, match=r"'rk5'.*euler, midpoint, heun, .*, dopri5"):
        RungeKutta("rk5")


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", METHODS)
def test_each_method_reaches_its_order_on_both_grids(name: str, spacing: str) -> None:
    # At 160 steps dopri5 is as good as the reference; before that it is better than its order.
    steps, most = ([32, 48, 64], math.inf) if name == "dopri5" else ([80, 160, 320], 0.25)
    errors = [
        relative_error(
            solve(mixture(), RungeKutta(name), SPACINGS[spacing](VPLinear(), n)), exact()
        )
        for n in steps
    ]
    found = observed_order(steps, errors)
    assert METHODS[name] - 0.25 < found < METHODS[name] + most, errors
    assert RungeKutta(name).order == METHODS[name]


def test_euler_over_rho_is_ddim() -> None:
    network = MLPDenoiser()
    for t_min in (1e-3, 0.0):
        grid = TimeGrid.uniform_time(VPLinear(), 6, t_min=t_min)
        assert agree(solve(network, RungeKutta("euler"), grid), solve(network, DDIM(), grid))
    assert solve(network, RungeKutta(), grid).isfinite().all()


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), DDPM(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("clock", ["rho", "lmbda", "gamma"])
def test_a_stage_stands_at_its_exact_place(schedule, clock: str) -> None:
    grid = TimeGrid.uniform_lmbda(schedule, 5, t_min=0.02)
    s, t = grid[2], grid[3]
    node = s.towards(t, 0.3, clock)
    assert node.on(clock) == pytest.approx(0.7 * s.on(clock) + 0.3 * t.on(clock), rel=1e-12)
    assert float(schedule.lmbda(node.t)) == pytest.approx(node.lmbda, abs=1e-9)
    assert node.alpha / node.sigma == pytest.approx(1.0 / node.rho, rel=1e-9)
    assert float(t.t) < float(node.t) < float(s.t) and node.index == 2
    assert s.towards(t, 0.0, clock) is s and s.towards(t, 1.0, clock) is t


def test_places_that_do_not_exist_are_refused() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 4, t_min=0.0)
    s, t = grid[3], grid[4]
    assert math.isfinite(s.towards(t, 0.5).lmbda)
    for fraction, clock in ((0.5, "gamma"), (0.5, "lmbda"), (1.5, "rho"), (-0.5, "rho")):
        with pytest.raises(ValueError, match="no node at fraction"):
            s.towards(t, fraction, clock)
    with pytest.raises(ValueError, match="clock"):
        s.towards(t, 0.5, "t")
