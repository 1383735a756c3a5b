"""Certified gradients: the gradient is its method's, the estimate that of three runs by hand."""

import math
from functools import cache

import pytest
import torch
from oracles import BATCH, DIM, MLPDenoiser, agree, inputs
from torch import Tensor, nn

from adjointdeis import PerStep, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    Certified,
    DiscreteAdjoint,
    NotSupportedError,
    OtherLossError,
    Reversible,
    SymplecticAdjoint,
)
from adjointdeis.gradients.certified import LEAST_CONTRACTION, MARGIN, extrapolated_error
from adjointdeis.problems import PARTS, GradientProblem, distance, gaussian, mixture
from adjointdeis.solvers import (
    BDIA,
    DDIM,
    OBELM,
    DPMSolverPP,
    RungeKutta,
    SDEDPMSolver,
    StepFunction,
)

SOLVERS = {"DDIM": DDIM(), "2M": DPMSolverPP(), "rk4": RungeKutta("rk4"), "OBELM": OBELM()}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def certified(problem: GradientProblem, solver, steps: int, **arguments):
    """Rollout and gradients by part, after the backward pass."""
    x_T, z = (t.clone().requires_grad_() for t in (problem.x_T, problem.z))
    weights = list(problem.denoiser.requires_grad_().parameters())
    rollout = sample(
        problem.denoiser, x_T, z, solver=solver, grid=problem.grid("log-SNR", steps),
        gradient=Certified(problem.loss, **arguments),
    )  # fmt: skip
    found = torch.autograd.grad(problem.loss(rollout.x_0), [x_T, z, *weights])
    problem.denoiser.requires_grad_(False)
    flat = [found[0].flatten(), found[1].flatten(), torch.cat([g.flatten() for g in found[2:]])]
    return rollout, dict(zip(PARTS, flat, strict=True))


def flow_gradient(problem: GradientProblem) -> dict[str, Tensor]:
    """The Gaussian's, from its flow in closed form: no steps, no network."""
    x_T, z = (t.clone().requires_grad_() for t in (problem.x_T, problem.z))
    denoiser = problem.denoiser.requires_grad_()
    x_0 = denoiser.flow(x_T, problem.schedule.t_max, problem.t_min, z)
    found = torch.autograd.grad(problem.loss(x_0), [x_T, z, *denoiser.parameters()])
    problem.denoiser.requires_grad_(False)
    flat = [found[0].flatten(), found[1].flatten(), torch.cat([g.flatten() for g in found[2:]])]
    return dict(zip(PARTS, flat, strict=True))


@each_solver
def test_on_a_gaussian_the_estimate_is_the_error_in_closed_form(solver) -> None:
    problem = gaussian()
    truth = flow_gradient(problem)
    # More steps than anyone takes: the order is reached, and the estimate must be sharp.
    rollout, found = certified(problem, solver, 160)
    for part in PARTS:
        error = distance(found[part], truth[part]).relative
        assert 0.95 * error < rollout.gradient_error[part] < 1.5 * error


@cache
def of_the_flow() -> dict[str, Tensor]:
    """The mixture's, by many steps of fourth order."""
    problem = mixture()
    grid = problem.grid("log-SNR", 640)
    return problem.differentiate(DiscreteAdjoint(), RungeKutta("rk4"), grid).gradients


@each_solver
def test_on_a_mixture_it_covers_a_nonlinear_problem(solver) -> None:
    rollout, found = certified(mixture(), solver, 80)
    for part in PARTS:
        error = distance(found[part], of_the_flow()[part]).relative
        assert error < rollout.gradient_error[part] < 3.0 * error


@each_solver
def test_it_is_the_formula_of_three_runs_that_know_nothing_of_each_other(solver) -> None:
    problem, steps = mixture(), 18  # no multiple of 4: the last step of the coarsest is short
    grid = problem.grid("log-SNR", steps)
    runs = [
        problem.differentiate(Backprop(), solver, grid.at(nodes)).gradients
        for nodes in (range(19), range(0, 19, 2), [0, 4, 8, 12, 16, 18])
    ]
    rollout, found = certified(problem, solver, steps)
    gain = 2.0**solver.order
    for part in PARTS:
        g, g_2, g_4 = (run[part] for run in runs)
        first = g + (g - g_2) / (gain - 1)
        before = g_2 + (g_2 - g_4) / (gain - 1)
        second = first + (first - before) / (2 * gain - 1)
        ratio = float((g_2 - g_4).norm() / (g - g_2).norm())
        ratio = min(max(ratio, LEAST_CONTRACTION), gain)
        expected = float((g - g_2).norm()) / (ratio - 1) + MARGIN * float((second - first).norm())
        assert agree(found[part], g, 1e-10)
        assert rollout.gradient_error[part] == pytest.approx(expected / float(g.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("method", "solver"),
    [
        (DiscreteAdjoint(snapshots=3), DDIM()),
        (Reversible(), BDIA()),
        (SymplecticAdjoint(), RungeKutta("rk4")),
    ],
    ids=["snapshots", "Reversible", "SymplecticAdjoint"],
)
def test_the_gradient_is_that_of_its_method(method, solver) -> None:
    problem = mixture()
    alone = problem.differentiate(method, solver, problem.grid("log-SNR", 8)).gradients
    reference, _ = certified(problem, solver, 8)
    for coarse in (None, method):
        rollout, found = certified(problem, solver, 8, method=method, coarse=coarse)
        assert all(torch.equal(found[part], alone[part]) for part in PARTS)
        for part in PARTS:
            expected = reference.gradient_error[part]
            assert rollout.gradient_error[part] == pytest.approx(expected, rel=1e-6)


def test_its_price_is_half_as_much_again() -> None:
    problem, steps = mixture(), 16
    alone = problem.differentiate(DiscreteAdjoint(), DDIM(), problem.grid("log-SNR", steps)).cost
    for coarse, factor in ((None, 1.5), (DiscreteAdjoint(), 1.75)):
        cost = certified(problem, DDIM(), steps, coarse=coarse)[0].cost
        assert cost.nfe_forward == alone.nfe_forward == steps
        assert cost.nfe + cost.vjps == factor * (alone.nfe + alone.vjps)
    assert certified(problem, DDIM(), steps)[0].cost.peak_graphs == steps / 2


def test_only_what_requires_a_gradient_has_an_error() -> None:
    problem, z = mixture(), mixture().z.clone().requires_grad_()
    rollout = sample(
        problem.denoiser.requires_grad_(False), problem.x_T, z, solver=DDIM(),
        grid=problem.grid("time", 8), gradient=Certified(problem.loss),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=r"gradient=Certified\(loss\).*backward"):
        rollout.gradient_error  # noqa: B018
    problem.loss(rollout.x_0).backward()
    assert list(rollout.gradient_error) == ["z"]


def test_a_multiple_of_the_loss_has_the_same_error_and_another_loss_is_refused() -> None:
    problem = mixture()

    def run(used) -> dict[str, float]:
        x_T = problem.x_T.clone().requires_grad_()
        rollout = sample(
            problem.denoiser, x_T, problem.z, solver=DDIM(), grid=problem.grid("time", 8),
            gradient=Certified(problem.loss),
        )  # fmt: skip
        used(rollout.x_0).backward()
        return rollout.gradient_error

    problem.denoiser.requires_grad_(False)
    once = run(problem.loss)["x_T"]
    assert run(lambda x: -0.125 * problem.loss(x))["x_T"] == pytest.approx(once, rel=1e-9)
    with pytest.raises(OtherLossError, match=r"no multiple of that of Certified's loss"):
        run(lambda x: problem.loss(x) + x.sum())


def test_a_loss_of_each_sample_is_refused() -> None:
    problem = mixture()
    x_T = problem.x_T.clone().requires_grad_()
    rollout = sample(
        problem.denoiser, x_T, problem.z, solver=DDIM(), grid=problem.grid("time", 8),
        gradient=Certified(lambda x: x.square().sum(1)),
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"one number, got a tensor of shape \(8,\)"):
        problem.loss(rollout.x_0).backward()


class Impure(nn.Module):
    """Dropout and batch statistics: what a second run must repeat, and leave as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = MLPDenoiser(), nn.Dropout(0.2)
        self.norm = nn.BatchNorm1d(DIM, dtype=torch.float64)

    def forward(self, x, t, z):
        return self.drop(self.inner(self.norm(x), t, z))


def test_the_other_runs_leave_no_trace() -> None:
    left = []
    for certify in (False, True):
        torch.manual_seed(0)
        network, (x_T, z) = Impure(), inputs()
        method = Certified(lambda x: x.square().sum()) if certify else DiscreteAdjoint()
        grid = TimeGrid.uniform_lmbda(VPLinear(), 8)
        x_0 = sample(
            network, x_T.requires_grad_(), z, solver=DDIM(), grid=grid, gradient=method
        ).x_0
        x_0.square().sum().backward()
        left.append([x_T.grad, *(b.clone() for b in network.buffers()), torch.get_rng_state()])
    assert all(map(torch.equal, *left))


def test_single_precision_shows_in_the_estimate() -> None:
    """Of two runs whose steps are fine enough, rounding is what differs."""
    exact = mixture()
    _, truth = certified(exact, RungeKutta("rk4"), 80)
    single = exact.to("cpu", torch.float32)
    rollout, found = certified(single, RungeKutta("rk4"), 80)
    for part in PARTS:
        error = distance(found[part].double(), truth[part]).relative
        assert 1e-8 < error < rollout.gradient_error[part] < 1e-4


def test_the_estimate_of_degenerate_gradients() -> None:
    one, none = torch.ones(3, dtype=torch.float64), None
    assert extrapolated_error([none], [none], [none], 1) == 0.0
    assert extrapolated_error([one], [one], [one], 1) == 0.0
    assert extrapolated_error([none], [one], [one], 1) == math.inf
    assert extrapolated_error([one], [one * math.inf], [one], 1) == math.inf
    # Differences that do not shrink: ten times the last one, and more.
    assert extrapolated_error([one], [2 * one], [3 * one], 1) > 10.0


def refusal(solver=None, *, z=None, grid=None, noise=None, **arguments) -> None:
    network, (x_T, own) = MLPDenoiser(), inputs()
    sample(
        network, x_T.requires_grad_(), own if z is None else z, solver=solver or DDIM(),
        grid=grid or TimeGrid.uniform_lmbda(VPLinear(), 8, t_max=0.6), noise=noise,
        **{"gradient": Certified(lambda x: x.sum())} | arguments,
    )  # fmt: skip


def test_what_cannot_be_certified_is_refused_by_name() -> None:
    _, (_, zs) = None, inputs(8)
    with pytest.raises(NotSupportedError, match="sde solvers, and SDEDPMSolver is one"):
        refusal(SDEDPMSolver(), noise=BrownianPath((BATCH, DIM), seed=0))
    with pytest.raises(NotSupportedError, match="scheduled condition"):
        refusal(z=PerStep([z.requires_grad_() for z in zs]))
    with pytest.raises(NotSupportedError, match="trajectory"):
        refusal(trajectory=True)
    with pytest.raises(NotSupportedError, match="leave microbatch out"):
        refusal(microbatch=1)
    with pytest.raises(NotSupportedError, match=r"every fourth node .* 3 steps of a TimeGrid"):
        refusal(grid=TimeGrid.uniform_lmbda(VPLinear(), 3))
    with pytest.raises(NotSupportedError, match=r"StepFunction does not say.*order="):
        refusal(
            StepFunction(
                lambda denoiser, x, z, s, t: DDIM().step(denoiser, x, z, s, t, (), None)[0]
            )
        )
    for method in (AdjointDEIS(), Backprop(), None):
        with pytest.raises(NotSupportedError, match=r"exact method.*use DiscreteAdjoint"):
            Certified(lambda x: x.sum(), method=method)
    with pytest.raises(TypeError, match="function of x_0, got DiscreteAdjoint"):
        Certified(DiscreteAdjoint())
    grid = TimeGrid.uniform_lmbda(VPLinear(), 8).reversed()
    with pytest.raises(NotSupportedError, match="steps of a TimeGrid from data to noise"):
        encode(
            MLPDenoiser(), inputs()[0].requires_grad_(), inputs()[1], solver=DDIM(), grid=grid,
            gradient=Certified(lambda x: x.sum()),
        )  # fmt: skip


def test_a_sampler_without_an_order_can_be_given_one() -> None:
    step = StepFunction(lambda denoiser, x, z, s, t: DDIM().step(denoiser, x, z, s, t, (), None)[0])
    problem = mixture()
    given, _ = certified(problem, step, 8, order=1)
    known, _ = certified(problem, DDIM(), 8)
    assert given.gradient_error == pytest.approx(known.gradient_error)
