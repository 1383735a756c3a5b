"""What belongs to two samplers is refused, and what is one goes through."""

import warnings

import pytest
import torch
from oracles import MLPDenoiser, gaussian
from torch import nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import (
    DDPM,
    EpsFromFlow,
    Guidance,
    InitialNoiseWarning,
    OtherSamplerError,
    RectifiedFlow,
    VarianceExploding,
    VPCosine,
)
from adjointdeis.gradients import Backprop, DiscreteAdjoint
from adjointdeis.solvers import DDIM, FlowEuler, SDEDPMSolver, StepFunction

STEPS = 6
X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))


def pulled(x, t, z):
    return 0.1 * torch.tanh(x)


def samplers(*names_and_configs):
    diffusers = pytest.importorskip("diffusers")
    from tiny_schedulers import Network, made, model_of

    assert diffusers
    return [
        model_of(Network(), made(name, config)).sampler(steps)
        for name, config, steps in names_and_configs
    ]


V = {"prediction_type": "v_prediction", "clip_sample": False}
PLAIN = ("DDIMScheduler", {"clip_sample": False}, STEPS)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (("DDIMScheduler", V, STEPS), "predicts v_prediction, and the solver asks for epsilon"),
        (("DDIMScheduler", {"timestep_spacing": "trailing"}, STEPS), "at other times"),
        (("DDIMScheduler", {}, STEPS + 1), "at other times"),
        (("DDIMScheduler", {"trained_betas": [1e-3] * 1000}, STEPS), "other noise levels"),
        (("FlowMatchEulerDiscreteScheduler", {}, STEPS), "predicts velocity"),
    ],
)  # fmt: skip
def test_the_denoiser_of_another_scheduler_is_refused(other: tuple, message: str) -> None:
    mine, theirs = samplers(PLAIN, other)
    z = torch.randn(2, 2)
    for denoiser in (theirs.denoiser, Guidance(theirs.denoiser, z, 2.0)):
        with pytest.raises(OtherSamplerError, match=rf"{message}.*solver=sampler\.solver"):
            sample(denoiser, mine.initial(X), z, solver=mine.solver, grid=mine.grid)
    # Two runs of one setting may stand for each other.
    (again,) = samplers(PLAIN)
    sample(again.denoiser, mine.initial(X), z, solver=mine.solver, grid=mine.grid)


def test_steps_that_are_counted_and_times_are_not_mixed() -> None:
    (sampler,) = samplers(PLAIN)
    times = TimeGrid.from_times(VPLinear(), torch.linspace(1.0, 0.0, STEPS + 1).double())
    with pytest.raises(OtherSamplerError, match=r"model\.denoiser.*grid=model\.grid"):
        sample(sampler.denoiser, X, torch.randn(2, 2), solver=DDIM(), grid=times)
    eps = EpsFromFlow(lambda x, t, z: x, RectifiedFlow())
    with pytest.raises(OtherSamplerError, match=r"solver=sampler\.solver"):
        sample(eps, sampler.initial(X), solver=sampler.solver, grid=sampler.grid)

    def step(denoiser, x, z, s, t):
        return x - 0.1 * denoiser(x, s.t, z)

    # A step of one's own may count as well.
    sample(sampler.denoiser, X, torch.randn(2, 2), solver=StepFunction(step), grid=sampler.grid)


@pytest.mark.parametrize("grid_of", [VPCosine(), RectifiedFlow(), VarianceExploding(20.0)])
@pytest.mark.parametrize("guided", [False, True])
def test_the_schedule_of_the_denoiser_is_that_of_the_grid(grid_of, guided: bool) -> None:
    x, z, grid = torch.randn(2, 4).double(), torch.randn(2, 3).double(), {}
    for schedule in (VPLinear(), grid_of):
        grid[schedule] = TimeGrid.from_times(schedule, torch.linspace(0.9, 0.1, 5).double())
    denoiser: nn.Module = gaussian(VPLinear())
    denoiser = Guidance(denoiser, z, 2.0) if guided else denoiser
    with pytest.raises(OtherSamplerError, match=r"has the schedule VPLinear.*denoiser\.schedule"):
        sample(denoiser, x, z, solver=DDIM(), grid=grid[grid_of])
    sample(denoiser, x, z, solver=DDIM(), grid=grid[VPLinear()])
    # Made anew it is the same one.
    sample(EpsFromFlow(pulled, DDPM()), x, solver=DDIM(), grid=TimeGrid.uniform_lmbda(DDPM(), 3))


def test_a_velocity_is_no_noise() -> None:
    x, grid = torch.randn(2, 4), TimeGrid.uniform_time(RectifiedFlow(), 3)
    eps = EpsFromFlow(pulled, RectifiedFlow())
    with pytest.raises(OtherSamplerError, match="predicts the noise, and FlowEuler asks"):
        sample(eps, x, solver=FlowEuler(), grid=grid)
    velocity = MLPDenoiser().float()
    velocity.predicts = "velocity"  # as that of from_diffusers says
    with pytest.raises(OtherSamplerError, match=r"EpsFromFlow\(network, schedule\)"):
        sample(velocity, x, torch.randn(2, 3), solver=SDEDPMSolver(), grid=grid)
    sample(velocity, x, torch.randn(2, 3), solver=FlowEuler(), grid=grid)


def test_forgotten_initial_noise_is_said() -> None:
    (euler,) = samplers(("EulerDiscreteScheduler", {}, STEPS))
    z, levels = torch.randn(2, 2), TimeGrid.from_sigmas(VarianceExploding(80.0), [80.0, 9.0, 1.0])
    for x_T, run in (
        (X, {"denoiser": euler.denoiser, "solver": euler.solver, "grid": euler.grid}),
        (X, {"denoiser": pulled, "solver": DDIM(), "grid": levels}),
    ):
        with pytest.warns(InitialNoiseWarning, match=r"deviation of (1|0\.9).*: pass"):
            sample(run.pop("denoiser"), x_T, z, **run)
    with pytest.warns(InitialNoiseWarning, match="pass sampler.initial"):  # as if scaled twice
        sample(euler.denoiser, 4.0 * euler.initial(X), z, solver=euler.solver, grid=euler.grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InitialNoiseWarning)
        given = {"solver": euler.solver, "grid": euler.grid}
        sample(euler.denoiser, euler.initial(X), z, **given)
        sample(euler.denoiser, 0.6 * euler.initial(X), z, **given)
        sample(pulled, 80.0 * X, solver=DDIM(), grid=levels)
        few = X[:, :, 0, 0]
        sample(pulled, few, solver=DDIM(), grid=levels)
        x_T = euler.initial(X, X, strength=0.5)
        sample(euler.denoiser, x_T, z, solver=euler.solver, grid=euler.grid)


@pytest.mark.parametrize("method", [DiscreteAdjoint(), Backprop()], ids=str)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("parameter", [False, True])
def test_a_guidance_of_each_sample_is_divided(method, given: bool, parameter: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, z, negative, inner = torch.randn(4, 5, 4, generator=generator).double()
    z, negative, inner = z[:, :3], negative[:, :3], inner[:1, :3]
    scale = torch.rand(5, generator=generator).double().add(1.0)
    scale = nn.Parameter(scale) if parameter else scale.requires_grad_()
    negative.requires_grad_(), x.requires_grad_()
    grid, network = TimeGrid.uniform_lmbda(VPLinear(), 4), MLPDenoiser()
    twice = Guidance(Guidance(network, inner, scale), negative, 1.5)
    leaves, found = [x, scale, negative, *network.parameters()], []
    for size in (None, 2):
        weights = iter(leaves[1:]) if given else None
        x_0 = sample(
            twice, x, z, solver=DDIM(), grid=grid, gradient=method, parameters=weights,
            microbatch=size,
        ).x_0  # fmt: skip
        found.append([x_0, *torch.autograd.grad(x_0.std(0).sum(), leaves)])
    for one, other in zip(*found, strict=True):
        assert other.norm() > 0 and torch.allclose(one, other, rtol=1e-10, atol=1e-12)
