"""A gradient that says how far it is from the gradient of the continuous flow."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.prediction import wide
from adjointdeis.diffusion.step_grid import StepGrid
from adjointdeis.gradients.base import StepwiseMethod
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.step_context import ContextRecorder, StepContext
from adjointdeis.solvers.base import Solver

# How much of what the next extrapolation changes is added: chosen on random mixtures so that 95% of
# the errors lie below, and checked on others in experiments/certified.
MARGIN = 2.0
# A ratio of differences below this is no convergence: the estimate is then ten differences.
LEAST_CONTRACTION = 1.1


class OtherLossError(ValueError):
    """The loss that was differentiated is not the one that ``Certified`` was given."""


@dataclass(frozen=True)
class Certified(StepwiseMethod):
    r"""The gradient of another method, with an estimate of how far it is from that of the flow.

    An exact gradient is that of the sampler, :math:`g_N`. What is usually wanted is that of the
    model: :math:`g = dL(x_0)/d(x_T, z, \theta)` of the probability-flow ODE without steps. After
    ``backward()``, ``rollout.gradient_error`` estimates :math:`|g_N - g| / |g|` for each of "x_T",
    "z" and "theta", from two more runs, on every second and on every fourth node of the grid. With
    :math:`a = g_N - g_{N/2}`, :math:`b = g_{N/2} - g_{N/4}` and the sampler's order p,

    .. math:: \frac{1}{|g_N|} \Big( \frac{|a|}{q - 1}
        + \frac{2}{2^{p+1} - 1} \Big| a + \frac{a - b}{2^p - 1} \Big| \Big) + N u, \qquad
        q = \min\big(2^p, \max(1.1, |b| / |a|)\big).

    The first term is Richardson's error with the order that is observed; the second is what a
    further extrapolation would change of Richardson's, and vanishes faster. Rounding differs
    between the runs, so a shows it; another N u is added, u the unit roundoff of the coarsest
    arithmetic in use.

    It is an estimate, no bound: for random mixtures it lies above the error in 95% of the cases
    (experiments/certified, which says where it is too large, and by how much).

    Args:
        loss: what is differentiated, as a function of x_0 alone with one number as its value: the
            other two runs end elsewhere and need its gradient there. A multiple of it may be
            differentiated, such as the mean for the sum.
        method: an exact method.
        coarse: exact method of the other two runs; by default their N/2 activations are held,
            which makes the price 1.5 times that of ``DiscreteAdjoint`` in evaluations and products.
            With ``coarse=DiscreteAdjoint()`` they take the activations of one step, at 1.75 times.
        order: of convergence of the sampler, if it has no attribute ``order``.

    Raises:
        OtherLossError: the gradient that arrives at x_0 is no multiple of that of ``loss``.
        NotSupportedError: an SDE, a scheduled z, gradients of noise or of the trajectory, a
            microbatch, an encoding, a method that is not exact, fewer than 4 steps, or the steps of
            a scheduler, none of which can be left out.

    When not to use: for the gradient of the sampler itself, as in training through a sampler that
    will be used with these very steps; there ``DiscreteAdjoint`` has no error. Where the network
    has kinks in t or x (a schedule of 1,000 levels, ``clip_x0``) errors do not fall by the order.

    References:
        The approximate arithmetical solution by finite differences of physical problems
        (Richardson), https://doi.org/10.1098/rsta.1911.0009
        Solving ordinary differential equations I (Hairer, Norsett, Wanner), II.4,
        https://doi.org/10.1007/978-3-540-78862-1
    """

    loss: Callable[[Tensor], Tensor]
    method: StepwiseMethod = field(default_factory=DiscreteAdjoint)
    coarse: StepwiseMethod | None = None
    order: int | None = None
    # The methods' own are what counts.
    check: bool = field(default=True, init=False, repr=False)
    sde: ClassVar[bool] = False
    z_t: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "that of its method, then N/2 activations"

    def __post_init__(self) -> None:
        for method in (self.method, self.coarse or self.method):
            if not isinstance(method, StepwiseMethod) or not method.exact:
                raise NotSupportedError(
                    f"Certified takes an exact method that works step by step, and not {method!r}: "
                    "use DiscreteAdjoint(), which has every option of memory, Reversible() or "
                    "SymplecticAdjoint()"
                )
        if not callable(self.loss):
            raise TypeError(f"Certified(loss) needs a function of x_0, got {self.loss!r}")

    def refuse(self, solver: Solver, wanted: Collection[str]) -> None:
        super().refuse(solver, wanted)
        self.method.refuse(solver, wanted)
        if self.coarse is not None:
            self.coarse.refuse(solver, wanted)

    def rollout(self, chain: Chain, x_T: Tensor, theta: Sequence[Tensor]) -> Tensor:
        if not chain.grid.sampling or chain.steps < 4 or isinstance(chain.grid, StepGrid):
            raise NotSupportedError(
                "Certified compares a sampling run of at least 4 steps, any of which can be left "
                "out, with those on every second and every fourth node of its grid: this one has "
                f"{chain.steps} steps of a {type(chain.grid).__name__} from "
                f"{'noise to data' if chain.grid.sampling else 'data to noise'}"
            )
        self._order(chain)
        return super().rollout(chain, x_T, theta)

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Any]:
        recorder = ContextRecorder((chain.denoiser.denoiser, chain.solver), by.x_T)
        start = recorder.now()
        x_0, record = self.method.forward_pass(chain, by)
        recorder.now()
        return x_0, (start, record)

    def backward_pass(
        self,
        chain: Chain,
        record: tuple[StepContext, Any],
        by: Inputs,
        x_0: Tensor,
        a_x: Tensor,
    ) -> Tensor | None:
        start, own = record
        a_T = self.method.backward_pass(chain, own, by, x_0, a_x)
        runs = [[a_T, *by.sums.values[1:]]]
        scale = self._scale(x_0, a_x)
        with start.replayed():
            for stride in (2, 4):
                runs.append(self._thinned(chain, by, scale, stride))
        first_theta = len(runs[0]) - len(by.theta)
        parts = {
            "x_T": slice(0, 1), "z": slice(1, first_theta), "theta": slice(first_theta, None)
        }  # fmt: skip
        # One unit roundoff for each step, of the coarsest arithmetic in use.
        rounding = 0.5 * chain.steps * start.recorder.tolerance**2
        chain.gradient_error.clear()
        for name, part in parts.items():
            if any(by.needs[part]):
                found = (run[part] for run in runs)
                error = extrapolated_error(*found, order=self._order(chain))
                chain.gradient_error[name] = error + rounding
        return a_T

    def _order(self, chain: Chain) -> int:
        order = getattr(chain.solver, "order", None) if self.order is None else self.order
        if not isinstance(order, int) or order < 1:
            raise NotSupportedError(
                f"{type(chain.solver).__name__} does not say with which order it converges: use "
                "Certified(loss, order=...)"
            )
        return order

    def _scale(self, x_0: Tensor, a_x: Tensor) -> float:
        """How many times the gradient of ``loss`` arrived at x_0."""
        own, given = wide(self._cotangent(x_0)).flatten(), wide(a_x).flatten()
        square = float(own @ own)
        scale = float(own @ given) / square if square > 0.0 else 1.0
        rest, size = float((given - scale * own).norm()), float(given.norm())
        if not rest <= torch.finfo(a_x.dtype).eps ** 0.5 * size:
            raise OtherLossError(
                "the gradient that arrived at x_0 is no multiple of that of Certified's loss (they "
                f"differ by {rest / size:.2g} of its norm): give the whole loss, "
                "gradient=Certified(loss), and call loss(rollout.x_0).backward()"
            )
        return scale

    def _cotangent(self, x_0: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x_0.detach().clone().requires_grad_()
            value = self.loss(leaf)
            if value.numel() != 1:
                raise ValueError(
                    f"Certified's loss must give one number, got a tensor of shape "
                    f"{tuple(value.shape)}: sum it over the samples"
                )
            (gradient,) = torch.autograd.grad(value, leaf)
        return gradient

    def _thinned(self, chain: Chain, by: Inputs, scale: float, stride: int) -> list[Tensor | None]:
        """The gradients of a run on every so-manieth node, x_0 always among them."""
        nodes = [*range(0, chain.steps, stride), chain.steps]
        cost = Cost(in_backward=True)
        other = replace(
            chain,
            denoiser=CountedDenoiser(chain.denoiser.denoiser, cost),
            grid=chain.grid.at(nodes),
            cost=cost,
        )
        tensors = [by.x_T, *(leaf for slot in by.z for leaf in slot), *by.theta]
        inputs = Inputs(other, tensors, by.needs)
        method = self.coarse or DiscreteAdjoint(keep_activations=chain.steps, check=False)
        x_0, record = method.forward_pass(other, inputs)
        a_T = method.backward_pass(other, record, inputs, x_0, scale * self._cotangent(x_0))
        held = chain.cost.peak_latents + cost.peak_latents
        chain.cost.add(replace(cost, peak_latents=held))
        return [a_T, *inputs.sums.values[1:]]


def extrapolated_error(
    fine: Sequence[Tensor | None],
    half: Sequence[Tensor | None],
    quarter: Sequence[Tensor | None],
    order: int,
) -> float:
    """Relative error of a gradient from those at twice and four times the step; see ``Certified``.

    Args:
        fine, half, quarter: gradients of the same tensors, None for zero.
        order: of convergence.

    Returns:
        Infinite where the gradient is zero and the others are not.
    """
    size = aa = bb = ab = 0.0
    for values in zip(fine, half, quarter, strict=True):
        like = next((value for value in values if value is not None), None)
        if like is None:
            continue
        g, g_2, g_4 = (wide(torch.zeros_like(like) if v is None else v) for v in values)
        a, b = (g - g_2).flatten(), (g_2 - g_4).flatten()
        size += float(g.square().sum())
        aa, bb, ab = aa + float(a @ a), bb + float(b @ b), ab + float(a @ b)
    if aa == 0.0:
        return 0.0
    if size == 0.0 or not math.isfinite(aa + bb):
        return math.inf
    gain = 2.0**order
    contraction = min(gain, max(LEAST_CONTRACTION, math.sqrt(bb / aa)))
    # |a + (a - b) / (gain - 1)| = |gain a - b| / (gain - 1)
    change = math.sqrt(max(0.0, gain**2 * aa - 2.0 * gain * ab + bb)) / (gain - 1.0)
    estimate = math.sqrt(aa) / (contraction - 1.0) + MARGIN * change / (2.0 * gain - 1.0)
    return estimate / math.sqrt(size)
