r"""FlowGrad: controls added along the trajectory, optimised by merged adjoints.

.. math:: x_{i+1} = \Phi_i(x_i + u_i),\qquad
          u \gets u - \eta\,\nabla_u \big[ L(x_0(u)) + \lambda \textstyle\sum_i \|u_i\|^2 \big]

with a control for every step instead of one x_T (u_0 alone moves x_T). To the package a control
is a scheduled condition that a solver adds to the state, so every gradient method with ``z_t``
works: ``FlowGrad(members="copied")`` is the paper's, which merges nearly straight steps.

References:
    FlowGrad, https://openaccess.thecvf.com/content/CVPR2023/html/Liu_FlowGrad_Controlling_the_Output_of_Generative_ODEs_With_Gradients_CVPR_2023_paper.html
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node
from adjointdeis.gradients import FlowGrad, GradientMethod
from adjointdeis.guidance.latent_optimisation import LatentDescent, LatentOptimisation
from adjointdeis.guidance.problem import Algorithm, LatentProblem, OptimizerFactory
from adjointdeis.solvers.base import Solver, State

SGD: OptimizerFactory = partial(torch.optim.SGD, lr=1.0)


@dataclass(frozen=True, eq=False)
class Controlled(Solver):
    """A sampler that adds the control of a step to the state before it takes the step.

    The condition of a step is its control, shaped like x.

    Args:
        solver: ODE sampler without a history.
        z: The network's own condition, the same at every step and without a gradient.

    Raises:
        ValueError: an SDE or multistep sampler.
    """

    solver: Solver
    z: Any = None
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
        return self.solver.step(denoiser, x + z, self.z, s, t, state, noise)


@dataclass(frozen=True, eq=False)
class TrajectoryControl(Algorithm):
    r"""FlowGrad: optimisation of one control per step, from controls of zero.

    Optimises u; x_T, z and the weights stay. Cost of a step: N evaluations and the gradient
    method's products, with the default one per merged node. The controls are the ``z`` of the
    outcome, with shape (B, N, *). The penalty :math:`\lambda \sum \|u\|^2` is the optimiser's
    ``weight_decay`` of 2 lambda (exactly, for SGD).

    Args:
        steps: Gradient steps; the authors make 10.
        optimizer: Factory; the authors use SGD with learning rates 1 to 10.
        gradient: Any method with ``z_t``; ``FlowGrad(members="copied")`` by default.
        keep: As for :class:`LatentOptimisation`.

    Raises:
        ValueError: The problem's sampler is an SDE or multistep solver.

    When not to use: N controls move anywhere, off the data too; x_T alone (D-Flow) cannot leave
    what the flow can generate.
    """

    steps: int = 10
    optimizer: OptimizerFactory = SGD
    gradient: GradientMethod | None = None
    keep: Literal["last", "best"] = "best"

    def _start(self, problem: LatentProblem) -> LatentDescent:
        if problem.scheduled:
            raise ValueError("controls take the place of a scheduled condition; give one z")
        controls = torch.zeros_like(problem.x_T).unsqueeze(1)
        controlled = replace(
            problem,
            solver=Controlled(problem.solver, tree_map_only(Tensor, Tensor.detach, problem.z)),
            z=controls.repeat_interleave(problem.grid.steps, 1),
            moves="z",
            scheduled=True,
        )
        gradient = FlowGrad(members="copied") if self.gradient is None else self.gradient
        algorithm = LatentOptimisation(self.steps, self.optimizer, gradient, keep=self.keep)
        return algorithm._start(controlled)
