r"""FlowGrad: controls added along the trajectory, optimised by merged adjoints.

.. math:: x_{i+1} = \Phi_i(x_i + u_i),\qquad
          u \gets u - \eta\,\nabla_u \big[ L(x_0(u)) + \lambda \textstyle\sum_i \|u_i\|^2 \big]

with a control for every step instead of one x_T (u_0 alone moves x_T). To the package a control
is a scheduled condition that a solver adds to the state, so every gradient method with ``z_t``
works: ``FlowGrad(members="copied")`` is the paper's, which merges nearly straight steps.

References:
    FlowGrad, https://openaccess.thecvf.com/content/CVPR2023/html/Liu_FlowGrad_Controlling_the_Output_of_Generative_ODEs_With_Gradients_CVPR_2023_paper.html
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.gradients import FlowGrad, GradientMethod, PerStep
from adjointdeis.guidance.latent_optimisation import (
    LatentOptimisation,
    Objective,
    OptimizerFactory,
)
from adjointdeis.guidance.sampler import weights_of
from adjointdeis.rollout import Rollout, sample
from adjointdeis.solvers.base import Solver, State


@dataclass(frozen=True)
class Controlled(Solver):
    """A sampler that adds the control of a step to the state before it takes the step.

    The condition of a step is its control, shaped like x; the network's own condition belongs
    in the denoiser.

    Args:
        solver: ODE sampler without a history.

    Raises:
        ValueError: an SDE or multistep sampler.
    """

    solver: Solver
    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    multistep: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.solver.calculus != "ode" or getattr(self.solver, "multistep", False):
            raise ValueError(
                f"controls are added to a single-step ODE sampler such as DDIM, not to "
                f"{type(self.solver).__name__}"
            )

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
        if z is None:
            raise ValueError("Controlled.step needs a control; pass one per step as z")
        return self.solver.step(denoiser, x + z, None, s, t, state, noise)


def control_trajectory(
    denoiser: Callable[..., Tensor],
    objective: Objective,
    x_T: Tensor,
    z: Tensor | None = None,
    *,
    solver: Solver,
    grid: TimeGrid,
    optimizer: OptimizerFactory,
    gradient: GradientMethod | None = None,
    keep: Literal["last", "best"] = "best",
) -> LatentOptimisation:
    r"""Optimisation of one control per step, from controls of zero.

    Optimises u; x_T, z and the weights stay. Cost of a step: N evaluations and the gradient
    method's products, with the default one per merged node. The controls are the ``z`` of the
    result, with shape (B, N, *). The penalty :math:`\lambda \sum \|u\|^2` is the optimiser's
    ``weight_decay`` of 2 lambda (exactly, for SGD).

    Args:
        denoiser: Noise prediction.
        objective: ``x_0 -> losses`` with shape (B).
        x_T: Initial noise, with shape (B, *).
        z: Condition of the network at every step, or None.
        solver: Single-step ODE sampler.
        grid: Sampling grid with N steps.
        optimizer: Factory; the authors use SGD with learning rates 1 to 10 for 10 iterations.
        gradient: Any method with ``z_t``; ``FlowGrad(members="copied")`` by default.
        keep: As for :class:`LatentOptimisation`.

    Raises:
        ValueError: an SDE or multistep sampler.

    When not to use: N controls move anywhere, off the data too; x_T alone (D-Flow) cannot leave
    what the flow can generate.
    """
    controlled = Controlled(solver)
    method = FlowGrad(members="copied") if gradient is None else gradient
    condition = None if z is None else z.detach()

    def predict(x: Tensor, t: Tensor, _: Tensor | None) -> Tensor:
        return denoiser(x, t, condition)

    predict.evaluations = getattr(denoiser, "evaluations", 1)

    def sampler(x: Tensor, controls: Tensor) -> Rollout:
        return sample(
            predict,
            x,
            PerStep(controls.unbind(1)),
            solver=controlled,
            grid=grid,
            gradient=method,
            parameters=weights_of(denoiser),
        )

    controls = torch.zeros_like(x_T).unsqueeze(1).repeat_interleave(grid.steps, 1)
    return LatentOptimisation(sampler, objective, x_T, controls, optimizer, keep=keep, optimise="z")
