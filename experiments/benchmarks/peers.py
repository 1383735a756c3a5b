"""One gradient of a sampled image with respect to x_T and z, by this package and by its peers.

Every function takes a :class:`TimedProblem` and returns ``(dL/dx_T, dL/dz)`` for
``L = <cotangent, x_0>``. The sampler is DDIM in all of them, but for torchsde, whose Euler steps
sample the reverse SDE: its cost compares, its numbers do not. Every peer gets frozen weights and
one product for x and z together wherever its interface can have them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torchdiffeq
import torchsde
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.transition import eps_weight, rho_gap, signal_ratio
from adjointdeis.gradients import AdjointDEIS, Backprop, DiscreteAdjoint, GradientMethod
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM

Gradients = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class TimedProblem:
    """What is differentiated.

    Attributes:
        denoiser: ``(x, t, z) -> eps``.
        grid: N sampling steps.
        x_T, z: latents, with shapes (B, *) and (B, D).
        cotangent: dL/dx_0.
    """

    denoiser: Callable[..., Tensor]
    grid: TimeGrid
    x_T: Tensor
    z: Tensor
    cotangent: Tensor

    def leaves(self) -> Gradients:
        """x_T and z as fresh leaves."""
        return self.x_T.detach().requires_grad_(), self.z.detach().requires_grad_()

    def steps(self) -> Iterator[tuple[Node, Node]]:
        """The N sampling steps, noise to data."""
        for index in range(self.grid.steps):
            yield self.grid[index], self.grid[index + 1]

    def ddim(self, x: Tensor, z: Tensor, s: Node, t: Node) -> Tensor:
        """One sampling step."""
        return signal_ratio(s, t) * x + eps_weight(s, t) * self.denoiser(x, s.t, z)


def forward_passes(problem: TimedProblem) -> Tensor:
    """N evaluations without a graph: a floor's first half."""
    x = problem.x_T
    with torch.no_grad():
        for s, t in problem.steps():
            x = problem.ddim(x, problem.z, s, t)
    return x


def products(problem: TimedProblem) -> Gradients:
    """N times (evaluation and one vector-Jacobian product for x and z): its second half."""
    x, z = problem.leaves()
    found = (problem.cotangent, problem.z)
    for s, _ in problem.steps():
        eps = problem.denoiser(x, s.t, z)
        found = torch.autograd.grad(eps, (x, z), problem.cotangent)
    return found[0], found[1]


def floor(problem: TimedProblem) -> Gradients:
    """The least that a gradient with one activation in memory can cost."""
    forward_passes(problem)
    return products(problem)


def through(method: GradientMethod) -> Callable[[TimedProblem], Gradients]:
    """A gradient method of this package."""

    def gradients(problem: TimedProblem) -> Gradients:
        x_T, z = problem.leaves()
        rollout = sample(
            problem.denoiser, x_T, z, solver=DDIM(), grid=problem.grid, gradient=method
        )
        g_x, g_z = torch.autograd.grad(rollout.x_0, (x_T, z), problem.cotangent)
        return g_x, g_z

    return gradients


def plain_backpropagation(problem: TimedProblem) -> Gradients:
    """A sampling loop under autograd, written by hand."""
    x_T, z = problem.leaves()
    x = x_T
    for s, t in problem.steps():
        x = problem.ddim(x, z, s, t)
    g_x, g_z = torch.autograd.grad(x, (x_T, z), problem.cotangent)
    return g_x, g_z


def checkpointed(problem: TimedProblem) -> Gradients:
    """The same loop with ``torch.utils.checkpoint`` around every step."""
    x_T, z = problem.leaves()
    x = x_T
    for s, t in problem.steps():
        x = checkpoint(problem.ddim, x, z, s, t, use_reentrant=False)
    g_x, g_z = torch.autograd.grad(x, (x_T, z), problem.cotangent)
    return g_x, g_z


def published_pattern(problem: TimedProblem) -> Gradients:
    r"""AdjointDEIS-1 with two products a step, each with an evaluation of its own.

    .. math:: a_x(s) = \tfrac{\alpha_t}{\alpha_s} a_x - r\,\tfrac{\alpha_t^2}{\alpha_s}
              a_x^\top \partial_x\epsilon,\quad
              a_z(s) = a_z - r\,\alpha_t\, a_x^\top \partial_z\epsilon,\quad r = \rho_s - \rho_t

    Paper: eq. 2.14, Algorithm 1.
    """
    states = [problem.x_T]
    with torch.no_grad():
        for s, t in problem.steps():
            states.append(problem.ddim(states[-1], problem.z, s, t))
    a_x, a_z = problem.cotangent, torch.zeros_like(problem.z)
    for index, (s, t) in reversed(list(enumerate(problem.steps()))):
        x = states[index + 1].detach().requires_grad_()
        (by_x,) = torch.autograd.grad(problem.denoiser(x, t.t, problem.z), x, a_x)
        z = problem.z.detach().requires_grad_()
        (by_z,) = torch.autograd.grad(problem.denoiser(x.detach(), t.t, z), z, a_x)
        r = rho_gap(s, t)
        a_z = a_z - r * t.alpha * by_z
        a_x = t.alpha / s.alpha * a_x - r * t.alpha**2 / s.alpha * by_x
    return a_x, a_z


class _OverRho(nn.Module):
    """dy/drho = eps(alpha y), with the nodes of the grid looked up by their rho."""

    def __init__(self, problem: TimedProblem, z: Tensor) -> None:
        super().__init__()
        self.problem, self.z = problem, z
        self.rho = torch.tensor([node.rho for node in problem.grid], dtype=torch.float64)

    def node(self, rho: Tensor) -> Node:
        """The grid node nearest to a rho."""
        return self.problem.grid[int((self.rho - rho.detach().cpu().double()).abs().argmin())]

    def forward(self, rho: Tensor, y: Tensor) -> Tensor:
        node = self.node(rho)
        return self.problem.denoiser(node.alpha * y, node.t, self.z)


def torchdiffeq_adjoint(problem: TimedProblem) -> Gradients:
    """``torchdiffeq.odeint_adjoint``, Euler over rho at every node: AdjointDEIS-1's numbers."""
    x_T, z = problem.leaves()
    field = _OverRho(problem, z)
    rho = field.rho.to(x_T.device)
    y = torchdiffeq.odeint_adjoint(
        field, x_T / problem.grid[0].alpha, rho, method="euler", adjoint_params=(z,)
    )
    x_0 = problem.grid[-1].alpha * y[-1]  # type: ignore[index]
    g_x, g_z = torch.autograd.grad(x_0, (x_T, z), problem.cotangent)
    return g_x, g_z


class _ReverseSDE(nn.Module):
    """dy = 2 eps drho + dB on the clock rho^2, run along tau = rho_T - rho."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: TimedProblem, z: Tensor) -> None:
        super().__init__()
        self.lookup, self.shape = _OverRho(problem, z), problem.x_T.shape
        self.top = problem.grid[0].rho

    def f(self, tau: Tensor, y: Tensor) -> Tensor:
        """Drift."""
        return -2.0 * self.lookup(self.top - tau, y.view(self.shape)).flatten(1)

    def g(self, tau: Tensor, y: Tensor) -> Tensor:
        """Diffusion; it does not depend on the state."""
        rho = (self.top - tau).clamp(min=0.0)
        return (2.0 * rho).sqrt().to(y) * torch.ones_like(y)


def torchsde_adjoint(problem: TimedProblem) -> Gradients:
    """``torchsde.sdeint_adjoint``, N Euler steps of equal width in rho."""
    x_T, z = problem.leaves()
    sde = _ReverseSDE(problem, z)
    width = sde.top - problem.grid[-1].rho
    steps = problem.grid.steps
    y = torchsde.sdeint_adjoint(
        sde,
        (x_T / problem.grid[0].alpha).flatten(1),
        torch.tensor([0.0, width], dtype=torch.float64, device=x_T.device),
        method="euler",
        adjoint_method="euler",
        dt=width / steps * (1 + 1e-6),  # rounding shall not add a step
        adjoint_params=(z,),
    )
    x_0 = problem.grid[-1].alpha * y[-1].view(problem.x_T.shape)  # type: ignore[index]
    g_x, g_z = torch.autograd.grad(x_0, (x_T, z), problem.cotangent)
    return g_x, g_z


def methods(steps: int) -> dict[str, Callable[[TimedProblem], Any]]:
    """Everything that is timed, the floors first."""
    return {
        "floor: N F + N (F + VJP)": floor,
        "exact gradient": through(DiscreteAdjoint()),
        "exact gradient, activations kept": through(DiscreteAdjoint(keep_activations=steps)),
        "AdjointDEIS-1": through(AdjointDEIS()),
        "Backprop": through(Backprop()),
        "plain backpropagation": plain_backpropagation,
        "torch.utils.checkpoint": checkpointed,
        "published cost pattern": published_pattern,
        "torchdiffeq odeint_adjoint": torchdiffeq_adjoint,
        "torchsde sdeint_adjoint": torchsde_adjoint,
    }
