"""The symplectic adjoint of Runge-Kutta steps: exact, with one network graph at a time."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adjointdeis.gradients.base import StepwiseMethod
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.consistency import StepCheck
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.trace import Trace
from adjointdeis.solvers.base import Solver
from adjointdeis.solvers.runge_kutta import RungeKutta
from adjointdeis.solvers.tableau import combined


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

    Args:
        check: as for ``StepwiseMethod``.

    Raises:
        NotSupportedError: a solver other than ``RungeKutta`` in noise prediction.

    When not to use: with "euler", where it is ``DiscreteAdjoint``; or where the activations of
    one step fit in memory, since that one saves the N (s - 1) evaluations.

    References:
        Symplectic adjoint method, https://arxiv.org/abs/2102.09750
        Towards accurate guided diffusion sampling through symplectic adjoint method,
        https://arxiv.org/abs/2312.12030
    """

    sde: ClassVar[bool] = False
    trajectory: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    memory: ClassVar[str] = "N latents"

    def refuse(self, solver: Solver, wanted: Collection[str]) -> None:
        super().refuse(solver, wanted)
        if not isinstance(solver, RungeKutta) or solver.prediction != "noise":
            raise NotSupportedError(
                f"SymplecticAdjoint differentiates RungeKutta steps over rho, not {solver!r}; use "
                "solver=RungeKutta(...), or gradient=DiscreteAdjoint(), exact for any solver"
            )

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Trace]:
        return self.traced(chain, by, range(chain.steps), observed=False)

    def backward_pass(
        self, chain: Chain, record: Trace, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        assert isinstance(chain.solver, RungeKutta)
        check = StepCheck(chain, record.recorder, self.check)
        p, after, wanted = chain.grid[-1].alpha * a_x, x_0, by.of_trajectory
        for step in reversed(range(chain.steps)):
            s, t = chain.grid[step], chain.grid[step + 1]
            table = chain.solver.coefficients(t)
            width, slot = chain.solver.variables(s, t).width(s, t), chain.slot(step)
            of_state, of_prediction = None, None
            if wanted is not None:
                of_state, of_prediction = wanted.state(step), wanted.predictions[step]
            p = p if of_state is None else p + t.alpha * of_state
            nodes = [s.towards(t, c, "rho") for c in table.c]
            # Random numbers are drawn by the first visit to a stage and drawn again by the second.
            stages, contexts = [], []
            slopes: list[Tensor] = []
            x = record.state(step)
            y, z = x / s.alpha, by.condition(slot)
            with record.contexts[step].replayed():
                for i, node in enumerate(nodes):
                    contexts.append(record.recorder.now())
                    stages.append(combined(y, width, table.a[i], slopes))
                    if i + 1 < table.stages:
                        slopes.append(chain.denoiser(node.alpha * stages[i], node.t, z))
            chain.cost.holds(1 + record.latents + table.stages, graphs=1)
            pulled: dict[int, Tensor] = {}
            slopes = [y] * table.stages
            for i in reversed(range(table.stages)):
                # r mu_i, the cotangent of k_i that autograd has, which hooks on gradients may see.
                mu = (width * table.b[i]) * p
                for j, product in pulled.items():
                    if table.a[j][i] != 0.0:
                        mu = mu + (width * table.a[j][i]) * product
                product, rest, slopes[i] = by.product(
                    lambda x, z, node=nodes[i]: chain.denoiser(x, node.t, z),
                    nodes[i].alpha * stages[i],
                    slot,
                    mu,
                    contexts[i],
                    None if i > 0 else of_prediction,
                )
                if product is not None:
                    pulled[i] = nodes[i].alpha * product
                by.add(rest, slots=((slot, 1.0),))
            check.compare(step, x, [t.alpha * combined(y, width, table.b, slopes)], [after])
            after = x
            for product in pulled.values():
                p = p + product
        check.finish()
        return p / chain.grid[0].alpha
