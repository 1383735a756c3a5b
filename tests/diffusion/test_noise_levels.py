"""Noise levels beyond the variance-preserving ones: EDM, exploding variance, no signal at all."""

import itertools

import pytest
import torch
from oracles import MLPDenoiser, relative_error
from torch import Tensor, nn

from adjointdeis import DDPM, RectifiedFlow, TimeGrid, VarianceExploding, VPLinear, sample
from adjointdeis.diffusion import (
    EDM,
    EpsFromFlow,
    EpsFromV,
    EpsFromX0,
    FromNoiseLevels,
    Guidance,
)
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.solvers import DDIM, DPMSolverPP, FlowEuler, SDEDPMSolverPP

T = torch.tensor(0.3, dtype=torch.float64)
NO_SIGNAL = DDPM(torch.cat((torch.linspace(1e-4, 0.02, 999, dtype=torch.float64), torch.ones(1))))


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Network(nn.Module):
    """Any smooth function of (x, one time per sample, z)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * normal(4, 4, seed=0))
        self.times: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, z: Tensor | None) -> Tensor:
        self.times.append(time.detach())
        return torch.tanh(x @ self.weight + 0.1 * time.reshape(-1, 1) + (0.0 if z is None else z))


def test_sigmas_are_kept_as_they_are() -> None:
    sigmas = [80.0, 20.0, 3.0, 0.1, 0.002, 0.0]
    for schedule in (VarianceExploding(80.0), VarianceExploding(378.0), VPLinear()):
        grid = TimeGrid.from_sigmas(schedule, sigmas)
        assert grid.sampling and grid.steps == 5
        assert grid.rho.tolist() == sigmas and float(grid.sigma[-1]) == 0.0
        torch.testing.assert_close(grid.alpha, schedule.alpha(grid.t))
        torch.testing.assert_close(schedule.rho(grid.t[:-1]), grid.rho[:-1], rtol=1e-9, atol=0.0)
    back = TimeGrid.from_sigmas(VarianceExploding(80.0), sigmas[::-1])
    assert not back.sampling
    with pytest.raises(ValueError, match=r"beyond the schedule's largest.*sigma_max=100"):
        TimeGrid.from_sigmas(VarianceExploding(80.0), [100.0, 1.0])
    with pytest.raises(ValueError, match="must not be negative"):
        TimeGrid.from_sigmas(VarianceExploding(80.0), [1.0, -1.0])


@pytest.mark.parametrize("schedule", [VarianceExploding(80.0), VPLinear()], ids=["ve", "vp"])
def test_edm_is_its_table(schedule) -> None:
    network, x, z, spread = Network(), normal(3, 4, seed=1), normal(3, 4, seed=2), 0.7
    found = EDM(network, schedule, spread)(x, T, z)
    alpha, rho = float(schedule.alpha(T)), float(schedule.rho(T))
    width = rho**2 + spread**2
    y = x / alpha
    c_noise = torch.full((3,), rho, dtype=torch.float64).log() / 4
    inner = network(y / width**0.5, c_noise, z)
    assert torch.equal(network.times[0], c_noise)
    data = spread**2 / width * y + rho * spread / width**0.5 * inner
    torch.testing.assert_close(found, (y - data) / rho, rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="none at sigma = 0"):
        EDM(network, schedule)(x, torch.zeros((), dtype=torch.float64), z)
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        EDM(network, schedule, 0.0)


def test_a_network_of_noise_levels_sees_them() -> None:
    network, x = Network(), normal(3, 4, seed=1)
    schedule = VPLinear()
    denoiser = EpsFromX0(FromNoiseLevels(network, schedule), schedule)
    found = denoiser(x, T, None)
    alpha, sigma = float(schedule.alpha(T)), float(schedule.sigma(T))
    rho = torch.full((3,), sigma / alpha, dtype=torch.float64)
    torch.testing.assert_close(network.times[0], rho)
    wanted = (x - alpha * network(x / alpha, rho, None)) / sigma
    torch.testing.assert_close(found, wanted)


def test_the_flow_of_an_exploding_variance_converges_to_the_truth() -> None:
    """Data N(m, s^2): the ODE maps x_T to m + (x_T - m) sqrt(s^2 / (s^2 + sigma_max^2))."""
    mean, spread, largest = 1.5, 0.6, 80.0
    schedule = VarianceExploding(largest)

    def denoiser(x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        sigma = float(schedule.sigma(t))
        return sigma * (x - mean) / (spread**2 + sigma**2)

    x_T = (largest * normal(5, 3, seed=1)).requires_grad_()
    truth = mean + (x_T.detach() - mean) * (spread**2 / (spread**2 + largest**2)) ** 0.5
    errors = []
    for steps in (20, 40, 80):
        grid = TimeGrid.karras(schedule, steps, t_min=0.002 / largest)
        x_0 = sample(denoiser, x_T, solver=DPMSolverPP(), grid=grid).x_0
        errors.append(relative_error(x_0.detach(), truth))
    orders = [torch.log2(torch.tensor(a / b)) for a, b in itertools.pairwise(errors)]
    assert errors[-1] < 2e-3 and all(abs(order - 2.0) < 0.5 for order in orders), errors
    # The paper's adjoint needs nothing of the schedule but its levels: it converges, at order 1.
    errors = []
    for steps in (200, 400):
        grid = TimeGrid.karras(schedule, steps, t_min=0.002 / largest)
        found = []
        for method in (AdjointDEIS(), DiscreteAdjoint()):
            x_0 = sample(denoiser, x_T, solver=DDIM(), grid=grid, gradient=method).x_0
            found.append(torch.autograd.grad(x_0.square().sum(), x_T)[0])
        errors.append(relative_error(*found))
    assert errors[0] < 0.2 and errors[0] / errors[1] == pytest.approx(2.0, abs=0.3)


def test_the_reverse_sde_of_an_exploding_variance_keeps_the_distribution() -> None:
    mean, spread, largest = 1.5, 0.6, 20.0
    schedule = VarianceExploding(largest)

    def denoiser(x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        sigma = float(schedule.sigma(t))
        return sigma * (x - mean) / (spread**2 + sigma**2)

    x_T = mean + (largest**2 + spread**2) ** 0.5 * normal(4000, 1, seed=1)
    grid = TimeGrid.karras(schedule, 60, t_min=0.01 / largest)
    noise = [normal(4000, 1, seed=10 + k) for k in range(60)]
    x_0 = sample(denoiser, x_T, solver=SDEDPMSolverPP(), grid=grid, noise=noise).x_0
    assert abs(float(x_0.mean()) - mean) < 0.05 and abs(float(x_0.std()) - spread) < 0.03


def v_of(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    return torch.tanh(x @ normal(4, 4, seed=3) + z + float(t))


SOLVERS = (DDIM(), DDIM(clip_x0=True), DPMSolverPP(), DPMSolverPP(order=1))


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("kind", ["v", "x0", "flow"])
def test_sampling_starts_where_there_is_no_signal(solver, kind: str) -> None:
    schedule = RectifiedFlow() if kind == "flow" else NO_SIGNAL
    convert = {"v": EpsFromV, "x0": EpsFromX0, "flow": EpsFromFlow}[kind]
    denoiser = convert(v_of, schedule)
    times = [1.0, 0.9, 0.7, 0.4, 0.1, 0.0]
    grid = TimeGrid.from_times(schedule, times)
    x_T, z = normal(3, 4, seed=1).requires_grad_(), normal(3, 4, seed=2).requires_grad_()
    found = []
    for method in (DiscreteAdjoint(), Backprop()):
        rollout = sample(denoiser, x_T, z, solver=solver, grid=grid, gradient=method)
        assert rollout.cost.nfe_forward == 5
        found.append(torch.autograd.grad(rollout.x_0.square().sum(), (x_T, z)))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.isfinite().all() and relative_error(ours, theirs) < 1e-12
    if solver == DPMSolverPP():
        # From h = inf nothing can be extrapolated: the first two steps are of order 1.
        both = TimeGrid.from_times(schedule, times[:3])
        runs = [sample(denoiser, x_T, z, solver=one, grid=both).x_0 for one in (solver, DDIM())]
        assert relative_error(*runs) < 1e-12
        return
    # The limit of grids that start ever closer to it.
    near = 1.0 - 1e-9
    limit = TimeGrid.from_times(schedule, [near, *times[1:]])
    beside = sample(denoiser, x_T, z, solver=solver, grid=limit).x_0
    assert relative_error(rollout.x_0, beside) < 1e-5


def test_x_0_is_minus_v_where_there_is_no_signal() -> None:
    x, z = normal(3, 4, seed=1), normal(3, 4, seed=2)
    one = torch.ones((), dtype=torch.float64)
    v = v_of(x, one, z)
    torch.testing.assert_close(EpsFromV(v_of, NO_SIGNAL).data(x, one, z), -v)
    torch.testing.assert_close(EpsFromFlow(v_of, RectifiedFlow()).data(x, one, z), x - v)
    torch.testing.assert_close(EpsFromX0(v_of, NO_SIGNAL).data(x, one, z), v)
    torch.testing.assert_close(EpsFromX0(v_of, NO_SIGNAL, 0.5).data(x, one, z), v)
    guided = Guidance(EpsFromV(v_of, NO_SIGNAL), torch.zeros(4), 3.0)
    none = v_of(x, one, torch.zeros_like(z))
    torch.testing.assert_close(guided.data(x, one, z), -(none + 3.0 * (v - none)))
    # Elsewhere it is the same prediction as eps.
    for denoiser in (EpsFromV(v_of, NO_SIGNAL), EpsFromX0(v_of, NO_SIGNAL, 0.5)):
        alpha, sigma = float(NO_SIGNAL.alpha(T)), float(NO_SIGNAL.sigma(T))
        data = (x - sigma * denoiser(x, T, z)) / alpha
        torch.testing.assert_close(denoiser.data(x, T, z), data)


def test_a_flow_from_pure_noise_steps_alike_in_eps_and_velocity() -> None:
    grid = TimeGrid.from_times(RectifiedFlow(), [1.0, 0.8, 0.5, 0.2, 0.0])
    x_T, z = normal(3, 4, seed=1), normal(3, 4, seed=2)
    a = sample(EpsFromFlow(v_of, RectifiedFlow()), x_T, z, solver=DDIM(), grid=grid).x_0
    b = sample(v_of, x_T, z, solver=FlowEuler(), grid=grid).x_0
    assert relative_error(a, b) < 1e-12


def test_a_noise_prediction_cannot_start_without_signal() -> None:
    grid = TimeGrid.from_times(NO_SIGNAL, [1.0, 0.5, 0.0])
    x_T = normal(2, 3, seed=1).requires_grad_()
    for solver in SOLVERS:
        with pytest.raises(ValueError, match=r"alpha = 0 a noise prediction says nothing.*t_max"):
            sample(MLPDenoiser(), x_T, None, solver=solver, grid=grid)
    v = EpsFromV(lambda x, t, z: x, NO_SIGNAL)
    for method in (AdjointDEIS(), AdjointDEIS(prediction="data")):
        with pytest.raises(ValueError, match="alpha"):
            sample(v, x_T, solver=DDIM(), grid=grid, gradient=method)
    with pytest.raises(ValueError, match="alpha = 0"):
        FromNoiseLevels(v, NO_SIGNAL)(x_T, torch.ones((), dtype=torch.float64), None)


def test_a_level_above_the_noisiest_by_rounding_is_at_time_one() -> None:
    schedule = VarianceExploding(sigma_max=80.0)
    grid = TimeGrid.from_sigmas(schedule, [80.0 * (1.0 + 5e-10), 1.0, 0.0])
    assert float(grid.t[0]) == 1.0 and float(grid.t[-1]) == 0.0
