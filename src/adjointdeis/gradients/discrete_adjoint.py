"""The exact adjoint of the discrete sampler, one step at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.gradients.base import Needs, StepwiseMethod, Watch
from adjointdeis.gradients.chain import Chain, Conditions, Sums, Surroundings, detached
from adjointdeis.solvers.base import State


@dataclass(frozen=True, eq=False)
class Carry:
    """Everything that enters a step: the state, the solver's history, the surroundings."""

    x: Tensor
    state: State
    surroundings: Surroundings

    @property
    def latents(self) -> int:
        """How many latents this holds."""
        return 1 + len(self.state)


@dataclass(frozen=True)
class DiscreteAdjoint(StepwiseMethod):
    r"""Discretise-then-optimise: backpropagation of each step from its stored input.

    With :math:`x_{i+1}, c_{i+1} = \Phi_i(x_i, c_i, z_i, \theta)` (c is a multistep history),
    :math:`a_i = a_{i+1}\, \partial\Phi_i / \partial(x_i, c_i)`, and the gradients of z_i and
    theta add up :math:`a_{i+1}\, \partial\Phi_i / \partial(z_i, \theta)`. For DDIM this is
    :math:`p_s = p_t - (\rho_s - \rho_t)\, p_t\, \alpha_s J(x_s, s)` with p = alpha a: the
    Jacobian sits at the noisy end of the step, where the sampler evaluated the network.

    Exact for any solver object with ``step``, multistep ones included, for ODE and SDE.
    Cost: N evaluations forward, N more with a graph, N vector-Jacobian products for x, z and
    theta together. Memory: N + 1 latents (and the history of multistep solvers) and the
    activations of one step. Dropout masks and autocast are repeated in the recomputation.

    Args:
        snapshots: how many states to store; None stores every one.
        keep_activations: for how many of the last steps to keep the graph.

    Raises:
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: for second derivatives (use ``Backprop``); it is otherwise the default.

    References:
        DiffGrad in DiffBreak, https://arxiv.org/abs/2411.16598
    """

    snapshots: int | None = None
    keep_activations: int = 0
    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = True
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents"

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, watch: Watch
    ) -> tuple[Tensor, list[Carry]]:
        x, state = x_T, chain.initial_state(x_T)
        carries = []
        for step in range(chain.steps):
            carries.append(Carry(x, state, Surroundings.capture(x)))
            z = chain.condition(zs, step)
            if step == 0:
                with watch:
                    x, state = chain.advance(step, x, z, state)
                    x, *history = watch.inspect(x, *state)
                    state = tuple(history)
            else:
                x, state = chain.advance(step, x, z, state)
        chain.cost.holds(1 + sum(carry.latents for carry in carries))
        return x, carries

    def backward_pass(
        self,
        chain: Chain,
        record: list[Carry],
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: Needs,
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        del x_0
        a_z, a_theta = Sums(len(zs)), Sums(len(parameters))
        adjoint: list[Tensor | None] = [a_x]
        chain.cost.holds(0, graphs=1)
        for step in reversed(range(chain.steps)):
            carry = record[step]
            need_z = bool(zs) and needs.zs[chain.slot(step)]
            need_x = step > 0 or needs.x_T
            with torch.enable_grad(), carry.surroundings.replayed():
                inputs = [detached(value, need_x) for value in (carry.x, *carry.state)]
                z = detached(zs[chain.slot(step)], need_z) if zs else None
                x, state = chain.advance(step, inputs[0], z, tuple(inputs[1:]))
            wanted = [*inputs, z] if need_z else inputs
            found = pull_back(chain, (x, *state), adjoint, [*wanted, *parameters])
            adjoint = found[: len(inputs)]
            if need_z:
                a_z.add(chain.slot(step), found[len(inputs)])
            for slot, gradient in enumerate(found[len(wanted) :]):
                a_theta.add(slot, gradient)
        return self._through_initial_state(chain, x_T, adjoint), a_z.values, a_theta.values

    @staticmethod
    def _through_initial_state(
        chain: Chain, x_T: Tensor, adjoint: list[Tensor | None]
    ) -> Tensor | None:
        """Add what a solver's initial state, made from x_T, contributes to its gradient."""
        if len(adjoint) == 1:
            return adjoint[0]
        with torch.enable_grad():
            leaf = detached(x_T)
            state = chain.initial_state(leaf)
        (extra,) = pull_back(chain, state, adjoint[1:], [leaf], counted=False)
        if extra is None or adjoint[0] is None:
            return extra if adjoint[0] is None else adjoint[0]
        return adjoint[0] + extra


def pull_back(
    chain: Chain,
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    counted: bool = True,
) -> list[Tensor | None]:
    """One vector-Jacobian product, for all inputs that require a gradient at once.

    Outputs without a graph and outputs whose cotangent is None are left out: both are zero.
    """
    pairs = [
        (out, cotangent)
        for out, cotangent in zip(outputs, cotangents, strict=False)
        if out.requires_grad and cotangent is not None
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    if counted:
        chain.cost.vjps += 1
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [a for _, a in pairs], allow_unused=True
        )
    )
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
