"""What each approximate gradient method promises, written out with autograd and nothing shared.

A method that is neither exact nor converges to the continuous gradient must have its definition
here, under the class that implements it; the matrix test asks for it.
"""

from collections.abc import Callable
from typing import Any

import torch
from oracles import DIM, normal
from torch import Tensor, nn

from adjointdeis import TimeGrid
from adjointdeis.gradients import FlowGrad, GradientMethod, OneStep, Surrogate, Truncated

Found = dict[str, Tensor | None]
BATCH = 8  # enough paths of an SDE for an error to be an average
COTANGENT = normal(BATCH, DIM, seed=99)


def gradients(
    pairs: list[tuple[Tensor, Tensor]], x: Tensor, zs: list[Tensor], network: nn.Module
) -> Found:
    """Cotangents pulled back to x, to each z and to the weights, zeros where nothing arrives."""
    inputs = [x, *zs, *network.parameters()]
    found = torch.autograd.grad(
        [out for out, _ in pairs], inputs, [a for _, a in pairs], allow_unused=True
    )
    filled = [torch.zeros_like(v) if g is None else g for v, g in zip(inputs, found, strict=True)]
    weights = torch.cat([g.flatten() for g in filled[1 + len(zs) :]])
    return {"x_T": filled[0], "zs": torch.stack(filled[1 : 1 + len(zs)]), "theta": weights}


def run(
    network: nn.Module, x: Tensor, zs: list[Tensor], solver: Any, grid: TimeGrid, noise: Any
) -> list[Tensor]:
    """The N + 1 states of a sampler without history; one z serves every step, or one each."""
    states = [x]
    for i in range(grid.steps):
        s, t = grid[i], grid[i + 1]
        n = None if noise is None else noise.normal(s, t, x)
        states.append(solver.step(network, states[-1], zs[i % len(zs)], s, t, (), n)[0])
    return states


def truncated(
    method: Truncated,
    network: nn.Module,
    x: Tensor,
    zs: list[Tensor],
    solver: Any,
    grid: TimeGrid,
    noise: Any,
) -> Found:
    """Everything before the last K steps is a constant."""
    states = run(network, x, zs, solver, grid, noise)
    first = grid.steps - method.last
    state = states[first].detach()
    for i in range(first, grid.steps):
        s, t = grid[i], grid[i + 1]
        n = None if noise is None else noise.normal(s, t, x)
        state = solver.step(network, state, zs[i % len(zs)], s, t, (), n)[0]
    found = gradients([(state, COTANGENT)], x, zs, network)
    return {**found, "x_T": None}


def surrogate(
    method: Surrogate,
    network: nn.Module,
    x: Tensor,
    zs: list[Tensor],
    solver: Any,
    grid: TimeGrid,
    noise: Any,
) -> Found:
    """x' = a x + c alpha' (rho' - rho) eps + noise, the gradient of eps cut on both sides."""
    states = run(network, x, zs, solver, grid, noise)
    c = 1.0 if noise is None else 2.0
    rho = [float(node.rho) for node in grid]
    active = method.steps(grid.steps)
    bridge = method.bridge if isinstance(method.bridge, tuple) else [method.bridge] * len(active)
    weights = [1.0] * len(active)
    if method.weights == "leaps":
        ends = [*active[1:], grid.steps]
        weights = [
            (rho[j] ** c - rho[i] ** c) / (rho[i + 1] ** c - rho[i] ** c)
            for i, j in zip(active, ends, strict=True)
        ]
    elif method.weights != 1.0:
        covered = sum(rho[i + 1] ** c - rho[i] ** c for i in active) / (rho[-1] ** c - rho[0] ** c)
        weights = [1.0 + method.weights.share * (1.0 / covered - 1.0)] * len(active)
    plan = dict(zip(active, zip(weights, bridge, strict=True), strict=True))
    state = x
    for i in range(grid.steps):
        s, t = grid[i], grid[i + 1]
        eps = torch.zeros_like(x)
        if i in plan:
            w, b = plan[i]
            seen = states[i].detach() + b * (state - state.detach())
            eps = w * network(seen, s.t, zs[i % len(zs)])
        state = t.alpha / s.alpha * state + c * t.alpha * (t.rho - s.rho) * eps
    return gradients([(state, COTANGENT)], x, zs, network)


def one_step(
    method: OneStep,
    network: nn.Module,
    x: Tensor,
    zs: list[Tensor],
    solver: Any,
    grid: TimeGrid,
    noise: Any,
) -> Found:
    """x_0 = alpha_0 (x_T - sigma_T eps) / alpha_T + sigma_0 eps."""
    s, t = grid[0], grid[-1]
    eps = network(x, s.t, zs[0])
    x_0 = t.alpha * (x - s.sigma * eps) / s.alpha + t.sigma * eps
    return gradients([(x_0, COTANGENT)], x, zs, network)


def flowgrad(
    method: FlowGrad,
    network: nn.Module,
    x: Tensor,
    zs: list[Tensor],
    solver: Any,
    grid: TimeGrid,
    noise: Any,
) -> Found:
    """p_i = p_j (I + (rho_j - rho_i) alpha_i J(x_i)) over merged DDIM steps i..j."""
    with torch.no_grad():
        states = run(network, x, zs, solver, grid, noise)
        v = [network(states[i], grid[i].t, zs[i % len(zs)]) for i in range(grid.steps)]
        worst = []
        for i in range(grid.steps):
            beside = [k for k in (i - 1, i + 1) if 0 <= k < grid.steps]
            d = [(v[k] - v[i]).square().sum(1) / v[i].square().sum(1) for k in beside]
            worst.append(float(torch.stack(d).max()))
    starts, total = [0], worst[0]
    for i in range(1, grid.steps):
        if total + worst[i] >= method.threshold:
            starts, total = [*starts, i], 0.0
        total += worst[i]
    ends = [*starts[1:], grid.steps]
    assert len(starts) < grid.steps, "nothing merges here: the test would prove nothing"
    scheduled = len(zs) > 1
    a, found = COTANGENT, [torch.zeros_like(z) for z in zs]
    theta = torch.zeros(sum(p.numel() for p in network.parameters()), dtype=torch.float64)
    for i, j in reversed(list(zip(starts, ends, strict=True))):
        x_i, z_i = (value.detach().requires_grad_() for value in (states[i], zs[i % len(zs)]))
        eps, s, t = network(x_i, grid[i].t, z_i), grid[i], grid[j]
        out = t.alpha * (x_i / s.alpha + (t.rho - s.rho) * eps)
        part = gradients([(out, a)], x_i, [z_i], network)
        a, theta = part["x_T"], theta + part["theta"]
        for k in range(i, j) if scheduled else [0]:
            width = (grid[k].rho - grid[k + 1].rho) / (s.rho - t.rho) if scheduled else 1.0
            found[k] += width * part["zs"][0]
    return {"x_T": a, "zs": torch.stack(found), "theta": theta}


DEFINITIONS: dict[type[GradientMethod], Callable[..., Found]] = {
    FlowGrad: flowgrad,
    OneStep: one_step,
    Surrogate: surrogate,
    Truncated: truncated,
}
