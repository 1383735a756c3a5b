"""Latent optimisation on a problem with a closed form: updates, independence, failures."""

from functools import partial

import pytest
import torch

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.diffusion import BrownianPath, RecordedNoise
from adjointdeis.gradients import Cost
from adjointdeis.guidance.latent_optimisation import LatentDescent, LatentOptimisation
from adjointdeis.guidance.per_sample import Sphere
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.rollout import Rollout
from adjointdeis.solvers import DDIM, SDEDPMSolver

TARGET = torch.linspace(-1, 1, 4, dtype=torch.float64)
CURVATURE = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)


def generate(x_T: torch.Tensor, z: torch.Tensor, rows: torch.Tensor | None = None) -> Rollout:
    return Rollout(x_T + 2 * z)


def quadratic(x_0: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
    return 0.5 * (CURVATURE * (x_0 - TARGET).square()).sum(1)


class Toy(LatentProblem):
    """A problem whose sampler is a formula, in the place of the denoiser."""

    def sample(self, x_T=None, z=None, rows=None, gradient=None) -> Rollout:
        return self.denoiser(
            self.x_T if x_T is None else x_T, self.z if z is None else z, rows
        )  # fmt: skip


def toy(generate, objective, x_T, z, moves="both") -> Toy:
    return Toy(generate, x_T, z, loss=objective, solver=None, grid=None, moves=moves)


def descent(generate, objective, x_T, z, optimizer, moves="both", **settings) -> LatentDescent:
    algorithm = LatentOptimisation(10**6, optimizer, **settings)
    return algorithm.start(toy(generate, objective, x_T, z, moves))


def latents(batch: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x_T, z = torch.randn(2, batch, 4, generator=generator, dtype=torch.float64)
    return x_T, z


SGD = partial(torch.optim.SGD, lr=0.02)
ADAM = partial(torch.optim.Adam, lr=0.05)
MOMENTUM = partial(torch.optim.SGD, lr=0.02, momentum=0.9, weight_decay=0.1)


def test_one_step_is_the_analytic_update() -> None:
    x_T, z = latents()
    optimisation = descent(generate, quadratic, x_T, z, SGD)
    step = optimisation.step()
    slope = CURVATURE * (x_T + 2 * z - TARGET)
    moved_x, moved_z = optimisation.result()
    torch.testing.assert_close(moved_x, x_T - 0.02 * slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moved_z, z - 0.02 * 2 * slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step.loss, quadratic(x_T + 2 * z))
    torch.testing.assert_close(step.gradient_norm, 5**0.5 * slope.norm(dim=1))
    assert optimisation.steps == 1


def test_z_has_a_learning_rate_of_its_own() -> None:
    x_T, z = latents()
    optimisation = descent(generate, quadratic, x_T, z, SGD, z_learning_rate=0.001)
    optimisation.step()
    slope = CURVATURE * (x_T + 2 * z - TARGET)
    torch.testing.assert_close(optimisation.x_T.detach(), x_T - 0.02 * slope)
    torch.testing.assert_close(optimisation.z.detach(), z - 0.001 * 2 * slope)


def test_inputs_are_not_modified() -> None:
    x_T, z = latents()
    before = x_T.clone(), z.clone()
    optimisation = descent(generate, quadratic, x_T, z, SGD)
    for _ in range(3):
        optimisation.step()
    assert torch.equal(x_T, before[0]) and torch.equal(z, before[1])
    assert x_T.grad is None and not x_T.requires_grad


@pytest.mark.parametrize("optimizer", [SGD, ADAM, MOMENTUM], ids=["sgd", "adam", "momentum"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_batch_is_its_samples_one_by_one(optimizer, keep: str) -> None:
    x_T, z = latents()
    together = descent(generate, quadratic, x_T, z, optimizer, keep=keep)
    alone = [
        descent(generate, quadratic, x_T[k : k + 1], z[k : k + 1], optimizer, keep=keep)
        for k in range(3)
    ]
    for _ in range(12):
        step = together.step()
        singles = [single.step() for single in alone]
        losses = torch.cat([single.loss for single in singles])
        torch.testing.assert_close(step.loss, losses, rtol=1e-12, atol=1e-12)
    _, final = together.evaluate()
    torch.testing.assert_close(
        final, torch.cat([single.evaluate()[1] for single in alone]), rtol=1e-12, atol=1e-12
    )
    for index, whole in enumerate(together.result()):
        parts = torch.cat([single.result()[index] for single in alone])
        torch.testing.assert_close(whole, parts, rtol=1e-12, atol=1e-12)


def test_descends_to_the_minimum() -> None:
    x_T, z = latents()
    optimisation = descent(generate, quadratic, x_T, z, SGD)
    losses = torch.stack([optimisation.step().loss for _ in range(400)])
    assert (losses[1:] <= losses[:-1] + 1e-15).all()
    assert (losses[-1] < 1e-6).all()


def test_best_and_last_differ_when_the_loss_rises() -> None:
    x_T, z = latents()
    too_long = partial(torch.optim.SGD, lr=0.15)  # 5 * 4 * 0.15 > 2: the stiffest axis diverges
    last, best = (
        descent(generate, quadratic, x_T, z, too_long, keep=keep) for keep in ("last", "best")
    )
    history = [last.step().loss for _ in range(8)]
    for _ in range(8):
        best.step()
    (_, at_last), (rollout, at_best) = last.evaluate(), best.evaluate()
    torch.testing.assert_close(at_best, torch.stack([*history, at_last]).min(0).values)
    assert (at_last > at_best).all()
    torch.testing.assert_close(quadratic(rollout.x_0), at_best)


def test_best_may_be_the_iterate_after_the_last_step() -> None:
    x_T, z = latents()
    optimisation = descent(generate, quadratic, x_T, z, SGD, keep="best")
    step = optimisation.step()
    _, loss = optimisation.evaluate()
    assert (loss < step.loss).all()
    torch.testing.assert_close(optimisation.result()[0], optimisation.x_T.detach())


def poisoned(calls: list[int], when: int, kind: str):
    """The quadratic problem whose second sample fails from a given step on."""

    def objective(x_0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = quadratic(x_0)
        if len(calls) <= when:
            return loss
        if kind == "loss":
            return torch.stack([loss[0], loss[1] * float("nan"), loss[2]])
        # Finite loss, infinite slope: the square root at zero.
        root = (x_0[1, 0] - x_0[1, 0].detach()).sqrt()
        return torch.stack([loss[0], loss[1] + root, loss[2]])

    return objective


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
def test_a_failing_sample_is_frozen_and_the_others_go_on(optimizer, kind: str) -> None:
    x_T, z = latents()
    optimisation = descent(generate, poisoned([], 2, kind), x_T, z, optimizer)
    healthy = descent(generate, quadratic, x_T, z, optimizer)
    for _ in range(2):
        optimisation.step()
        healthy.step()
    good = optimisation.x_T.detach()[1].clone(), optimisation.z.detach()[1].clone()
    for _ in range(3):
        optimisation.step()
        healthy.step()
    assert list(optimisation.failed) == [1]
    assert optimisation.failed[1].startswith("step 2:")
    x_now, z_now = optimisation.result()
    assert torch.equal(x_now[1], good[0]) and torch.equal(z_now[1], good[1])
    torch.testing.assert_close(x_now[[0, 2]], healthy.result()[0][[0, 2]], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(z_now[[0, 2]], healthy.result()[1][[0, 2]], rtol=1e-12, atol=1e-12)


def test_failure_at_once_leaves_the_start() -> None:
    x_T, z = latents()
    for keep in ("last", "best"):
        optimisation = descent(generate, poisoned([], 0, "loss"), x_T, z, SGD, keep=keep)
        optimisation.step()
        assert torch.equal(optimisation.result()[0][1], x_T[1])


def test_unknown_keep() -> None:
    with pytest.raises(ValueError, match=r"keep='first' must be 'last' or 'best'"):
        descent(generate, quadratic, *latents(), SGD, keep="first")


def test_works_where_the_caller_disabled_gradients() -> None:
    with torch.no_grad():
        optimisation = descent(generate, quadratic, *latents(), SGD)
        first = optimisation.step().loss
        second = optimisation.step().loss
    assert (second < first).all()


# Optimisers that see the whole sample at once


LBFGS = partial(torch.optim.LBFGS, lr=1.0, max_iter=1, history_size=10)


def test_lbfgs_keeps_the_samples_apart() -> None:
    x_T, z = latents()
    together = descent(generate, quadratic, x_T, z, LBFGS)
    alone = [descent(generate, quadratic, x_T[k : k + 1], z[k : k + 1], LBFGS) for k in range(3)]
    for _ in range(10):
        losses = together.step().loss
        singles = torch.cat([single.step().loss for single in alone])
        torch.testing.assert_close(losses, singles, rtol=1e-12, atol=1e-12)
    # Four curvatures: quasi-Newton is at the minimum of a quadratic after a few pairs.
    assert (losses < 1e-6).all()


@pytest.mark.parametrize("option", [{"max_iter": 4}, {"line_search_fn": "strong_wolfe"}])
def test_lbfgs_with_iterations_of_its_own_is_refused(option) -> None:
    factory = partial(torch.optim.LBFGS, **{"max_iter": 1, **option})
    with pytest.raises(ValueError, match="use max_iter=1 without a line search"):
        descent(generate, quadratic, *latents(), factory)


# Early stopping


class Recorder:
    """The quadratic problem with offsets of each sample, which says which samples it was asked."""

    def __init__(self) -> None:
        self.offset = torch.tensor([[0.0], [0.3], [-0.2]], dtype=torch.float64)
        self.asked: list[list[int]] = []

    def sampler(self, x_T: torch.Tensor, z: torch.Tensor, rows: torch.Tensor) -> Rollout:
        self.asked.append(rows.tolist())
        return Rollout(x_T + 2 * z + self.offset[rows])

    def objective(self, x_0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return quadratic(x_0 - self.offset[rows])


def stopping(below: float, problem: Recorder | None = None, optimizer=SGD, keep="last"):
    problem = problem or Recorder()

    def near(x_0: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return problem.objective(x_0, rows) < below

    return descent(problem.sampler, problem.objective, *latents(), optimizer, keep=keep, stop=near)


@pytest.mark.parametrize("optimizer", [SGD, ADAM, MOMENTUM, LBFGS])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_stopped_sample_keeps_what_was_accepted(optimizer, keep: str) -> None:
    problem = Recorder()
    early = stopping(0.05, problem, optimizer, keep)
    free = descent(generate, quadratic, *latents(), optimizer)
    seen = []
    while not early.finished and early.steps < 300:
        seen.append((free.x_T.detach().clone(), free.z.detach().clone()))
        step, whole = early.step(), free.step()
        # Those still under way are where they would be without any stopping.
        torch.testing.assert_close(step.loss, whole.loss[step.rows], rtol=1e-12, atol=1e-12)
    assert early.finished and sorted(early.stopped) == [0, 1, 2]
    assert len(set(early.stopped.values())) > 1, "the samples stop at different steps"
    x_T, z = early.result()
    for index, when in early.stopped.items():
        torch.testing.assert_close(x_T[index], seen[when][0][index], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(z[index], seen[when][1][index], rtol=1e-12, atol=1e-12)
    calls = len(problem.asked)
    rollout, loss = early.evaluate()
    assert len(problem.asked) == calls, "an accepted sample is not sampled again"
    assert (loss < 0.05).all()
    expected = problem.sampler(x_T, z, torch.arange(3)).x_0
    torch.testing.assert_close(rollout.x_0, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="every sample has stopped"):
        early.step()


def test_a_stopped_sample_costs_nothing() -> None:
    problem = Recorder()
    early = stopping(0.05, problem)
    while not early.finished:
        early.step()
    for index, when in early.stopped.items():
        assert [index in rows for rows in problem.asked] == [
            step <= when for step in range(len(problem.asked))
        ]


def test_the_rest_is_evaluated_beside_the_stopped() -> None:
    problem = Recorder()
    early = stopping(0.05, problem)
    while not early.stopped:
        early.step()
    early.step()
    left = early.rows.tolist()
    assert 0 < len(left) < 3
    rollout, loss = early.evaluate()
    assert problem.asked[-1] == left
    expected = problem.sampler(*early.result(), torch.arange(3)).x_0
    torch.testing.assert_close(rollout.x_0, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(loss, problem.objective(expected, torch.arange(3)))


def test_the_norm_constraint_holds_after_every_update() -> None:
    x_T, z = latents()
    radius = x_T.norm(dim=1)
    optimisation = descent(generate, quadratic, x_T, z, ADAM, constraint=Sphere.through)
    for _ in range(20):
        optimisation.step()
        torch.testing.assert_close(optimisation.x_T.detach().norm(dim=1), radius)
    assert not torch.allclose(optimisation.x_T.detach(), x_T)


def test_descent_on_the_sphere_ends_where_the_gradient_is_radial() -> None:
    x_T, z = latents()
    optimisation = descent(generate, quadratic, x_T, z, SGD, moves="x_T", constraint=Sphere.through)
    for _ in range(2000):
        optimisation.step()
    x = optimisation.x_T.detach()
    slope = CURVATURE * (x + 2 * z - TARGET)
    radial = (slope * x).sum(1, keepdim=True) / x.square().sum(1, keepdim=True) * x
    torch.testing.assert_close(slope, radial, rtol=0, atol=1e-8)


def test_a_point_at_the_origin_stays_there() -> None:
    x = torch.zeros(1, 4, dtype=torch.float64)
    assert torch.equal(Sphere.through(x)(x), x)


@pytest.mark.parametrize("moving", ["x_T", "z"])
def test_only_one_latent_moves(moving: str) -> None:
    x_T, z = latents()
    optimisation = descent(generate, quadratic, x_T, z, ADAM, moves=moving)
    step = optimisation.step()
    moved_x, moved_z = optimisation.result()
    assert torch.equal(moved_x, x_T) == (moving == "z")
    assert torch.equal(moved_z, z) == (moving == "x_T")
    slope = CURVATURE * (x_T + 2 * z - TARGET)
    factor = 1 if moving == "x_T" else 2
    torch.testing.assert_close(step.gradient_norm, factor * slope.norm(dim=1))
    with pytest.raises(ValueError, match="moves='theta' must be"):
        toy(generate, quadratic, x_T, z, moves="theta")
    with pytest.raises(ValueError, match="the problem has no z"):
        toy(generate, quadratic, x_T, None, moves="z")


def test_a_penalty_moves_x_T_but_does_not_choose_the_best() -> None:
    x_T, z = latents()
    optimisation = descent(
        generate, quadratic, x_T, z, SGD, moves="x_T", penalty=lambda x: x.square().sum(1)
    )
    step = optimisation.step()
    slope = CURVATURE * (x_T + 2 * z - TARGET) + 2 * x_T
    torch.testing.assert_close(optimisation.x_T.detach(), x_T - 0.02 * slope)
    torch.testing.assert_close(step.loss, quadratic(x_T + 2 * z))


def test_a_scheduled_condition_is_one_tensor() -> None:
    x_T, z = latents()
    scheduled = torch.stack([z, 0.5 * z], 1)
    optimisation = descent(
        lambda x, zs, rows: Rollout(x + sum(zs.unbind(1))), quadratic, x_T, scheduled, SGD
    )
    optimisation.step()
    slope = CURVATURE * (x_T + 1.5 * z - TARGET)
    wanted = scheduled - 0.02 * slope.unsqueeze(1)
    torch.testing.assert_close(optimisation.z.detach(), wanted)


def test_the_cost_of_all_steps_is_counted() -> None:
    def counting(x_T: torch.Tensor, z: torch.Tensor, rows: torch.Tensor) -> Rollout:
        return Rollout(x_T + 2 * z, Cost(nfe_forward=5, vjps=3, peak_latents=7))

    optimisation = descent(counting, quadratic, *latents(), SGD)
    for _ in range(4):
        optimisation.step()
    optimisation.evaluate()
    assert (optimisation.cost.nfe, optimisation.cost.vjps) == (25, 15)
    assert optimisation.cost.peak_latents == 7


def test_solving_is_stepping_to_the_end() -> None:
    algorithm = LatentOptimisation(7, ADAM, keep="best")
    problem = toy(generate, quadratic, *latents())
    run = algorithm.start(problem)
    for _ in range(7):
        assert not run.finished
        run.step()
    assert run.finished
    stepped, solved = run.outcome(), algorithm.solve(problem)
    for name in ("x_T", "z", "x_0", "loss"):
        assert torch.equal(getattr(stepped, name), getattr(solved, name)), name
    assert len(solved.history) == 7 and torch.equal(solved.history[0], run.history[0])
    assert torch.equal(quadratic(solved.x_0), solved.loss)
    assert not solved.x_0.requires_grad
    with pytest.raises(TypeError, match="LatentOptimisation solves a LatentProblem, not a int"):
        algorithm.solve(3)
    with pytest.raises(ValueError, match="steps=-1"):
        LatentOptimisation(-1)


def test_every_floating_tensor_of_a_condition_moves() -> None:
    x_T, z = latents()
    tree = {"prompt": z, "scale": (0.5 * z,), "mask": torch.ones(3, 4).long(), "name": "a"}

    def both(x: torch.Tensor, c: dict, rows: torch.Tensor) -> Rollout:
        assert c["name"] == "a"
        return Rollout(x + c["mask"] * (2 * c["prompt"] + 3 * c["scale"][0]))

    run = descent(both, quadratic, x_T, tree, SGD, z_learning_rate=0.001)
    run.step()
    slope = CURVATURE * (x_T + 3.5 * z - TARGET)
    moved, found = run.result()
    torch.testing.assert_close(moved, x_T - 0.02 * slope)
    torch.testing.assert_close(found["prompt"], z - 0.001 * 2 * slope)
    torch.testing.assert_close(found["scale"][0], 0.5 * z - 0.001 * 3 * slope)
    assert torch.equal(found["mask"], tree["mask"])


def test_without_a_condition_x_T_moves() -> None:
    x_T, _ = latents()
    run = descent(lambda x, z, rows: Rollout(x), quadratic, x_T, None, SGD, z_learning_rate=9.0)
    run.step()
    torch.testing.assert_close(run.result()[0], x_T - 0.02 * CURVATURE * (x_T - TARGET))
    assert run.outcome().z is None


def test_the_noise_of_some_samples_is_theirs_whatever_draws_it() -> None:
    x_T, z = latents()
    grid, rows = TimeGrid.uniform_lmbda(VPLinear(), 4, t_min=0.05, t_max=0.6), torch.tensor([2, 0])
    path = BrownianPath(tuple(x_T.shape), seed=4)
    recorded = [path.normal(grid[i], grid[i + 1], x_T) for i in range(4)]
    found = []
    for noise in (path, recorded, RecordedNoise(tuple(recorded))):
        problem = LatentProblem(
            lambda x, t, z: 0.5 * x + z, x_T, z, loss=quadratic, solver=SDEDPMSolver(),
            grid=grid, noise=noise,
        )  # fmt: skip
        found.append(problem.sample(x_T[rows], z[rows], rows).x_0)
        assert torch.allclose(found[-1], problem.sample().x_0[rows], rtol=1e-12)
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])


def test_a_loss_of_the_samples_alone_is_told_its_other_argument() -> None:
    given = {"solver": DDIM(), "grid": TimeGrid.uniform_lmbda(VPLinear(), 3)}
    with pytest.raises(TypeError, match=r"loss=lambda x_0, rows: \.\.\."):
        LatentProblem(lambda x, t, z: x, torch.zeros(2, 3), loss=lambda x_0: x_0.sum(1), **given)
