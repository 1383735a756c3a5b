"""Sampling and encoding: a solver, a grid and a gradient method put together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.classifier_free import of_rows
from adjointdeis.diffusion.conditions import divided, recordable
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise, ReversedNoise, as_noise, rows_of_noise
from adjointdeis.gradients import (
    Certified,
    Chain,
    Cost,
    DiscreteAdjoint,
    GradientMethod,
    NotSupportedError,
    check_independent,
)
from adjointdeis.solvers.base import Solver
from adjointdeis.solvers.pair import Pair
from adjointdeis.solvers.reversible import ReversibleSolver, warn_of_amplification
from adjointdeis.solvers.runge_kutta import RungeKutta

Condition = Any  # a tensor, a pytree of tensors and constants, PerStep of either, or None


@dataclass(frozen=True, eq=False)
class Rollout:
    """The result of :func:`sample`.

    Attributes:
        x_0: state at the last node, with a graph to x_T, z and the weights.
        cost: counters; ``x_0.backward()`` adds its own to the same object.
        states: x at the N + 1 nodes, x_T first and x_0 last, if the trajectory was asked for. A
            loss may be made of them; a gradient by one of them (``retain_grad()``, a hook) is
            that of the whole run with ``Backprop()`` alone, whose x_0 is computed from it.
        predictions: data prediction of each of the N steps, from its first evaluation of the
            network; likewise.
        gradient_error: with ``Certified``, after ``backward()``: for each of "x_T", "z" and "theta"
            the estimated distance of its gradient to that of the continuous flow, relative to its
            norm.
    """

    x_0: Tensor
    cost: Cost = field(default_factory=Cost)
    states: tuple[Tensor, ...] = ()
    predictions: tuple[Tensor, ...] = ()
    _gradient_error: dict[str, float] = field(default_factory=dict, repr=False)

    @property
    def gradient_error(self) -> dict[str, float]:
        if not self._gradient_error:
            raise RuntimeError(
                "no error of a gradient has been estimated: sample(..., gradient=Certified(loss)), "
                "then loss(rollout.x_0).backward(), then rollout.gradient_error"
            )
        return self._gradient_error


@dataclass(frozen=True, eq=False)
class Encoding:
    """The result of :func:`encode`.

    Attributes:
        x_T: state at the noisy end, with a graph to x_0, z and the weights.
        cost: counters.
    """

    x_T: Tensor
    cost: Cost = field(default_factory=Cost)


def sample(
    denoiser: Callable[..., Tensor],
    x_T: Tensor,
    z: Condition = None,
    *,
    solver: Solver,
    grid: TimeGrid,
    noise: Noise | Sequence[Tensor] | Tensor | None = None,
    gradient: GradientMethod | None = None,
    parameters: Sequence[Tensor] | None = None,
    microbatch: int | None = None,
    trajectory: bool = False,
    states: Sequence[Tensor] | None = None,
) -> Rollout:
    """Run the sampler from x_T to x_0, differentiably.

    The call is the same for every gradient method. Nothing here disables gradients: under
    ``torch.no_grad()``, or when no input requires a gradient, no method stores anything.

    Args:
        denoiser: ``denoiser(x, t, z) -> eps``, t a 0-d float64 tensor in [0, 1].
        x_T: state at the first node, shape (B, *); (2, B, *) for ``Pair``, whose x_0 is a pair
            in any case.
        z: condition, handed to the denoiser as it is: a tensor, or a dict, tuple or other pytree
            of tensors and constants, or None; ``PerStep([z_0, ..., z_{N-1}])`` has one for each
            step. Every tensor in it that requires a gradient gets one.
        solver: any object with ``step`` and ``calculus``, such as ``StepFunction(function)``.
        grid: sampling grid, noise to data, N steps.
        noise: for an SDE solver, N standard normals in a list or a tensor (N, B, *),
            ``RecordedNoise``, ``BrownianPath``; None for an ODE solver.
        gradient: how to differentiate; ``DiscreteAdjoint()`` by default.
        parameters: weights and other tensors that the denoiser uses and that may receive a
            gradient; they need not be leaves. By default the weights of the denoiser when it is
            an ``nn.Module``; give them when it is a plain callable. Only those that require a
            gradient cost anything.
        microbatch: how many samples to take through the network at one time. The batch is sampled
            and differentiated in parts, with the activations of one part in memory; x_0 and its
            gradients are those of the whole batch. A network that does not treat its samples one by
            one (batch normalisation, dropout or noise of its own) is refused, which takes two small
            evaluations. Divided are x_T, the noise, every tensor in z whose
            first dimension is the batch, and what a ``Guidance`` holds for each sample; evaluations
            are counted once a part.
        trajectory: also return the states and data predictions on the way. A loss may depend on
            them with every exact method; the others, whose gradient is not that of the sampler's
            own states, refuse.
        states: x at the N + 1 nodes, found by :func:`adaptive_grid` for the same denoiser, x_T, z
            and solver. All but four of the steps are then not taken before the backward pass, where
            ``DiscreteAdjoint`` takes each of them again and compares.

    Raises:
        TypeError: an argument of another kind, such as ``solver=DDIM`` for ``DDIM()``.
        OtherSamplerError: a denoiser of one noise schedule, prediction or scheduler with the grid
            or solver of another.
        ValueError: a network whose output has not the shape of x; a grid in the wrong direction,
            a z sequence or noise of the wrong length, noise for an ODE solver or none for an SDE
            solver; a microbatch that cannot be one.
        CoupledSamplesError: a microbatch of a network whose samples depend on each other.
        NotSupportedError: the gradient method does not differentiate this kind of solver, or
            gives no gradient of an input that requires one.
        UnreachableLeafError: a tensor that requires a gradient could not receive one.

    Warns:
        InitialNoiseWarning: x_T is far from the noise that the sampler begins with, as where
            ``sampler.initial`` was forgotten.
    """
    _check_kinds(denoiser, "x_T", x_T, solver, grid, gradient)
    if not grid.sampling:
        raise ValueError("sample() needs a grid from noise to data; this one encodes")
    cost = Cost()
    if states is not None:
        _check_states(states, x_T, solver, grid, gradient, alone=not trajectory and not microbatch)
    if microbatch is None:
        return _run(
            denoiser, x_T, z, solver, grid, noise, gradient, parameters, cost, trajectory,
            states or (),
        )  # fmt: skip
    if not isinstance(microbatch, Integral) or int(microbatch) < 1:
        raise ValueError(f"microbatch must be at least 1, and a whole number: {microbatch!r}")
    if isinstance(solver, Pair):
        raise ValueError("a Pair of latents cannot be divided: leave microbatch out")
    if isinstance(gradient, Certified):
        raise NotSupportedError(
            "Certified compares the gradients of a whole batch, and a microbatch has those of its "
            "parts: leave microbatch out, or use gradient=DiscreteAdjoint()"
        )
    if parameters is not None:
        parameters = _listed(parameters)  # a generator would serve the first part alone
    if microbatch < x_T.shape[0]:
        check_independent(denoiser, x_T, z, grid, microbatch, cost)
    in_parts = getattr(solver, "in_parts", None)
    solver = solver if in_parts is None else in_parts()
    parts = [
        _part(denoiser, x_T, z, solver, grid, noise, gradient, parameters, cost, trajectory, rows)
        for rows in (slice(k, k + microbatch) for k in range(0, len(x_T) or 1, microbatch))
    ]
    return Rollout(
        torch.cat([part.x_0 for part in parts]),
        cost,
        tuple(torch.cat(states) for states in zip(*(p.states for p in parts), strict=True)),
        tuple(torch.cat(found) for found in zip(*(p.predictions for p in parts), strict=True)),
    )


def encode(
    denoiser: Callable[..., Tensor],
    x_0: Tensor,
    z: Condition = None,
    *,
    solver: Solver,
    grid: TimeGrid,
    noise: Noise | Sequence[Tensor] | Tensor | None = None,
    gradient: GradientMethod | None = None,
    parameters: Sequence[Tensor] | None = None,
) -> Encoding:
    """Run the probability-flow ODE from data to noise (DDIM inversion for ``DDIM``).

    A reversible solver (``EDICT``, ``BDIA``, ``OBELM``, ``Rex``) is not run in the other
    direction but undone: the encoding is the exact inverse of its sampling run on
    ``grid.reversed()``, the partner of x_0 being a copy of it (one DDIM step away for the
    two-step methods). That x_T alone is only the first latent of a pair; to decode x_0 to the
    last digit keep both, with ``Pair(solver, tied=True)`` here and ``Pair(solver)`` in
    :func:`sample`.

    Args:
        denoiser, z, gradient, parameters: as in :func:`sample`; ``PerStep`` is in the order of
            this grid.
        x_0: state at the first, clean node, shape (B, *).
        solver: an ODE solver, or a reversible one.
        grid: encoding grid, data to noise: ``grid.reversed()`` of a sampling grid, or
            ``TimeGrid.ddim_stride(schedule, steps, encode=True)``.
        noise: for a reversible SDE solver, the noise of the sampling run to undo, in the order
            of the sampling grid.

    Warns:
        AmplificationWarning: undoing this many steps enlarges rounding beyond 1e-3.

    Raises:
        TypeError: as in :func:`sample`.
        ValueError: a sampling grid, or an SDE solver without inverse (use
            ``CycleSDE.encode``).
    """
    _check_kinds(denoiser, "x_0", x_0, solver, grid, gradient)
    if grid.sampling:
        raise ValueError("encode() needs a grid from data to noise: pass grid.reversed()")
    if isinstance(solver, ReversibleSolver):
        sampling = grid.reversed()
        warn_of_amplification(solver, sampling, x_0.dtype)
        if solver.calculus == "sde":
            noise = ReversedNoise(as_noise(noise, sampling, Chain.latent(solver, x_0)), sampling)
        solver = solver.inverted(sampling)
    elif getattr(solver, "calculus", None) == "sde":
        raise ValueError("an SDE is not encoded by running it backwards; use CycleSDE.encode")
    cost = Cost()
    run = _run(denoiser, x_0, z, solver, grid, noise, gradient, parameters, cost)
    return Encoding(run.x_0, cost)


def _run(
    denoiser: Callable[..., Tensor],
    x: Tensor,
    z: Condition,
    solver: Solver,
    grid: TimeGrid,
    noise: Noise | Sequence[Tensor] | Tensor | None,
    gradient: GradientMethod | None,
    parameters: Sequence[Tensor] | None,
    cost: Cost,
    trajectory: bool = False,
    states: Sequence[Tensor] = (),
) -> Rollout:
    method, x = DiscreteAdjoint() if gradient is None else gradient, recordable(x)
    _check_calculus(solver, noise)
    chain = Chain.of(denoiser, solver, grid, x, z, noise, cost, trajectory, states)
    theta = wanted_weights(denoiser, parameters)
    asked = {
        "x_T": x.requires_grad,
        "z_t" if chain.scheduled else "z": bool(chain.conditions.active),
        "theta": bool(theta),
        "noise": bool(chain.wanted_noise),
    }
    wanted = torch.is_grad_enabled() and any(asked.values())
    if states and not wanted:
        raise ValueError(
            "states= spare evaluations of a gradient, and nothing requires one here: x_0 is "
            "found.states[-1]"
        )
    if not torch.is_grad_enabled():
        x_0 = chain.run(x)[0]
    elif wanted:
        asked["trajectory"] = trajectory
        method.refuse(solver, [what for what, want in asked.items() if want])
        x_0 = method.rollout(chain, x, theta)
    else:
        x_0 = method.sampled(chain, x)
    states, predictions = (), ()
    if chain.trajectory is not None:
        states, predictions = (x, *chain.trajectory.states), tuple(chain.trajectory.predictions)
    return Rollout(x_0, cost, states, predictions, chain.gradient_error)


def _part(
    denoiser: Callable[..., Tensor],
    x_T: Tensor,
    z: Condition,
    solver: Solver,
    grid: TimeGrid,
    noise: Noise | Sequence[Tensor] | Tensor | None,
    gradient: GradientMethod | None,
    parameters: Sequence[Tensor] | None,
    cost: Cost,
    trajectory: bool,
    rows: slice,
) -> Rollout:
    """The rollout of some samples of a batch."""
    batch = x_T.shape[0]
    if noise is not None:
        noise = rows_of_noise(as_noise(noise, grid, x_T), rows, batch)
    z = divided(z, batch, rows)
    denoiser, parameters = of_rows(denoiser, parameters, batch, rows)
    return _run(denoiser, x_T[rows], z, solver, grid, noise, gradient, parameters, cost, trajectory)


def wanted_weights(
    denoiser: Callable[..., Tensor], parameters: Sequence[Tensor] | None
) -> list[Tensor]:
    """The weights that require a gradient, of those of the denoiser if none are given."""
    if parameters is None:
        parameters = list(denoiser.parameters()) if isinstance(denoiser, nn.Module) else []
    # Once each: a list of some weights may be added to that of all.
    wanted = {id(weight): weight for weight in _listed(parameters) if weight.requires_grad}
    return list(wanted.values())


def _listed(parameters: Sequence[Tensor]) -> list[Tensor]:
    several = isinstance(parameters, Iterable) and not isinstance(parameters, Tensor)
    given = list(parameters) if several else []
    if not several or not all(isinstance(one, Tensor) for one in given):
        raise TypeError(
            f"parameters is a {type(parameters).__name__}, expected a list of tensors: write "
            "parameters=[weight] or parameters=list(model.parameters())"
        )
    return given


def _check_kinds(
    denoiser: object, name: str, x: object, solver: object, grid: object, gradient: object
) -> None:
    """Refuse an argument of another kind, a class in the place of its instance included."""
    floating = isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())
    steps = callable(getattr(solver, "step", None))
    differentiates = gradient is None or callable(getattr(gradient, "rollout", None))
    for argument, value, fits, write in (
        ("denoiser", denoiser, callable(denoiser), "a network, called as denoiser(x, t, z)"),
        (name, x, floating, f"{name}=torch.randn(B, ...), a tensor of floating point numbers"),
        ("solver", solver, steps, "solver=DDIM(), or a plain function in StepFunction(function)"),
        ("grid", grid, isinstance(grid, TimeGrid), "grid=TimeGrid.uniform_lmbda(schedule, 20)"),
        ("gradient", gradient, differentiates, "gradient=DiscreteAdjoint()"),
    ):
        if isinstance(value, type) or not fits:
            kind = getattr(value, "dtype", None) or type(value).__name__
            if isinstance(value, type):
                own = f"{argument}={value.__name__}()" if fits else write
                raise TypeError(f"{argument} is the class {value.__name__}: write {own}")
            raise TypeError(f"{argument} is of kind {kind}: write {write}")


def _check_states(
    states: Sequence[Tensor],
    x_T: Tensor,
    solver: Solver,
    grid: TimeGrid,
    gradient: GradientMethod | None,
    alone: bool,
) -> None:
    """Refuse known states that are not those of this run, or that nothing would compare."""
    again = "sample(denoiser, x_T, z, solver=found.solver, grid=found.grid, ...)"
    compares = isinstance(gradient, DiscreteAdjoint) and gradient.exact and gradient.check
    if not (gradient is None or compares) or not alone or not isinstance(solver, RungeKutta):
        raise NotSupportedError(
            "states= serve RungeKutta under DiscreteAdjoint() with its check, which compares them "
            f"with the steps that it takes again, without microbatch or trajectory: leave them "
            f"out, {again}"
        )
    fits = len(states) == grid.steps + 1 and all(
        isinstance(x, Tensor) and (x.shape, x.dtype, x.device) == (x_T.shape, x_T.dtype, x_T.device)
        for x in states
    )
    if not fits or not torch.equal(states[0], x_T):
        raise ValueError(
            f"states= are not those of this run: expected {grid.steps + 1} tensors like x_T, the "
            f"first equal to it. Call adaptive_grid() with this x_T, or leave them out, {again}"
        )


def _check_calculus(solver: Solver, noise: object) -> None:
    calculus = getattr(solver, "calculus", None)
    if calculus not in ("ode", "sde"):
        raise ValueError(f"{type(solver).__name__}.calculus must be 'ode' or 'sde'")
    if calculus == "ode" and noise is not None:
        raise ValueError(f"{type(solver).__name__} is an ODE solver and takes no noise")
