"""The discrete chain of states that a solver makes on a grid, and its inputs."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import Noise
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.solvers.base import Solver, State, eps_factor

Conditions = tuple[Tensor, ...]


class UnreachableLeafError(RuntimeError):
    """A tensor that requires a gradient, and that the chosen method cannot give one."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Sampling as a chain x_T -> ... -> x_0 with everything but the differentiable inputs.

    Attributes:
        denoiser: counted noise prediction.
        solver: sampler.
        grid: N + 1 nodes.
        noise: path noise for an SDE solver, None for an ODE solver.
        scheduled: whether step i has its own condition z_i.
        cost: counters.
    """

    denoiser: CountedDenoiser
    solver: Solver
    grid: TimeGrid
    noise: Noise | None
    scheduled: bool
    cost: Cost

    @property
    def steps(self) -> int:
        """Number N of steps."""
        return self.grid.steps

    @property
    def factor(self) -> float:
        """Weight of the eps term: 1 for the ODE, 2 for the reverse SDE (Paper: Prop. 3.1)."""
        return eps_factor(self.solver)

    @property
    def spread(self) -> float:
        """Weight of the Wiener process in y = x/alpha: 0 for the ODE, 1 for the reverse SDE."""
        return math.sqrt(self.factor - 1.0)

    def slot(self, step: int) -> int:
        """Which of the conditions step ``step`` uses."""
        return step if self.scheduled else 0

    def condition(self, zs: Conditions, step: int) -> Tensor | None:
        """The condition of a step; None without any."""
        return zs[self.slot(step)] if zs else None

    def initial_state(self, x_T: Tensor) -> State:
        """The solver's state before the first step."""
        make = getattr(self.solver, "initial_state", None)
        return () if make is None else tuple(make(x_T, self.grid))

    def advance(self, step: int, x: Tensor, z: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Take one step."""
        s, t = self.grid[step], self.grid[step + 1]
        noise = None if self.noise is None else self.noise.normal(s, t, x)
        x, state = self.solver.step(self.denoiser, x, z, s, t, state, noise)
        return x, tuple(state)

    def run(self, x_T: Tensor, zs: Conditions) -> tuple[Tensor, int]:
        """Take every step; returns x_0 and how many latents were made, solver history included."""
        x, state = x_T, self.initial_state(x_T)
        latents = 1 + len(state)
        for step in range(self.steps):
            x, state = self.advance(step, x, self.condition(zs, step), state)
            latents += 1 + len(state)
        return x, latents

    @contextmanager
    def backward_pass(self) -> Iterator[None]:
        """Count what happens inside as the backward pass."""
        self.cost.in_backward = True
        try:
            yield
        finally:
            self.cost.in_backward = False


@dataclass(frozen=True, eq=False)
class Surroundings:
    """Random state and autocast setting of a step, so that recomputing it repeats it exactly.

    Dropout must draw the same mask, and a backward pass runs outside the caller's autocast.
    """

    device: torch.device
    rng: Tensor
    device_rng: Tensor | None
    autocast: bool
    autocast_dtype: torch.dtype | None

    @classmethod
    def capture(cls, like: Tensor) -> "Surroundings":
        """The present surroundings on the device of ``like``."""
        device = like.device
        # The meta device, on which memory is planned, has no autocast to ask about.
        has_autocast = torch.amp.is_autocast_available(device.type)
        autocast = has_autocast and torch.is_autocast_enabled(device.type)
        return cls(
            device=device,
            rng=torch.get_rng_state(),
            device_rng=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            autocast=autocast,
            autocast_dtype=torch.get_autocast_dtype(device.type) if autocast else None,
        )

    def same_as(self, other: "Surroundings") -> bool:
        """Whether nothing differs between the two, random state included."""
        if self.device_rng is None or other.device_rng is None:
            same_device_rng = self.device_rng is other.device_rng
        else:
            same_device_rng = torch.equal(self.device_rng, other.device_rng)
        settings = (self.device, self.autocast, self.autocast_dtype)
        return (
            settings == (other.device, other.autocast, other.autocast_dtype)
            and same_device_rng
            and torch.equal(self.rng, other.rng)
        )

    def restore_rng(self) -> None:
        """Set the random state back to this one."""
        torch.set_rng_state(self.rng)
        if self.device_rng is not None:
            torch.cuda.set_rng_state(self.device_rng, self.device)

    def autocasting(self) -> AbstractContextManager:
        """The autocast setting as a context."""
        return torch.autocast(
            self.device.type, dtype=self.autocast_dtype, enabled=self.autocast, cache_enabled=False
        )

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, everything is as it was when captured; outside, as it is now."""
        now = Surroundings.capture(torch.empty(0, device=self.device))
        self.restore_rng()
        with ExitStack() as stack:
            if self.autocast or now.autocast:
                stack.enter_context(self.autocasting())
            try:
                yield
            finally:
                now.restore_rng()


def detached(tensor: Tensor, requires_grad: bool = True) -> Tensor:
    """The tensor as a leaf of its own, sharing memory."""
    return tensor.detach().requires_grad_(requires_grad and tensor.is_floating_point())


def refuse_hidden_leaves(outputs: Sequence[Tensor], allowed: Sequence[Tensor]) -> None:
    """Raise if a graph reaches a leaf that is not among the allowed ones.

    Args:
        outputs: results of a step whose own inputs were detached.
        allowed: tensors that will receive their gradient.

    Raises:
        UnreachableLeafError: naming the shape of the first such leaf. Leaves behind a
            custom autograd function that hides its inputs cannot be seen.
    """
    known = {id(tensor) for tensor in allowed}
    stack = [out.grad_fn for out in outputs if out.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and leaf.requires_grad and id(leaf) not in known:
            raise UnreachableLeafError(
                f"the denoiser uses a tensor of shape {tuple(leaf.shape)} that requires a gradient "
                "but is neither x_T, z, nor one of its parameters(), so this method would leave "
                "its .grad empty. Pass it as z, make it a parameter of the denoiser, list it in "
                "sample(..., parameters=[...]), call requires_grad_(False) on it, or use "
                "gradient=Backprop()"
            )
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)


@dataclass
class Sums:
    """Running sums of gradients, one slot per input; an untouched slot is a zero gradient.

    Attributes:
        values: the sums, None while nothing was added.
    """

    size: int
    values: list[Tensor | None] = field(init=False)

    def __post_init__(self) -> None:
        self.values = [None] * self.size

    def add(self, slot: int, gradient: Tensor | None, weight: float = 1.0) -> None:
        """Add ``weight`` times a gradient to a slot."""
        if gradient is None:
            return
        total = self.values[slot]
        if total is None:
            # A copy: autograd may hand out views, or one tensor for two inputs.
            self.values[slot] = gradient * weight if weight != 1.0 else gradient.clone()
        else:
            total.add_(gradient, alpha=weight)


def pull_back(
    chain: Chain,
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
    evaluations: int,
) -> list[Tensor | None]:
    """One vector-Jacobian product of a graph, for all inputs that require a gradient at once.

    Outputs without a graph and outputs without a cotangent are left out: both are zero, and
    the history that the last step leaves behind has none.

    Args:
        chain: counts the products.
        outputs, cotangents: what is pulled back.
        inputs: what it is pulled back to.
        evaluations: network evaluations in the graph; one product passes through each.
    """
    pairs = [
        (out, cotangent)
        for out, cotangent in zip(outputs, cotangents, strict=False)
        if out.requires_grad and cotangent is not None
    ]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    if not pairs or not wanted:
        return [None] * len(inputs)
    chain.cost.vjps += evaluations
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [a for _, a in pairs], allow_unused=True
        )
    )
    return [next(found) if tensor.requires_grad else None for tensor in inputs]
