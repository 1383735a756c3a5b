"""The symplectic adjoint of Runge-Kutta steps: exact, with one network graph at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.gradients.base import Needs, NotSupportedError, StepwiseMethod, Watch
from adjointdeis.gradients.chain import Chain, Conditions, Sums, Surroundings, detached, pull_back
from adjointdeis.solvers.base import Solver
from adjointdeis.solvers.runge_kutta import RungeKutta, combined, rho_width


@dataclass(frozen=True)
class SymplecticAdjoint(StepwiseMethod):
    r"""The partitioned symplectic Runge-Kutta adjoint of ``RungeKutta`` sampling.

    The sampler takes :math:`Y_i = y_n + r \sum_j a_{ij} k_j`,
    :math:`k_i = \epsilon(\alpha_i Y_i, z, t_i)`, :math:`y_{n+1} = y_n + r \sum_i b_i k_i` over
    :math:`\rho`, with r < 0. The adjoint :math:`dp/d\rho = -p\,\alpha J` is integrated
    backwards with the tableau :math:`\tilde a_{ij} = b_j - b_j a_{ji} / b_i`,
    :math:`\tilde b_i = b_i`, for which :math:`p\,\delta y` is conserved as it is by the exact
    flow. Multiplied out by :math:`\mu_i = b_i \lambda_i`, which also covers b_i = 0,

    .. math:: \mu_i = b_i\, p_{n+1} + r \sum_{j > i} a_{ji}\, \mu_j \alpha_j J_j, \qquad
              p_n = p_{n+1} + r \sum_j \mu_j \alpha_j J_j,

    and z and theta add up :math:`r \sum_j \mu_j J_{z,j}`. A quadratic invariant that is kept
    makes the discretised adjoint the adjoint of the discretisation: the result is the gradient
    of the sampler that ran, to rounding.

    Cost, for N steps of s stages: N s evaluations forward; backward N (s - 1) to find the
    stages, N s with a graph and N s vector-Jacobian products. Holds N + s latents and the
    activations of one evaluation, where ``DiscreteAdjoint`` holds those of s.

    Raises:
        NotSupportedError: a solver other than ``RungeKutta``.
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: with "euler", where it is ``DiscreteAdjoint``; or where the activations of
    one step fit in memory, since that one saves the N (s - 1) evaluations.

    References:
        Symplectic adjoint method, https://arxiv.org/abs/2102.09750
        Towards accurate guided diffusion sampling through symplectic adjoint method,
        https://arxiv.org/abs/2312.12030
    """

    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = False
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = True
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents"

    def refuse(
        self,
        solver: Solver,
        x_T: Tensor,
        zs: Conditions,
        scheduled: bool,
        learned: Sequence[Tensor],
    ) -> None:
        super().refuse(solver, x_T, zs, scheduled, learned)
        if not isinstance(solver, RungeKutta):
            raise NotSupportedError(
                f"SymplecticAdjoint differentiates RungeKutta steps, not {solver!r}; use "
                "solver=RungeKutta(...), or gradient=DiscreteAdjoint(), exact for any solver"
            )

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: Needs, watch: Watch
    ) -> tuple[Tensor, "_Record"]:
        del needs
        states, surroundings = [], []
        x = x_T
        for step in range(chain.steps):
            states.append(x)
            surroundings.append(Surroundings.capture(x))
            z = chain.condition(zs, step)
            if step == 0:
                with watch:
                    x, _ = chain.advance(step, x, z, ())
                (x,) = watch.inspect((x,), [])
            else:
                x, _ = chain.advance(step, x, z, ())
        chain.cost.holds(1 + len(states))
        return x, _Record(states, surroundings)

    def backward_pass(
        self,
        chain: Chain,
        record: "_Record",
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: Needs,
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        del x_T, x_0
        assert isinstance(chain.solver, RungeKutta)
        table = chain.solver.tableau
        a_z, a_theta = Sums(len(zs)), Sums(len(parameters))
        p = chain.grid[-1].alpha * a_x
        for step in reversed(range(chain.steps)):
            s, t = chain.grid[step], chain.grid[step + 1]
            width, slot = rho_width(s, t), chain.slot(step)
            nodes = table.nodes(s, t, "rho")
            # Random numbers are drawn by the first visit to a stage and drawn again by the second.
            stages, before = [], []
            slopes: list[Tensor] = []
            with record.surroundings[step].replayed():
                y, z = record.states[step] / s.alpha, chain.condition(zs, step)
                for i, node in enumerate(nodes):
                    before.append(Surroundings.capture(y))
                    stages.append(combined(y, width, table.a[i], slopes))
                    if i + 1 < table.stages:
                        slopes.append(chain.denoiser(node.alpha * stages[i], node.t, z))
            del slopes
            chain.cost.holds(1 + len(record.states) + table.stages, graphs=1)
            pulled: dict[int, Tensor] = {}
            for i in reversed(range(table.stages)):
                mu = table.b[i] * p
                for j, product in pulled.items():
                    if table.a[j][i] != 0.0:
                        mu = mu + (width * table.a[j][i]) * product
                evaluations = chain.cost.nfe
                with torch.enable_grad(), before[i].replayed():
                    x = detached(nodes[i].alpha * stages[i])
                    z = detached(zs[slot], needs.zs[slot]) if zs else None
                    eps = chain.denoiser(x, nodes[i].t, z)
                inputs = [x, *([] if z is None else [z]), *parameters]
                product, *rest = pull_back(
                    chain, (eps,), (mu,), inputs, chain.cost.nfe - evaluations
                )
                if product is not None:
                    pulled[i] = nodes[i].alpha * product
                if z is not None:
                    a_z.add(slot, rest.pop(0), width)
                for k, gradient in enumerate(rest):
                    a_theta.add(k, gradient, width)
            for product in pulled.values():
                p = p + width * product
        return p / chain.grid[0].alpha, a_z.values, a_theta.values


@dataclass(frozen=True, eq=False)
class _Record:
    """The input of every step, and the random state there."""

    states: list[Tensor]
    surroundings: list[Surroundings]
