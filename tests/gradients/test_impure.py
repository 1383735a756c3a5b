"""Networks and samplers that are no functions of their arguments: the gradient, or a named error.

One column more of the matrix: every method of the catalogue against every kind of impurity.
A cell either gives what the method gives for the pure network with the same outputs (for an exact
method, what autograd gives), or raises one of the named errors; it is never silent.
"""

import functools
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import BATCH, COND, DIM, agree, inputs, normal
from torch import nn

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    AdjointDEIS,
    AdjointDPM,
    Backprop,
    Backsolve,
    DiscreteAdjoint,
    InconsistentStepError,
    NotSupportedError,
    Reversible,
    SdeBacksolve,
    Surrogate,
    UnreachableLeafError,
    UnusedConditionWarning,
)
from adjointdeis.gradients.catalogue import CATALOGUE, Entry
from adjointdeis.gradients.consistency import EvaluationCheck
from adjointdeis.solvers import BDIA, DDIM, RungeKutta, SDEDPMSolver

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
STEPS = 6
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS, t_min=0.05, t_max=0.6)
COTANGENT = normal(BATCH, DIM, seed=99)
AVAILABLE = [one for one in CATALOGUE if one.available]


class Body(nn.Module):
    """A smooth network, pure by itself."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b = nn.Linear(DIM + 4, 12).double(), nn.Linear(12, DIM).double()
        self.middle = nn.Identity() if middle is None else middle

    def forward(self, x, t, z):
        t = t.to(x).expand(x.shape[0], 1)
        return t * x + self.b(torch.tanh(self.middle(self.a(torch.cat([x, z, t], 1)))))


class Counting(Body):
    """A Python number."""

    calls = 0

    def forward(self, x, t, z):
        self.calls += 1
        return super().forward(x, t, z) * (1.0 + 0.1 * (self.calls % 7))


class CountingBuffer(Body):
    """A number in a buffer, which is repeated like every buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.float64))

    def forward(self, x, t, z):
        self.calls += 1.0
        return super().forward(x, t, z) * (1.0 + 0.1 * (self.calls % 7))


def counting_closure():
    body, calls = Body(), [0]

    def denoiser(x, t, z):
        calls[0] += 1
        return body(x, t, z) * (1.0 + 0.1 * (calls[0] % 7))

    return denoiser, list(body.parameters())


class Cached(Body):
    """Features of an earlier evaluation, in every third one made anew (DeepCache)."""

    def __init__(self, first: int = 0) -> None:
        super().__init__()
        self.calls, self.features, self.first = 0, None, first

    def forward(self, x, t, z):
        t = t.to(x).expand(x.shape[0], 1)
        if self.calls % 3 == 0 or self.calls < self.first or self.features is None:
            self.features = torch.tanh(self.a(torch.cat([x, z, t], 1))).detach()
        self.calls += 1
        return t * x + self.b(self.features) + 0.1 * self.a(torch.cat([x, z, t], 1))[:, :DIM]


class OwnGenerator(Body):
    """A torch.Generator that the network holds."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x, t, z):
        noise = torch.randn(x.shape, generator=self.generator, dtype=x.dtype)
        return super().forward(x * (1.0 + 0.3 * noise), t, z)


class OtherNoise(Body):
    """Noise of numpy, or of the standard library."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.own = source, np.random.default_rng(4)

    def forward(self, x, t, z):
        if self.source == "numpy":
            noise = np.random.randn(*x.shape)  # noqa: NPY002
        elif self.source == "numpy's own":
            noise = self.own.standard_normal(x.shape)
        else:
            noise = [[random.gauss(0, 1) for _ in row] for row in x]
        return super().forward(x * (1.0 + 0.3 * torch.tensor(noise, dtype=x.dtype)), t, z)


class OutOfSight(Body):
    """Noise of a source that Python does not show, such as ``secrets``; the same in each test."""

    def __init__(self) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(2)
        self.noise = (float(torch.rand((), generator=source)) for _ in iter(int, 1))

    def forward(self, x, t, z):
        return super().forward(x * (1.0 + 0.3 * next(self.noise)), t, z)


class InPlace(Body):
    """Preconditioning written into its input."""

    def forward(self, x, t, z):
        x.mul_(0.9)
        return super().forward(x, t, z)


def late_leaf():
    body, late = Body(), torch.full((DIM,), 0.3, dtype=torch.float64, requires_grad=True)
    first = float(GRID.t[STEPS // 2])

    def denoiser(x, t, z):
        eps = body(x, t, z)
        return eps if float(t) > first else eps * late

    return denoiser, list(body.parameters())


IMPURE = {
    "counter": Counting,
    "counter in a buffer": CountingBuffer,
    "counter in a closure": counting_closure,
    "cache": Cached,
    "cache of later steps": lambda: Cached(first=3),
    "own generator": OwnGenerator,
    "numpy": lambda: OtherNoise("numpy"),
    "numpy's own": lambda: OtherNoise("numpy's own"),
    "random": lambda: OtherNoise("random"),
    "out of sight": OutOfSight,
    "batch norm": lambda: Body(nn.BatchNorm1d(12).double()),
    "batch norm without momentum": lambda: Body(nn.BatchNorm1d(12, momentum=None).double()),
    "instance norm": lambda: Body(
        nn.Sequential(
            nn.Unflatten(1, (3, 4)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(1)
        ).double()
    ),
    "spectral norm": lambda: Body(
        nn.utils.parametrizations.spectral_norm(nn.Linear(12, 12)).double()
    ),
    "group norm": lambda: Body(nn.GroupNorm(3, 12).double()),
    "weight norm": lambda: Body(nn.utils.parametrizations.weight_norm(nn.Linear(12, 12)).double()),
    "dropout": lambda: Body(nn.Dropout(0.3)),
    "in place": InPlace,
    "late leaf": late_leaf,
}
NAMED = (InconsistentStepError, NotSupportedError, UnreachableLeafError)


def differentiate(make, one: Entry, method, calculus: str, grid: TimeGrid = GRID):
    """Gradients of what ``one`` has a gradient of, and the buffers afterwards."""
    torch.manual_seed(5)
    made = make()
    denoiser, weights = made if isinstance(made, tuple) else (made, list(made.parameters()))
    if not one.capability("theta"):
        weights = [weight.requires_grad_(False) for weight in weights]
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    x_T, z = inputs()
    x_T.requires_grad_(one.capability("x_T")), z.requires_grad_()
    noise = BrownianPath((BATCH, DIM), seed=8) if calculus == "sde" else None
    x_0 = sample(
        denoiser, x_T * 1.0, z, solver=one.solver(calculus), grid=grid, noise=noise,
        gradient=method, parameters=weights,
    ).x_0  # fmt: skip
    wanted = [leaf for leaf in (x_T, z, *weights) if leaf.requires_grad]
    found = torch.autograd.grad((x_0 * COTANGENT).sum(), wanted, allow_unused=True)
    buffers = dict(denoiser.named_buffers()) if isinstance(denoiser, nn.Module) else {}
    flat = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted, strict=True)]
    return torch.cat([g.flatten() for g in flat]), buffers


# What must not be refused by a method that takes the sampler's own steps again.
REPEATED = {
    "counter in a buffer", "own generator", "batch norm", "batch norm without momentum",
    "instance norm", "spectral norm", "group norm", "weight norm", "dropout", "in place",
}  # fmt: skip


@pytest.mark.parametrize("kind", IMPURE)
@pytest.mark.parametrize("one", AVAILABLE, ids=lambda one: one.name)
def test_no_cell_is_silent(one: Entry, kind: str) -> None:
    method = one.method()
    calculus = "ode" if one.ode is not None else "sde"
    exact, buffers = differentiate(IMPURE[kind], one, Backprop(), calculus)
    try:
        found, found_buffers = differentiate(IMPURE[kind], one, method, calculus)
    except NAMED:
        # A cut between sampler and network has no place where the network changes the sampler's x.
        cut = type(method) is Surrogate and kind == "in place"
        assert cut or not (isinstance(method, DiscreteAdjoint) and kind in REPEATED), kind
        return
    for name, value in buffers.items():
        assert agree(found_buffers[name].double(), value.double(), 1e-9), name
    if one.target == "chain":
        assert agree(found, exact, 1e-9)
    elif type(method).__name__ == "OneStep" and kind not in REPEATED:
        # Its one evaluation is the first of the sampling run, found again: one long step of that.
        long = TimeGrid.from_times(VPLinear(), GRID.t[[0, -1]])
        wanted, _ = differentiate(IMPURE[kind], one, Backprop(), calculus, long)
        assert agree(found, wanted, 1e-9)
    elif kind not in REPEATED:
        # An approximate method gives what it gives where it evaluates nothing that has changed:
        # a surrogate compares each of its active steps with the sampling run.
        unchecked = IMPURE[kind]()
        assert isinstance(unchecked, tuple) or isinstance(method, Surrogate), kind


# Methods that evaluate the network at no point of the sampling run: what they cost, and where.
ELSEWHERE = {
    "interpolated": (AdjointDEIS(states="interpolated", steps=STEPS + 1), DDIM(), STEPS + 1),
    "resolved": (AdjointDEIS(order=2, states="resolved"), DDIM(), STEPS),
    "resolved, SDE": (AdjointDEIS(states="resolved"), SDEDPMSolver(), STEPS),
    "one step": (AdjointDEIS(steps=1), DDIM(), 1),
    "AdjointDPM": (AdjointDPM(states="resolved"), DDIM(), STEPS),
    "AdjointDPM, adaptive": (AdjointDPM(method="dopri5"), DDIM(), None),
    "Backsolve": (Backsolve(), RungeKutta("heun"), None),
    "Backsolve, fixed": (Backsolve(method="euler"), DDIM(), STEPS),
    "SdeBacksolve": (SdeBacksolve(substeps=2), SDEDPMSolver(), 2 * STEPS),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_method_that_evaluates_elsewhere_takes_the_first_step_twice(name: str) -> None:
    method, solver, evaluations = ELSEWHERE[name]
    for package in ("torchdiffeq", "torchsde"):
        pytest.importorskip(package)

    def run(network, method):
        x_T, z = inputs()
        noise = BrownianPath((BATCH, DIM), seed=8) if solver.calculus == "sde" else None
        rollout = sample(
            network, x_T, z.requires_grad_(), solver=solver, grid=GRID, noise=noise, gradient=method
        )
        return torch.autograd.grad(rollout.x_0.sum(), z)[0], rollout.cost

    found, cost = run(Body(), method)
    unchecked, least = run(Body(), replace(method, check=False))
    assert torch.equal(found, unchecked)
    assert evaluations in (None, least.nfe_backward) and cost.vjps == least.vjps
    first_step = cost.nfe_forward // STEPS
    assert cost.nfe_backward == least.nfe_backward + first_step
    with pytest.raises(InconsistentStepError, match=r"evaluated again at t = 0\.6"):
        run(OutOfSight(), method)


def test_a_schedule_of_conditions_is_compared_where_no_step_was_evaluated_with_its_own() -> None:
    x_T, zs = inputs(STEPS)
    z = PerStep([value.requires_grad_() for value in zs])
    x_0 = sample(OutOfSight(), x_T, z, solver=DDIM(), grid=GRID, gradient=AdjointDEIS()).x_0
    with pytest.raises(InconsistentStepError, match=r"evaluated again at t = 0\.6"):
        x_0.sum().backward()


class Keeping(Body):
    """Values that are made once and kept for later steps, if it keeps any."""

    def __init__(self, keeps: bool) -> None:
        super().__init__()
        self.prompt, self.time = nn.Linear(COND, COND).double(), nn.Linear(1, DIM).double()
        self.keeps, self.kept = keeps, {}

    def once(self, key, make):
        if not self.keeps:
            return make()
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


class ProjectsOnce(Keeping):
    """A projection of z, such as the keys and values of a prompt."""

    def forward(self, x, t, z):
        return super().forward(x, t, self.once("z", lambda: torch.tanh(self.prompt(z))))


class ProjectsOncePerTensor(Keeping):
    """The same for every z that is another piece of memory."""

    def forward(self, x, t, z):
        return super().forward(x, t, self.once(z.data_ptr(), lambda: torch.tanh(self.prompt(z))))


class EmbedsEachTimeOnce(Keeping):
    """An embedding of the time that is looked up when a time comes again."""

    def forward(self, x, t, z):
        time = t.to(x).reshape(1, 1)
        return super().forward(x + self.once(float(t), lambda: torch.tanh(self.time(time))), t, z)


class EmbedsTheLastTimesOnce(Keeping):
    """Kept in the last step of the run alone, and looked up by the backward pass alone."""

    def forward(self, x, t, z):
        def embedded():
            return torch.tanh(self.time(t.to(x).reshape(1, 1)) * z[:, :1])

        last = float(t) < 0.5 * float(GRID.t[STEPS - 1] + GRID.t[STEPS - 2])
        return super().forward(x + (self.once(float(t), embedded) if last else embedded()), t, z)


class RemembersOutputs(Keeping):
    """What was evaluated at the same numbers is not evaluated again."""

    def forward(self, x, t, z):
        key = (float(t), float(x.detach().sum()), float(z.detach().sum()))
        return self.once(key, lambda: super(RemembersOutputs, self).forward(x, t, z))


@pytest.mark.parametrize("trained", [True, False], ids=["trained", "frozen"])
@pytest.mark.parametrize(
    "kind",
    [
        ProjectsOnce, ProjectsOncePerTensor, EmbedsEachTimeOnce, EmbedsTheLastTimesOnce,
        RemembersOutputs,
    ],
)  # fmt: skip
@pytest.mark.parametrize("one", AVAILABLE, ids=lambda one: one.name)
def test_a_cache_of_right_values_loses_no_gradient(one: Entry, kind, trained: bool) -> None:
    # The numbers are those of a pure network, so that no comparison of values finds anything.
    method, calculus = one.method(), "ode" if one.ode is not None else "sde"
    if trained and not type(method).theta:
        pytest.skip("gives no gradient of the weights")
    try:
        wanted, _ = differentiate(
            lambda: kind(False).requires_grad_(trained), one, method, calculus
        )
        found, _ = differentiate(lambda: kind(True).requires_grad_(trained), one, method, calculus)
    except NAMED as error:
        # Forward mode has no memory to be known by.
        named = ("keeps a value", "changes a state of its own", "Cannot access data pointer")
        assert any(name in str(error) for name in named)
        return
    assert agree(found, wanted, 1e-9)


@pytest.mark.parametrize("kind", [ProjectsOnce, RemembersOutputs])
@pytest.mark.parametrize("one", [o for o in AVAILABLE if o.target == "chain"], ids=lambda o: o.name)
def test_a_cache_that_begins_at_any_step_loses_no_gradient(one: Entry, kind) -> None:
    # Too many steps for each to have a graph in the sampling run, and a step that has none.
    grid = TimeGrid.uniform_lmbda(VPLinear(), 14, t_min=0.05, t_max=0.6)

    class Late(kind):
        def __init__(self, keeps: bool) -> None:
            super().__init__(False)
            self.begins = keeps

        def forward(self, x, t, z):
            self.keeps = self.begins and float(t) < 0.5 * float(grid.t[4] + grid.t[5])
            return super().forward(x, t, z)

    calculus = "ode" if one.ode is not None else "sde"
    found = []
    for keeps in (False, True):
        try:
            network = functools.partial(Late, keeps)
            found.append(differentiate(network, one, one.method(), calculus, grid)[0])
        except NAMED as error:
            assert keeps and ("keeps a value" in str(error) or "data pointer" in str(error))
            return
    assert agree(found[1], found[0], 1e-9)


class _Thread(threading.local):
    """What a thread holds for itself."""

    kept = None


def remembers(kind: str):
    """``once(make)`` gives what was made by its first call."""
    key, weak, own, made = nn.Module(), weakref.WeakKeyDictionary(), _Thread(), []

    @functools.lru_cache
    def cached():
        return made[0]()

    def generated():
        kept = made[0]()
        while True:
            yield kept

    def once(make):
        made[:] = [make]
        if kind == "weak dictionary" and key not in weak:
            weak[key] = make()
        if kind == "thread" and own.kept is None:
            own.kept = make()
        return {
            "lru_cache": cached, "generator": generator.__next__,
            "weak dictionary": lambda: weak[key], "thread": lambda: own.kept,
        }[kind]()  # fmt: skip

    generator = generated()
    return once


@pytest.mark.parametrize("kind", ["lru_cache", "generator", "weak dictionary", "thread"])
@pytest.mark.parametrize("begins", [3, 6, 11])
def test_a_late_cache_out_of_sight_is_no_silent_loss(kind: str, begins: int) -> None:
    # No step in which it begins has a graph in the sampling run.
    grid = TimeGrid.uniform_lmbda(VPLinear(), 14, t_min=0.05, t_max=0.6)
    body, (x_T, z) = Body().requires_grad_(False), inputs()
    project = nn.Linear(COND, COND).double().requires_grad_(False)

    def gradient(keeps: bool, **options):
        once = remembers(kind)

        def denoiser(x, t, z):
            late = keeps and float(t) < 0.5 * float(grid.t[begins - 1] + grid.t[begins])

            def made():
                return torch.tanh(project(z))

            return body(x, t, once(made) if late else made())

        x_0 = sample(
            denoiser, x_T, z.requires_grad_(), solver=DDIM(), grid=grid,
            gradient=DiscreteAdjoint(**options),
        ).x_0  # fmt: skip
        return torch.autograd.grad(x_0.sum(), z)[0]

    wanted = gradient(False)
    with pytest.raises(UnreachableLeafError, match="keeps a value"):
        gradient(True)
    # The calls of the message: all graphs kept are right, and unchecked it is as wrong as it says.
    assert agree(gradient(True, budget="1 GiB"), wanted)
    assert not agree(gradient(True, check=False), wanted, 1e-3)


@pytest.mark.parametrize("held", ["before", "late", "never read"])
def test_a_table_out_of_sight_is_no_kept_value(held: str) -> None:
    """Unlike a projection of z it leads to nothing that the step was given."""
    grid = TimeGrid.uniform_lmbda(VPLinear(), 14, t_min=0.05, t_max=0.6)
    body, (x_T, z), once = Body().requires_grad_(False), inputs(), remembers("lru_cache")

    def denoiser(x, t, z):
        if float(t) > float(grid.t[5]):
            return body(x, t, z)
        table = once(lambda: torch.sin(torch.arange(1, DIM + 1)).to(x))
        return body(x, t, z) + (0.0 if held == "never read" else table)

    if held == "before":
        denoiser(x_T, grid.t[9], z)
    found = []
    x_T.requires_grad_()
    for method in (DiscreteAdjoint(), Backprop()):
        x_0 = sample(denoiser, x_T, z, solver=DDIM(), grid=grid, gradient=method).x_0
        found.append(torch.autograd.grad(x_0.sum(), x_T)[0])
    assert agree(*found)


class _Keeping(BrownianPath):
    """Hands out the very tensors that it keeps out of sight."""

    value = functools.lru_cache(BrownianPath.value)

    @functools.lru_cache  # noqa: B019
    def _normal(self, s, t):
        return super().normal(s, t, torch.zeros((), dtype=torch.float64))

    def normal(self, s, t, like):
        return self._normal(s, t)


@pytest.mark.parametrize("method", [DiscreteAdjoint(), SdeBacksolve(), AdjointDEIS()])
def test_noise_that_a_path_keeps_out_of_sight_is_a_constant(method) -> None:
    grid = TimeGrid.uniform_lmbda(VPLinear(), 14, t_min=0.05, t_max=0.6)
    (x_T, z), body, found = inputs(), Body().requires_grad_(False), []
    for path in (BrownianPath, _Keeping):
        x_0 = sample(
            body, x_T.requires_grad_(), z, solver=SDEDPMSolver(), grid=grid, gradient=method,
            noise=path(tuple(x_T.shape), seed=3),
        ).x_0  # fmt: skip
        found.append(torch.autograd.grad(x_0.sum(), x_T)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "method", [DiscreteAdjoint(), AdjointDEIS(), Surrogate(active=range(-3, 0))], ids=str
)
def test_a_value_kept_between_two_steps_and_given_up_is_found(method) -> None:
    # Neither there when the run begins nor when it ends.
    grid = TimeGrid.uniform_lmbda(VPLinear(), 14, t_min=0.05, t_max=0.6)
    body, (x_T, z), kept = Body().requires_grad_(False), inputs(), []

    def denoiser(x, t, z):
        if not float(grid.t[10]) < float(t) < float(grid.t[3]):
            kept.clear()
            return body(x, t, z)
        if not kept:
            kept.append(torch.tanh(z))
        return body(x, t, kept[0])

    with pytest.raises(UnreachableLeafError, match="keeps a value"):
        x_0 = sample(
            denoiser, x_T, z.requires_grad_(), solver=DDIM(), grid=grid, gradient=method
        ).x_0
        x_0.sum().backward()


@pytest.mark.parametrize("method", [DiscreteAdjoint(), DiscreteAdjoint(snapshots=40)], ids=str)
def test_a_value_kept_by_the_backward_pass_alone_is_found(method) -> None:
    """What a recomputed step keeps for an earlier one, which is recomputed later."""
    grid = TimeGrid.uniform_lmbda(VPLinear(), 40, t_min=0.05, t_max=0.6)
    body, (x_T, z) = Body().requires_grad_(False), inputs()
    kept, goes_back, last = [], [], float(grid.t[30])

    def denoiser(x, t, z):
        if goes_back and not kept and float(t) <= last:
            kept.append(torch.tanh(z))
        return body(x, t, kept[0] if kept else torch.tanh(z))

    x_T.requires_grad_(), z.requires_grad_()
    x_0 = sample(denoiser, x_T, z, solver=DDIM(), grid=grid, gradient=method).x_0
    goes_back.append(True)
    with pytest.raises(UnreachableLeafError, match="keeps a value"):
        torch.autograd.grad(x_0.sum(), (x_T, z))


def detaching():
    """The same numbers in every call, and in every other one no gradient of z."""
    body, calls = Body(), [0]

    def denoiser(x, t, z):
        calls[0] += 1
        return body(x, t, z.detach() if calls[0] % 2 else z)

    return denoiser, list(body.parameters())


def toggling():
    """The same with a switch, which is where it was after two calls."""
    body, odd = Body(), [True]

    def denoiser(x, t, z):
        odd[0] = not odd[0]
        return body(x, t, z if odd[0] else z.detach())

    return denoiser, list(body.parameters())


def freezing():
    """A weight that is frozen in every other call."""
    body, calls = Body(), [0]

    def denoiser(x, t, z):
        calls[0] += 1
        body.b.weight.requires_grad_(calls[0] % 2 == 0)
        try:
            return body(x, t, z)
        finally:
            body.b.weight.requires_grad_()

    return denoiser, list(body.parameters())


def drawing():
    """No gradient of z in calls that are drawn."""
    body = Body()

    def denoiser(x, t, z):
        return body(x, t, z.detach() if random.random() < 0.5 else z)

    return denoiser, list(body.parameters())


@pytest.mark.parametrize("kind", [detaching, toggling, freezing, drawing])
@pytest.mark.parametrize("one", [o for o in AVAILABLE if o.target == "chain"], ids=lambda o: o.name)
def test_a_graph_that_counts_calls_is_refused(one: Entry, kind) -> None:
    # No number differs, so that only the graphs can be compared.
    calculus = "ode" if one.ode is not None else "sde"
    wanted, _ = differentiate(kind, one, Backprop(), calculus)
    try:
        found, _ = differentiate(kind, one, one.method(), calculus)
    except NAMED:
        return
    assert agree(found, wanted, 1e-9)


def test_a_table_that_is_made_late_and_depends_on_nothing_is_no_kept_value() -> None:
    # Made at every step, so that each has a graph and shows that nothing leads to z.
    class Table(Keeping):
        def forward(self, x, t, z):
            table = self.once(float(t), lambda: torch.sin(t * torch.arange(1, DIM + 1)).to(x))
            return super().forward(x + table, t, z)

    one = next(o for o in AVAILABLE if o.name == "DiscreteAdjoint")
    grid = TimeGrid.uniform_lmbda(VPLinear(), 14, t_min=0.05, t_max=0.6)
    wanted, _ = differentiate(lambda: Table(True), one, Backprop(), "ode", grid)
    found, _ = differentiate(lambda: Table(True), one, one.method(), "ode", grid)
    assert agree(found, wanted, 1e-10)


def test_a_backward_pass_in_another_thread_finds_a_kept_value():
    # That of a GPU runs in a thread of the device; any caller may start one of its own.
    torch.manual_seed(3)
    network, (x_T, z) = EmbedsEachTimeOnce(True), inputs()
    x_0 = sample(network, x_T.requires_grad_(), z, solver=DDIM(), grid=GRID).x_0
    with ThreadPoolExecutor() as pool, pytest.raises(UnreachableLeafError, match="keeps a value"):
        pool.submit(x_0.sum().backward).result()


def test_a_view_of_a_weight_made_before_the_run_is_no_kept_value():
    # It needs nothing of its step, so that every step may go back through it.
    torch.manual_seed(3)
    weight = torch.randn(DIM, DIM, dtype=torch.float64, requires_grad=True)
    view, (x_T, z) = weight.t(), inputs()
    found = []
    for method in (Backprop(), DiscreteAdjoint()):
        x_0 = sample(
            lambda x, t, z: torch.tanh(x @ view), x_T, z, solver=DDIM(), grid=GRID,
            gradient=method, parameters=[weight],
        ).x_0  # fmt: skip
        with ThreadPoolExecutor() as pool:
            found.append(pool.submit(torch.autograd.grad, x_0.sum(), weight).result()[0])
    assert agree(found[1], found[0])


@pytest.mark.parametrize("method", [DiscreteAdjoint(), Reversible()], ids=str)
def test_a_prompt_projected_in_a_preview_is_no_silent_zero(method):
    network, (x_T, z) = ProjectsOnce(True), inputs()
    solver = BDIA() if isinstance(method, Reversible) else DDIM()
    with torch.no_grad():
        sample(network, x_T, z, solver=solver, grid=GRID)
    x_0 = sample(network, x_T, z.requires_grad_(), solver=solver, grid=GRID, gradient=method).x_0
    with pytest.warns(UnusedConditionWarning, match="empty that cache"):
        x_0.sum().backward()


def test_an_autocast_cast_of_a_weight_is_no_lost_gradient():
    # torch keeps the casts of an autocast region; their graph leads to the weight.
    torch.manual_seed(3)
    net = nn.Linear(DIM, DIM)
    x_T = torch.randn(BATCH, DIM, requires_grad=True)
    found = []
    for method in (Backprop(), DiscreteAdjoint()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_0 = sample(
                lambda x, t, z: net(x).float(), x_T, solver=DDIM(), grid=GRID, gradient=method,
                parameters=list(net.parameters()),
            ).x_0  # fmt: skip
        found.append(torch.autograd.grad(x_0.sum(), [x_T, *net.parameters()]))
    for one, other in zip(*found, strict=True):
        assert agree(one.double(), other.double(), 1e-2)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_number_that_is_not_finite_is_repeated_and_no_inconsistency(value):
    # A pure network that overflows: its caller must see the number, not be told of a counter.
    x_T = torch.ones(2, DIM, dtype=torch.float64, requires_grad=True)
    rollout = sample(lambda x, t, z: x * value, x_T, solver=DDIM(), grid=GRID)
    rollout.x_0.sum().backward()
    assert not x_T.grad.isfinite().all()


def test_an_evaluation_is_known_again_by_its_x_zero_included():
    check, t = EvaluationCheck(), torch.tensor(0.5)
    for x in (torch.zeros(2, DIM), torch.ones(2, DIM)):
        check.record(x, t, x + 1.0)
        assert check.matches(x, t, 0, x + 1.0, 1e-6) is True
        assert check.matches(x, t, 0, x + 1.1, 1e-6) is False
        assert check.matches(x + 0.5, t, 0, x + 1.0, 1e-6) is None
        assert check.matches(x, t, 1, x + 1.0, 1e-6) is None
