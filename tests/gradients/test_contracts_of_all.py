"""What a caller may rely on whatever the gradient method, for every entry of the catalogue."""

import pytest
import torch
from oracles import BATCH, DIM, MLPDenoiser, agree, inputs, normal
from torch.utils.checkpoint import checkpoint

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    Backprop,
    NotSupportedError,
    StepwiseMethod,
    UnreachableLeafError,
)
from adjointdeis.gradients.catalogue import CATALOGUE, Entry
from adjointdeis.solvers import RungeKutta, StepFunction
from adjointdeis.solvers.reversible import ReversibleSolver

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
GRID = TimeGrid.uniform_lmbda(VPLinear(), 5, t_min=0.02, t_max=0.6)
COTANGENT = normal(BATCH, DIM, seed=99)
AVAILABLE = [one for one in CATALOGUE if one.available]
each_entry = pytest.mark.parametrize("one", AVAILABLE, ids=lambda one: one.name)
each_stepwise = pytest.mark.parametrize(
    "one",
    [one for one in AVAILABLE if isinstance(one.method(), StepwiseMethod)],
    ids=lambda one: one.name,
)


def rollout(one: Entry, network, x_T, z, **arguments):
    calculus = "ode" if one.ode is not None else "sde"
    noise = BrownianPath((BATCH, DIM), seed=8) if calculus == "sde" else None
    return sample(
        network, x_T, z, solver=one.solver(calculus), grid=GRID, noise=noise,
        gradient=one.method(), **arguments,
    )  # fmt: skip


def leaves(one: Entry) -> tuple[MLPDenoiser, torch.Tensor, torch.Tensor]:
    """A network and inputs that require what the method gives."""
    network, (x_T, z) = MLPDenoiser(), inputs()
    network.requires_grad_(one.capability("theta"))
    return network, x_T.requires_grad_(one.capability("x_T")), z.requires_grad_(one.capability("z"))


@each_entry
def test_frozen_weights_receive_nothing(one: Entry) -> None:
    network, x_T, z = leaves(one)
    network.requires_grad_(False)
    (rollout(one, network, x_T, z).x_0 * COTANGENT).sum().backward()
    assert z.grad.norm() > 0 and all(p.grad is None for p in network.parameters())


@each_entry
def test_a_weight_that_no_step_uses_receives_nothing_as_in_autograd(one: Entry) -> None:
    """Not zeros, by which an optimiser with weight decay would let it shrink."""
    network, x_T, z = leaves(one)
    if one.requires or not one.capability("theta"):
        pytest.skip("no gradient of weights, or all of them in one vector of an ODE library")
    network.unused = torch.nn.Parameter(torch.ones(3))
    (rollout(one, network, x_T, z).x_0 * COTANGENT).sum().backward()
    assert network.unused.grad is None and network.bias.grad.norm() > 0


@each_entry
def test_the_same_call_gives_the_same_gradient_and_adds_to_it(one: Entry) -> None:
    network, x_T, z = leaves(one)
    grads = []
    for _ in range(2):
        (rollout(one, network, x_T, z).x_0 * COTANGENT).sum().backward()
        wanted = (z, network.bias) if one.capability("theta") else (z,)
        grads.append([leaf.grad.clone() for leaf in wanted])
    assert all(agree(twice, 2.0 * once) for once, twice in zip(*grads, strict=True))


@each_entry
def test_without_gradients_nothing_is_stored(one: Entry) -> None:
    network, x_T, z = leaves(one)
    with torch.no_grad():
        found = rollout(one, network, x_T, z)
    assert not found.x_0.requires_grad and found.cost.peak_latents == 0
    again = rollout(one, network, x_T, z)
    assert torch.equal(found.x_0, again.x_0.detach()) and again.x_0.requires_grad


@each_entry
def test_the_gradient_is_linear_in_the_cotangent_and_may_be_taken_twice(one: Entry) -> None:
    network, x_T, z = leaves(one)
    x_0 = rollout(one, network, x_T, z).x_0
    pull = [
        torch.autograd.grad((x_0 * c).sum(), z, retain_graph=True)[0]
        for c in (COTANGENT, COTANGENT, -3.0 * COTANGENT, COTANGENT.roll(1, 0))
    ]
    # Adaptive integrators choose their steps by the adjoint: linear to their tolerance only.
    tolerance = 1e-6 if one.name == "Backsolve" else 1e-10
    assert agree(pull[1], pull[0], 1e-12) and agree(pull[2], -3.0 * pull[0], tolerance)
    assert not agree(pull[3], pull[0], 1e-2)


@each_stepwise
def test_a_leaf_that_cannot_be_reached_is_named(one: Entry) -> None:
    network, x_T, z = leaves(one)
    network.requires_grad_(False)
    hidden = normal(7, DIM, seed=3).requires_grad_()

    def closure(x, t, z):
        return network(x, t, z) + 0.01 * hidden.exp().mean(0)

    with pytest.raises(UnreachableLeafError, match=r"shape \(7, 4\)"):
        rollout(one, closure, x_T, z)
    if one.capability("theta"):
        rollout(one, closure, x_T, z, parameters=[hidden]).x_0.sum().backward()
        assert hidden.grad.norm() > 0


@pytest.mark.parametrize("own", ["parameter", "condition", "network"])
@each_entry
def test_what_a_sampler_uses_by_itself_has_its_gradient_or_is_refused(one: Entry, own: str) -> None:
    if one.ode is None or isinstance(one.solver("ode"), ReversibleSolver | RungeKutta):
        pytest.skip("has samplers of its own")
    network, x_T, z = leaves(one)
    network.requires_grad_(False)
    gain = torch.full((), 0.9, dtype=z.dtype).requires_grad_(own == "parameter")

    def step(denoiser, x, z, s, t):
        eps = gain * (network if own == "network" else denoiser)(x, s.t, z)
        eps = eps * (z.mean() if own == "condition" else 1.0)
        return t.alpha * (x - s.sigma * eps) / s.alpha + t.sigma * eps

    def gradient(method):
        x_0 = sample(
            network, x_T, z, solver=StepFunction(step), grid=GRID, gradient=method,
            parameters=[gain],
        ).x_0  # fmt: skip
        return torch.autograd.grad(x_0.sum(), gain if own == "parameter" else z)[0]

    wanted = gradient(Backprop())
    try:
        found = gradient(one.method())
    except NotSupportedError as error:
        surrogate = own == "network" and "evaluates a network of its own" in str(error)
        assert "by itself" in str(error) or "of the weights" in str(error) or surrogate
        assert one.target != "chain" or one.name == "ForwardMode"
        return
    assert one.target != "flow" and found.norm() > 0
    assert one.target == "own" or agree(found, wanted)


@each_stepwise
def test_changing_an_input_between_the_passes_is_noticed(one: Entry) -> None:
    for change in ("weights", "x_0") if one.capability("theta") else ("x_0",):
        network, x_T, z = leaves(one)
        x_0 = rollout(one, network, x_T, z).x_0
        loss = x_0.sum()
        with torch.no_grad():
            (network.bias if change == "weights" else x_0.detach()).add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@each_stepwise
def test_a_second_derivative_is_refused(one: Entry) -> None:
    network, x_T, z = leaves(one)
    x_0 = rollout(one, network, x_T, z).x_0
    (first,) = torch.autograd.grad(x_0.square().sum(), z, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@each_entry
def test_a_checkpoint_inside_the_network_is_differentiated_or_named(
    one: Entry, reentrant: bool
) -> None:
    network, x_T, z = leaves(one)

    def denoiser(x, t, z):
        return checkpoint(network, x, t, z, use_reentrant=reentrant)

    def gradient(denoiser):
        weights = list(network.parameters())
        return torch.autograd.grad(rollout(one, denoiser, x_T, z, parameters=weights).x_0.sum(), z)

    if not reentrant:
        assert agree(*gradient(denoiser), *gradient(network), 1e-10)
        return
    with pytest.raises((NotSupportedError, RuntimeError)) as refused:
        gradient(denoiser)
    # Plain backpropagation calls autograd itself, and torch's own message is to the point.
    assert "use_reentrant=False" in str(refused.value) or "DiscreteAdjoint" in str(refused.value)
    assert one.name == "Backprop" or isinstance(refused.value, NotSupportedError)
