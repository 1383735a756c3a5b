"""What a gradient method is: one object that runs the chain and knows how to go back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adjointdeis.gradients.chain import Chain, Conditions, refuse_hidden_leaves
from adjointdeis.gradients.continuous import ContinuousAdjoint
from adjointdeis.solvers.base import Solver
from adjointdeis.solvers.pair import Pair


class NotSupportedError(ValueError):
    """A gradient that the chosen method does not give, for this sampler or this input."""


class GradientMethod(ABC):
    """A way of differentiating x_0 with respect to x_T, z and the weights.

    The class attributes declare what a method can do; tables of capabilities are generated
    from them.

    Attributes:
        ode, sde: samplers it differentiates.
        x_T, z, z_t, theta: what it differentiates with respect to: initial noise, constant
            condition, scheduled condition, weights.
        exact: whether the result is the gradient of the sampler that ran.
        any_network: whether the sampler is a black box to it, so that the network need not
            predict eps.
        memory: what is held between the passes, for N steps.
        adjoint: how the continuous adjoint equations are solved; None for other methods.
    """

    ode: ClassVar[bool]
    sde: ClassVar[bool]
    x_T: ClassVar[bool]
    z: ClassVar[bool]
    z_t: ClassVar[bool]
    theta: ClassVar[bool]
    exact: ClassVar[bool]
    any_network: ClassVar[bool] = False
    memory: ClassVar[str]
    adjoint: ClassVar[ContinuousAdjoint | None] = None

    @abstractmethod
    def rollout(
        self, chain: Chain, x_T: Tensor, zs: Conditions, parameters: Sequence[Tensor]
    ) -> Tensor:
        """x_0 with a graph to x_T, to every tensor of zs and to the parameters.

        Called only when at least one of them requires a gradient and gradients are enabled.
        """

    def refuse(
        self,
        solver: Solver,
        x_T: Tensor,
        zs: Conditions,
        scheduled: bool,
        learned: Sequence[Tensor],
    ) -> None:
        """Check a request against the declared capabilities, before anything runs.

        Args:
            solver: the sampler; its ``calculus`` is "ode" or "sde".
            x_T, zs: initial state and conditions.
            scheduled: whether there is one condition per step.
            learned: the weights that require a gradient.

        Raises:
            NotSupportedError: naming what was asked for and what to do instead.
        """
        name = type(self).__name__
        if not getattr(self, solver.calculus):
            raise NotSupportedError(
                f"{name} does not differentiate {solver.calculus} solvers, and "
                f"{type(solver).__name__} is one; use gradient=DiscreteAdjoint()"
            )
        predicts = getattr(solver, "predicts", "eps")
        if predicts != "eps" and not self.any_network:
            raise NotSupportedError(
                f"{name} needs a network that predicts eps, and {type(solver).__name__} takes one "
                f"that predicts {predicts}; convert it (EpsFromFlow, EpsFromV, EpsFromX0), or "
                "use gradient=DiscreteAdjoint()"
            )
        if isinstance(solver, Pair) and not self.exact:
            raise NotSupportedError(
                f"{name} follows one latent, and x of {solver} holds two; use an exact method: "
                "gradient=Reversible() or DiscreteAdjoint()"
            )
        wants_z = any(z.requires_grad for z in zs)
        asked = (
            ("the initial noise x_T", x_T.requires_grad, self.x_T),
            ("a constant condition z", wants_z and not scheduled, self.z),
            ("a scheduled condition z_t", wants_z and scheduled, self.z_t),
            ("the weights", len(learned) > 0, self.theta),
        )
        for what, wanted, given in asked:
            if wanted and not given:
                raise NotSupportedError(
                    f"{name} gives no gradient of {what}, which requires one; call "
                    "requires_grad_(False) on it, or use gradient=DiscreteAdjoint()"
                )


class StepwiseMethod(GradientMethod):
    """A method that keeps no graph and walks the chain backwards step by step.

    Subclasses give the two passes; this class owns the ``autograd.Function`` whose explicit
    inputs are x_T, every z and every parameter, so that no gradient is lost in a closure.
    """

    @abstractmethod
    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: "Needs", watch: "Watch"
    ) -> tuple[Tensor, Any]:
        """Sample without a graph; returns x_0 and whatever the backward pass needs.

        ``watch`` must be entered around the first step and given its results.
        """

    @abstractmethod
    def backward_pass(
        self,
        chain: Chain,
        record: Any,
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: "Needs",
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        """Gradients of x_T, of each z and of each parameter from ``a_x`` = dL/dx_0."""

    def rollout(
        self, chain: Chain, x_T: Tensor, zs: Conditions, parameters: Sequence[Tensor]
    ) -> Tensor:
        return _Stepwise.apply(self, chain, len(zs), x_T, *zs, *parameters)


class Needs:
    """Which inputs of the function want a gradient.

    Attributes:
        x_T: whether x_T does.
        zs: for each condition, whether it does.
        parameters: for each parameter, whether it does.
    """

    def __init__(self, flags: Sequence[bool], conditions: int) -> None:
        self.x_T = flags[0]
        self.zs = tuple(flags[1 : 1 + conditions])
        self.parameters = tuple(flags[1 + conditions :])


class Watch:
    """Looks once, at the first step, for leaves that would silently get no gradient.

    The first step runs with gradients enabled on detached inputs. If neither weights nor a
    captured tensor require a gradient no graph is built and nothing is paid.
    """

    def __init__(self, allowed: Sequence[Tensor]) -> None:
        self.allowed = allowed
        self.grad_mode = torch.enable_grad()

    def __enter__(self) -> "Watch":
        self.grad_mode.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.grad_mode.__exit__(*error)

    def inspect(
        self, outputs: Sequence[Tensor], leaves: Sequence[Tensor] | None
    ) -> tuple[Tensor, ...]:
        """The outputs of a step without their graph.

        Args:
            outputs: the state and the history that the step returned.
            leaves: the step's own inputs that require a gradient; None skips the search.

        Raises:
            UnreachableLeafError: the graph reaches a leaf that is not an input.
        """
        if leaves is not None:
            refuse_hidden_leaves(outputs, [*self.allowed, *leaves])
        return tuple(output.detach() for output in outputs)


def watched_run(
    chain: Chain, x_T: Tensor, zs: Conditions, watch: Watch, keep: bool
) -> tuple[Tensor, list[Tensor]]:
    """Sample without a graph, looking for unreachable leaves; the inputs of the steps if kept."""
    states: list[Tensor] = []
    x, state = x_T, chain.initial_state(x_T)
    for step in range(chain.steps):
        if keep:
            states.append(x)
        z = chain.condition(zs, step)
        if step == 0:
            with watch:
                x, state = chain.advance(step, x, z, state)
            x, *history = watch.inspect((x, *state), [])
            state = tuple(history)
        else:
            x, state = chain.advance(step, x, z, state)
    chain.cost.holds(1 + len(states))
    return x, states


class _Stepwise(torch.autograd.Function):
    """Binds a stepwise method to autograd."""

    @staticmethod
    def forward(
        ctx: Any, method: StepwiseMethod, chain: Chain, conditions: int, x_T: Tensor, *rest: Tensor
    ) -> Tensor:
        zs, parameters = rest[:conditions], rest[conditions:]
        inputs = [tensor.detach() for tensor in (x_T, *zs)]
        needs = Needs(ctx.needs_input_grad[3:], conditions)
        watch = Watch(parameters)
        x_0, record = method.forward_pass(chain, inputs[0], tuple(inputs[1:]), needs, watch)
        # Saved through autograd, so that changing any of them in place raises.
        ctx.save_for_backward(x_0, x_T, *rest)
        ctx.method, ctx.chain, ctx.conditions, ctx.record = method, chain, conditions, record
        return x_0

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_0, x_T, *rest = ctx.saved_tensors
        zs, parameters = tuple(rest[: ctx.conditions]), rest[ctx.conditions :]
        needs = Needs(ctx.needs_input_grad[3:], ctx.conditions)
        with ctx.chain.backward_pass():
            a_x, a_z, a_theta = ctx.method.backward_pass(
                ctx.chain, ctx.record, x_T, x_0, zs, parameters, needs, gradients[0]
            )
        found = [a_x, *a_z, *a_theta]
        wanted = [needs.x_T, *needs.zs, *needs.parameters]
        filled = [
            (torch.zeros_like(tensor) if value is None else value) if want else None
            for tensor, value, want in zip((x_T, *rest), found, wanted, strict=True)
        ]
        return (None, None, None, *filled)
