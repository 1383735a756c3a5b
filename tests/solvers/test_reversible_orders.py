"""Orders of convergence of the reversible samplers, by slope, and the gap within the pair."""

import pytest
import torch
from oracles import (
    COND,
    DIM,
    gaussian,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)

from adjointdeis import TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.solvers import BDIA, EDICT, OBELM, Pair, Rex, SDEDPMSolver

pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.solvers.reversible.AmplificationWarning"
)
SPACINGS = {"lmbda": TimeGrid.uniform_lmbda, "time": TimeGrid.uniform_time}
RANGES = {"lmbda": [20, 40, 80], "time": [80, 160, 320]}


def errors(solver, spacing: str, steps: list[int]) -> list[float]:
    oracle, (x_T, z), found = gaussian(), inputs(), []
    for n in steps:
        grid = SPACINGS[spacing](VPLinear(), n, t_min=5e-3)
        with torch.no_grad():
            x_0 = sample(oracle, x_T, z, solver=solver, grid=grid).x_0
            found.append(relative_error(x_0, oracle.flow(x_T, grid.t[0], grid.t[-1], z)))
    return found


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(("solver", "order"), [(BDIA(), 2), (BDIA(0.5), 1), (OBELM(), 2)], ids=repr)
def test_two_step_methods_reach_their_order(solver, order: int, spacing: str) -> None:
    steps = RANGES[spacing]
    assert observed_order(steps, errors(solver, spacing, steps)) == pytest.approx(order, abs=0.25)
    assert solver.order == order


@pytest.mark.parametrize("spacing", SPACINGS)
def test_edict_is_of_first_order_once_the_grid_is_fine(spacing: str) -> None:
    steps = [80, 160, 320]
    found = observed_order(steps, errors(EDICT(), spacing, steps))
    assert found == pytest.approx(EDICT.order, abs=0.25)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "kutta3", "rk4"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_rex_is_at_least_of_the_order_of_its_base(prediction: str, method: str) -> None:
    solver = Rex(method, prediction)
    steps = [20, 40, 80] if prediction == "data" else [40, 80, 160]
    found = errors(solver, "lmbda", steps)
    assert observed_order(steps, found) > solver.order - 0.2


def test_each_prediction_is_good_in_one_direction() -> None:
    """At N = 20 data prediction samples and noise prediction encodes; not the other way round."""
    oracle, (x_T, z) = gaussian(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 20)
    with torch.no_grad():
        x_0 = oracle.flow(x_T, grid.t[0], grid.t[-1], z)
        sampled, encoded = (
            {p: relative_error(run(Rex(prediction=p)), reference) for p in ("data", "noise")}
            for run, reference in (
                (lambda s: sample(oracle, x_T, z, solver=s, grid=grid).x_0, x_0),
                (lambda s: encode(oracle, x_0, z, solver=s, grid=grid.reversed()).x_T, x_T),
            )
        )
    assert sampled["data"] < 0.01 < 0.3 < sampled["noise"]
    assert encoded["noise"] < 0.02 < 0.5 < encoded["data"]


@pytest.mark.parametrize("solver", [EDICT(), Rex(), Rex("midpoint", "noise")], ids=repr)
def test_the_two_latents_of_a_pair_meet(solver) -> None:
    x_T, z = inputs()
    gaps = []
    for n in (20, 40, 80):
        grid = TimeGrid.uniform_lmbda(VPLinear(), n, t_min=5e-3)
        with torch.no_grad():
            x, y = sample(mixture(), x_T, z, solver=Pair(solver, tied=True), grid=grid).x_0
        gaps.append(relative_error(y, x))
    assert gaps[0] > 1.5 * gaps[1] > 2.0 * gaps[2] and gaps[2] < 0.02


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4"])
def test_rex_for_the_sde_converges_strongly_on_one_path(method: str) -> None:
    x_T, z, oracle = normal(16, DIM, seed=3), normal(16, COND, seed=4), gaussian()
    path = BrownianPath((16, DIM), seed=11)
    fine = TimeGrid.uniform_lmbda(VPLinear(), 640)
    steps, found, solver = [10, 20, 40, 80], [], Rex(method, calculus="sde")
    with torch.no_grad():
        reference = sample(oracle, x_T, z, solver=SDEDPMSolver(), grid=fine, noise=path).x_0
        for n in steps:
            grid = fine.at(range(0, 641, 640 // n))
            x_0 = sample(oracle, x_T, z, solver=solver, grid=grid, noise=path).x_0
            found.append(relative_error(x_0, reference))
    # The order that it declares, whatever its base method has for the ODE.
    assert observed_order(steps, found) == pytest.approx(solver.order, abs=0.25)
    assert found[-1] < 0.03


def test_rex_samples_the_distribution_of_the_data() -> None:
    """Mean and spread of the reverse SDE: a wrong factor of the noise or the drift changes them."""
    oracle, count = gaussian(scale=0.5), 4000
    x_T, z = normal(count, DIM, seed=1), normal(1, COND, seed=2).expand(count, COND)
    grid = TimeGrid.uniform_lmbda(VPLinear(), 40)
    noise = [normal(count, DIM, seed=100 + i) for i in range(40)]
    with torch.no_grad():
        solver = Rex("midpoint", calculus="sde")
        x_0 = sample(oracle, x_T, z, solver=solver, grid=grid, noise=noise).x_0
        centre = oracle.centre(z[:1])[0]
    assert float((x_0.mean(0) - centre).abs().max()) < 0.06
    assert float((x_0.std(0) - 0.5).abs().max()) < 0.03
