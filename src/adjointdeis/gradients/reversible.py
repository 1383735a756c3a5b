"""The exact gradient of a reversible sampler, from its last pair of latents alone."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.gradients.base import Needs, NotSupportedError, StepwiseMethod, Watch
from adjointdeis.gradients.chain import Chain, Conditions, Sums, Surroundings, detached, pull_back
from adjointdeis.solvers.base import Solver, State
from adjointdeis.solvers.coupling import Coupling, Latents
from adjointdeis.solvers.reversible import (
    LARGEST_ERROR,
    AmplificationWarning,
    ReversibleSolver,
    warn_of_amplification,
)


@dataclass(frozen=True, eq=False)
class Residue:
    """What a sampling run leaves behind: the partner of x_0, and how its moves were made.

    x_0 itself is held by autograd, through which a change in place is noticed.

    Attributes:
        state: the solver's state after the last step.
        surroundings: for each move that evaluated the network, in order; one object serves
            all as long as the network draws no random numbers.
    """

    state: State
    surroundings: list[Surroundings]


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

    Cost: the evaluations of the sampler (2N for EDICT, N for BDIA and O-BELM, 2sN for Rex with
    s stages), as many again with a graph, one vector-Jacobian product for each. Memory: two
    latents and the activations of one coupling, whatever N.

    Warns:
        AmplificationWarning: the predicted amplification of rounding passes 1e-3 in the dtype
            of the latents; or, after the backward pass, x_T was missed by more than that.

    Raises:
        NotSupportedError: the sampler is not a ``ReversibleSolver``.
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: where the N + 1 latents of ``DiscreteAdjoint`` fit, which needs no pair and
    no inverse, and is exact for better samplers; in half precision; for second derivatives.

    References:
        Efficient, accurate and stable gradients for neural ODEs, https://arxiv.org/abs/2410.11648
        End-to-end diffusion latent optimization improves classifier guidance,
        https://arxiv.org/abs/2303.13703
    """

    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = True
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    memory: ClassVar[str] = "2 latents"

    def refuse(
        self,
        solver: Solver,
        x_T: Tensor,
        zs: Conditions,
        scheduled: bool,
        learned: Sequence[Tensor],
    ) -> None:
        super().refuse(solver, x_T, zs, scheduled, learned)
        if not isinstance(solver, ReversibleSolver):
            raise NotSupportedError(
                f"Reversible reconstructs states by the inverse of the sampler's step, and "
                f"{type(solver).__name__} has none; use solver=OBELM(), BDIA(), EDICT() or Rex(), "
                "or gradient=DiscreteAdjoint() with this sampler"
            )

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: Needs, watch: Watch
    ) -> tuple[Tensor, Residue]:
        del needs
        solver = reversible(chain)
        warn_of_amplification(solver, chain.grid, x_T.dtype)
        pair = solver.pair(x_T, chain.initial_state(x_T))
        surroundings: list[Surroundings] = []
        for step in range(chain.steps):
            z = chain.condition(zs, step)
            with watch if step == 0 else nullcontext():
                for coupling in moves(chain, step, pair[0]):
                    if coupling.increment is not None:
                        surroundings.append(present(pair[0], surroundings))
                    pair = coupling.apply(chain.denoiser, pair, z)
            first, second = watch.inspect(pair, [] if step == 0 else None)
            pair = solver.turned((first, second))
        x_0, state = solver.unpair(*pair)
        chain.cost.holds(2)
        return x_0, Residue(state, surroundings)

    def backward_pass(
        self,
        chain: Chain,
        record: Residue,
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: Needs,
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        solver = reversible(chain)
        a_z, a_theta = Sums(len(zs)), Sums(len(parameters))
        first, second = solver.pair(x_0.detach(), record.state)
        pair, adjoint = (first, second), at_the_end(chain, (first, second), a_x)
        position = len(record.surroundings)
        for step in reversed(range(chain.steps)):
            slot = chain.slot(step)
            pair = solver.turned(pair)
            adjoint = (adjoint[1], adjoint[0]) if solver.swaps else adjoint
            for coupling in reversed(moves(chain, step, pair[0])):
                u, v = coupling.split(pair)
                a_u, a_v = adjoint[coupling.updated], adjoint[1 - coupling.updated]
                change, rest = None, []
                if coupling.increment is not None:
                    position -= 1
                    leaf = detached(v)
                    z = detached(zs[slot], needs.zs[slot]) if zs else None
                    before = chain.cost.nfe
                    with record.surroundings[position].replayed(), torch.enable_grad():
                        graph = coupling.increment(chain.denoiser, leaf, z)
                    evaluations = chain.cost.nfe - before
                    chain.cost.holds(2, graphs=evaluations)
                    inputs = [leaf, *([] if z is None else [z]), *parameters]
                    rest = pull_back(chain, [graph], [a_u], inputs, evaluations)
                    change = graph.detach()
                    a_v = total(a_v, rest.pop(0))
                    if z is not None:
                        a_z.add(slot, rest.pop(0))
                    for index, gradient in enumerate(rest):
                        a_theta.add(index, gradient)
                pair = coupling.joined(coupling.restored(u, v, change), v)
                if a_u is not None:
                    a_v = total(a_v, coupling.mix * a_u) if coupling.mix != 0.0 else a_v
                    a_u = coupling.scale * a_u
                adjoint = (a_u, a_v) if coupling.updated == 0 else (a_v, a_u)
        with torch.enable_grad():
            leaf = detached(x_T)
            start = solver.pair(leaf, chain.initial_state(leaf))
        warn_of_drift(chain, pair, start)
        (a_start,) = pull_back(chain, start, adjoint, [leaf], evaluations=0)
        return a_start, a_z.values, a_theta.values


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


def present(like: Tensor, earlier: Sequence[Surroundings]) -> Surroundings:
    """The present surroundings; the last ones again if nothing has been drawn since."""
    now = Surroundings.capture(like)
    if earlier and now.same_as(earlier[-1]):
        return earlier[-1]
    return now


def at_the_end(chain: Chain, pair: Latents, a_x: Tensor) -> Adjoints:
    """Adjoints of the last pair from that of x_0, which is one of it or both."""
    leaves = [detached(latent) for latent in pair]
    with torch.enable_grad():
        x_0, _ = reversible(chain).unpair(leaves[0], leaves[1])
    first, second = pull_back(chain, [x_0], [a_x], leaves, evaluations=0)
    return first, second


def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Sum of two gradients, either of which may be absent."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def warn_of_drift(chain: Chain, found: Latents, start: Latents) -> None:
    """Compare the pair that the inverse arrived at with the one that the run began with."""
    with torch.no_grad():
        # In float64: the squares of half-precision latents overflow.
        arrived, begun = (torch.stack(pair).double() for pair in (found, start))
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
