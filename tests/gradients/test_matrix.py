"""Every gradient method, input, calculus and kind of data: the promised gradient, or a refusal.

Generated from the catalogue. Exact methods are compared with autograd through the same chain,
methods of the continuous equations with a fine solve of them (by error and by order), the
approximate ones with their definition written out by hand.
"""

import math
from functools import cache

import pytest
import torch
from definitions import BATCH, COTANGENT, DEFINITIONS, Found
from oracles import (
    COND,
    DIM,
    MLPDenoiser,
    RememberedPath,
    RungeKutta4,
    gaussian,
    mixture,
    normal,
    relative_error,
)
from torch import Tensor

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.gradients import Backprop, GradientMethod, NotSupportedError
from adjointdeis.gradients.catalogue import CATALOGUE, Entry
from adjointdeis.solvers import DDIM, SDEDPMSolver

pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning"
)
DATA = {"gaussian": gaussian, "mixture": mixture, "network": MLPDenoiser}
INPUTS = ("x_T", "z", "z_t", "theta")
COARSE, FINE = 16, 48  # steps between which the order of a continuous method is measured


PATH = RememberedPath((BATCH, DIM), seed=8)


@cache
def grid_of(calculus: str, steps: int) -> TimeGrid:
    t_min, t_max = {"ode": (0.02, 0.6), "sde": (0.1, 0.4)}[calculus]
    return TimeGrid.uniform_lmbda(VPLinear(), steps, t_min=t_min, t_max=t_max)


@cache
def recorded(calculus: str, steps: int) -> RecordedNoise | None:
    """The normals of the one path on a grid, drawn once."""
    if calculus == "ode":
        return None
    grid, like = grid_of(calculus, steps), torch.zeros(BATCH, DIM, dtype=torch.float64)
    return RecordedNoise([PATH.normal(grid[i], grid[i + 1], like) for i in range(steps)])


def leaves(steps: int, scheduled: bool) -> tuple[Tensor, list[Tensor]]:
    x_T, z = normal(BATCH, DIM, seed=30), normal(BATCH, COND, seed=31)
    # A smooth schedule: the continuous methods converge to the gradient of its limit.
    zs = [z * math.cos(i / steps) for i in range(steps)] if scheduled else [z]
    return x_T.requires_grad_(), [value.requires_grad_() for value in zs]


def differentiate(
    method: GradientMethod, data: str, scheduled: bool, solver, grid: TimeGrid, noise, wanted
) -> Found:
    """Gradients of the inputs in ``wanted``; the others are constants."""
    network, (x_T, zs) = DATA[data](), leaves(grid.steps, scheduled)
    condition = "z_t" if scheduled else "z"
    x_T.requires_grad_("x_T" in wanted)
    for z in zs:
        z.requires_grad_(condition in wanted)
    network.requires_grad_("theta" in wanted)
    x_0 = sample(
        network, x_T, PerStep(zs) if scheduled else zs[0],
        solver=solver, grid=grid, noise=noise, gradient=method,
    ).x_0  # fmt: skip
    (x_0 * COTANGENT).sum().backward()
    weights = list(network.parameters())
    return {
        "x_T": x_T.grad,
        "zs": torch.stack([z.grad for z in zs]) if condition in wanted else None,
        "theta": torch.cat([p.grad.flatten() for p in weights]) if "theta" in wanted else None,
    }


@cache
def found_by(one: Entry, calculus: str, data: str, scheduled: bool, steps: int) -> Found:
    """Everything a method can give, in one rollout."""
    wanted = [name for name in INPUTS if one.capability(name)]
    noise = PATH if calculus == "sde" else None
    solver = one.solver(calculus)
    grid = grid_of(calculus, steps)
    return differentiate(one.method(), data, scheduled, solver, grid, noise, wanted)


@cache
def by_autograd(one: Entry, calculus: str, data: str, scheduled: bool, steps: int) -> Found:
    solver, grid, noise = one.solver(calculus), grid_of(calculus, steps), recorded(calculus, steps)
    return differentiate(Backprop(), data, scheduled, solver, grid, noise, INPUTS)


@cache
def continuous(calculus: str, data: str, scheduled: bool, steps: int) -> Found:
    """Gradient of a much finer solve with the same schedule of z and the same path."""
    finer = {"ode": 2, "sde": 8}[calculus]
    network, (x_T, zs) = DATA[data](), leaves(steps, scheduled)
    repeated = PerStep([z for z in zs for _ in range(finer)]) if scheduled else zs[0]
    x_0 = sample(
        network, x_T, repeated,
        solver=RungeKutta4() if calculus == "ode" else SDEDPMSolver(), gradient=Backprop(),
        grid=grid_of(calculus, finer * steps), noise=recorded(calculus, finer * steps),
    ).x_0  # fmt: skip
    (x_0 * COTANGENT).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in network.parameters()])
    return {"x_T": x_T.grad, "zs": torch.stack([z.grad for z in zs]), "theta": theta}


@cache
def by_definition(one: Entry, calculus: str, data: str, scheduled: bool, steps: int) -> Found:
    network, (x_T, zs) = DATA[data](), leaves(steps, scheduled)
    method, solver, noise = one.method(), one.solver(calculus), recorded(calculus, steps)
    write_out = DEFINITIONS[type(method)]
    return write_out(method, network, x_T, zs, solver, grid_of(calculus, steps), noise)


@pytest.mark.parametrize("wrt", INPUTS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("calculus", ["ode", "sde"])
@pytest.mark.parametrize("one", CATALOGUE, ids=lambda one: one.name)
def test_cell(one: Entry, calculus: str, data: str, wrt: str) -> None:
    if not one.available:
        pytest.skip(f"needs {one.requires}")
    scheduled = wrt == "z_t"
    if not (one.capability(calculus) and one.capability(wrt)):
        solver = one.solver(calculus) or {"ode": DDIM, "sde": SDEDPMSolver}[calculus]()
        noise = PATH if calculus == "sde" else None
        with pytest.raises(NotSupportedError, match=type(one.method()).__name__):
            differentiate(
                one.method(), data, scheduled, solver, grid_of(calculus, COARSE), noise, [wrt]
            )
        return
    if one.solver(calculus) is None:
        # The method can, with another sampler: that is the business of another entry.
        kin = [e for e in CATALOGUE if type(e.method()) is type(one.method())]
        assert any(other.solver(calculus) for other in kin)
        return
    part = "zs" if wrt in ("z", "z_t") else wrt
    found = found_by(one, calculus, data, scheduled, COARSE)[part]
    if one.target == "chain":
        exact = by_autograd(one, calculus, data, scheduled, COARSE)[part]
        assert relative_error(found, exact) < one.tolerance
    elif one.target == "own":
        found = found_by(one, calculus, data, scheduled, FINE)[part]
        promised = by_definition(one, calculus, data, scheduled, FINE)[part]
        assert relative_error(found, promised) < 1e-12
    else:
        errors = [
            relative_error(
                found_by(one, calculus, data, scheduled, steps)[part],
                continuous(calculus, data, scheduled, steps)[part],
            )
            for steps in (COARSE, FINE)
        ]
        order = math.log(errors[0] / errors[1]) / math.log(FINE / COARSE)
        # One increment of a_z sees the Jacobian at one end of a step of a rough path: its error
        # is of the size of the noise in the step, sqrt(h), and averages out only in the sum.
        promised = 0.5 if (calculus, wrt) == ("sde", "z_t") else one.order
        # Between steps a schedule jumps by O(h), and a multistep velocity extrapolates over it.
        promised = min(promised, 2) if wrt == "z_t" else promised
        # The data form comes to its order from below; finer grids are in test_adjoint_high_order.
        slack = 0.45 if "data prediction" in one.name else 0.3
        assert errors[1] < 0.25 and order > promised - slack, (errors, order)
