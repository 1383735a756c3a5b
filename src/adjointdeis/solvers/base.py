"""What the package asks of a sampler."""

from typing import Any, ClassVar, Literal

from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.prediction import x0_from_eps

State = tuple[Tensor, ...]


class Solver:
    """One step of a sampling method, without memory of its own.

    Any object with :meth:`step` and ``calculus`` is accepted; deriving from this class only
    saves writing the defaults. Everything that a later step needs is in ``state``, a tuple
    of tensors, so that a gradient method can store it and differentiate through it.

    Attributes:
        order: order of convergence in the largest step, for the ODE or in the strong sense.
        calculus: "ode" for the probability flow, "sde" for the reverse SDE.
        multistep: whether ``state`` carries earlier predictions.
        predicts: what the network given to ``sample`` predicts; all but "eps" is refused by the
            gradient methods that evaluate the network themselves.
    """

    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    predicts: ClassVar[str] = "eps"

    def initial_state(self, x_T: Tensor, grid: TimeGrid) -> State:
        """State before the first step; may depend on x_T, differentiably."""
        del x_T, grid
        return ()

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
        """Advance x from node s to node t.

        Args:
            denoiser: noise prediction, called as ``denoiser(x, s.t, z)``; a solver that calls a
                network of its own reports it by ``count_evaluations(denoiser)``.
            x: state at s, shape (B, *).
            z: condition of this step, a tensor or a pytree.
            s, t: adjacent grid nodes.
            state: what the previous step returned, or :meth:`initial_state`.
            noise: standard normal shaped like x for an SDE solver, None for an ODE solver.

        Returns:
            The state at t, and the state for the next step.
        """
        raise NotImplementedError


def count_evaluations(denoiser: Denoiser, evaluations: int = 1) -> None:
    """Record evaluations of a network that a solver calls itself.

    ``Rollout.cost`` counts the calls of the denoiser that a step is given. A solver around a
    sampler of another library, which holds the network, says so once for each evaluation::

        def step(self, denoiser, x, z, s, t, state, noise):
            count_evaluations(denoiser)
            return self.scheduler.step(self.network(x, ...), ...).prev_sample, state

    Args:
        denoiser: what the step was given; a plain network, on which nothing is counted, is fine.
        evaluations: how many to add.
    """
    count = getattr(denoiser, "count", None)
    if count is not None:
        count(evaluations)


def data_prediction(denoiser: Denoiser, x: Tensor, z: Any, s: Node) -> Tensor:
    """The data expected in x at a node, from one evaluation of a noise prediction.

    Where alpha = 0 it is asked of the denoiser's own ``data``, which networks of v, flows and data
    have.

    Args:
        denoiser: Noise prediction.
        x: Latents (B, ...) at s.
        z: Condition, or None.
        s: Node of the grid.

    Raises:
        ValueError: alpha = 0 at s and a denoiser that predicts eps alone.
    """
    data = getattr(denoiser, "data", None) if s.alpha == 0.0 else None
    if data is not None:
        return data(x, s.t, z)
    return x0_from_eps(x, denoiser(x, s.t, z), s.alpha, s.sigma)


def eps_factor(solver: Solver) -> float:
    r"""c of the equation :math:`d(x/\alpha) = c\,\epsilon\,d\rho` + noise that a sampler solves.

    1 for the ODE and 2 for the reverse SDE, unless the sampler says otherwise by an attribute of
    this name; the noise is then :math:`\sqrt{c - 1}\,dB`.
    """
    return getattr(solver, "eps_factor", 2.0 if solver.calculus == "sde" else 1.0)
