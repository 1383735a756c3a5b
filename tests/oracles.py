"""Networks, reference solutions and error measures that the mathematical tests share.

Two oracles, never mixed: autograd through the discrete chain, for methods that claim to be
exact, and the gradient of the continuous flow (a fourth-order solve with many steps), for
methods that discretise the adjoint equations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis import PerStep, Rollout, TimeGrid, VPLinear, sample
from adjointdeis.diffusion import (
    BrownianPath,
    GaussianDenoiser,
    MixtureDenoiser,
    Node,
    Schedule,
)
from adjointdeis.gradients import Backprop, GradientMethod, StepwiseMethod

DIM, COND, BATCH = 4, 3, 2


def generator(seed: int) -> torch.Generator:
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int) -> Tensor:
    """Seeded float64 standard normals."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class MLPDenoiser(nn.Module):
    """A small random network, smooth and nonlinear in everything.

    The term t x makes it behave as a denoiser at high noise: states stay of order one.
    """

    def __init__(self, seed: int = 0, hidden: int = 12, dim: int = DIM, cond: int = COND) -> None:
        super().__init__()
        self.first = nn.Parameter(normal(hidden, dim + cond + 1, seed=seed) / 2.0)
        self.bias = nn.Parameter(normal(hidden, seed=seed + 1))
        self.second = nn.Parameter(normal(dim, hidden, seed=seed + 2) / 2.0)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        inputs = torch.cat((x, t.to(x).expand(x.shape[0], 1), z), dim=-1)
        return t * x + torch.tanh(inputs @ self.first.mT + self.bias) @ self.second.mT


class Dropout(nn.Module):
    """A network that is random in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = MLPDenoiser()

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.body(x, t, nn.functional.dropout(z, 0.5))


class Autocast(nn.Module):
    """A float32 layer that remembers the type in which it was evaluated."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, DIM)
        self.seen: list[torch.dtype] = []

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None) -> Tensor:
        out = self.layer(x)
        self.seen.append(out.dtype)
        return out


class Recorder(nn.Module):
    """Remembers whether each evaluation could build a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLPDenoiser()
        self.graphs: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        eps = self.network(x, t, z)
        self.graphs.append(eps.requires_grad)
        return eps


def unchecked(method: GradientMethod) -> GradientMethod:
    """The method for a network that logs its calls, where it cannot tell a log from a cache."""
    return replace(method, check=False) if isinstance(method, StepwiseMethod) else method


class RememberedPath(BrownianPath):
    """A Brownian path that draws each of its values once."""

    @cache  # noqa: B019
    def value(self, rho: float) -> Tensor:
        return super().value(rho)


class AffineDenoiser(nn.Module):
    """eps = A x / alpha_t + B z + c; alpha J is constant, and J = 0 for A = 0."""

    def __init__(self, schedule: Schedule, seed: int = 0, slope: float = 0.0) -> None:
        super().__init__()
        self.schedule = schedule
        self.a = nn.Parameter(slope * normal(DIM, DIM, seed=seed))
        self.b = nn.Parameter(normal(DIM, COND, seed=seed + 1))
        self.c = nn.Parameter(normal(DIM, seed=seed + 2))

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return x @ self.a.mT / float(self.schedule.alpha(t)) + z @ self.b.mT + self.c


def mixture(schedule: Schedule | None = None) -> MixtureDenoiser:
    """Three conditional modes in four dimensions."""
    return MixtureDenoiser(
        VPLinear() if schedule is None else schedule,
        means=normal(3, DIM, seed=10),
        scales=torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64),
        weight=0.5 * normal(3, DIM, COND, seed=11),
        logits=0.3 * normal(3, seed=12),
    )


def gaussian(schedule: Schedule | None = None, scale: float = 0.7) -> GaussianDenoiser:
    """A conditional Gaussian."""
    return GaussianDenoiser(
        VPLinear() if schedule is None else schedule,
        mean=normal(DIM, seed=20),
        scale=scale,
        weight=normal(DIM, COND, seed=21),
    )


@dataclass(frozen=True)
class RungeKutta4:
    """Classical fourth-order steps of dy/dlmbda = -rho eps; a solver from outside the package."""

    calculus: str = "ode"

    def step(
        self,
        denoiser: Callable[..., Tensor],
        x: Tensor,
        z: Tensor,
        s: Node,
        t: Node,
        state: tuple,
        noise: None,
    ) -> tuple[Tensor, tuple]:
        """Four evaluations."""
        schedule, h = s.grid.schedule, t.lmbda - s.lmbda
        middle = schedule.t_of(0.5 * (s.lmbda + t.lmbda))

        def slope(y: Tensor, time: Tensor) -> Tensor:
            return -float(schedule.rho(time)) * denoiser(float(schedule.alpha(time)) * y, time, z)

        y = x / s.alpha
        k1 = slope(y, s.t)
        k2 = slope(y + 0.5 * h * k1, middle)
        k3 = slope(y + 0.5 * h * k2, middle)
        k4 = slope(y + h * k3, t.t)
        return t.alpha * (y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)), state


@dataclass(frozen=True)
class Gradients:
    """Every gradient of one loss, and the rollout that it came from."""

    x_T: Tensor
    z: Tensor
    theta: Tensor
    rollout: Rollout

    def parts(self) -> dict[str, Tensor]:
        """The three gradients by name."""
        return {"x_T": self.x_T, "z": self.z, "theta": self.theta}


def inputs(steps: int = 0, seed: int = 30) -> tuple[Tensor, Tensor | list[Tensor]]:
    """x_T and z, or x_T and one z_i per step."""
    x_T = normal(BATCH, DIM, seed=seed)
    if not steps:
        return x_T, normal(BATCH, COND, seed=seed + 1)
    return x_T, [normal(BATCH, COND, seed=seed + 1 + i) for i in range(steps)]


def differentiate(
    denoiser: nn.Module,
    x_T: Tensor,
    z: Tensor | Sequence[Tensor],
    method: GradientMethod,
    *,
    solver: Any,
    grid: TimeGrid,
    noise: Any = None,
    loss: Callable[[Tensor], Tensor] | None = None,
) -> Gradients:
    """Gradients of a loss (a fixed linear functional by default) on fresh leaves."""
    x = x_T.clone().requires_grad_()
    scheduled = not isinstance(z, Tensor)
    zs = [value.clone().requires_grad_() for value in (z if scheduled else [z])]
    denoiser.zero_grad()
    rollout = sample(
        denoiser,
        x,
        PerStep(zs) if scheduled else zs[0],
        solver=solver,
        grid=grid,
        noise=noise,
        gradient=method,
    )
    if loss is None:
        cotangent = normal(*x_T.shape, seed=99)
        (rollout.x_0 * cotangent).sum().backward()
    else:
        loss(rollout.x_0).backward()
    theta = torch.cat([p.grad.flatten() for p in denoiser.parameters() if p.grad is not None])
    z_grad = torch.stack([value.grad for value in zs]) if scheduled else zs[0].grad
    return Gradients(x.grad, z_grad, theta, rollout)


def continuous_gradient(
    denoiser: nn.Module, x_T: Tensor, z: Tensor, grid: TimeGrid, steps: int = 1000
) -> Gradients:
    """Gradient of the exact flow between the ends of a grid, for the default linear loss."""
    fine = TimeGrid.uniform_lmbda(
        grid.schedule, steps, t_min=float(grid.t[-1]), t_max=float(grid.t[0])
    )
    return differentiate(denoiser, x_T, z, Backprop(), solver=RungeKutta4(), grid=fine)


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return float(((value - reference).norm() / reference.norm()).detach())


def agree(value: Tensor, reference: Tensor, tolerance: float = 1e-12) -> bool:
    """Whether two tensors are equal up to a relative error; two zeros are."""
    value, reference = value.detach(), reference.detach()
    return float((value - reference).norm()) <= tolerance * float(reference.norm())


def observed_order(steps: Sequence[int], errors: Sequence[float]) -> float:
    """Negative least-squares slope of log(error) over log(steps)."""
    x = torch.tensor([math.log(n) for n in steps], dtype=torch.float64)
    y = torch.tensor([math.log(e) for e in errors], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())
