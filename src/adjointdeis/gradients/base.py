"""What a gradient method is: one object that runs the chain and knows how to go back."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.parameter import is_lazy

from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.graphs import refuse_made_of_each_other
from adjointdeis.gradients.inputs import Inputs, TrajectoryCotangents
from adjointdeis.gradients.run import traced
from adjointdeis.gradients.trace import Trace
from adjointdeis.solvers.base import Solver
from adjointdeis.solvers.pair import Pair

_INPUTS = {
    "x_T": "the initial noise x_T",
    "z": "a constant condition z",
    "z_t": "a scheduled condition z_t",
    "theta": "the weights",
    "noise": "the noise of the path",
    "trajectory": "the trajectory",
}


class UnusedConditionWarning(UserWarning):
    """A condition that requires a gradient, and that no step of the run depends on."""


class NotFiniteWarning(UserWarning):
    """A gradient of a sample that holds nan or infinity, with the step where that began."""


class SecondDerivativeError(RuntimeError):
    """A derivative of a gradient that a method without a graph has computed."""


@dataclass(frozen=True)
class ContinuousAdjoint:
    """How a method solves the continuous adjoint equations: what the paper's Table 3 compares.

    Attributes:
        clock: the variable that is stepped: "t", "rho" or "lambda".
        integrator: what steps: "custom solver", "black-box ODE solver" or "black-box SDE
            solver".
        exponential: whether the linear term is integrated exactly, in the equation or by a
            change of variables that removes it.
        sde_coefficients: whether the coefficients of an SDE step are in closed form.
        any_sampler: whether the sampling run may be made by any solver.
        own_steps: whether the adjoint may take another number of steps than the sampler.
    """

    clock: Literal["t", "rho", "lambda"]
    integrator: Literal["custom solver", "black-box ODE solver", "black-box SDE solver"]
    exponential: bool = True
    sde_coefficients: bool = False
    any_sampler: bool = True
    own_steps: bool = False


def refuse_count(owner: str, value: Any, least: int, otherwise: str = "") -> None:
    """Refuse a setting that is not a whole number, or is too small.

    Args:
        owner: the setting, with its class.
        value: what was given.
        least: the smallest that is allowed.
        otherwise: what may stand in its place, for the message.
    """
    if not isinstance(value, Integral) or int(value) < least:
        raise ValueError(
            f"{owner} must be at least {least}{otherwise}, and a whole number: {value!r}"
        )


def refuse_other(owner: object, **choices: tuple[Any, Sequence[Any]]) -> None:
    """Check settings, each given with the values that it may have.

    Raises:
        ValueError: one has another value.
    """
    for name, (value, known) in choices.items():
        if value not in known:
            *others, last = map(repr, known)
            listed = f"{', '.join(others)} or {last}"
            raise ValueError(f"{type(owner).__name__}.{name} must be {listed}, got {value!r}")


class GradientMethod(ABC):
    """A way of differentiating x_0 with respect to x_T, z, the weights and the noise.

    The class attributes declare what a method can do; tables of capabilities are generated
    from them.

    Attributes:
        ode, sde: samplers it differentiates.
        x_T, z, z_t, theta, noise: what it differentiates with respect to: initial noise, constant
            condition, scheduled condition, weights, recorded noise of the path.
        trajectory: whether the states and predictions on the way are differentiable.
        exact: whether the result is the gradient of the sampler that ran.
        any_network: whether the sampler is a black box to it, so that the network need not
            predict eps.
        memory: what is held between the passes, for N steps.
        adjoint: how the continuous adjoint equations are solved; None for other methods.
    """

    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = True
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    noise: ClassVar[bool] = False
    trajectory: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    any_network: ClassVar[bool] = False
    memory: ClassVar[str]
    adjoint: ClassVar[ContinuousAdjoint | None] = None

    @abstractmethod
    def rollout(self, chain: Chain, x_T: Tensor, theta: Sequence[Tensor]) -> Tensor:
        """x_0 with a graph to x_T, to the conditions of the chain, its noise and the weights.

        Called only when at least one of them requires a gradient and gradients are enabled.
        """

    def sampled(self, chain: Chain, x_T: Tensor) -> Tensor:
        """x_0 of a run in which nothing that was named requires a gradient.

        Raises:
            UnreachableLeafError: something that was not named does.
            NotSupportedError: derivatives ride along that only a graph of the whole run carries.
        """
        _refuse_transforms(type(self).__name__, [x_T, *chain.conditions.tensors()])
        return traced(
            chain, Inputs(chain, [x_T]), owner=type(self).__name__, check=False, black_box=True
        )[0]

    def refuse(self, solver: Solver, wanted: Collection[str]) -> None:
        """Check a request against the declared capabilities, before anything runs.

        Args:
            solver: the sampler; its ``calculus`` is "ode" or "sde".
            wanted: what requires a gradient, of "x_T", "z", "z_t", "theta", "noise" and
                "trajectory".

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
        for what, description in _INPUTS.items():
            if what in wanted and not getattr(self, what):
                raise NotSupportedError(
                    f"{name} gives no gradient of {description}, which requires one; call "
                    "requires_grad_(False) on it, or use gradient=DiscreteAdjoint()"
                )


@dataclass(frozen=True)
class StepwiseMethod(GradientMethod):
    """A method that keeps no graph and walks the chain backwards step by step.

    A method that carries derivatives along with the sampling run has its record of them and no
    walk (``ForwardMode``). States and predictions on the way are noted by ``chain.trajectory``;
    their cotangents reach ``backward_pass`` as ``by.of_trajectory``, which
    ``DiscreteAdjoint.backward_pass`` shows how to join.

    Subclasses give the two passes; this class owns the ``autograd.Function`` whose explicit
    inputs are x_T, z, the noise and the weights, so that no gradient is lost in a closure.

    Args:
        check: Compare what is evaluated again with the sampling run, and raise
            ``InconsistentStepError`` where it differs: a network or sampler with a state of its
            own (counters, caches, random generators) would give a wrong gradient. Costs nothing
            but where a method evaluates the network at no point of the sampling run, which then
            takes its first step twice.

    Raises:
        InconsistentStepError: what was evaluated again is not what ran.
        UnreachableLeafError: the denoiser uses a tensor that requires a gradient and that nobody
            named; weights of a plain callable are given by ``sample(..., parameters=[...])``.
    """

    check: bool = field(default=True, kw_only=True, repr=False)

    def traced(
        self,
        chain: Chain,
        by: Inputs,
        keep: Container[int] = (),
        *,
        observed: bool = True,
        black_box: bool = False,
    ) -> tuple[Tensor, Trace]:
        """A sampling run of this method; see the function of this name."""
        options = {"observed": observed and self.check, "black_box": black_box}
        return traced(chain, by, keep, owner=type(self).__name__, check=self.check, **options)

    @abstractmethod
    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Any]:
        """Sample and keep no graph; returns x_0 and whatever the backward pass needs."""

    @abstractmethod
    def backward_pass(
        self, chain: Chain, record: Any, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        """The gradient of x_T from ``a_x`` = dL/dx_0; all others are added to ``by``."""

    def rollout(self, chain: Chain, x_T: Tensor, theta: Sequence[Tensor]) -> Tensor:
        name = type(self).__name__
        _refuse_transforms(name, [x_T, *chain.conditions.tensors(), *theta])
        if any(is_lazy(weight) for weight in theta):
            raise NotSupportedError(
                "the denoiser has weights without a shape (LazyLinear, LazyConv2d), which its "
                "first evaluation makes: call it once before, denoiser(x_T, grid[0].t, z)"
            )
        refuse_made_of_each_other(theta)
        if theta and _is_sharded(chain):
            raise NotSupportedError(
                f"{name} cannot train weights that fully_shard has split: it would evaluate copies "
                "of them that receive no gradient. Use gradient=Backprop(), "
                "DistributedDataParallel, or freeze them with requires_grad_(False)"
            )
        found = _Stepwise.apply(self, chain, *Inputs.tensors_of(chain, x_T, theta))
        if chain.trajectory is None:
            return found
        x_0, *rest = found
        chain.trajectory.states = [*rest[: chain.steps - 1], x_0]
        chain.trajectory.predictions = rest[chain.steps - 1 :]
        return x_0


class _Stepwise(torch.autograd.Function):
    """Binds a stepwise method to autograd."""

    @staticmethod
    def forward(ctx: Any, method: StepwiseMethod, chain: Chain, *tensors: Tensor) -> Any:
        by = Inputs.detached(chain, tensors, ctx.needs_input_grad[2:])
        x_0, record = method.forward_pass(chain, by)
        ctx.run = by.leaf_check.run
        way: list[Tensor] = []
        if chain.trajectory is not None:
            # Not the stored states themselves, which would then hold this very function.
            found = [*chain.trajectory.states[:-1], *chain.trajectory.predictions]
            way = [tensor.detach() for tensor in found]
        # Saved through autograd, so that changing any of them in place raises.
        ctx.save_for_backward(x_0, *way, *tensors)
        ctx.method, ctx.chain, ctx.record = method, chain, record
        ctx.set_materialize_grads(False)
        return x_0 if chain.trajectory is None else (x_0, *way)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x_0, *tensors = ctx.saved_tensors
        a_x, *on_the_way = cotangents
        tensors = tensors[len(on_the_way) :]
        by = Inputs.detached(ctx.chain, tensors, ctx.needs_input_grad[2:])
        by.leaf_check.run, by.leaf_check.by_number = (
            ctx.run,
            ctx.run is not None and ctx.run.numbered,
        )
        if on_the_way:
            last = ctx.chain.steps - 1
            by.of_trajectory = TrajectoryCotangents(on_the_way[:last], on_the_way[last:])
        ctx.chain.denoiser.graphs = None if ctx.run is None else ctx.run.graphs
        try:
            with torch.no_grad(), ctx.chain.backward_pass():
                a_x = torch.zeros_like(x_0) if a_x is None else a_x
                a_T = ctx.method.backward_pass(ctx.chain, ctx.record, by, x_0, a_x)
        finally:
            ctx.chain.denoiser.graphs = None
        # Now that the device has been waited for.
        _warn_of_not_finite(ctx.chain, ctx.record, tensors[0], x_0)
        if ctx.method.exact and ctx.method.check and by.z_is_untouched():
            warnings.warn(
                "z requires a gradient, and no step of the run depends on it: its gradient is "
                "zero, which is right if the denoiser ignores z, and wrong if it keeps what it "
                "made of z in an earlier run, such as a prompt's projection: empty that cache",
                UnusedConditionWarning,
                stacklevel=2,
            )
        found = [a_T, *by.sums.values[1:]]
        # Zeros for an input; for a weight that no step used none, as autograd has it: an optimiser
        # would let a zero decay.
        for slot in range(len(found) - len(by.theta)):
            if found[slot] is None and by.needs[slot]:
                found[slot] = torch.zeros_like(tensors[slot])
        found = [value if want else None for value, want in zip(found, by.needs, strict=True)]
        if torch.is_grad_enabled():
            # With create_graph=True the gradients must not pass for constants.
            name = type(ctx.method).__name__
            depends = [*tensors, *(c for c in cotangents if c is not None)]
            found = [
                None if value is None else _NoSecondDerivative.apply(name, value, *depends)
                for value in found
            ]
        return (None, None, *found)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        del ctx, tangents
        raise NotSupportedError(
            "forward-mode derivatives need a graph of the whole run: use gradient=Backprop()"
        )


class _NoSecondDerivative(torch.autograd.Function):
    """A gradient that depends on the inputs of the run, and cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, name: str, value: Tensor, *depends: Tensor) -> Tensor:
        del depends
        ctx.name = name
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        raise SecondDerivativeError(
            f"{ctx.name} gives first derivatives alone; for a derivative of a gradient use "
            "gradient=Backprop()"
        )


def _refuse_transforms(name: str, given: Sequence[Tensor]) -> None:
    """Refuse derivatives of torch.func and forward mode, and those by sparse or nested tensors."""
    for tensor in given:
        if tensor.requires_grad and tensor.layout is not torch.strided:
            raise NotSupportedError(
                f"{name} gives no gradient of a tensor of layout {tensor.layout}: pass "
                "z.to_dense(), or a padded tensor and a mask, or use gradient=Backprop()"
            )
    # torch has no public name for this.
    if torch._C._are_functorch_transforms_active():
        raise NotSupportedError(
            f"{name} does not run inside torch.func.grad, vmap or jvp: use gradient=Backprop() "
            "there, or torch.autograd outside of them"
        )
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(tensor).tangent is not None for tensor in given
    ):
        raise NotSupportedError(
            f"{name} does not carry the tangents of torch.autograd.forward_ad: use "
            "gradient=Backprop(), or ForwardMode() and a backward pass"
        )


def _warn_of_not_finite(chain: Chain, record: Any, x_T: Tensor, x_0: Tensor) -> None:
    """Say where a sample went wrong, by the states that are stored anyway.

    No error: loss scaling for half precision counts on gradients that are not finite.
    """
    if x_0.device.type == "meta" or bool(x_0.isfinite().all()):
        return
    carries = getattr(getattr(record, "trace", record), "carries", {})
    states = {0: x_T, **{step: carry.x for step, carry in carries.items()}, chain.steps: x_0}
    first = min(step for step, x in states.items() if not bool(x.isfinite().all()))
    before = max((step for step in states if step < first), default=-1)
    where = f"step {before}" if first == before + 1 else f"one of the steps {before} to {first - 1}"
    if first == 0:
        where = "x_T, before any step,"
    warnings.warn(
        f"the sample holds nan or infinity, and so will its gradient: {where} of {chain.steps} is "
        "where that began. The network overflows there, its precision is too low, or z or a "
        "weight is not finite; torch.autograd.set_detect_anomaly with gradient=Backprop() names "
        "the operation",
        NotFiniteWarning,
        stacklevel=2,
    )


def _is_sharded(chain: Chain) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    return kind is not None and any(isinstance(m, kind) for m in chain.denoiser.modules())
