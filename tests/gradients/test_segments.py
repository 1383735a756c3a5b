"""Several steps of a small network recomputed as one graph: the same gradient, bounded memory."""

from dataclasses import replace

import pytest
import torch
from oracles import BATCH, DIM, MLPDenoiser, agree, inputs, normal
from torch import nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import RecordedNoise
from adjointdeis.gradients import (
    Backprop,
    DiscreteAdjoint,
    InconsistentStepError,
    NotSupportedError,
    UnreachableLeafError,
)
from adjointdeis.gradients.discrete_adjoint import segment_length
from adjointdeis.gradients.trace import Carry
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver

N = 40


class Thin(nn.Module):
    """eps = tanh(a (x + b z)), whose activations are as small as its latents."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.7, 0.3))

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.a * (x + self.b * z[:, :1]) * (1 + t.to(x)))


class InPlace(Thin):
    """The same, which changes the x that it is given."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(0.9), t, z)


class Dropped(Thin):
    """The same, with a mask of its own at every step."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.3), t, z)


def arguments(solver) -> dict:
    noise = RecordedNoise.draw(N, (BATCH, DIM), 5, torch.float64)
    grid = TimeGrid.uniform_lmbda(VPLinear(), N, t_max=0.8)
    return {"solver": solver, "grid": grid, "noise": noise if solver.calculus == "sde" else None}


def gradients(denoiser, method, solver) -> tuple:
    """Those of x_T, z and the weights that want one, and the cost."""
    torch.manual_seed(3)
    leaves = [value.requires_grad_() for value in inputs()]
    theta = [p for p in denoiser.parameters() if p.requires_grad]
    rollout = sample(denoiser, *leaves, gradient=method, **arguments(solver))
    cotangent = normal(BATCH, DIM, seed=99)
    return torch.autograd.grad(rollout.x_0, [*leaves, *theta], cotangent), rollout.cost


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP(2), SDEDPMSolver()], ids=["1", "2m", "sde"])
@pytest.mark.parametrize("network", [Thin, InPlace, Dropped, MLPDenoiser])
@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
def test_segments_give_the_gradient_of_autograd(solver, network, trained: bool) -> None:
    denoiser = network().requires_grad_(trained)
    # Autograd cannot follow a network that changes a leaf in place; one step at a time can.
    reference = DiscreteAdjoint(snapshots=N) if network is InPlace else Backprop()
    expected, _ = gradients(denoiser, reference, solver)
    found, cost = gradients(denoiser, DiscreteAdjoint(), solver)
    assert all(agree(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (N, N, N)
    if network is Thin:
        assert 1 < cost.peak_graphs < N


def test_a_segment_takes_no_more_than_the_stored_states() -> None:
    carries = [Carry(normal(4, 8, seed=i), (normal(4, 8, seed=i),)) for i in range(10)]
    stored, step = 10 * 2 * 4 * 8 * 8, 2 * 4 * 8 * 8
    for activations in (1, step, 3 * step, 9 * step, 10**9):
        length = segment_length(carries, activations)
        assert length == 1 or length * (activations + step) <= stored
    assert segment_length(carries, 10**9) == 1 and segment_length(carries, step) == 5


def test_steps_of_a_segment_are_checked_one_by_one() -> None:
    calls = []

    class Counted(Thin):
        def forward(self, x, t, z):
            calls.append(1)
            # Another network in the middle of the backward pass.
            return super().forward(x, t, z) * (1.5 if len(calls) == N + 10 else 1.0)

    x_T, z = inputs()
    rollout = sample(Counted(), x_T.requires_grad_(), z, **arguments(DDIM()))
    with pytest.raises(InconsistentStepError, match="step "):
        rollout.x_0.sum().backward()


def test_a_leaf_that_appears_in_the_middle_of_a_segment_is_refused() -> None:
    hidden, (x_T, z) = torch.ones(1, dtype=torch.float64, requires_grad=True), inputs()

    for trained in (True, False):
        network = Thin().requires_grad_(trained)

        def late(x, t, z, network=network):
            return network(x, t, z) * (hidden if t < 0.1 else 1.0)

        with pytest.raises(UnreachableLeafError):
            rollout = sample(
                late,
                x_T.requires_grad_(),
                z,
                parameters=[p for p in network.parameters() if p.requires_grad],
                **arguments(DDIM()),
            )
            rollout.x_0.sum().backward()


def test_states_that_do_not_repeat_exactly_are_those_of_the_sampling_run() -> None:
    """Noise of a kernel within the tolerance does not add up along a segment."""

    class Noisy(Thin):
        calls = 0

        def forward(self, x, t, z):
            Noisy.calls += 1
            return super().forward(x, t, z) * (1 + 1e-12 * (Noisy.calls % 7))

    ours, cost = gradients(Noisy(), DiscreteAdjoint(), DDIM())
    theirs, _ = gradients(Thin(), Backprop(), DDIM())
    assert cost.peak_graphs > 1
    assert all(agree(a, b, 1e-9) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("network", [Thin, InPlace, Dropped, MLPDenoiser])
@pytest.mark.parametrize(
    "method", [DiscreteAdjoint(keep_activations=N), DiscreteAdjoint(budget="1 GiB")], ids=str
)
def test_kept_steps_share_one_graph(network, method, monkeypatch) -> None:
    denoiser, calls, grad = network(), [], torch.autograd.grad

    def counted(*given, **options):
        calls.append(1)
        return grad(*given, **options)

    expected, _ = gradients(denoiser, DiscreteAdjoint(snapshots=N), DPMSolverPP(2))
    monkeypatch.setattr(torch.autograd, "grad", counted)
    found, cost = gradients(denoiser, method, DPMSolverPP(2))
    assert all(agree(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps, cost.peak_graphs) == (N, 0, N, N)
    # Those of the caller, of the kept steps, of the step that a budget measures, of the history.
    assert len(calls) <= 5


KEPT = [DiscreteAdjoint(keep_activations=N // 2), DiscreteAdjoint(budget="1 GiB")]
MEASURED = DiscreteAdjoint(budget="2 KB")  # too little for the graph that it measures


@pytest.mark.parametrize("method", KEPT, ids=str)
def test_a_leaf_that_appears_in_a_kept_step_is_refused(method) -> None:
    hidden, (x_T, z) = torch.ones(1, dtype=torch.float64, requires_grad=True), inputs()
    network = Thin().requires_grad_(False)
    with pytest.raises(UnreachableLeafError, match=r"a tensor of shape \(1,\)"):
        sample(
            lambda x, t, z: network(x, t, z) * (hidden if t < 0.1 else 1.0),
            x_T.requires_grad_(), z, gradient=method, **arguments(DDIM()),
        )  # fmt: skip


class Slotted:
    """Holds a leaf where no walk finds it."""

    __slots__ = ("leaf",)


@pytest.mark.parametrize("method", KEPT, ids=str)
def test_a_leaf_out_of_sight_in_a_kept_step_is_refused_when_its_graph_is_gone(method) -> None:
    hidden, (x_T, z), network = Slotted(), inputs(), Thin().requires_grad_(False)
    hidden.leaf = torch.ones(1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnreachableLeafError, match=r"a tensor of shape \(1,\)"):
        rollout = sample(
            lambda x, t, z: network(x, t, z) * (hidden.leaf if t < 0.1 else 1.0),
            x_T.requires_grad_(), z, gradient=method, **arguments(DDIM()),
        )  # fmt: skip
        rollout.x_0.sum().backward()


def test_a_leaf_of_the_step_that_a_budget_measures_is_refused() -> None:
    hidden, (x_T, z) = torch.ones(1, dtype=torch.float64, requires_grad=True), inputs()
    network = Thin().requires_grad_(False)
    with pytest.raises(UnreachableLeafError, match=r"a tensor of shape \(1,\)"):
        sample(
            lambda x, t, z: network(x, t, z) * (hidden if t > 0.79 else 1.0),
            x_T.requires_grad_(), z, gradient=MEASURED, **arguments(DDIM()),
        )  # fmt: skip


@pytest.mark.parametrize("method", [*KEPT, MEASURED], ids=str)
def test_a_leaf_of_a_kept_step_s_own_is_none_that_is_lost(method) -> None:
    """Guidance by a gradient inside the network, whose leaf the kept graph holds."""

    class Guided(Thin):
        def forward(self, x, t, z):
            with torch.enable_grad():
                own = x.detach().requires_grad_()
                energy = super().forward(own, t, z).square().sum()
                (slope,) = torch.autograd.grad(energy, own, create_graph=True)
            return super().forward(x, t, z) + 0.1 * slope

    expected, _ = gradients(Guided(), Backprop(), DDIM())
    found, cost = gradients(Guided(), method, DDIM())
    assert method is MEASURED or cost.nfe_backward < N
    assert all(agree(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_network_that_begins_to_work_in_place_in_a_kept_step_is_refused() -> None:
    network, (x_T, z) = Thin(), inputs()
    with pytest.raises(NotSupportedError, match="begins to change its x"):
        sample(
            lambda x, t, z: network(x.mul_(0.9) if t < 0.1 else x * 0.9, t, z),
            x_T.requires_grad_(), z, parameters=list(network.parameters()),
            gradient=DiscreteAdjoint(keep_activations=N // 2), **arguments(DDIM()),
        )  # fmt: skip


def test_a_change_in_place_is_seen_in_a_step_that_a_budget_only_measures() -> None:
    # Its graph is given up, and no later step has one.
    expected, _ = gradients(InPlace(), DiscreteAdjoint(snapshots=N), DDIM())
    found, _ = gradients(InPlace(), replace(MEASURED, check=False), DDIM())
    assert all(agree(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
