"""Every block of docs/other_libraries.md against the loop of the library that it is about."""

import itertools
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import relative_error
from torch import Tensor, nn

from adjointdeis.diffusion import EDM, VarianceExploding, from_azula, from_flow_matching
from adjointdeis.diffusion.other_libraries import FunctionSchedule

PAGE = (Path(__file__).parents[2] / "docs" / "other_libraries.md").read_text()
BLOCKS = dict(re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.S | re.M))
SIGMAS = torch.tensor([80.0, 20.0, 5.0, 1.0, 0.2, 0.02, 0.0], dtype=torch.float64)


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Body(nn.Module):
    """A smooth function of latents, one time per sample and a condition, under any names."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * normal(4, 4, seed=0))

    def forward(self, x: Tensor, time: Tensor, z: Tensor | None = None) -> Tensor:
        time = torch.as_tensor(time).to(x).expand(x.shape[0]).reshape(-1, 1)
        return torch.tanh(x @ self.weight + torch.sin(time) + (0.0 if z is None else z))


@pytest.fixture
def torchvision(monkeypatch) -> None:
    """k-diffusion and smalldiffusion import it for their data sets alone."""
    try:
        import torchvision  # noqa: F401
    except ImportError:
        for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
        transforms = sys.modules["torchvision.transforms"]
        transforms.functional = sys.modules["torchvision.transforms.functional"]
        transforms.__getattr__ = lambda name: lambda *values: None


def loss(x: Tensor) -> Tensor:
    return (1.0 + x * x).sqrt().sum()


def check(block: str, given: dict[str, Any], wanted: Tensor, weight: Tensor | None) -> None:
    """The block's x_0 and gradients are those of ``wanted``, a function of the same leaves."""
    leaves = [v for v in given.values() if isinstance(v, Tensor) and v.requires_grad]
    leaves += [] if weight is None else [weight]
    theirs = torch.autograd.grad(loss(wanted), leaves)
    space = {"loss": loss, "torch": torch, **given}
    exec(compile(BLOCKS[block], block, "exec"), space)
    assert relative_error(space["rollout"].x_0, wanted) < 1e-9
    for leaf, gradient in zip(leaves, theirs, strict=True):
        assert gradient.norm() > 0 and relative_error(leaf.grad, gradient) < 1e-9


def undecorated(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


X_T, Z = normal(3, 4, seed=1), normal(3, 4, seed=2)


def leaves() -> tuple[Tensor, Tensor]:
    return X_T.clone().requires_grad_(), Z.clone().requires_grad_()


@pytest.mark.parametrize("kind", ["VPSchedule", "VESchedule", "CosineSchedule"])
def test_azula(kind: str) -> None:
    pytest.importorskip("azula")
    from azula import denoise, noise, sample as samplers

    body, (x_T, z) = Body(), leaves()

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.body(x, t, label)

    model = denoise.KarrasDenoiser(Backbone(), getattr(noise, kind)())
    sampler = samplers.DDIMSampler(model, steps=8, silent=True, dtype=torch.float64)
    wanted = undecorated(type(sampler).__call__)(sampler, x_T, label=z)
    check("azula", {"model": model, "x_T": x_T, "z": z}, wanted, body.weight)
    with pytest.raises(ValueError, match="label is both in z and bound"):
        from_azula(model, label=z).denoiser(x_T, torch.tensor(0.5).double(), z)


def test_k_diffusion(torchvision, monkeypatch) -> None:
    pytest.importorskip("torchsde")
    root = next((p for p in map(Path, sys.path) if (p / "k_diffusion").is_dir()), None)
    if root is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")  # its __init__ imports everything, clip included
    package.__path__ = [str(root / "k_diffusion")]
    monkeypatch.setitem(sys.modules, "k_diffusion", package)
    from k_diffusion import external, sampling

    body, (noise, z) = Body(), leaves()
    discrete = torch.linspace(0.99999, 1e-4, 1000, dtype=torch.float64)

    class CompVis(nn.Module):
        alphas_cumprod = discrete

        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def apply_model(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            return self.body(x, t / 1000, cond)

    model = external.CompVisDenoiser(CompVis())
    wanted = undecorated(sampling.sample_dpmpp_2m)(
        model, SIGMAS[0] * noise, SIGMAS, extra_args={"cond": z}, disable=True
    )
    given = {"model": model, "noise": noise, "z": z, "sigmas": SIGMAS}
    check("k-diffusion, CompVis models", given, wanted, body.weight)


def test_edm() -> None:
    body, (noise, z) = Body(), leaves()

    class EDMPrecond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = body

        def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
            sigma = sigma.reshape(-1, 1)
            width = (sigma**2 + 0.25).sqrt()
            inner = self.model(x / width, sigma.log().flatten() / 4, class_labels)
            return 0.25 / width**2 * x + 0.5 * sigma / width * inner

    model, power, steps = EDMPrecond(), 1 / 7, 8
    # edm_sampler of NVIDIA's generate.py, without churn.
    i = torch.arange(steps, dtype=torch.float64)
    levels = 80.0**power + i / (steps - 1) * (0.002**power - 80.0**power)
    levels = torch.cat((levels**7, torch.zeros(1)))
    x = 80.0 * noise
    for sigma, after in itertools.pairwise(levels):
        d = (x - model(x, sigma.expand(3), z)) / sigma
        moved = x + (after - sigma) * d
        if after > 0:
            d_after = (moved - model(moved, after.expand(3), z)) / after
            moved = x + (after - sigma) * (d + d_after) / 2
        x = moved
    check("EDM networks", {"model": model, "noise": noise, "z": z}, x, body.weight)
    # The bare network under the same preconditioning.
    schedule, t = VarianceExploding(80.0), torch.tensor(0.1, dtype=torch.float64)
    bare = EDM(body, schedule, 0.5)(X_T, t, Z)
    data = model(X_T, schedule.sigma(t).expand(3), Z)
    torch.testing.assert_close(bare, (X_T - data) / schedule.sigma(t), rtol=1e-9, atol=1e-9)


def test_flow_matching() -> None:
    pytest.importorskip("flow_matching")
    pytest.importorskip("torchdiffeq")
    from flow_matching.solver import ODESolver

    body, (x_T, z) = Body(), leaves()

    class Velocity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            return self.body(x, t, label)

    model = Velocity()
    wanted = ODESolver(model).sample(
        x_T, step_size=1 / 8, method="euler", label=z, enable_grad=True,
        time_grid=torch.tensor([0.0, 1.0], dtype=torch.float64),
    )  # fmt: skip
    check("flow_matching", {"model": model, "x_T": x_T, "z": z}, wanted, body.weight)


def quadratic(t: Tensor) -> types.SimpleNamespace:
    """A path of no library, whose noise is 2 at the noisy end."""
    return types.SimpleNamespace(
        alpha_t=t**2, sigma_t=2 - t - t**2, d_alpha_t=2 * t, d_sigma_t=-1 - 2 * t
    )


@pytest.mark.parametrize("kind", ["own", "CosineScheduler", "VPScheduler", "LinearVPScheduler"])
def test_other_paths_of_flow_matching(kind: str) -> None:
    path = quadratic
    if kind != "own":
        path = getattr(pytest.importorskip("flow_matching.path.scheduler"), kind)()
    data, eps = normal(3, 4, seed=5), normal(3, 4, seed=6)
    for time in (0.2, 0.7):
        at = path(torch.tensor(time, dtype=torch.float64))

        class Exact(nn.Module):
            def forward(self, x: Tensor, t: Tensor, rates=at) -> Tensor:
                return rates.d_alpha_t * data + rates.d_sigma_t * eps

        adapted = from_flow_matching(Exact(), path)
        x, t = at.alpha_t * data + at.sigma_t * eps, torch.tensor(1.0 - time, dtype=torch.float64)
        torch.testing.assert_close(adapted.denoiser(x, t, None), eps)
        torch.testing.assert_close(adapted.denoiser.data(x, t, None), data)
        torch.testing.assert_close(adapted.schedule.alpha(t), at.alpha_t)


def test_torchcfm() -> None:
    body, x_T = Body(), X_T.clone().requires_grad_()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, t: Tensor, x: Tensor) -> Tensor:
            return self.body(x, t)

    model, x = Model(), x_T
    for k in range(8):  # torchdyn's NeuralODE(model, solver="euler") over linspace(0, 1, 9)
        x = x + model(torch.full((3,), k / 8, dtype=torch.float64), x) / 8
    check("torchcfm", {"model": model, "x_T": x_T}, x, body.weight)


def test_smalldiffusion(torchvision) -> None:
    pytest.importorskip("einops")
    pytest.importorskip("accelerate")
    small = pytest.importorskip("smalldiffusion")
    body, (noise, z) = Body(), leaves()

    class Model(nn.Module, small.ModelMixin):
        input_dims = (4,)

        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Tensor:
            return self.body(x, sigma.log(), cond)

    model, sigmas = Model(), SIGMAS[:-1]
    *_, wanted = undecorated(small.samples)(
        model, sigmas, batchsize=3, xt=sigmas[0] * noise, cond=z
    )
    given = {"model": model, "noise": noise, "z": z, "sigmas": sigmas}
    check("smalldiffusion", given, wanted, body.weight)


@pytest.mark.parametrize("objective", ["pred_noise", "pred_v", "pred_x0"])
def test_denoising_diffusion_pytorch(objective: str) -> None:
    """The loop of its ``ddim_sample`` with eta = 0, written out."""
    body, x_T = Body(), (0.5 * X_T).requires_grad_()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor, t: Tensor, x_self_cond: None) -> Tensor:
            return 0.3 * self.body(x, t / 1000)

    diffusion = types.SimpleNamespace(
        model=Model(), betas=betas, objective=objective, num_timesteps=1000
    )
    product = torch.cumprod(1 - betas, 0)
    times = torch.linspace(-1, 999, 9).int().flip(0).tolist()
    x = x_T
    for now, after in itertools.pairwise(times):
        out = diffusion.model(x, torch.full((3,), now), None)
        a, s = product[now].sqrt(), (1 - product[now]).sqrt()
        start = {"pred_noise": (x - s * out) / a, "pred_v": a * x - s * out, "pred_x0": out}
        data = start[objective].clamp(-1, 1)
        eps = (x - a * data) / s
        last = after < 0
        x = data if last else product[after].sqrt() * data + (1 - product[after]).sqrt() * eps
    block = "denoising-diffusion-pytorch"
    check(block, {"diffusion": diffusion, "x_T": x_T}, x, body.weight)


def test_score_sde() -> None:
    from adjointdeis import TimeGrid, VPLinear, sample
    from adjointdeis.solvers import DPMSolverPP

    body, x_T = Body(), X_T.clone().requires_grad_()

    def score(x: Tensor, labels: Tensor) -> Tensor:
        return body(x, labels / 999)

    def eps(x: Tensor, t: Tensor, z: None) -> Tensor:
        return -VPLinear().sigma(t) * body(x, t)

    grid = TimeGrid.uniform_lmbda(VPLinear(), 8)
    weights = list(body.parameters())
    wanted = sample(eps, x_T, solver=DPMSolverPP(), grid=grid, parameters=weights).x_0
    body.requires_grad_(False)
    check("score-SDE", {"score": score, "x_T": x_T}, wanted, None)


def test_diffae() -> None:
    """The loop of the official sampler: clipped DDIM over every 50th timestep, to clean data."""
    body, (x_T, z) = Body(), leaves()

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> types.SimpleNamespace:
            return types.SimpleNamespace(pred=self.body(x, t / 1000, cond))

    model = types.SimpleNamespace(ema_model=Network())
    product = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    x = x_T
    for t in range(950, -1, -50):
        eps = model.ema_model(x, torch.full((3,), t), cond=z).pred
        a, s = product[t].sqrt(), (1 - product[t]).sqrt()
        data = ((x - s * eps) / a).clamp(-1, 1)
        eps = (x - a * data) / s
        after = product[t - 50] if t else torch.ones((), dtype=torch.float64)
        x = after.sqrt() * data + (1 - after).sqrt() * eps
    check("DiffAE", {"model": model, "x_T": x_T, "z": z}, x, body.weight)


def test_a_schedule_of_a_function() -> None:
    from adjointdeis import VPLinear

    known = VPLinear()
    schedule = FunctionSchedule(
        lambda t: (
            (-(19.9) * t**2 / 4 - 0.05 * t).exp(),
            (1 - (-(19.9) * t**2 / 2 - 0.1 * t).exp()).sqrt(),
        )
    )
    t = torch.linspace(0.01, 1.0, 50, dtype=torch.float64)
    for name in ("alpha", "sigma", "lmbda", "rho", "dlog_alpha", "dlmbda"):
        torch.testing.assert_close(getattr(schedule, name)(t), getattr(known, name)(t))
    torch.testing.assert_close(schedule.t_of(known.lmbda(t)), t, rtol=1e-12, atol=1e-12)


def test_every_library_of_the_page_is_tested() -> None:
    text = Path(__file__).read_text()
    assert len(BLOCKS) == 9 and all(f'"{name}"' in text for name in BLOCKS)
