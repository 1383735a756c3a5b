"""A sampling run taken one step at a time, and differentiated by the weights when it has ended."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.discrete_adjoint import Checkpoints, DiscreteAdjoint
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.memory_plan import MemoryPlan
from adjointdeis.gradients.run import Run
from adjointdeis.solvers.base import Solver


class SamplingPath:
    """What ``sample`` does, with pauses between the steps in which the weights may change.

    The gradient is that of ``DiscreteAdjoint`` along the states that were visited, with the
    weights at the time when it is taken; with constant weights it is exact.

    Args:
        denoiser, x_T, z, solver, grid, noise: as for ``sample``.
        parameters, cost: tensors to differentiate by, and counters that are added to.

    Attributes:
        x, steps_taken: the present state, and how many steps led to it.
    """

    def __init__(
        self,
        denoiser: Callable[..., Tensor],
        x_T: Tensor,
        z: Any = None,
        *,
        solver: Solver,
        grid: TimeGrid,
        noise: Noise | Sequence[Tensor] | None = None,
        parameters: Sequence[Tensor] = (),
        cost: Cost | None = None,
    ) -> None:
        self.chain = Chain.of(denoiser, solver, grid, x_T, z, noise, cost)
        tensors = Inputs.tensors_of(self.chain, x_T, parameters)
        needs = [False] * (len(tensors) - len(parameters)) + [True] * len(parameters)
        self._by = Inputs.detached(self.chain, tensors, needs)
        self._run = Run(self.chain, self._by, owner="SamplingPath", check=True, black_box=True)
        self.x, self._state = self._by.x_T, self.chain.initial_state(self._by.x_T)
        self.steps_taken = 0

    @property
    def latents(self) -> int:
        """How many latents are held, the present state and its history included."""
        return 1 + len(self._state) + self._run.trace.latents

    def step(self) -> None:
        """Take one step with the present weights."""
        self._run.enter(self.steps_taken)
        self._run.trace.keep(self.steps_taken, self.x, self._state)
        self.x, self._state = self._run.advance(self.steps_taken, self.x, self._state)
        self.steps_taken += 1

    def gradient(self, a_x: Tensor) -> list[Tensor]:
        """Gradients of the parameters from a_x = dL/dx_0, after the last step."""
        record = Checkpoints(self._run.close(self._state), MemoryPlan(None, 0))
        # The weights have changed since, and the steps with them.
        method = DiscreteAdjoint(check=False)
        with torch.no_grad(), self.chain.backward_pass():
            method.backward_pass(self.chain, record, self._by, self.x, a_x)
        theta, sums = self._by.theta, self._by.sums.values
        return [
            torch.zeros_like(parameter) if value is None else value
            for parameter, value in zip(theta, sums[len(sums) - len(theta) :], strict=True)
        ]
