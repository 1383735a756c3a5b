"""SdeBacksolve against AdjointDEIS, against torchsde's own adjoint, and by its order."""

import math
import sys
import warnings
from functools import cache

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    MLPDenoiser,
    agree,
    differentiate,
    generator,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)
from torch import nn

from adjointdeis import PerStep, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, RecordedNoise
from adjointdeis.diffusion.transition import path_scale
from adjointdeis.gradients import (
    AdjointDEIS,
    DiscreteAdjoint,
    InconsistentStepError,
    LargeAdjointStepWarning,
    MissingPackageError,
    NotSupportedError,
    SdeBacksolve,
    UnreachableLeafError,
    sde_backsolve,
)
from adjointdeis.solvers import DDIM, SDEDPMSolver

torchsde = pytest.importorskip("torchsde")
pytestmark = pytest.mark.filterwarnings(
    "ignore::adjointdeis.gradients.large_steps.LargeAdjointStepWarning"
)
SCHEDULE = VPLinear()


class RememberedPath(BrownianPath):
    """A Brownian path that draws each of its values once."""

    @cache  # noqa: B019
    def value(self, rho: float) -> torch.Tensor:
        return super().value(rho)


PATH = RememberedPath((BATCH, DIM), seed=6)


def grid_of(steps: int) -> TimeGrid:
    return TimeGrid.uniform_lmbda(SCHEDULE, steps, t_min=0.1, t_max=0.5)


def solve(method, steps: int, noise=PATH, denoiser=mixture):
    return differentiate(
        denoiser(), *inputs(), method, solver=SDEDPMSolver(), grid=grid_of(steps), noise=noise
    )


@pytest.mark.parametrize("noise", ["path", "recorded"])
@pytest.mark.parametrize("denoiser", [mixture, MLPDenoiser], ids=lambda f: f.__name__)
def test_euler_is_adjoint_deis_with_resolved_states(denoiser, noise: str) -> None:
    drawn = PATH if noise == "path" else RecordedNoise.draw(9, (BATCH, DIM), 2, torch.float64)
    found = solve(SdeBacksolve(), 9, drawn, denoiser)
    same = solve(AdjointDEIS(states="resolved"), 9, drawn, denoiser)
    for part, value in same.parts().items():
        assert agree(found.parts()[part], value, 1e-11), part
    cost = found.rollout.cost
    assert (cost.nfe_forward, cost.nfe_backward, cost.vjps) == (9, 9 + 1, 9)
    assert (cost.peak_latents, cost.peak_graphs) == (1, 1)


class Drawn:
    """Noise of a user: of the step's number, of a counter, or without an increment."""

    def __init__(self, kind: str) -> None:
        self.kind, self.calls = kind, 0

    def normal(self, s, t, like):
        self.calls += 1
        seed = self.calls if self.kind == "counter" else s.index
        return torch.randn(like.shape, generator=generator(seed), dtype=like.dtype)

    def __getattr__(self, name: str):
        if name != "increment" or self.kind == "no increment":
            raise AttributeError(name)

        def increment(grid, first, last, like):
            steps = [(grid[i], grid[i + 1]) for i in range(first, last)]
            total = sum(path_scale(s, t) * self.normal(s, t, like) for s, t in steps)
            return -total if self.kind == "wrong sign" else total

        return increment


@pytest.mark.parametrize("kind", ["function", "counter", "wrong sign", "no increment"])
@pytest.mark.parametrize("method", [SdeBacksolve(), AdjointDEIS(states="resolved")], ids=str)
def test_noise_that_does_not_repeat_the_path_is_refused(method, kind: str) -> None:
    if kind == "function":
        nodes, like = grid_of(4), inputs()[0]
        recorded = [Drawn(kind).normal(nodes[i], nodes[i + 1], like) for i in range(4)]
        wanted, found = (solve(method, 4, noise) for noise in (recorded, Drawn(kind)))
        assert agree(found.x_T, wanted.x_T)
        return
    with pytest.raises((InconsistentStepError, ValueError), match=r"noise|no increment\(grid"):
        solve(method, 4, Drawn(kind))


@pytest.mark.parametrize(("method", "per_step"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_each_step_costs_its_stages(method: str, per_step: int) -> None:
    cost = solve(SdeBacksolve(method, substeps=3), 4).rollout.cost
    assert cost.nfe_backward - 1 == cost.vjps == 4 * 3 * per_step


def errors(method, steps: list[int]) -> dict[str, list[float]]:
    """Against the exact gradient of the sampled path."""
    found: dict[str, list[float]] = {"x_T": [], "z": [], "theta": []}
    for n in steps:
        exact, other = solve(DiscreteAdjoint(), n).parts(), solve(method, n).parts()
        for part, values in found.items():
            values.append(relative_error(other[part], exact[part]))
    return found


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
def test_it_converges_with_order_one_to_the_gradient_of_the_path(method: str) -> None:
    steps = [20, 40, 80]
    for part, values in errors(SdeBacksolve(method), steps).items():
        assert observed_order(steps, values) == pytest.approx(1.0, abs=0.35), (part, values)


def test_another_path_is_another_gradient(monkeypatch) -> None:
    """Without the increments that sampling saw nothing converges."""
    forward = sde_backsolve.PathOfInterval.__call__
    monkeypatch.setattr(
        sde_backsolve.PathOfInterval, "__call__", lambda self, a, b: -forward(self, a, b)
    )
    values = errors(SdeBacksolve(), [20, 40, 80])["z"]
    assert observed_order([20, 40, 80], values) < 0.3 and values[-1] > 0.05


def test_substeps_follow_the_same_path() -> None:
    """The increments of the substeps add up, and their refinement converges."""
    grid, like = grid_of(4), torch.zeros(BATCH, DIM, dtype=torch.float64)
    chain = type("Held", (), {"noise": PATH, "grid": grid})()
    one = sde_backsolve.PathOfInterval(chain, grid[1], grid[2], like)
    parts = sum(one(k / 5, (k + 1) / 5) for k in range(5))
    assert agree(parts, one(0.0, 1.0))
    assert agree(one(0.0, 1.0), -PATH.increment(grid, 1, 2, like).reshape(1, -1))
    substeps = [1, 2, 4, 8]
    limit = solve(SdeBacksolve(substeps=64), 6).x_T
    gaps = [relative_error(solve(SdeBacksolve(substeps=k), 6).x_T, limit) for k in substeps]
    assert observed_order(substeps, gaps) == pytest.approx(1.0, abs=0.3), gaps


class ReverseSDE(nn.Module):
    """The sampler on a clock that runs through a grid with equal steps of rho, for torchsde."""

    def __init__(self, grid: TimeGrid, z: torch.Tensor, noise_type: str, sde_type: str) -> None:
        super().__init__()
        self.network, self.z, self.grid = mixture(), nn.Parameter(z.clone()), grid
        self.noise_type, self.sde_type = noise_type, sde_type
        self.width = grid[1].rho - grid[0].rho

    def f(self, reading, y):
        rho = torch.as_tensor(self.grid[0].rho + self.width * float(reading), dtype=torch.float64)
        t = SCHEDULE.t_of(-rho.log()).clamp(self.grid.t[-1], self.grid.t[0])
        x = float(SCHEDULE.alpha(t)) * y.reshape(BATCH, DIM)
        return 2.0 * self.width * self.network(x, t, self.z).reshape(1, -1)

    def g(self, reading, y):
        del reading
        if self.noise_type == "diagonal":
            return torch.ones_like(y)
        return torch.eye(y.shape[1], dtype=y.dtype).expand(1, -1, -1)


class Increments(torchsde.BaseBrownian):
    """The package's path on the same clock; one object for both passes."""

    dtype, device, shape = torch.float64, torch.device("cpu"), (1, BATCH * DIM)
    levy_area_approximation = "none"

    def __init__(self, grid: TimeGrid) -> None:
        self.grid, self.width = grid, grid[1].rho - grid[0].rho

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        first, last = (self.grid[0].rho + self.width * float(t) for t in (ta, tb))
        return (PATH.value(first) - PATH.value(last)).reshape(1, -1)

    def __repr__(self) -> str:
        return "Increments()"


def equal_rho(steps: int) -> TimeGrid:
    ends = [float(SCHEDULE.rho(t)) for t in (0.5, 0.1)]
    rho = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    return TimeGrid.from_times(SCHEDULE, SCHEDULE.t_of(-rho.log()))


def by_torchsde(grid, solve, noise_type="additive", sde_type="ito", **options):
    x_T, z = inputs()
    sde = ReverseSDE(grid, z, noise_type, sde_type)
    x = x_T.clone().requires_grad_()
    ys = solve(
        sde, (x / grid[0].alpha).reshape(1, -1),
        torch.tensor([0.0, float(grid.steps)], dtype=torch.float64),
        bm=Increments(grid), dt=1.0, **options,
    )  # fmt: skip
    x_0 = grid[-1].alpha * ys[-1].reshape(BATCH, DIM)
    (x_0 * normal(BATCH, DIM, seed=99)).sum().backward()
    theta = torch.cat([p.grad.flatten() for p in sde.network.parameters()])
    return x_0.detach(), {"x_T": x.grad, "z": sde.z.grad, "theta": theta}


def test_it_is_torchsdes_own_adjoint() -> None:
    """Drift adjoint without a g term, z and theta included; additive or diagonal is the same."""
    grid = equal_rho(12)
    x_0, additive = by_torchsde(
        grid, torchsde.sdeint_adjoint, method="euler", adjoint_method="euler"
    )
    found = differentiate(
        mixture(), *inputs(), SdeBacksolve(), solver=SDEDPMSolver(), grid=grid, noise=PATH
    )
    assert agree(found.rollout.x_0, x_0, 1e-11)
    _, diagonal = by_torchsde(
        grid, torchsde.sdeint_adjoint, "diagonal", method="euler", adjoint_method="euler"
    )
    for part, value in additive.items():
        assert agree(found.parts()[part], value, 1e-10), part
        assert agree(diagonal[part], value, 1e-11), part


def test_reversible_heun_on_the_same_path_is_exact() -> None:
    """torchsde's reversible pair on a commensurate grid is autograd through its steps."""
    grid = equal_rho(12)
    setting = {"noise_type": "additive", "sde_type": "stratonovich", "method": "reversible_heun"}
    x_0, exact = by_torchsde(grid, torchsde.sdeint, **setting)
    same, found = by_torchsde(
        grid, torchsde.sdeint_adjoint, adjoint_method="adjoint_reversible_heun", **setting
    )
    assert agree(same, x_0)
    for part, value in exact.items():
        assert agree(found[part], value, 1e-11), part


@pytest.mark.filterwarnings("default::adjointdeis.gradients.large_steps.LargeAdjointStepWarning")
def test_euler_warns_of_steps_that_flip_the_sign_and_substeps_cure_it() -> None:
    x_T, z = inputs()
    x_T.requires_grad_()
    grid = grid_of(4)
    assert math.log(1.5) < float(grid.h.max()) < math.log(2.5)
    setting = {"solver": SDEDPMSolver(), "grid": grid, "noise": PATH}
    with pytest.warns(LargeAdjointStepWarning, match=r"SdeBacksolve: .* > ln 1\.5"):
        sample(MLPDenoiser(), x_T, z, gradient=SdeBacksolve(), **setting)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(MLPDenoiser(), x_T, z, gradient=SdeBacksolve(substeps=4), **setting)


def test_what_it_cannot_do_is_refused_by_name(monkeypatch) -> None:
    network, (x_T, zs) = MLPDenoiser(), inputs(6)
    x_T.requires_grad_()
    setting = {"grid": grid_of(6), "gradient": SdeBacksolve()}
    sde = {"solver": SDEDPMSolver(), "noise": PATH}
    with pytest.raises(NotSupportedError, match="ode"):
        sample(network, x_T, zs[0], solver=DDIM(), **setting)
    with pytest.raises(NotSupportedError, match="scheduled condition"):
        sample(network, x_T, PerStep([z.requires_grad_() for z in zs]), **sde, **setting)
    with pytest.raises(UnreachableLeafError, match="parameters"):
        sample(lambda x, t, z: network(x, t, z), x_T, zs[0], **sde, **setting)
    for wrong, message in (({"method": "srk"}, "'heun'"), ({"substeps": 0}, "at least 1")):
        with pytest.raises(ValueError, match=message):
            SdeBacksolve(**wrong)
    recorded = RecordedNoise.draw(6, (BATCH, DIM), 0, torch.float64)
    with pytest.raises(ValueError, match="BrownianPath"):
        sample(
            network, x_T, zs[0], solver=SDEDPMSolver(), noise=recorded, grid=grid_of(6),
            gradient=SdeBacksolve(substeps=2),
        )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torchsde", None)
    x_0 = sample(network, x_T, zs[0].detach(), **sde, **setting).x_0
    with pytest.raises(MissingPackageError, match=r"adjointdeis\[ode\]"):
        x_0.sum().backward()
