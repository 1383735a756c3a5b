"""DiffPure: the gradient reaches the image by a factor alpha, the attack stays where it may."""

import pytest
import torch
from oracles import BATCH, COND, DIM, MLPDenoiser, agree, mixture, normal, relative_error

from adjointdeis import TimeGrid, VPLinear
from adjointdeis.diffusion import GaussianDenoiser, RecordedNoise
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint
from adjointdeis.guidance.diffpure import DefenceProblem, DiffPure, Draw, ProjectedAscent
from adjointdeis.solvers import DDIM, SDEDPMSolver

SCHEDULE = VPLinear()
GRID = TimeGrid.uniform_time(SCHEDULE, 6, t_max=0.3)


def draw(seed: int = 1, batch: int = BATCH, steps: int = 6) -> Draw:
    noise = RecordedNoise.draw(steps, (batch, DIM), seed, torch.float64)
    return Draw(normal(batch, DIM, seed=seed), noise)


def by_hand(denoiser, images, drawn: Draw, z) -> torch.Tensor:
    """The published purification: noise to t*, then the reverse SDE, written out."""
    first = GRID[0]
    y = (first.alpha * images + first.sigma * drawn.start) / first.alpha
    for i, n in enumerate(drawn.path.values):
        s, t = GRID[i], GRID[i + 1]
        eps = denoiser(s.alpha * y, s.t, z)
        y = y + 2 * (t.rho - s.rho) * eps + (s.rho**2 - t.rho**2) ** 0.5 * n
    return GRID[-1].alpha * y


@pytest.mark.parametrize("method", [DiscreteAdjoint(), Backprop()], ids=["stepwise", "graph"])
def test_the_gradient_of_the_image_is_autograd(method) -> None:
    denoiser, z = MLPDenoiser(), normal(BATCH, COND, seed=3)
    images, cotangent = normal(BATCH, DIM, seed=2), normal(BATCH, DIM, seed=4)
    found = [t.clone().requires_grad_() for t in (images, z)]
    wanted = [t.clone().requires_grad_() for t in (images, z)]
    pure = DiffPure(denoiser, SDEDPMSolver(), GRID)
    out = pure.purify(found[0], draw(), method, found[1]).x_0
    reference = by_hand(denoiser, wanted[0], draw(), wanted[1])
    assert agree(out, reference)
    for a, b in zip(
        torch.autograd.grad((out * cotangent).sum(), found),
        torch.autograd.grad((reference * cotangent).sum(), wanted),
        strict=True,
    ):
        assert agree(a, b)


def test_the_noising_is_linear_in_the_image() -> None:
    """J = 0: x_0 / alpha_0 = image + sigma e / alpha + noises, so dx_0/dimage = alpha_0 exactly."""
    pure = DiffPure(lambda x, t, z: torch.zeros_like(x), SDEDPMSolver(), GRID)
    images = normal(BATCH, DIM, seed=2).requires_grad_()
    (g,) = torch.autograd.grad(pure.purify(images, draw()).x_0.sum(), images)
    assert agree(g, torch.full_like(g, GRID[-1].alpha))


def test_the_sde_adjoint_is_near_and_not_equal() -> None:
    denoiser, z = mixture(), normal(BATCH, COND, seed=3)
    gradients = []
    for method in (DiscreteAdjoint(), AdjointDEIS()):
        images = normal(BATCH, DIM, seed=2).requires_grad_()
        out = DiffPure(denoiser, SDEDPMSolver(), GRID).purify(images, draw(), method, z).x_0
        gradients.append(torch.autograd.grad(out.square().sum(), images)[0])
    assert 1e-3 < relative_error(gradients[1], gradients[0]) < 0.9


def test_a_perturbation_is_washed_out_and_more_so_from_later_times() -> None:
    """Gaussian data of scale s: what survives of a change is the flow's contraction."""
    denoiser = GaussianDenoiser(SCHEDULE, torch.zeros(DIM).double(), 0.1)
    images = 0.1 * normal(BATCH, DIM, seed=2)
    bump = 0.3 * normal(BATCH, DIM, seed=5)
    left = []
    for t_max in (0.05, 0.2, 0.5):
        grid = TimeGrid.uniform_lmbda(SCHEDULE, 60, t_max=t_max)
        pure, drawn = DiffPure(denoiser, SDEDPMSolver(), grid), draw(steps=60)
        clean, dirty = (pure.purify(x, drawn).x_0.detach() for x in (images, images + bump))
        left.append(float((dirty - clean).norm() / bump.norm()))
    assert left[2] < left[1] < left[0] < 1.0
    assert left[2] < 0.1


def defended(denoiser, images, z, loss, draw) -> DefenceProblem:
    pure = DiffPure(denoiser, SDEDPMSolver(), GRID)
    return DefenceProblem(images, lambda x, d, g: pure.purify(x, d, g, z), loss=loss, draw=draw)


def linear(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double()


def test_the_attack_stays_inside_and_goes_uphill() -> None:
    denoiser, z = mixture(), normal(BATCH, COND, seed=3)
    images = (0.5 * normal(BATCH, DIM, seed=2)).clamp(-1, 1)
    pure = DiffPure(denoiser, SDEDPMSolver(), GRID)
    ascent, fixed = ProjectedAscent(radius=0.2, step_size=0.07, steps=8), draw(7)
    found = ascent.solve(defended(denoiser, images, z, linear, lambda k: fixed))
    assert ((found.x_0 - images).abs() <= 0.2 + 1e-12).all()
    assert (found.x_0.abs() <= 1).all()
    before = linear(pure.purify(images, fixed, z=z).x_0)
    after = linear(pure.purify(found.x_0, fixed, z=z).x_0)
    assert (after > before).all() and agree(found.loss, after)
    assert agree(found.history[0], before)
    assert len(found.history) == 8
    assert (found.cost.nfe, found.cost.vjps) == (8 * 12, 8 * 6)
    idle = ProjectedAscent(0.2, steps=0).solve(defended(denoiser, images, z, linear, draw))
    assert torch.equal(idle.x_0, images) and idle.first_gradient is None


def test_one_step_sums_over_the_draws() -> None:
    denoiser, z = MLPDenoiser(), normal(BATCH, COND, seed=3)
    images = 0.1 * normal(BATCH, DIM, seed=2)
    ascent = ProjectedAscent(radius=0.5, step_size=0.1, steps=1, draws=3)
    loss = lambda x: x.pow(3).sum(1)  # noqa: E731 - a formula
    found = ascent.solve(defended(denoiser, images, z, loss, draw))
    leaf = images.clone().requires_grad_()
    each = [loss(by_hand(denoiser, leaf, draw(k), z)) for k in range(3)]
    first, *rest = (torch.autograd.grad(one.sum(), leaf)[0] for one in each)
    assert agree(found.x_0, images + 0.1 * (first + sum(rest)).sign())
    assert agree(found.history[0], sum(each) / 3)
    assert agree(found.first_gradient, first)


def test_an_attack_around_the_defence_does_not_see_it() -> None:
    images = 0.1 * normal(BATCH, DIM, seed=2)
    problem = defended(MLPDenoiser(), images, None, linear, draw)
    found = ProjectedAscent(radius=0.1, steps=1, through=False).solve(problem)
    assert found.cost.nfe == 0
    assert agree(found.x_0, images + 0.1 * torch.tensor([1.0, -1.0, 1.0, 0.0]).double())


def test_an_ode_purifies_too_and_wrong_grids_are_refused() -> None:
    denoiser, z = MLPDenoiser(), normal(BATCH, COND, seed=3)
    pure = DiffPure(denoiser, DDIM(), GRID)
    images = normal(BATCH, DIM, seed=2)
    assert pure.purify(images, Draw(normal(BATCH, DIM, seed=1)), z=z).cost.nfe == 6
    with pytest.raises(ValueError, match="this one encodes"):
        DiffPure(denoiser, DDIM(), GRID.reversed())
    with pytest.raises(ValueError, match="must be positive"):
        ProjectedAscent(radius=0.0, step_size=0.1, steps=1)
    with pytest.raises(ValueError, match="is empty"):
        DefenceProblem(images, pure.purify, loss=linear, draw=draw, low=1.0, high=0.0)
    with pytest.raises(ValueError, match="draws=0"):
        ProjectedAscent(0.1, draws=0)
