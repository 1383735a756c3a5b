"""Every method on the device and in the precision of --device and --dtype; what only a GPU shows.

CPU, float32 by default; `make gpu` runs everything on the first CUDA device.
"""

import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import BrownianPath
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint, Reversible
from adjointdeis.gradients.catalogue import CATALOGUE
from adjointdeis.harness.live_memory import peak_bytes
from adjointdeis.problems import PARTS, distance, mixture
from adjointdeis.solvers import BDIA, DDIM

# Short, and away from both ends: what a reversible solver amplifies stays small in float32.
GRID = TimeGrid.uniform_lmbda(VPLinear(), 8, t_min=0.05, t_max=0.6)
ROWS = [
    pytest.param(one, calculus, id=f"{one.name}, {calculus}")
    for one in CATALOGUE
    for calculus in ("ode", "sde")
    if one.available and one.solver(calculus) is not None
]


@pytest.mark.parametrize(("one", "calculus"), ROWS)
def test_every_method_gives_the_gradient_of_float64_on_the_cpu(
    one, calculus, device, dtype
) -> None:
    problem = mixture(batch=4)
    parts = [part for part in PARTS if one.capability(part)]
    found = []
    for here in (problem, problem.to(device, dtype)):
        noise = BrownianPath(problem.x_T.shape, seed=3) if calculus == "sde" else None
        with warnings.catch_warnings():
            # Wide adjoint steps and amplification are not what this test is about.
            warnings.simplefilter("ignore")
            solver = one.solver(calculus)
            found.append(here.differentiate(one.method(), solver, GRID, noise, parts))
    expected, there = found
    tolerance = 1e-9 if dtype == torch.float64 else 2e-3
    for part in parts:
        gradient = there.gradients[part].cpu()
        assert distance(gradient, expected.gradients[part]).relative < tolerance, part
    # What it costs does not depend on where it runs; adaptive integrators choose by rounding.
    if one.target != "flow":
        assert replace(there.cost) == replace(expected.cost)


def test_the_gradient_is_where_the_latents_are(device, dtype) -> None:
    problem = mixture().to(device, dtype)
    x_T = problem.x_T.requires_grad_()
    rollout = sample(problem.denoiser, x_T, problem.z, solver=DDIM(), grid=GRID)
    problem.loss(rollout.x_0).backward()
    assert x_T.grad is not None
    assert (x_T.grad.device.type, x_T.grad.dtype) == (device.type, dtype)


class Wide(nn.Module):
    """A network whose activations dwarf its latent."""

    def __init__(self, width: int = 2048) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 64),
        )

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        return self.layers(x) + t.to(x) * x


def gradient_of(network: nn.Module, x_T: Tensor, method, steps: int = 8, solver=None) -> Tensor:
    grid = TimeGrid.uniform_lmbda(VPLinear(), steps, t_min=0.05, t_max=0.6)
    leaf = x_T.detach().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x_0 = sample(network, leaf, solver=solver or DDIM(), grid=grid, gradient=method).x_0
        (gradient,) = torch.autograd.grad(x_0.float().square().sum(), leaf)
    return gradient


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("method", "solver"),
    [
        (DiscreteAdjoint(snapshots=3), DDIM()),
        (AdjointDEIS(states="resolved"), DDIM()),
        (Reversible(), BDIA()),
    ],
    ids=["snapshots", "resolved", "reversible"],
)
def test_allocated_memory_is_flat_in_the_number_of_steps(method, solver, device) -> None:
    network = Wide().to(device).requires_grad_(False)
    x_T = torch.randn(256, 64, device=device)
    few, many = (
        peak_bytes(lambda n=n: gradient_of(network, x_T, method, n, solver), device)
        for n in (20, 80)
    )
    assert many == pytest.approx(few, rel=0.05)
    backprop = peak_bytes(lambda: gradient_of(network, x_T, Backprop(), 80), device)
    assert backprop > 10 * many


@pytest.mark.gpu
def test_half_precision_is_exact_for_what_ran(device) -> None:
    """Under autocast the stepwise gradient is autograd's through the same half-precision run."""
    network, x_T = Wide(256).to(device).requires_grad_(False), torch.randn(32, 64, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        stepwise, whole = (
            gradient_of(network, x_T, method) for method in (DiscreteAdjoint(), Backprop())
        )
    full = gradient_of(network, x_T, Backprop())
    assert float((stepwise - whole).norm() / whole.norm()) < 1e-5
    assert 1e-5 < float((whole - full).norm() / full.norm()) < 0.1


@pytest.mark.gpu
def test_a_compiled_network_has_the_same_gradient(device) -> None:
    network, x_T = Wide(256).to(device).requires_grad_(False), torch.randn(32, 64, device=device)
    for method in (DiscreteAdjoint(), DiscreteAdjoint(keep_activations=8), AdjointDEIS()):
        eager = gradient_of(network, x_T, method)
        compiled = gradient_of(torch.compile(network), x_T, method)
        assert float((compiled - eager).norm() / eager.norm()) < 1e-3


@pytest.mark.gpu
def test_weights_under_nccl_are_those_of_one_process(device, tmp_path) -> None:
    """Distributed data parallel over NCCL with one process reduces the gradient of theta once."""
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    try:
        network, x_T = Wide(256).to(device), torch.randn(32, 64, device=device)
        wrapped = nn.parallel.DistributedDataParallel(network, device_ids=[device.index or 0])
        gradients = []
        for model in (network, wrapped):
            network.zero_grad()
            x_0 = sample(model, x_T, solver=DDIM(), grid=GRID).x_0
            x_0.square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
        assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-5
    finally:
        torch.distributed.destroy_process_group()
