"""A third-party sampler given as one function is differentiated exactly by every exact method."""

import pytest
import torch
from oracles import BATCH, DIM, MLPDenoiser, agree, differentiate, inputs, normal

from adjointdeis import TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint, FlowGrad
from adjointdeis.solvers import DDIM, SDEDPMSolver, StepFunction

N = 6
GRID = TimeGrid.uniform_lmbda(VPLinear(), N, t_max=0.7)


def heun(denoiser, x, z, s, t):
    """Two evaluations, and an operation that no theory covers."""
    y, width = x / s.alpha, t.rho - s.rho
    first = denoiser(x, s.t, z)
    second = denoiser(t.alpha * (y + width * first), t.t, z)
    return t.alpha * torch.asinh(torch.sinh(y + 0.5 * width * (first + second)))


def ancestral(denoiser, x, z, s, t, noise):
    return SDEDPMSolver().step(denoiser, x, z, s, t, (), 0.7 * noise)[0]


@pytest.mark.parametrize(
    "method",
    [
        DiscreteAdjoint(), DiscreteAdjoint(snapshots=2), DiscreteAdjoint(keep_activations=2),
        DiscreteAdjoint(budget="20 KB"), FlowGrad(threshold=0.0),
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("calculus", ["ode", "sde"])
def test_a_function_is_differentiated_exactly(method, calculus: str) -> None:
    solver = StepFunction({"ode": heun, "sde": ancestral}[calculus], calculus)
    noise = None
    if calculus == "sde":
        noise = RecordedNoise([normal(BATCH, DIM, seed=i) for i in range(N)])
        if not method.sde:
            pytest.skip("an ODE method")
    network, (x_T, zs) = MLPDenoiser(), inputs(N)
    exact, found = (
        differentiate(network, x_T, zs, m, solver=solver, grid=GRID, noise=noise)
        for m in (Backprop(), method)
    )
    assert torch.equal(exact.rollout.x_0, found.rollout.x_0)
    for part, value in exact.parts().items():
        assert agree(found.parts()[part], value), part
    assert found.rollout.cost.nfe_forward == N * (2 if calculus == "ode" else 1)


def test_ddim_as_a_function_is_ddim() -> None:
    def ddim(denoiser, x, z, s, t):
        return t.alpha / s.alpha * x + t.alpha * (t.rho - s.rho) * denoiser(x, s.t, z)

    network, (x_T, z) = MLPDenoiser(), inputs()
    for method in (DiscreteAdjoint(), AdjointDEIS()):
        a, b = (
            differentiate(network, x_T, z, method, solver=solver, grid=GRID)
            for solver in (DDIM(), StepFunction(ddim))
        )
        assert all(agree(a.parts()[part], b.parts()[part]) for part in a.parts())


def test_what_is_not_a_solver_is_named() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    with pytest.raises(TypeError, match="StepFunction"):
        sample(network, x_T, z, solver=heun, grid=GRID)
    with pytest.raises(TypeError, match="StepFunction"):
        encode(network, x_T, z, solver=heun, grid=GRID.reversed())
    with pytest.raises(ValueError, match="calculus"):
        StepFunction(heun, "pde")

    class Undeclared:
        def step(self, *arguments):
            raise AssertionError

    with pytest.raises(ValueError, match=r"Undeclared\.calculus must be 'ode' or 'sde'"):
        sample(network, x_T, z, solver=Undeclared(), grid=GRID)


def test_a_function_that_returns_a_state_is_told_the_shape_of_a_solver() -> None:
    solver = StepFunction(lambda denoiser, x, z, s, t: (heun(denoiser, x, z, s, t), ()))
    x_T, z = inputs()
    with pytest.raises(ValueError, match=r"returned a tuple; a step with a history is a class"):
        sample(MLPDenoiser(), x_T, z, solver=solver, grid=GRID)
