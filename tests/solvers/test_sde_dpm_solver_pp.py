r"""SDE-DPM-Solver++: its law on Gaussian data, its limits, and diffusers' own steps.

On Gaussian data every sampler is affine in x_T and the noises, so its law given x_T is read off
its answers to unit vectors, without drawing anything. That of the reverse SDE is Bayes' law of
the forward process: with :math:`v = \alpha^2 s^2 + \sigma^2` the variance at a node,

.. math:: \mathrm E[x_t | x_s] = \alpha_t m + \tfrac{\alpha_s v_t}{\alpha_t v_s} (x_s - \alpha_s m),
          \qquad \mathrm{Var}[x_t | x_s] = v_t - \big(\tfrac{\alpha_s v_t}{\alpha_t}\big)^2 / v_s.
"""

import math

import pytest
import torch
from oracles import (
    BATCH,
    DIM,
    MLPDenoiser,
    RememberedPath,
    agree,
    differentiate,
    inputs,
    mixture,
    normal,
    observed_order,
    relative_error,
)

from adjointdeis import DDPM, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise, from_diffusers
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    DiscreteAdjoint,
    GradientMethod,
    SdeBacksolve,
)
from adjointdeis.solvers import DDIM, DPMSolverPP, SDEDPMSolver, SDEDPMSolverPP
from adjointdeis.solvers.base import Solver

PATH = RememberedPath((BATCH, DIM), seed=11)
SPACINGS = {"lmbda": TimeGrid.uniform_lmbda, "time": TimeGrid.uniform_time}
each_order = pytest.mark.parametrize("order", [1, 2])
each_spacing = pytest.mark.parametrize("spacing", SPACINGS)


def oracle(scale: float = 0.5) -> GaussianDenoiser:
    mean = torch.tensor([0.8], dtype=torch.float64)
    return GaussianDenoiser(VPLinear(), mean, scale).requires_grad_(False)


def law(solver: Solver, grid: TimeGrid, denoiser) -> tuple[float, float, float]:
    """Offset, slope and variance of x_0 given x_T."""
    probes = torch.zeros(grid.steps + 2, 1, dtype=torch.float64)
    x, state = probes.clone(), ()
    x[1] = 1.0
    for i in range(grid.steps):
        noise = probes.clone()
        noise[2 + i] = 1.0
        x, state = solver.step(denoiser, x, None, grid[i], grid[i + 1], state, noise)
    answers = (x[1:] - x[:1]).flatten()
    return float(x[0]), float(answers[0]), float(answers[1:].square().sum())


def exact_law(grid: TimeGrid, denoiser: GaussianDenoiser) -> tuple[float, float, float]:
    s, t, mean = grid[0], grid[-1], float(denoiser.mean)
    v_s, v_t = float(denoiser.variance(s.t)), float(denoiser.variance(t.t))
    slope = s.alpha * v_t / (t.alpha * v_s)
    return t.alpha * mean - slope * s.alpha * mean, slope, v_t - slope**2 * v_s


def error_of_variance(solver: Solver, grid: TimeGrid) -> float:
    return abs(law(solver, grid, oracle())[2] - exact_law(grid, oracle())[2])


@each_spacing
@each_order
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_the_mean_is_exact_on_any_grid(order: int, spacing: str, steps: int) -> None:
    """E[x_0 | x_t] is a martingale of the reverse SDE: holding it constant loses nothing."""
    grid = SPACINGS[spacing](VPLinear(), steps)
    offset, slope, _ = law(SDEDPMSolverPP(order), grid, oracle())
    wanted = exact_law(grid, oracle())
    assert abs(offset - wanted[0]) < 1e-12 and abs(slope - wanted[1]) < 1e-12


@pytest.mark.parametrize(("order", "spacing"), [(1, "lmbda"), (2, "lmbda"), (2, "time")])
def test_the_variance_converges_with_the_order(order: int, spacing: str) -> None:
    counts = [160, 320, 640]
    errors = [
        error_of_variance(SDEDPMSolverPP(order), SPACINGS[spacing](VPLinear(), n)) for n in counts
    ]
    assert observed_order(counts, errors) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("order", [1, 2])
def test_with_few_steps_the_noise_form_overshoots_and_this_does_not(order: int) -> None:
    """The measured errors of both, log-SNR grid: what is smaller, and where it is not."""
    counts, schedule = [5, 10, 20], VPLinear()
    grids = [TimeGrid.uniform_lmbda(schedule, n) for n in counts]
    slopes = [
        [abs(law(solver, grid, oracle())[1] - exact_law(grid, oracle())[1]) for grid in grids]
        for solver in (SDEDPMSolver(), SDEDPMSolverPP(order))
    ]
    assert all(theirs > 1e6 * ours for theirs, ours in zip(*slopes, strict=True))
    theirs, ours = [
        [error_of_variance(solver, grid) for grid in grids]
        for solver in (SDEDPMSolver(), SDEDPMSolverPP(order))
    ]
    assert theirs[0] > 100.0 and max(ours) < 0.2
    # 2M is ahead up to N = 10. From then on the noise form is, by errors that cancel on this grid.
    assert (ours[1] < 0.3 * theirs[1]) == (order == 2)
    assert ours[2] > theirs[2]


@each_order
def test_one_step_has_the_exact_law_for_data_at_a_point(order: int) -> None:
    """Bayes: q(x_t | x_s, x_0) of the forward process, whatever the width of the step."""
    grid, point = TimeGrid.uniform_time(VPLinear(), 1, t_min=0.2, t_max=0.9), 0.8
    s, t = grid[0], grid[1]

    def denoiser(x, time, z):
        return (x - s.alpha * point) / s.sigma

    ratio = s.alpha / t.alpha
    precision = 1.0 / t.sigma**2 + ratio**2 / (s.sigma**2 - (ratio * t.sigma) ** 2)
    offset, slope, variance = law(SDEDPMSolverPP(order), grid, denoiser)
    assert variance == pytest.approx(1.0 / precision, rel=1e-12)
    gain = ratio / (s.sigma**2 - (ratio * t.sigma) ** 2) / precision
    assert slope == pytest.approx(gain, rel=1e-12)
    assert offset == pytest.approx(t.alpha * point / t.sigma**2 / precision, rel=1e-12)


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_any_amount_of_noise_keeps_the_marginals(eta: float) -> None:
    """From the law at the noisy end to that at the clean one, with order 2."""
    counts, errors = [80, 160, 320], []
    for n in counts:
        grid = TimeGrid.uniform_lmbda(VPLinear(), n)
        offset, slope, variance = law(SDEDPMSolverPP(2, eta=eta), grid, oracle())
        v_s, v_t = (float(oracle().variance(node.t)) for node in (grid[0], grid[-1]))
        mean = offset + slope * grid[0].alpha * 0.8
        assert mean == pytest.approx(grid[-1].alpha * 0.8, rel=1e-12)
        errors.append(abs(slope**2 * v_s + variance - v_t))
    assert observed_order(counts, errors) == pytest.approx(2.0, abs=0.25)


@pytest.mark.parametrize(
    "grid",
    [TimeGrid.uniform_time(VPLinear(), 6), TimeGrid.ddim_stride(DDPM(), 8)],
    ids=["time", "sigma0"],
)
def test_without_noise_it_is_the_ode_sampler(grid: TimeGrid) -> None:
    x_T, z = inputs()
    noise = RecordedNoise.draw(grid.steps, x_T.shape, 3, torch.float64)

    def run(solver):
        chosen = noise if solver.calculus == "sde" else None
        return sample(mixture(), x_T, z, solver=solver, grid=grid, noise=chosen).x_0

    for order in (1, 2):
        assert agree(run(SDEDPMSolverPP(order, eta=0.0)), run(DPMSolverPP(order)), 1e-11)
    assert agree(run(SDEDPMSolverPP(1, eta=0.0)), run(DDIM()), 1e-11)
    lowered = SDEDPMSolverPP(2, lower_order_final=True, eta=0.0)
    assert agree(run(lowered), run(DPMSolverPP(2, lower_order_final=True)), 1e-11)


@pytest.mark.parametrize(("order", "eta"), [(1, 1.0), (2, 1.0), (2, 0.5)])
def test_it_converges_strongly_to_the_sde_of_the_noise_form(order: int, eta: float) -> None:
    denoiser, (x_T, z) = mixture(), inputs()
    fine = TimeGrid.uniform_lmbda(VPLinear(), 640)

    def solve(solver: Solver, grid: TimeGrid) -> torch.Tensor:
        with torch.no_grad():
            return sample(denoiser, x_T, z, solver=solver, grid=grid, noise=PATH).x_0

    reference = solve(SDEDPMSolver() if eta == 1.0 else SDEDPMSolverPP(2, eta=eta), fine)
    steps, solver = [20, 40, 80, 160], SDEDPMSolverPP(order, eta=eta)
    errors = [
        relative_error(solve(solver, fine.at(range(0, 641, 640 // n))), reference) for n in steps
    ]
    assert observed_order(steps, errors) == pytest.approx(1.0, abs=0.3)


def test_2m_extrapolates_with_the_ratio_of_the_steps() -> None:
    """One step written out, on a grid whose steps differ."""
    grid, (x, z) = TimeGrid.uniform_time(VPLinear(), 6), inputs()
    denoiser, before, n = mixture(), normal(2, 4, seed=1), normal(2, 4, seed=2)
    p, s, t = grid[2], grid[3], grid[4]
    h, h_before, eta = t.lmbda - s.lmbda, s.lmbda - p.lmbda, 0.6
    with torch.no_grad():
        x0 = (x - s.sigma * denoiser(x, s.t, z)) / s.alpha
        estimate = x0 + h / (2.0 * h_before) * (x0 - before)
        expected = (
            t.sigma / s.sigma * math.exp(-eta * h) * x
            + t.alpha * (1.0 - math.exp(-(1.0 + eta) * h)) * estimate
            + t.sigma * math.sqrt(1.0 - math.exp(-2.0 * eta * h)) * n
        )
        solver = SDEDPMSolverPP("2M", eta=eta)
        reached, state = solver.step(denoiser, x, z, s, t, (before,), n)
    torch.testing.assert_close(reached, expected)
    torch.testing.assert_close(state[0], x0)


def test_the_last_step_to_clean_data_is_the_data_prediction() -> None:
    denoiser, (x, z), grid = mixture(DDPM()), inputs(), TimeGrid.ddim_stride(DDPM(), 20)
    s, t, noise = grid[-2], grid[-1], normal(BATCH, DIM, seed=4)
    x0 = (x - s.sigma * denoiser(x, s.t, z)) / s.alpha
    for order, eta in ((1, 1.0), (2, 1.0), (2, 0.0)):
        state = (normal(*x.shape, seed=3),) if order == 2 else ()
        solver = SDEDPMSolverPP(order, eta=eta)
        assert solver.noise_weight(s, t) == 0.0
        assert agree(solver.step(denoiser, x, z, s, t, state, noise)[0], x0)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("end", ["zero", "sigma_min"])
def test_the_steps_are_those_of_diffusers(order: int, end: str) -> None:
    diffusers = pytest.importorskip("diffusers")

    class Network(torch.nn.Module):
        """A float32 network that diffusers can call."""

        def __init__(self) -> None:
            super().__init__()
            self.body = MLPDenoiser().float()

        def forward(self, sample, timestep, return_dict=True):
            del return_dict
            t = torch.as_tensor(timestep).flatten()[:1].float() / 1000.0
            return (self.body(sample, t, torch.zeros(len(sample), 3)),)

    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=order, lower_order_final=False,
        final_sigmas_type=end, timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip
    network, steps = Network(), 6
    x = normal(BATCH, DIM, seed=1).float()
    noises = [normal(BATCH, DIM, seed=10 + i).float() for i in range(steps)]
    model = from_diffusers(network, scheduler, time="timestep", output="as is")
    with torch.no_grad():
        ours = sample(
            model.denoiser, x, solver=SDEDPMSolverPP(order), grid=model.grid(steps), noise=noises
        ).x_0
        scheduler.set_timesteps(steps)
        for timestep, noise in zip(scheduler.timesteps, noises, strict=True):
            out = network(x, timestep)[0]
            x = scheduler.step(out, timestep, x, variance_noise=noise).prev_sample
    assert relative_error(ours, x) < 1e-5


@each_order
@pytest.mark.parametrize("method", [DiscreteAdjoint(), DiscreteAdjoint(snapshots=2)], ids=repr)
@pytest.mark.parametrize("sigma0", [False, True])
def test_the_discrete_adjoint_is_autograd(order: int, method, sigma0: bool) -> None:
    grid = TimeGrid.ddim_stride(DDPM(), 7) if sigma0 else TimeGrid.uniform_time(VPLinear(), 7)
    x_T, zs = inputs(7)
    setting = {
        "solver": SDEDPMSolverPP(order, eta=0.7),
        "grid": grid,
        "noise": RecordedNoise.draw(7, x_T.shape, 3, torch.float64),
    }
    exact, found = (
        differentiate(MLPDenoiser(), x_T, zs, one, **setting) for one in (Backprop(), method)
    )
    for part, value in exact.parts().items():
        assert agree(found.parts()[part], value), part


def test_the_recorded_noises_have_gradients_by_backprop() -> None:
    """dx_0/dn_i, against differences."""
    grid, (x_T, z) = TimeGrid.uniform_time(VPLinear(), 4), inputs()
    noises = [normal(*x_T.shape, seed=i).requires_grad_() for i in range(4)]

    def chain(*values):
        return sample(
            MLPDenoiser(), x_T, z, solver=SDEDPMSolverPP(), grid=grid, noise=values,
            gradient=Backprop(), parameters=[],
        ).x_0  # fmt: skip

    assert torch.autograd.gradcheck(chain, noises, eps=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::adjointdeis.gradients.adjoint_deis.LargeAdjointStepWarning")
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(
    "method",
    [AdjointDEIS(), AdjointDEIS(states="resolved"), AdjointDEIS(prediction="data"), SdeBacksolve()],
    ids=repr,
)
def test_continuous_adjoints_follow_the_sde_that_was_solved(
    method: GradientMethod, eta: float
) -> None:
    """First order, to a fine solve on the same path: c = 1 + eta, and sqrt(eta) dB."""
    if isinstance(method, SdeBacksolve):
        pytest.importorskip("torchsde")
    x_T, z = inputs()
    fine = TimeGrid.uniform_lmbda(VPLinear(), 192, t_min=0.1, t_max=0.4)
    solver = SDEDPMSolverPP(2, eta=eta)
    truth = differentiate(mixture(), x_T, z, Backprop(), solver=solver, grid=fine, noise=PATH)
    counts, errors = [12, 48], []
    for n in counts:
        grid = fine.at(range(0, 193, 192 // n))
        found = differentiate(mixture(), x_T, z, method, solver=solver, grid=grid, noise=PATH)
        errors.append([relative_error(found.parts()[k], v) for k, v in truth.parts().items()])
    for coarse, later in zip(*errors, strict=True):
        assert later < 0.2
        assert math.log(coarse / later) / math.log(4) == pytest.approx(1.0, abs=0.45)


def test_wrong_uses_are_refused() -> None:
    grid, (x, z) = TimeGrid.uniform_time(VPLinear(), 3), inputs()
    with pytest.raises(ValueError, match="SDEDPMSolverPP has orders 1 and 2"):
        SDEDPMSolverPP(3)
    with pytest.raises(ValueError, match=r"eta must be at least 0, got -0\.1"):
        SDEDPMSolverPP(eta=-0.1)
    with pytest.raises(ValueError, match="needs the noise"):
        SDEDPMSolverPP().step(mixture(), x, z, grid[0], grid[1], (), None)
    with pytest.raises(ValueError, match="needs its noise from outside"):
        sample(mixture(), x, z, solver=SDEDPMSolverPP(), grid=grid)
    with pytest.raises(ValueError, match=r"CycleSDE\.encode"):
        encode(mixture(), x, z, solver=SDEDPMSolverPP(), grid=grid.reversed())
