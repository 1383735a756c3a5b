"""The exact gradient of a reversible sampler, from its last pair of latents alone."""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients.base import StepwiseMethod
from adjointdeis.gradients.chain import Chain, NotSupportedError, detached
from adjointdeis.gradients.consistency import CouplingCheck
from adjointdeis.gradients.graphs import pull_back
from adjointdeis.gradients.inputs import Inputs, total
from adjointdeis.gradients.run import Run
from adjointdeis.gradients.step_context import ContextRecorder, StepContext
from adjointdeis.solvers.base import Solver, State
from adjointdeis.solvers.coupling import Coupling, Latents
from adjointdeis.solvers.reversible import (
    LARGEST_ERROR,
    AmplificationWarning,
    ReversibleSolver,
    warn_of_amplification,
)


@dataclass(eq=False)
class LastPair:
    """What a sampling run leaves behind: the partner of x_0, and how its moves were made.

    x_0 itself is held by autograd, through which a change in place is noticed.

    Attributes:
        recorder: records the context of every evaluation.
        contexts: for each move that evaluated the network, in order; one object serves all as
            long as the network draws no random numbers.
        check: what is kept of each such move to compare it with.
        state: the solver's state after the last step.
    """

    recorder: ContextRecorder
    check: CouplingCheck
    contexts: list[StepContext] = field(default_factory=list)
    state: State = ()


@dataclass(frozen=True)
class Reversible(StepwiseMethod):
    r"""Backpropagation that reconstructs every state by running the sampler backwards.

    A reversible sampler is a sequence of couplings
    :math:`u' = \mathrm{scale}\,u + \mathrm{mix}\,v + F(v, z, \theta)` of a pair of latents. One
    evaluation of F at v, with a graph, undoes the move, :math:`u = (u' - \mathrm{mix}\,v - F) /
    \mathrm{scale}`, and pulls the adjoints through it, :math:`a_v \mathrel{+}= \mathrm{mix}\,
    a_u + a_u\,\partial F/\partial v`, :math:`a_u \leftarrow \mathrm{scale}\, a_u`,
    :math:`a_z \mathrel{+}= a_u\,\partial F/\partial z`, and theta likewise. Nothing is
    evaluated twice.

    Exact for the chain that ran, up to the rounding that the inverse amplifies. Random layers
    and autocast are repeated; a network that draws random numbers costs the state of their
    generator per evaluation.

    Args:
        check: as for ``StepwiseMethod``.

    Warns:
        AmplificationWarning: the predicted amplification of rounding passes 1e-3 in the dtype
            of the latents; or, after the backward pass, x_T was missed by more than that.

    Raises:
        NotSupportedError: the sampler is not a ``ReversibleSolver``.

    When not to use: where the N + 1 latents of ``DiscreteAdjoint`` fit, which needs no pair and
    no inverse, and is exact for better samplers; in half precision; for second derivatives.

    References:
        Efficient, accurate and stable gradients for neural ODEs, https://arxiv.org/abs/2410.11648
        End-to-end diffusion latent optimization improves classifier guidance,
        https://arxiv.org/abs/2303.13703
    """

    trajectory: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    memory: ClassVar[str] = "2 latents"

    def refuse(self, solver: Solver, wanted: Collection[str]) -> None:
        super().refuse(solver, wanted)
        if not isinstance(solver, ReversibleSolver):
            raise NotSupportedError(
                f"Reversible reconstructs states by the inverse of the sampler's step, and "
                f"{type(solver).__name__} has none; use solver=OBELM(), BDIA(), EDICT() or Rex(), "
                "or gradient=DiscreteAdjoint() with this sampler"
            )

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, LastPair]:
        solver = reversible(chain)
        warn_of_amplification(solver, chain.grid, by.x_T.dtype)
        run = Run(chain, by, owner="Reversible", check=self.check)
        recorder = run.trace.recorder
        record = LastPair(recorder, CouplingCheck(chain, recorder, self.check))

        def moved(step: int, pair: Latents, z: Any) -> tuple[Tensor, ...]:
            """State, data prediction if the trajectory is wanted, and history of a step."""
            chain.denoiser.first = None
            for coupling in moves(chain, step, pair[0]):
                u, v = coupling.split(pair)
                change = None
                if coupling.increment is not None:
                    record.contexts.append(record.recorder.now())
                    change = coupling.increment(chain.denoiser, v, z)
                    record.check.record(v, change)
                pair = coupling.joined(coupling.moved(u, v, change), v)
            x, state = solver.unpair(*solver.turned(pair))
            return (x, *state) if chain.trajectory is None else (x, chain.prediction(), *state)

        x, record.state = by.x_T, chain.initial_state(by.x_T)
        with run.recording():
            for step in range(chain.steps):
                run.watch(step)
                pair = solver.pair(x, record.state)
                with run.inputs(step, pair) as ((u, v), z, mark, leaves), chain.widths():
                    x, record.state = run.settled(pair, moved(step, (u, v), z), mark, leaves)
        run.close(record.state)
        chain.cost.holds(2)
        return x, record

    def backward_pass(
        self, chain: Chain, record: LastPair, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        solver = reversible(chain)
        pair, wanted = solver.pair(x_0.detach(), record.state), by.of_trajectory
        adjoint = of_pair(chain, pair, a_x)
        check = record.check.rewound()
        position = len(record.contexts)
        for step in reversed(range(chain.steps)):
            slot, of_prediction = chain.slot(step), None
            if wanted is not None:
                own = of_pair(chain, pair, wanted.state(step))
                adjoint = (total(adjoint[0], own[0]), total(adjoint[1], own[1]))
                of_prediction = wanted.predictions[step]
            pair = solver.turned(pair)
            adjoint = (adjoint[1], adjoint[0]) if solver.swaps else adjoint
            couplings = moves(chain, step, pair[0])
            first = next((c for c in couplings if c.increment is not None), None)
            for coupling in reversed(couplings):
                u, v = coupling.split(pair)
                a_u, a_v = adjoint[coupling.updated], adjoint[1 - coupling.updated]
                change, increment = None, coupling.increment
                if increment is not None:
                    position -= 1
                    before = chain.cost.nfe

                    def evaluated(v: Tensor, z: Any, increment: Any = increment) -> Tensor:
                        return increment(chain.denoiser, v, z)

                    context = record.contexts[position]
                    found, rest, change = by.product(
                        evaluated, v, slot, a_u, context,
                        of_prediction if coupling is first else None,
                    )  # fmt: skip
                    chain.cost.holds(2, graphs=chain.cost.nfe - before)
                    check.compare(step, v, change)
                    by.add(rest, slots=((slot, 1.0),))
                    a_v = total(a_v, found)
                pair = coupling.joined(coupling.restored(u, v, change), v)
                if a_u is not None:
                    a_v = total(a_v, coupling.mix * a_u) if coupling.mix != 0.0 else a_v
                    a_u = coupling.scale * a_u
                adjoint = (a_u, a_v) if coupling.updated == 0 else (a_v, a_u)
        with torch.enable_grad():
            leaf = detached(by.x_T)
            start = solver.pair(leaf, chain.initial_state(leaf))
        warn_of_drift(chain, pair, start)
        (a_start,) = pull_back(chain, start, adjoint, [leaf], evaluations=0)
        return a_start


Adjoints = tuple[Tensor | None, Tensor | None]


def reversible(chain: Chain) -> ReversibleSolver:
    """The chain's solver, which :meth:`Reversible.refuse` has let by."""
    assert isinstance(chain.solver, ReversibleSolver)
    return chain.solver


def moves(chain: Chain, step: int, like: Tensor) -> Sequence[Coupling]:
    """The couplings of a step; the noise of an SDE is regenerated, never stored."""
    s, t = chain.grid[step], chain.grid[step + 1]
    noise = None if chain.noise is None else chain.noise.normal(s, t, like)
    return reversible(chain).couplings(s, t, noise)


def of_pair(chain: Chain, pair: Latents, a_x: Tensor | None) -> Adjoints:
    """Adjoints of a pair after a step from that of x, which is one of it or both."""
    leaves = [detached(latent) for latent in pair]
    with torch.enable_grad():
        x, _ = reversible(chain).unpair(leaves[0], leaves[1])
    first, second = pull_back(chain, [x], [a_x], leaves, evaluations=0)
    return first, second


def warn_of_drift(chain: Chain, found: Latents, start: Latents) -> None:
    """Compare the pair that the inverse arrived at with the one that the run began with."""
    with torch.no_grad():
        # The squares of half-precision latents overflow.
        arrived, begun = (wide(torch.stack(pair)) for pair in (found, start))
        size = float(begun.norm())
        drift = float((arrived - begun).norm()) / size if size > 0.0 else 0.0
    if not drift <= LARGEST_ERROR:
        warnings.warn(
            f"undoing {chain.steps} steps of {chain.solver} missed x_T by {drift:.2g} of its norm "
            f"in {found[0].dtype}, so the states between are wrong by about as much, and this "
            "gradient with them. Use gradient=DiscreteAdjoint(), which stores the states, or "
            "latents of float64",
            AmplificationWarning,
            stacklevel=2,
        )
