"""What a gradient method really asks of a network, counted at the network itself.

``Rollout.cost`` holds what a method counts by the network it is given. A method that reaches past
that network, evaluates a part of it or several states as one batch, would look cheaper than it is.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis.diffusion import BrownianPath, TimeGrid
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.problems import GradientProblem
from adjointdeis.solvers.base import Solver


class Disqualified(Exception):
    """A method that is not what it says: the row is shown, and takes no place."""


class TooManyEvaluations(RuntimeError):
    """A method that has evaluated the network more often than it is given time for."""


# Slots, because gradient methods look for state that changes while a network runs, and find
# whatever has a __dict__.
@dataclass(slots=True)
class Audit:
    """Counts of one network, in evaluations of the whole batch.

    Args:
        batch: samples of an evaluation.
        limit: evaluations after which :class:`TooManyEvaluations` is raised.

    Attributes:
        rows: samples that went through each module.
        honest: samples that go through each in one evaluation.
        pulled: samples whose output was pulled through by a vector-Jacobian product.
    """

    batch: int
    limit: float
    rows: Counter[str] = field(default_factory=Counter)
    honest: Counter[str] = field(default_factory=Counter)
    pulled: int = 0

    @property
    def evaluations(self) -> int:
        """Evaluations, by the module that was used most."""
        shares = (self.rows[name] / once for name, once in self.honest.items() if once)
        return math.ceil(max(shares, default=0.0) - 1e-9)

    @property
    def products(self) -> int:
        """Vector-Jacobian products."""
        return math.ceil(self.pulled / self.batch - 1e-9)


@contextmanager
def audited(
    network: nn.Module, x: Tensor, t: Tensor, z: Any, limit: float = math.inf
) -> Iterator[Audit]:
    """Counts every use of the network and of each module in it until the context is left.

    Not seen: a method that reads the weights and computes the network's formula by itself. Its
    time shows it.

    Args:
        network: the denoiser; as it was again afterwards.
        x, t, z: inputs of one evaluation, made once to see what an honest one uses.
        limit: evaluations after which the network raises.
    """
    audit = Audit(len(x), limit)
    modules = dict(network.named_modules())
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        # An attribute of the instance, so that module.forward(...) and copies are seen as well.
        module.forward = _counting(module.forward, name, audit)  # type: ignore[method-assign]
    try:
        with torch.no_grad():
            network(x, t, z)
        audit.honest, audit.rows = audit.rows, Counter()
        yield audit
    finally:
        for name, module in modules.items():
            if before[name] is None:
                del module.forward
            else:
                module.forward = before[name]  # type: ignore[method-assign]


def _counting(forward: Callable[..., Any], name: str, audit: Audit) -> Callable[..., Any]:
    def counted(*args: Any, **kwargs: Any) -> Any:
        tensors = (a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim)
        given = next(tensors, None)
        rows = audit.batch if given is None else len(given)
        audit.rows[name] += rows
        if name == "" and audit.rows[name] > audit.limit * audit.batch:
            raise TooManyEvaluations(f"more than {audit.limit:g} evaluations of the network")
        output = forward(*args, **kwargs)
        if name == "" and isinstance(output, Tensor) and output.requires_grad:

            def note(gradient: Tensor) -> None:
                del gradient
                audit.pulled += rows

            output.register_hook(note)
        return output

    return counted


@dataclass(frozen=True, eq=False)
class Trial:
    """One gradient, with what it took.

    Attributes:
        gradients: by part.
        x_0: the sample.
        cost: the method's own counters, which those at the network do not exceed.
        seconds: of the processor.
    """

    gradients: dict[str, Tensor]
    x_0: Tensor
    cost: Cost
    seconds: float


def attempt(
    problem: GradientProblem,
    method: Callable[[], GradientMethod],
    solver: Solver,
    grid: TimeGrid,
    path: BrownianPath | None,
    parts: Sequence[str],
    seed: int,
    limit: int,
) -> Trial:
    """Runs a method once, the generators of torch seeded.

    Raises:
        Disqualified: it evaluates more than it counts, or changes the weights.
        TooManyEvaluations: it makes more than ``limit``.
    """
    samples: list[Tensor] = []

    def loss(x_0: Tensor) -> Tensor:
        samples.append(x_0.detach().clone())
        return problem.loss(x_0)

    watched = replace(problem, loss=loss)
    weights = [weight.detach().clone() for weight in problem.denoiser.parameters()]
    try:
        with audited(problem.denoiser, problem.x_T, grid[0].t, problem.z, limit) as audit:
            torch.manual_seed(seed)
            start = time.process_time()
            found = watched.differentiate(method(), solver, grid, path, parts)
            seconds = time.process_time() - start
    finally:
        changed = False
        for weight, kept in zip(problem.denoiser.parameters(), weights, strict=True):
            changed |= not torch.equal(weight, kept)
            weight.data.copy_(kept)
    cost = found.cost
    if changed:
        raise Disqualified("changes the weights of the network")
    if audit.evaluations > cost.nfe:
        raise Disqualified(f"makes {audit.evaluations} evaluations and counts {cost.nfe}")
    if audit.products > cost.vjps:
        raise Disqualified(f"makes {audit.products} products and counts {cost.vjps}")
    return Trial(found.gradients, samples[-1], cost, seconds)
