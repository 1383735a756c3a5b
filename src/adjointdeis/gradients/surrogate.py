r"""Surrogate gradients: which steps are differentiated, with which weights, over which bridge.

Write a step as :math:`x_{i+1} = \Phi_i(x_i, v_i)` with :math:`v_i = v_\theta(x_i, z_i, t_i)` the
output of the network. The exact gradient is that of

.. math:: x_{i+1} = \Phi_i(x_i, v_\theta(x_i, z_i, t_i)).

A surrogate keeps every number and the sampler's own (linear) path through :math:`\Phi_i`, and cuts
gradients at the network. With sg the identity that stops gradients, a step i of the active set A is

.. math:: \hat x_{i+1} &= \Phi_i\big(\hat x_i,\;
              \mathrm{sg}(v_i) + w_i\,(\hat v_i - \mathrm{sg}(v_i))\big), \\
          \hat v_i &= v_\theta\big(\mathrm{sg}(x_i)
              + b_i\,(\hat x_i - \mathrm{sg}(x_i)), z_i, t_i\big),

and any other is :math:`\hat x_{i+1} = \Phi_i(\hat x_i, \mathrm{sg}(v_i))`. A, w and b are the
active set, the weights and the bridge of FlowBP, which found that most published gradients of
rewards differ in these choices alone. For Euler's method on a flow, with
:math:`h_i = \sigma_{i+1} - \sigma_i`,

.. math:: \frac{dL}{d\theta} = a_0 \sum_{i \in A} w_i h_i \Big(\prod_{j \in A, j > i}
          (1 + b_j w_j h_j J_j)\Big) \frac{\partial v_i}{\partial\theta}.

The weights are relative to the sampler's, so that they mean the same for every sampler. *Leaps*
need a clock c on which a step moves the sample in proportion to its output: :math:`\sigma` for a
network of velocities, :math:`\rho^c` for one of eps (c = 2 for the reverse SDE, whose long step
towards a constant data prediction goes :math:`\rho_s - \rho_t^2/\rho_s`).

References:
    FlowBP, https://arxiv.org/abs/2606.11075 and github.com/RuoyuWang-2077/FlowBP. The released
    code could be read here, the paper's equations could not, so none is cited by number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.gradients.base import GradientMethod
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.cost import CountedDenoiser
from adjointdeis.gradients.discrete_adjoint import Checkpoints, DiscreteAdjoint
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.multistep import lagrange
from adjointdeis.gradients.run import Run, taken
from adjointdeis.gradients.trace import Trace

Weights = Callable[[Sequence[float], Sequence[int]], Sequence[float]]
"""``(clock at the N + 1 nodes, active steps) -> weight of each``, relative to the sampler's."""


def leaps(clock: Sequence[float], active: Sequence[int]) -> list[float]:
    """Each active step stands for all steps up to the next active one (LeapAlign's leaps)."""
    ends = [*active[1:], len(clock) - 1]
    return [
        (clock[end] - clock[i]) / (clock[i + 1] - clock[i])
        for i, end in zip(active, ends, strict=True)
    ]


@dataclass(frozen=True)
class Rescaled:
    r"""One factor for all: :math:`1 + s\,(\sum_i |h_i| / \sum_{i \in A} |h_i| - 1)`, of FlowBP.

    Args:
        share: s; with 1 the active steps together count for as much as all of them.
    """

    share: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.share):
            raise ValueError(f"Rescaled.share={self.share}: expected a finite number")

    def __call__(self, clock: Sequence[float], active: Sequence[int]) -> list[float]:
        covered = sum(abs(clock[i + 1] - clock[i]) for i in active)
        factor = 1.0 + self.share * (abs(clock[-1] - clock[0]) / covered - 1.0)
        return [factor] * len(active)


@dataclass(frozen=True)
class Lagrange:
    r"""FlowBP-Lagrange: a leap integrates the polynomial through several known outputs.

    The leap from an active step to the next one is :math:`\sum_m W_m v_m` over at most ``order``
    evenly spread steps m of it, of which the first is differentiated: it has the weight
    :math:`W = \int \ell_m` of its Lagrange polynomial over the clock.

    Args:
        order: Points of a leap, 1 or more; with 1 these are :func:`leaps`.
    """

    order: int = 4

    def __call__(self, clock: Sequence[float], active: Sequence[int]) -> list[float]:
        found = []
        for i, end in zip(active, [*active[1:], len(clock) - 1], strict=True):
            places = torch.linspace(0, end - i - 1, min(self.order, end - i)).round().long()
            width = clock[end] - clock[i]
            at = [(clock[i + place] - clock[i]) / width for place in places.tolist()]
            integral = sum(c / (k + 1) for k, c in enumerate(lagrange(at, 0)))
            found.append(integral * width / (clock[i + 1] - clock[i]))
        return found


@dataclass(frozen=True)
class Parts:
    """Active steps: the first one of each of ``count`` equal parts of the run.

    Args:
        count: Parts, at most as many as steps.
        first: How many of them to leave out at the noise.
    """

    count: int
    first: int = 0

    def __call__(self, total: int) -> list[int]:
        if self.count > total:
            raise ValueError(f"{total} steps cannot be divided into {self.count} parts")
        return [part * total // self.count for part in range(self.first, self.count)]


@dataclass(frozen=True)
class Surrogate(DiscreteAdjoint):
    r"""Gradients through some steps, by weights and a bridge of one's choice; see the module.

    Bias: what other steps have to do with z and theta (A), how much of the output's influence on
    x_0 is counted (w), how the network's answer depends on earlier steps (b). Settings from the
    literature have names in the module ``surrogates``.

    z and theta receive what active steps give; a scheduled z_i of another step receives zero.
    x_T receives the sampler's path to x_0 through all steps, and through the network where the
    bridge lets it.

    Args:
        active: "all", numbers of steps (0 is at the noise, negative ones count from the end), or
            a function of N that gives them, such as ``Parts(3)``.
        weights: w, one for each active step or one number for all of them, relative to the
            sampler's; "leaps", or a function such as ``Rescaled(0.5)`` and ``Lagrange(4)``.
        bridge: b, one for each active step or one number for all; from 0, no Jacobian of the
            network by its state, to 1, all of it.
        snapshots, keep_activations, budget: as in ``DiscreteAdjoint``.
        check: as for ``StepwiseMethod``.

    Raises:
        ValueError: no active step, one twice or beyond the run, or another number of weights or
            bridges than of active steps.
        NotSupportedError: weights or a bridge for a sampler whose step hides its network, or for
            a network that changes its x in place; leaps on a clock that is not known.

    When not to use: where exactness is affordable; N products cost what N - K evaluations more
    than this cost.

    References:
        FlowBP, https://arxiv.org/abs/2606.11075
    """

    active: Literal["all"] | Sequence[int] | Callable[[int], Sequence[int]] = field(
        default="all", kw_only=True
    )
    weights: float | Literal["leaps"] | Sequence[float] | Weights = field(default=1.0, kw_only=True)
    bridge: float | Sequence[float] = field(default=1.0, kw_only=True)
    noise: ClassVar[bool] = False
    trajectory: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    memory: ClassVar[str] = "N latents and outputs"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("active", "weights", "bridge"):
            value = getattr(self, name)
            if not isinstance(value, str) and isinstance(value, Sequence):
                object.__setattr__(self, name, tuple(value))
        if isinstance(self.active, str) and self.active != "all":
            raise ValueError(f"active={self.active!r}: expected 'all', numbers of steps or a rule")
        if isinstance(self.weights, str) and self.weights != "leaps":
            raise ValueError(f"weights={self.weights!r}: expected numbers, 'leaps' or a rule")
        for name in ("weights", "bridge"):
            value = getattr(self, name)
            given = value if isinstance(value, tuple) else (value,)
            if not all(math.isfinite(v) for v in given if isinstance(v, (int, float))):
                raise ValueError(f"{name}={value!r}: expected finite numbers")

    def steps(self, total: int) -> list[int]:
        """Numbers of the active steps of a run of so many, in the order in which they are taken."""
        if isinstance(self.active, str):
            return list(range(total))
        given = self.active(total) if callable(self.active) else self.active
        found = sorted(step + total if step < 0 else step for step in given)
        if not found or found[0] < 0 or found[-1] >= total or len(set(found)) < len(found):
            raise ValueError(
                f"active={tuple(given)} of a run of {total} steps: expected at least one number "
                f"between {-total} and {total - 1}, and none twice"
            )
        return found

    def plan(self, chain: Chain) -> dict[int, tuple[float, float]]:
        """Weight and bridge of each active step."""
        active = self.steps(chain.steps)
        weights = self.weights
        if isinstance(weights, str):
            weights = leaps(_clock(chain), active)
        elif callable(weights):
            weights = weights(_clock(chain), active)
        return {
            step: (float(w), float(b))
            for step, w, b in zip(
                active,
                _spread("weights", weights, len(active)),
                _spread("bridge", self.bridge, len(active)),
                strict=True,
            )
        }

    def first_step(self, by: Inputs) -> int:
        return 0 if by.needs[0] else min(self.plan(by.chain))

    def begin(self, run: Run) -> None:
        plan, first, trace = self.plan(run.chain), self.first_step(run.by), run.trace

        def record(x: Tensor, t: Tensor, output: Tensor) -> None:
            step = len(trace.contexts) - 1
            if step >= first and step not in plan:
                trace.outputs.setdefault(step, []).append(output.detach().clone())
                trace.latents += 1

        run.chain.denoiser.observer = record

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Checkpoints]:
        found = super().forward_pass(chain, by)
        chain.denoiser.observer = None
        cut = any(pair != (1.0, 1.0) for pair in self.plan(chain).values())
        if chain.denoiser.works_in_place and (cut or found[1].trace.outputs):
            raise NotSupportedError(
                f"the denoiser changes its x in place, where {type(self).__name__} cannot cut its "
                "gradient: write x = x * c instead of x.mul_(c), or use gradient=DiscreteAdjoint()"
            )
        return found

    def take(
        self,
        chain: Chain,
        trace: Trace,
        step: int,
        found: tuple[Tensor, ...],
        z: Any,
        noise: Tensor | None,
        again: bool,
    ) -> tuple[Tensor, ...]:
        chosen = self.plan(chain).get(step)
        if chosen == (1.0, 1.0):
            return super().take(chain, trace, step, found, z, noise, again)
        weight, bridge = chosen or (0.0, 0.0)
        outputs = trace.outputs.get(step, []) if again and not chosen else None
        cut, before = _CutDenoiser(chain.denoiser, weight, bridge, outputs), chain.cost.nfe
        found = taken(replace(chain, denoiser=cut), step, found[0], z, found[1:], noise)
        if not cut.called and (chosen or chain.cost.nfe > before):
            raise NotSupportedError(
                f"{type(chain.solver).__name__} evaluates a network of its own, where "
                f"{type(self).__name__} cannot cut its gradient: use weights and bridge 1 for the "
                "last steps, Truncated(last=K), or gradient=DiscreteAdjoint()"
            )
        return found

    def counted(
        self, by: Inputs, step: int, rest: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        return rest if step in self.plan(by.chain) else [None] * len(rest)


def _spread(name: str, given: Any, count: int) -> Sequence[float]:
    """One number for each active step."""
    if isinstance(given, (int, float)):
        return [given] * count
    if len(given) != count:
        raise ValueError(f"{name}={tuple(given)} has {len(given)} numbers for {count} active steps")
    return given


def _clock(chain: Chain) -> list[float]:
    """What a step moves x in proportion to, at the N + 1 nodes."""
    predicts = getattr(chain.solver, "predicts", "eps")
    if predicts == "velocity":
        return [node.sigma for node in chain.grid]
    clock = [node.rho**chain.factor for node in chain.grid] if predicts == "eps" else [math.inf]
    if not all(math.isfinite(c) for c in clock):
        raise NotSupportedError(
            f"a leap of {type(chain.solver).__name__} on this grid has no known length: give "
            "weights as numbers; of a flow that starts at alpha = 0, sample with FlowEuler"
        )
    return clock


class _CutDenoiser:
    """The counted denoiser with factors of the gradients of its output and of its x.

    A weight of 0 evaluates without a graph; ``outputs`` are given instead of evaluating it.
    """

    def __init__(
        self,
        inner: CountedDenoiser,
        weight: float,
        bridge: float,
        outputs: Sequence[Tensor] | None,
    ) -> None:
        self.inner, self.weight, self.bridge = inner, weight, bridge
        self.outputs = None if outputs is None else iter(outputs)
        self.called = False

    def __call__(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        self.called = True
        if self.outputs is not None:
            return next(self.outputs)
        return self._cut(self.inner, x, t, z)

    def data(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        self.called = True
        return self._cut(self.inner.data, x, t, z)

    def _cut(self, function: Callable[..., Tensor], x: Tensor, t: Tensor, z: Any) -> Tensor:
        with torch.set_grad_enabled(self.weight != 0.0):
            output = function(scaled(x, self.bridge), t, z)
        return scaled(output, self.weight)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """The same numbers, whose gradient is multiplied by a factor on its way back."""
    if factor == 1.0:
        return tensor
    # A copy: a network that works in place must not reach what it was made from.
    copy = tensor.clone()
    if factor == 0.0 or not copy.requires_grad:
        return copy.detach()
    copy.register_hook(lambda gradient: gradient * factor)
    return copy


@dataclass(frozen=True)
class Drawn(GradientMethod):
    """A surrogate that is drawn anew for every rollout.

    Args:
        rule: ``(number of steps, generator) -> Surrogate``.
        generator: What the draws are taken from, on the CPU; None for torch's own.
    """

    rule: Callable[[int, torch.Generator | None], Surrogate]
    generator: torch.Generator | None = None
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = Surrogate.memory

    def rollout(self, chain: Chain, x_T: Tensor, theta: Sequence[Tensor]) -> Tensor:
        return self.rule(chain.steps, self.generator).rollout(chain, x_T, theta)
