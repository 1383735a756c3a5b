"""Inverse after forward is the identity, within the amplification that each solver predicts."""

import pytest
import torch
from oracles import BATCH, DIM, gaussian, inputs, mixture, normal, relative_error

from adjointdeis import DDPM, PerStep, TimeGrid, VPLinear, encode, sample
from adjointdeis.diffusion import BrownianPath, RecordedNoise
from adjointdeis.solvers import (
    BDIA,
    EDICT,
    OBELM,
    AmplificationWarning,
    GridEndError,
    Pair,
    ReversibleSolver,
    Rex,
)

quiet = pytest.mark.filterwarnings("ignore::adjointdeis.solvers.reversible.AmplificationWarning")
SOLVERS = {
    "edict": EDICT(),
    "bdia": BDIA(),
    "obelm": OBELM(),
    "rex-data": Rex(),
    "rex-data-midpoint": Rex("midpoint", zeta=0.99),
    "rex-data-heun": Rex("heun"),
    "rex-data-rk4": Rex("rk4", zeta=1.0),
    "rex-noise": Rex(prediction="noise"),
    "rex-noise-kutta3": Rex("kutta3", "noise"),
}
SDES = {
    "rex-sde": Rex(calculus="sde"),
    "rex-sde-midpoint": Rex("midpoint", calculus="sde"),
    "rex-sde-noise": Rex("midpoint", "noise", "sde"),
}
SPACINGS = {"lmbda": TimeGrid.uniform_lmbda, "time": TimeGrid.uniform_time}
EPS = torch.finfo(torch.float64).eps


def there(solver, denoiser, x_T, z, grid, noise=None):
    """The pair at the clean end."""
    with torch.no_grad():
        return sample(denoiser, x_T, z, solver=Pair(solver, tied=True), grid=grid, noise=noise).x_0


def back(solver, denoiser, pair, z, grid, noise=None):
    """The pair at the noisy end."""
    with torch.no_grad():
        return encode(denoiser, pair, z, solver=Pair(solver), grid=grid.reversed(), noise=noise).x_T


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
def test_sampling_is_undone_exactly(name: str, spacing: str) -> None:
    solver, denoiser, (x_T, z) = SOLVERS[name], mixture(), inputs()
    for steps in (5, 20, 50):
        grid = SPACINGS[spacing](VPLinear(), steps)
        pair = there(solver, denoiser, x_T, z, grid)
        error = relative_error(back(solver, denoiser, pair, z, grid), torch.stack((x_T, x_T)))
        assert error < 1e-10
        assert error < 100.0 * solver.amplification(grid) * EPS


@quiet
@pytest.mark.parametrize("name", SDES)
def test_an_sde_path_is_undone_with_the_same_noise(name: str) -> None:
    solver, denoiser, (x_T, z) = SDES[name], mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 12, t_min=0.05, t_max=0.5)
    both = torch.stack((x_T, x_T))
    for noise in (
        BrownianPath((BATCH, DIM), seed=4),
        RecordedNoise.draw(12, (BATCH, DIM), seed=4, dtype=torch.float64),
    ):
        pair = there(solver, denoiser, x_T, z, grid, noise)
        assert relative_error(back(solver, denoiser, pair, z, grid, noise), both) < 1e-10
    other = BrownianPath((BATCH, DIM), seed=5)
    assert relative_error(back(solver, denoiser, pair, z, grid, other), both) > 1e-3


@pytest.mark.parametrize("name", SOLVERS)
def test_a_step_is_undone_with_its_condition_and_at_an_exact_end(name: str) -> None:
    """One step each: the first, one in the middle, and the last one to sigma = 0."""
    solver, denoiser, (x, z) = SOLVERS[name], mixture(DDPM()), inputs()
    grid, partner = TimeGrid.ddim_stride(DDPM(), 8), normal(BATCH, DIM, seed=7)
    for index in (0, 3, 4, 7):
        s, t = grid[index], grid[index + 1]
        with torch.no_grad():
            reached, state = solver.step(denoiser, x, z, s, t, (partner,), None)
            found, (found_partner,) = solver.inverse_step(denoiser, reached, z, s, t, state, None)
        assert reached.isfinite().all() and state[0].isfinite().all()
        assert relative_error(found, x) < 1e-11
        assert relative_error(found_partner, partner) < 1e-11


def test_a_scheduled_condition_is_undone_in_the_opposite_order() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 6)
    x_T, zs = inputs(6)
    for solver in (EDICT(), OBELM(), Rex("midpoint")):
        pair = there(solver, mixture(), x_T, PerStep(zs), grid)
        found = back(solver, mixture(), pair, PerStep(zs[::-1]), grid)
        assert relative_error(found, torch.stack((x_T, x_T))) < 1e-11


@pytest.mark.parametrize("name", SOLVERS)
def test_an_encoded_image_is_decoded_to_the_last_digit(name: str) -> None:
    """Exactly where both latents are kept; closely from x_T alone on a fine grid."""
    solver, denoiser, (x_0, z) = SOLVERS[name], mixture(), inputs()
    grid = TimeGrid.uniform_lmbda(VPLinear(), 40, t_min=0.02)
    with torch.no_grad():
        code = encode(denoiser, x_0, z, solver=Pair(solver, tied=True), grid=grid.reversed()).x_T
        again = sample(denoiser, code, z, solver=Pair(solver), grid=grid).x_0
        alone = encode(denoiser, x_0, z, solver=solver, grid=grid.reversed()).x_T
    assert code.shape == (2, *x_0.shape)
    assert torch.equal(alone, code[0])
    assert relative_error(again[0], x_0) < 1e-11
    if not isinstance(solver, (BDIA, OBELM)):
        assert relative_error(again[1], x_0) < 1e-11


@pytest.mark.parametrize("solver", [BDIA(), OBELM()], ids=["bdia", "obelm"])
def test_a_two_step_method_begins_an_encoding_with_one_ddim_step(solver) -> None:
    denoiser, (x_0, z) = mixture(), inputs()
    grid = TimeGrid.uniform_time(VPLinear(), 1)
    with torch.no_grad():
        code = encode(denoiser, x_0, z, solver=solver, grid=grid.reversed())
        s, t = grid[1], grid[0]
        expected = t.alpha / s.alpha * x_0 + t.alpha * (t.rho - s.rho) * denoiser(x_0, s.t, z)
    torch.testing.assert_close(code.x_T, expected, rtol=1e-12, atol=1e-12)
    assert code.cost.nfe == 2  # the opening, and the network evaluation that undoes the step


def silent(x, t, z):
    return torch.zeros_like(x)


@pytest.mark.parametrize("steps", [3, 10, 41])
@pytest.mark.parametrize(
    "solver", [EDICT(), EDICT(0.8), Rex(prediction="noise", zeta=0.9)], ids=repr
)
def test_a_difference_within_the_pair_grows_as_predicted(solver, steps: int) -> None:
    """Without a network the growth is exact: p^-2N and zeta^-N, in y."""
    grid = TimeGrid.uniform_time(VPLinear(), steps)
    pair = torch.stack((torch.ones(1, 3), torch.zeros(1, 3))).double()
    found = back(solver, silent, pair, None, grid)
    growth = float((found[0] - found[1]).abs().max()) * grid[-1].alpha / grid[0].alpha
    factor = getattr(solver, "p", 0.0) ** 2 or solver.zeta
    assert growth == pytest.approx(factor**-steps, rel=1e-9)
    assert solver.amplification(grid) == pytest.approx(factor**-steps, rel=1e-12)


def test_the_inverse_of_bdia_divides_by_gamma_at_every_step() -> None:
    pair = torch.stack((torch.ones(1, 3), torch.zeros(1, 3))).double()
    for steps in (10, 40):
        grid = TimeGrid.uniform_lmbda(VPLinear(), steps)
        grown = [
            float((found[0] - found[1]).abs().max())
            for found in (back(BDIA(g), silent, pair, None, grid) for g in (0.9, 1.0))
        ]
        assert grown[0] / grown[1] == pytest.approx(BDIA(0.9).amplification(grid), rel=0.2)
        assert BDIA(0.9).amplification(grid) == pytest.approx(0.9**-steps)
        assert BDIA().amplification(grid) == 1.0


@pytest.mark.parametrize("t_min", [1e-3, 1e-4])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("solver", [OBELM(), Rex(), Rex("rk4"), Rex(calculus="sde")], ids=repr)
@quiet
def test_what_the_data_amplify_is_predicted_within_a_factor_of_ten(
    solver, spacing: str, t_min: float
) -> None:
    denoiser, (x_T, z) = gaussian(), inputs()
    noise = BrownianPath((BATCH, DIM), seed=11) if solver.calculus == "sde" else None
    grid = SPACINGS[spacing](VPLinear(), 40, t_min=t_min)
    pair, change = there(solver, denoiser, x_T, z, grid, noise), normal(BATCH, DIM, seed=5)
    moved = torch.stack((pair[0] + 1e-9 * change, pair[1]))
    found = [back(solver, denoiser, p, z, grid, noise) for p in (pair, moved)]
    measured = float((found[1] - found[0]).norm() / change.norm()) / 1e-9
    assert 0.1 < measured / solver.amplification(grid) < 10.0


@pytest.mark.parametrize("name", SOLVERS)
@quiet
def test_in_float32_the_error_stays_within_the_prediction(name: str) -> None:
    solver, denoiser = SOLVERS[name], gaussian().float()
    x_T, z = (value.float() for value in inputs())
    rounding = torch.finfo(torch.float32).eps
    for steps in (10, 50):
        grid = TimeGrid.uniform_lmbda(VPLinear(), steps, t_min=0.01)
        pair = there(solver, denoiser, x_T, z, grid)
        found = back(solver, denoiser, pair, z, grid)
        assert found.dtype == torch.float32
        error = relative_error(found, torch.stack((x_T, x_T)))
        assert error < 30.0 * solver.amplification(grid) * rounding


def test_a_prediction_beyond_1e_3_is_borne_out_in_float32() -> None:
    solver, denoiser = EDICT(0.8), gaussian().float()
    x_T, z = (value.float() for value in inputs())
    grid = TimeGrid.uniform_time(VPLinear(), 60)
    pair = there(solver, denoiser, x_T, z, grid)
    with pytest.warns(AmplificationWarning, match="float32"):
        found = back(solver, denoiser, pair, z, grid)
    assert relative_error(found, torch.stack((x_T, x_T))) > 1e-3


def test_the_inverse_of_an_inverse_is_the_solver() -> None:
    grid = TimeGrid.uniform_time(VPLinear(), 4)
    for solver in (EDICT(), Rex()):
        assert solver.inverted(grid).inverted(grid) is solver
        assert solver.inverted(grid).amplification(grid.reversed()) == 1.0


def test_pairs_are_told_from_single_latents() -> None:
    grid, (x_T, z) = TimeGrid.uniform_time(VPLinear(), 3), inputs()
    with pytest.raises(ValueError, match=r"first dimension of 2, got \(3, 4\)"):
        sample(mixture(), x_T[[0, 1, 0]], z, solver=Pair(EDICT()), grid=grid)
    noise = BrownianPath((BATCH, DIM), seed=0)
    solver = Rex(calculus="sde")
    with torch.no_grad():
        tied = sample(mixture(), x_T, z, solver=Pair(solver, tied=True), grid=grid, noise=noise).x_0
        pair = torch.stack((x_T, x_T))
        given = sample(mixture(), pair, z, solver=Pair(solver), grid=grid, noise=noise).x_0
        plain = sample(mixture(), x_T, z, solver=solver, grid=grid, noise=noise).x_0
    assert torch.equal(tied, given) and torch.equal(tied[0], plain)


def test_what_cannot_be_undone_is_refused() -> None:
    end = TimeGrid.ddim_stride(DDPM(), 8, encode=True)
    x, z = inputs()
    for solver in (EDICT(), BDIA(), OBELM(), Rex(), Rex(prediction="noise")):
        assert isinstance(solver, ReversibleSolver)
        with pytest.raises(ValueError, match=r"alpha = 0.*t_max"):
            encode(mixture(DDPM()), x, z, solver=solver, grid=end)
    # DDIM towards pure noise forgets where it came from: its factor is 0.
    with pytest.raises(GridEndError, match="t_max"):
        EDICT().couplings(end[-2], end[-1], None)
    with pytest.raises(ValueError, match="noise of this step"):
        grid = TimeGrid.uniform_time(VPLinear(), 3)
        Rex(calculus="sde").step(mixture(), x, z, grid[0], grid[1], (x,), None)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EDICT(1.0), "drift apart"),
        (lambda: EDICT(0.0), "0 < p < 1"),
        (lambda: EDICT(1.1), "0 < p < 1"),
        (lambda: BDIA(0.0), "0 < gamma <= 1"),
        (lambda: BDIA(1.5), "0 < gamma <= 1"),
        (lambda: Rex(zeta=0.0), "0 < zeta <= 1"),
        (lambda: Rex(zeta=1.01), "0 < zeta <= 1"),
        (lambda: Rex("rk5"), "rk4"),
        (lambda: Rex(prediction="x0"), "'data' or 'noise'"),
        (lambda: Rex(calculus="ito"), "'ode' or 'sde'"),
    ],
)
def test_values_outside_their_range_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
