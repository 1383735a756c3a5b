"""A batch sampled and differentiated in parts is the whole batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from oracles import MLPDenoiser, relative_error
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath, RecordedNoise
from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.gradients import Backprop, DiscreteAdjoint
from adjointdeis.gradients.independence import CoupledSamplesError
from adjointdeis.solvers import BDIA, DDIM, DPMSolverPP, Pair, SDEDPMSolver

STEPS = 4
GRID = TimeGrid.uniform_lmbda(VPLinear(), STEPS)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


NETWORK = MLPDenoiser()
X, Z = normal(5, 4, seed=1), normal(5, 3, seed=2)


@pytest.mark.parametrize("microbatch", [1, 2, 5, 9])
@pytest.mark.parametrize("solver", [DPMSolverPP(), SDEDPMSolver()], ids=str)
@pytest.mark.parametrize("method", [DiscreteAdjoint(), Backprop()], ids=str)
def test_parts_are_the_whole(microbatch: int, solver, method) -> None:
    sde = solver.calculus == "sde"
    draws = [normal(*X.shape, seed=10 + k).requires_grad_() for k in range(STEPS)] if sde else None
    x_T, z = X.clone().requires_grad_(), Z.clone().requires_grad_()
    leaves = [x_T, z, *NETWORK.parameters(), *(draws or [])]
    found = []
    for size in (None, microbatch):
        rollout = sample(
            NETWORK, x_T, z, solver=solver, grid=GRID, noise=draws, gradient=method,
            microbatch=size,
        )  # fmt: skip
        # A loss of the whole batch, which no sum over its parts is.
        objective = rollout.x_0.std(0).sum() + rollout.x_0.square().mean()
        found.append([rollout.x_0, *torch.autograd.grad(objective, leaves)])
    parts = -(-5 // microbatch)
    checks = 2 if parts > 1 else 0
    assert rollout.cost.nfe_forward == parts * STEPS + checks and rollout.cost.vjps == parts * STEPS
    for ours, theirs in zip(*found, strict=True):
        assert theirs.norm() > 0 and relative_error(ours, theirs) < 1e-12


@torch.no_grad()
def test_other_noises_and_schedules_are_divided_too() -> None:
    path = BrownianPath(X.shape, seed=3)

    class Drawn:
        def normal(self, s, t, like):
            generator = torch.Generator().manual_seed(s.index)
            return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    zs = PerStep([Z + k for k in range(STEPS)])
    recorded = RecordedNoise.draw(STEPS, X.shape, seed=4, dtype=torch.float64)
    for noise in (path, recorded, Drawn()):
        runs = [
            sample(NETWORK, X, zs, solver=SDEDPMSolver(), grid=GRID, noise=noise, microbatch=m).x_0
            for m in (None, 2)
        ]
        assert relative_error(*runs) < 1e-12

    nothing = sample(NETWORK, X[:0], Z[:0], solver=DDIM(), grid=GRID, microbatch=2)
    assert nothing.x_0.shape == (0, 4)

    def shared(x: Tensor, t: Tensor, z: dict) -> Tensor:
        return NETWORK(x, t, z["own"] * z["scale"] + z["of all"])

    z = {"own": Z, "scale": 0.5, "of all": normal(3, seed=7)}
    runs = [sample(shared, X, z, solver=DDIM(), grid=GRID, microbatch=m).x_0 for m in (None, 2)]
    assert relative_error(*runs) < 1e-12


@torch.no_grad()
def test_what_cannot_be_divided_is_refused() -> None:
    for solver, size, message in (
        (DDIM(), 0, "microbatch must be at least 1"), (Pair(BDIA()), 2, "a Pair of latents cannot")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            sample(NETWORK, X, Z, solver=solver, grid=GRID, microbatch=size)
    whole = lambda x, t, z: NETWORK(x, t, Z) if x.shape[0] == 5 else x + Z.mean(1, True)  # noqa: E731
    with pytest.raises(ValueError, match="holds a tensor of the whole batch of 5; pass it in z"):
        sample(whole, X, solver=DDIM(), grid=GRID, microbatch=1)


class Layered(nn.Module):
    """A network with one layer that may couple samples."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(normal(4, 4, seed=8))

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return torch.tanh(self.layer((x @ self.weight)[..., None])[..., 0]) * (1 + t.to(x))


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


COUPLED = {
    "batch statistics": lambda: nn.BatchNorm1d(4), "dropout": lambda: nn.Dropout(0.2),
    "no running statistics": lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
    "instances": lambda: nn.InstanceNorm1d(4, track_running_stats=True),
    "lazy": lambda: nn.SyncBatchNorm(4), "noise": Noisy, "mean": Centred,
}  # fmt: skip


@pytest.mark.parametrize("which", COUPLED)
@pytest.mark.parametrize("microbatch", [1, 2])
def test_samples_that_depend_on_each_other_are_refused(which: str, microbatch: int) -> None:
    layer = COUPLED[which]().double()
    network = Layered(layer)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(CoupledSamplesError, match=r"microbatch would change the result.*eval\(\)"):
        sample(network, X, solver=DDIM(), grid=GRID, microbatch=microbatch)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    if which in ("batch statistics", "dropout", "lazy"):
        network.eval()
        runs = [sample(network, X, solver=DDIM(), grid=GRID, microbatch=m).x_0 for m in (None, 2)]
        assert relative_error(*runs) < 1e-12


class Projecting:
    """A network that projects its prompt once, and a prompt that is an object."""

    def __init__(self, keeps: bool) -> None:
        self.keeps, self.kept = keeps, None

    def __call__(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        if self.kept is None or not self.keeps:
            self.kept = torch.tanh(z["prompt"] if isinstance(z, dict) else z.prompt)
        return NETWORK(x, t, self.kept)


@pytest.mark.parametrize("microbatch", [1, 2, 3])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_prompt_of_other_samples_is_refused(keeps: bool, microbatch: int) -> None:
    """Kept from one part for the next one, or not divided: no wrong sample, no error of torch."""
    z = {"prompt": Z} if keeps else SimpleNamespace(prompt=Z)
    for x in (X, X.clone().requires_grad_()):
        with pytest.raises(CoupledSamplesError, match=r"microbatch|other objects"):
            sample(Projecting(keeps), x, z, solver=DDIM(), grid=GRID, microbatch=microbatch)


def test_the_check_leaves_no_weight_without_its_graph() -> None:
    """In torch's own cache of parametrised weights, which the parts then read."""
    layer, found = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4).double()), []
    weights = list(layer.parameters())
    for microbatch in (None, 2):
        with parametrize.cached():
            x_0 = sample(
                lambda x, t, z: torch.tanh(layer(x)), X, solver=DDIM(), grid=GRID,
                microbatch=microbatch, parameters=weights, gradient=Backprop(),
            ).x_0  # fmt: skip
            found.append(torch.autograd.grad(x_0.square().sum(), weights))
    assert all(relative_error(*pair) < 1e-12 for pair in zip(*found, strict=True))


@torch.no_grad()
def test_a_tensor_of_all_samples_that_is_as_long_as_the_batch_is_refused() -> None:
    shared = normal(5, seed=9)

    def network(x: Tensor, t: Tensor, z: dict) -> Tensor:
        return NETWORK(x, t, z["own"]) * z["shared"].sin().sum()

    z = {"own": Z, "shared": shared}
    with pytest.raises(CoupledSamplesError, match=r"happens to be 5 long \(pass tensor\[None\]\)"):
        sample(network, X, z, solver=DDIM(), grid=GRID, microbatch=2)
    z["shared"] = shared[None]
    runs = [sample(network, X, z, solver=DDIM(), grid=GRID, microbatch=m).x_0 for m in (None, 2)]
    assert relative_error(*runs) < 1e-12


def test_a_scheduler_that_adds_noise_is_refused() -> None:
    diffusers = pytest.importorskip("diffusers")
    from adjointdeis.diffusion import from_diffusers

    class Network(torch.nn.Module):
        def forward(self, sample, timestep, return_dict=True):
            return (torch.tanh(sample) * torch.sin(timestep.double() / 200).reshape(-1, 1),)

    for eta in (0.0, 1.0):
        model = from_diffusers(Network(), diffusers.DDIMScheduler(clip_sample=False))
        sampler = model.sampler(4, eta=eta)
        both = {"solver": sampler.solver, "grid": sampler.grid}
        whole = sample(sampler.denoiser, X, **both).x_0
        if eta:
            with pytest.raises(ValueError, match="adds noise, and every part of a batch would"):
                sample(sampler.denoiser, X, **both, microbatch=2)
        else:
            assert relative_error(sample(sampler.denoiser, X, **both, microbatch=2).x_0, whole) == 0
