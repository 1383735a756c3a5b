"""Directional derivatives that ride along: exact, with nothing stored, or a named error."""

import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, RungeKutta4, agree, inputs, normal
from torch import nn

from adjointdeis import PerStep, RectifiedFlow, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    Backprop,
    ForwardMode,
    NotSupportedError,
    SecondDerivativeError,
    UnreachableLeafError,
)
from adjointdeis.harness.live_memory import peak_bytes
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    EDICT,
    OBELM,
    DPMSolverPP,
    FlowEuler,
    Pair,
    Rex,
    RungeKutta,
    SDEDPMSolver,
    SDEDPMSolverPP,
    StepFunction,
)
from adjointdeis.solvers.tableau import TABLEAUS

STEPS = 6
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS, t_min=0.05, t_max=0.6)
SOLVERS = [
    DDIM(), DDIM(clip_x0=True), DPMSolverPP(1), DPMSolverPP(2), FlowEuler(), RungeKutta4(),
    *map(RungeKutta, TABLEAUS), EDICT(), BDIA(), OBELM(), Rex("midpoint"), Pair(OBELM(), tied=True),
    SDEDPMSolver(), SDEDPMSolverPP(1), SDEDPMSolverPP(2), Rex("heun", calculus="sde"),
    StepFunction(lambda f, x, z, s, t, n: x + (t.t - s.t) * f(x, s.t, z) + 0.1 * n, "sde"),
]  # fmt: skip


def frozen() -> MLPDenoiser:
    return MLPDenoiser().requires_grad_(False)


def setting(solver) -> dict:
    grid = GRID
    if isinstance(solver, FlowEuler):
        grid = TimeGrid.uniform_time(RectifiedFlow(), STEPS, t_min=0.1, t_max=0.9)
    noise = BrownianPath((BATCH, DIM), seed=8) if solver.calculus == "sde" else None
    return {"solver": solver, "grid": grid, "noise": noise}


@pytest.mark.parametrize("scheduled", [False, True], ids=["z", "PerStep"])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda one: str(one).split(" at 0x")[0])
def test_it_is_the_exact_gradient_on_every_solver(solver, scheduled: bool) -> None:
    """A dict of tensors, one of them no leaf, and a loss of all that the run passed through."""
    network, (x_T, z) = frozen(), inputs()
    x_T, root = x_T.requires_grad_(), z.requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    trees = [{"z": (1.0 + 0.1 * i) * root, "scale": scale, "name": "a"} for i in range(STEPS)]
    condition = PerStep(trees) if scheduled else trees[0]
    found = []
    for method in (Backprop(), ForwardMode(limit=200)):
        run = sample(
            lambda x, t, c: c["scale"] * network(x, t, c["z"]), x_T, condition, gradient=method,
            trajectory=True, **setting(solver),
        )  # fmt: skip
        found.append([*run.states, *run.predictions])
        way = zip(run.states[1:], run.predictions, strict=True)
        loss = sum((i + 1) * (x.sin().sum() + p.cos().sum()) for i, (x, p) in enumerate(way))
        for value in (loss, run.x_0.square().sum()):
            grads = torch.autograd.grad(value, [x_T, root, scale], retain_graph=True)
            found[-1].extend(grads)
    assert all(agree(b, a) for a, b in zip(*found, strict=True))


def test_what_it_costs_is_a_product_for_each_direction_and_evaluation() -> None:
    network, (x_T, z) = frozen(), inputs()
    for solver, per_step, history in ((DDIM(), 1, 0), (RungeKutta("rk4"), 4, 0), (EDICT(), 2, 1)):
        run = sample(network, x_T, z.requires_grad_(), gradient=ForwardMode(), **setting(solver))
        run.x_0.sum().backward()
        count, cost = z.numel(), run.cost
        assert (cost.nfe_forward, cost.nfe_backward) == (STEPS * per_step, 0)
        assert (cost.vjps, cost.peak_graphs) == (count * STEPS * per_step, 0)
        assert cost.peak_latents == (1 + count) * (1 + history)


def test_memory_does_not_grow_with_the_steps() -> None:
    """Plain backpropagation's does, by the activations of every step."""
    network, x_T = frozen(), normal(64, DIM, seed=1)
    z = normal(1, COND, seed=2).requires_grad_()

    def peak(method, steps: int) -> int:
        grid = TimeGrid.uniform_lmbda(VPLinear(), steps, t_min=0.05, t_max=0.6)

        def both() -> None:
            x_0 = sample(
                lambda x, t, z: network(x, t, z.expand(len(x), COND)), x_T, z, solver=DDIM(),
                grid=grid, gradient=method,
            ).x_0  # fmt: skip
            torch.autograd.grad(x_0.sum(), z)

        both()
        return peak_bytes(both)

    few, many = (peak(ForwardMode(), steps) for steps in (5, 40))
    assert many <= 1.01 * few
    assert peak(Backprop(), 40) > 4 * peak(Backprop(), 5)


def test_directions_of_x_T_have_the_gradient_of_their_coefficients() -> None:
    """And x_T itself the projection of the gradient on their span, however they lie in it."""
    network, (base, z) = frozen(), inputs()
    directions = normal(3, BATCH, DIM, seed=4)
    directions[1] += directions[0]
    c = normal(3, seed=5).requires_grad_()
    found = []
    for method in (Backprop(), ForwardMode(directions=directions, limit=3)):
        x_T = base + (c.view(-1, 1, 1) * directions).sum(0)
        x_0 = sample(network, x_T, z, gradient=method, **setting(DPMSolverPP())).x_0
        found.append(torch.autograd.grad(x_0.square().sum(), [c, x_T]))
    assert agree(found[1][0], found[0][0])
    basis = torch.linalg.qr(directions.flatten(1).mT)[0]
    assert agree(found[1][1].flatten(), basis @ (basis.mT @ found[0][1].flatten()))
    # Twice the same direction spans no more, and both coefficients get their gradient.
    twice = directions[[0, 0, 2]]
    x_T = (base + (c.view(-1, 1, 1) * twice).sum(0)).detach().requires_grad_()
    x_0 = sample(
        network, x_T, z.requires_grad_(), gradient=ForwardMode(directions=twice),
        **setting(DDIM()),
    ).x_0  # fmt: skip
    (a_x,) = torch.autograd.grad(x_0.square().sum(), x_T)
    exact_x_0 = sample(network, x_T, z, gradient=Backprop(), **setting(DDIM())).x_0
    (exact,) = torch.autograd.grad(exact_x_0.square().sum(), x_T)
    assert agree((twice * a_x).flatten(1).sum(1), (twice * exact).flatten(1).sum(1))


def test_any_number_of_losses_share_one_run() -> None:
    network, (x_T, z) = frozen(), inputs()
    z.requires_grad_()
    x_0, exact = (
        sample(network, x_T, z, gradient=method, **setting(SDEDPMSolver())).x_0
        for method in (ForwardMode(), Backprop())
    )
    for power in (1, 2, 3):
        one, other = (
            torch.autograd.grad(x.pow(power).sum(), z, retain_graph=True)[0] for x in (x_0, exact)
        )
        assert agree(one, other)
    (first,) = torch.autograd.grad(x_0.square().sum(), z, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="use gradient=Backprop"):
        first.sum().backward()


def test_an_encoding_and_a_batch_in_parts() -> None:
    network, (x, z) = frozen(), inputs()
    z.requires_grad_()
    arguments = {"solver": RungeKutta("rk4"), "grid": GRID.reversed()}
    codes = [
        encode(network, x, z, gradient=method, **arguments).x_T
        for method in (ForwardMode(), Backprop())
    ]
    assert agree(*(torch.autograd.grad(code.sin().sum(), z)[0] for code in codes))
    parts = sample(
        network, x, z, microbatch=1, gradient=ForwardMode(limit=COND), solver=DDIM(), grid=GRID
    )
    whole = sample(network, x, z, gradient=Backprop(), solver=DDIM(), grid=GRID)
    assert agree(*(torch.autograd.grad(r.x_0.sin().sum(), z)[0] for r in (parts, whole)))


class Guarded(nn.Module):
    """Part of it is evaluated without gradients, part changes its input in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = frozen()

    def forward(self, x, t, z):
        x.mul_(0.9)
        with torch.no_grad():
            aside = torch.sin(x) + z.sum()
            with torch.enable_grad():
                seen = torch.cos(x)
        return self.body(x, t, z) * aside + 0.1 * self.without(x) + 0.1 * seen

    @torch.no_grad()
    def without(self, x):
        return x.exp()


def test_what_autograd_does_not_see_is_not_carried() -> None:
    """Torch carries tangents through no_grad, which autograd takes for constants."""
    network, (x_T, z) = Guarded(), inputs()
    x_T, z = x_T.requires_grad_(), z.requires_grad_()
    before, grads = x_T.detach().clone(), []
    for method in (Backprop(), ForwardMode()):
        x_0 = sample(network, 1.0 * x_T, z, gradient=method, **setting(DDIM())).x_0
        grads.append(torch.autograd.grad(x_0.square().sum(), [x_T, z]))
    assert all(agree(b, a) for a, b in zip(*grads, strict=True)) and torch.equal(x_T, before)
    assert torch.is_grad_enabled()


def test_a_value_that_is_kept_counts_in_its_own_run_alone() -> None:
    network, (x_T, z) = frozen(), inputs()
    cache: dict[str, torch.Tensor] = {}

    def denoiser(x, t, z):
        if "z" not in cache:
            cache["z"] = z.sin()
        return network(x, t, cache["z"])

    grads = []
    for method in (Backprop(), ForwardMode()):
        cache.clear()
        x_0 = sample(denoiser, x_T, z.requires_grad_(), gradient=method, **setting(DDIM())).x_0
        grads.append(torch.autograd.grad(x_0.sum(), z)[0])
    assert agree(*grads)
    with pytest.raises(UnreachableLeafError, match=r"earlier run.*clear its cache"):
        sample(denoiser, x_T, z, gradient=ForwardMode(), **setting(DDIM()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_keep_theirs(dtype: torch.dtype) -> None:
    network, (x_T, z) = frozen().to(dtype), (value.to(dtype) for value in inputs())
    z.requires_grad_()
    x_0, exact = (
        sample(network, x_T, z, gradient=method, **setting(DDIM())).x_0
        for method in (ForwardMode(), Backprop())
    )
    one, other = (torch.autograd.grad(x.square().sum(), z)[0] for x in (x_0, exact))
    assert one.dtype == dtype == x_0.dtype
    assert agree(one.double(), other.double(), 8 * torch.finfo(dtype).eps)


class Sine(torch.autograd.Function):
    """Of another library: a backward pass alone."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def own_leaf(x):
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(leaf.sin().sum(), leaf)[0]


WITHOUT = {
    "custom function": Sine.apply,
    "no formula": lambda x: torch.cdist(x[None], x.sin()[None])[0].sum() * x,
    "own leaf": own_leaf,
    "numpy": lambda x: x * torch.from_numpy(x.detach().numpy()),
    "batch statistics": nn.BatchNorm1d(DIM).double().requires_grad_(False),
}


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_network_without_forward_mode_is_named_with_what_works(kind: str) -> None:
    network, (x_T, z) = frozen(), inputs()

    def denoiser(x, t, z):
        return network(x, t, z) + 0.1 * WITHOUT[kind](x)

    z.requires_grad_()
    with pytest.raises(NotSupportedError, match=r"DiscreteAdjoint\(\) or Backprop\(\)"):
        sample(denoiser, x_T, z, gradient=ForwardMode(), **setting(DDIM()))
    sample(denoiser, x_T, z, gradient=Backprop(), **setting(DDIM())).x_0.sum().backward()
    assert z.grad.norm() > 0


def test_a_fault_of_the_network_stays_its_own() -> None:
    x_T, z = inputs()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        sample(
            lambda x, t, z: x @ z, x_T, z.requires_grad_(), gradient=ForwardMode(),
            **setting(DDIM()),
        )  # fmt: skip


def test_too_many_numbers_are_refused_with_the_limit_and_the_calls_that_work() -> None:
    network, (x_T, z) = frozen(), inputs()
    message = r"8 of x_T and 6 of z, and its limit is 13.*DiscreteAdjoint.*directions.*limit=14"
    with pytest.raises(NotSupportedError, match=message):
        sample(
            network, x_T.requires_grad_(), z.requires_grad_(), gradient=ForwardMode(limit=13),
            **setting(DDIM()),
        )  # fmt: skip
    sample(network, x_T, z, gradient=ForwardMode(limit=14), **setting(DDIM())).x_0.sum().backward()
    assert z.grad.norm() > 0 and x_T.grad.norm() > 0


def test_what_it_cannot_serve_is_refused_by_name() -> None:
    network, (x_T, z) = MLPDenoiser(), inputs()
    with pytest.raises(NotSupportedError, match="gradient of the weights"):
        sample(network, x_T, z.requires_grad_(), gradient=ForwardMode(), **setting(DDIM()))
    network.requires_grad_(False)
    hidden = torch.ones(7, 1, dtype=torch.float64, requires_grad=True)
    with pytest.raises(UnreachableLeafError, match=r"shape \(7, 1\)"):
        sample(
            lambda x, t, z: network(x, t, z) * hidden.mean(), x_T, z, gradient=ForwardMode(),
            **setting(DDIM()),
        )  # fmt: skip
    with pytest.raises(ValueError, match="changes its condition z in place"):
        sample(
            lambda x, t, z: network(x, t, z.mul_(0.9)), x_T, z, gradient=ForwardMode(),
            **setting(DDIM()),
        )  # fmt: skip
    directions = normal(3, DIM, seed=0)
    for x, given in ((x_T.requires_grad_(), directions), (x_T.detach(), directions[:, None])):
        with pytest.raises(ValueError, match=r"shape \(K, \*x_T.shape\).*requires_grad="):
            sample(
                network, x, z, gradient=ForwardMode(directions=given), **setting(DDIM())
            )  # fmt: skip
    with pytest.raises(NotSupportedError, match="no directions for complex numbers"):
        sample(
            lambda x, t, z: network(x, t, z.real), x_T.detach(),
            torch.complex(z, z).detach().requires_grad_(), gradient=ForwardMode(),
            **setting(DDIM()),
        )  # fmt: skip
    with pytest.raises(ValueError, match="limit must be at least 1"):
        ForwardMode(limit=0)
