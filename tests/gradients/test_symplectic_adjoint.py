"""The symplectic adjoint equals autograd through the Runge-Kutta steps, with one graph alive."""

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    MLPDenoiser,
    agree,
    differentiate,
    gaussian,
    inputs,
    mixture,
)
from torch import nn

from adjointdeis import TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import EpsFromX0, RecordedNoise
from adjointdeis.gradients import Backprop, DiscreteAdjoint, NotSupportedError, SymplecticAdjoint
from adjointdeis.solvers import DDIM, RungeKutta, SDEDPMSolver
from adjointdeis.solvers.tableau import TABLEAUS

GRIDS = {
    "lmbda": TimeGrid.uniform_lmbda(VPLinear(), 8),
    "time": TimeGrid.uniform_time(VPLinear(), 5),
    "clean": TimeGrid.uniform_time(VPLinear(), 4, t_min=0.0),
}


@pytest.mark.parametrize("spacing", GRIDS)
@pytest.mark.parametrize("name", TABLEAUS)
@pytest.mark.parametrize("denoiser", [mixture, gaussian, MLPDenoiser], ids=lambda f: f.__name__)
def test_it_is_autograd_through_the_steps(denoiser, name: str, spacing: str) -> None:
    network, grid = denoiser(), GRIDS[spacing]
    for steps in (0, grid.steps):
        x_T, z = inputs(steps)
        found, exact = (
            differentiate(network, x_T, z, method, solver=RungeKutta(name), grid=grid)
            for method in (SymplecticAdjoint(), Backprop())
        )
        for part, value in exact.parts().items():
            assert agree(found.parts()[part], value), (part, steps)


@pytest.mark.parametrize("name", TABLEAUS)
def test_its_cost_is_the_formula(name: str) -> None:
    """The stages are found again without a graph; then one graph at a time."""
    n, s = GRIDS["time"].steps, TABLEAUS[name].stages
    x_T, z = inputs()
    setting = {"solver": RungeKutta(name), "grid": GRIDS["time"]}
    cost = differentiate(MLPDenoiser(), x_T, z, SymplecticAdjoint(), **setting).rollout.cost
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (n * s, n * (s - 1) + n * s, n * s)
    assert (cost.peak_latents, cost.peak_graphs) == (n + 1 + s, 1)


def test_it_is_the_gradient_of_an_encoding_too() -> None:
    network, (x_0, z) = MLPDenoiser(), inputs()
    grid = GRIDS["clean"].reversed()
    found = []
    for method in (SymplecticAdjoint(), Backprop()):
        x = x_0.clone().requires_grad_()
        x_T = encode(network, x, z, solver=RungeKutta("rk4"), grid=grid, gradient=method).x_T
        found.append(torch.autograd.grad(x_T.square().sum(), x)[0])
    assert agree(*found)


def test_dropout_draws_the_same_mask_again() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = MLPDenoiser()

        def forward(self, x, t, z):
            return nn.functional.dropout(self.network(x, t, z), 0.5)

    network, (x_T, z) = Noisy(), inputs()
    found = []
    for method in (SymplecticAdjoint(), Backprop()):
        torch.manual_seed(4)
        found.append(
            differentiate(network, x_T, z, method, solver=RungeKutta("rk4"), grid=GRIDS["time"])
        )
    for part, value in found[1].parts().items():
        assert agree(found[0].parts()[part], value), part


def test_heun_ends_with_an_euler_step_where_there_is_no_noise() -> None:
    schedule, solver, (x_T, z) = VPLinear(), RungeKutta("heun"), inputs()
    denoiser = EpsFromX0(MLPDenoiser(), schedule)
    grid = TimeGrid.from_times(schedule, [0.8, 0.4, 0.1, 0.0])
    found = [
        differentiate(denoiser, x_T, z, method, solver=solver, grid=grid)
        for method in (Backprop(), DiscreteAdjoint(), SymplecticAdjoint())
    ]
    before = sample(denoiser, x_T, z, solver=solver, grid=grid.at([0, 1, 2])).x_0
    euler = sample(denoiser, before, z, solver=DDIM(), grid=grid.at([2, 3])).x_0
    for one in found:
        assert agree(one.rollout.x_0, euler) and one.rollout.cost.nfe_forward == 5
        for part, value in found[0].parts().items():
            assert agree(one.parts()[part], value), part


def test_other_samplers_are_refused_by_name() -> None:
    x_T, z = inputs()
    x_T.requires_grad_()
    noise = RecordedNoise.draw(5, (BATCH, DIM), seed=0, dtype=torch.float64)
    for solver, path, message in ((DDIM(), None, "RungeKutta"), (SDEDPMSolver(), noise, "sde")):
        with pytest.raises(NotSupportedError, match=message):
            sample(
                MLPDenoiser(), x_T, z, solver=solver, grid=GRIDS["time"], noise=path,
                gradient=SymplecticAdjoint(),
            )  # fmt: skip


def test_a_hook_on_a_gradient_sees_what_it_sees_in_backpropagation() -> None:
    class Clamped(MLPDenoiser):
        def forward(self, x, t, z):
            eps = super().forward(x, t, z)
            if eps.requires_grad:
                eps.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))
            return eps

    network, (x_T, z) = Clamped(), inputs()
    found, exact = (
        differentiate(network, x_T, z, method, solver=RungeKutta("rk4"), grid=GRIDS["time"])
        for method in (SymplecticAdjoint(), Backprop())
    )
    for part, value in exact.parts().items():
        assert agree(found.parts()[part], value), part
