"""A sampler from outside the package, given as the function that takes one step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.solvers.base import Solver, State


@dataclass(frozen=True)
class StepFunction(Solver):
    """One function as a solver: differentiated exactly, whatever it does.

    ``StepFunction(lambda denoiser, x, z, s, t: ...)`` is the least a third-party sampler has to
    give. It may call the denoiser any number of times, at any time in [0, 1]; the nodes s and t
    carry t, alpha, sigma, lmbda and rho. It must be a function of its arguments alone: a step
    is repeated in the backward pass. A sampler with a history is a class with ``step``; see
    ``Solver``.

    Args:
        function: called as ``function(denoiser, x, z, s, t)``, for an SDE as
            ``function(denoiser, x, z, s, t, noise)`` with a standard normal; returns x at t.
        calculus: "ode" or "sde".

    Raises:
        ValueError: another calculus.

    When not to use: with the methods of the continuous equations, unless the function does
    solve the probability-flow ODE or the reverse SDE.

    References:
        DiffGrad in DiffBreak (exact gradients step by step), https://arxiv.org/abs/2411.16598
    """

    function: Callable[..., Tensor]
    calculus: Literal["ode", "sde"] = "ode"

    def __post_init__(self) -> None:
        if self.calculus not in ("ode", "sde"):
            raise ValueError(f"calculus must be 'ode' or 'sde', got {self.calculus!r}")

    def step(
        self,
        denoiser: Denoiser,
        x: Tensor,
        z: Tensor | None,
        s: Node,
        t: Node,
        state: State,
        noise: Tensor | None,
    ) -> tuple[Tensor, State]:
        random = () if self.calculus == "ode" else (noise,)
        found = self.function(denoiser, x, z, s, t, *random)
        if not isinstance(found, Tensor):
            raise ValueError(
                f"the function of StepFunction must return x at t, a tensor of shape "
                f"{tuple(x.shape)}, and returned a {type(found).__name__}; a step with a history "
                "is a class with step(denoiser, x, z, s, t, state, noise) -> (x, state)"
            )
        return found, state
