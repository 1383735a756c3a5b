"""The meter counts what is alive, and the claims about memory are true of a real network."""

import pytest
import torch
from torch import nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.harness.live_memory import LiveBytes, peak_bytes
from adjointdeis.solvers import DDIM

pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning"
)
KB = 4 * 256  # bytes of 256 floats


def test_counts_what_lives_and_forgets_what_does_not() -> None:
    with LiveBytes() as meter:
        a = torch.zeros(256)
        assert meter.now == KB
        b = a.view(16, 16)  # a view shares its storage
        assert meter.now == KB
        del a
        assert meter.now == KB
        del b
        assert meter.now == 0
        first, second = torch.zeros(256), torch.ones(512)
        first.add_(1.0)  # in place
        del first, second
    assert meter.peak == 3 * KB
    assert meter.now == 0


def test_what_was_there_before_does_not_count() -> None:
    weight = torch.ones(16, 16)
    with LiveBytes() as meter:
        column = weight.mT[0]
        assert meter.now == 0
        product = weight @ column
        assert meter.now == 4 * 16
    del product


def test_sees_what_autograd_saves_and_the_backward_pass() -> None:
    x = torch.ones(256, requires_grad=True)
    with LiveBytes() as meter:
        y = x
        for _ in range(5):
            y = y.exp()  # saves its result
        held = meter.now
        y.sum().backward()
    assert held == 5 * KB
    assert meter.peak > held
    assert x.grad is not None


class Wide(nn.Module):
    """A network whose activations dwarf its latent."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(32, 2048), nn.SiLU(), nn.Linear(2048, 512), nn.SiLU(), nn.Linear(512, 32)
        ).requires_grad_(False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: None) -> torch.Tensor:
        return self.layers(x)


def peak(method, steps: int) -> int:
    network, grid = Wide(), TimeGrid.uniform_lmbda(VPLinear(), steps)
    x_T = torch.randn(16, 32, requires_grad=True)

    def run() -> None:
        x_0 = sample(network, x_T, solver=DDIM(), grid=grid, gradient=method).x_0
        x_0.square().sum().backward()
        x_T.grad = None

    return peak_bytes(run)


LATENT = 16 * 32 * 4


@pytest.mark.parametrize("method", [DiscreteAdjoint(), AdjointDEIS()], ids=["exact", "adjoint"])
def test_beyond_its_latents_a_stepwise_gradient_is_flat_in_n(method) -> None:
    beyond = [peak(method, steps) - steps * LATENT for steps in (10, 80)]
    assert beyond[1] == pytest.approx(beyond[0], rel=0.05)


@pytest.mark.parametrize(
    "method",
    [DiscreteAdjoint(snapshots=4), AdjointDEIS(states="resolved")],
    ids=["snapshots", "resolved"],
)
def test_snapshots_are_flat_in_n(method) -> None:
    few, many = peak(method, 20), peak(method, 80)
    assert many == pytest.approx(few, rel=0.05)


def test_backpropagation_is_not() -> None:
    assert peak(Backprop(), 80) > 3.5 * peak(Backprop(), 20)
