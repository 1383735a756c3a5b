"""The whole chain replaced, for its gradient, by one long step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.transition import eps_weight, signal_ratio
from adjointdeis.gradients.base import Needs, StepwiseMethod, Watch, watched_run
from adjointdeis.gradients.chain import Chain, Conditions, Surroundings, detached, pull_back


@dataclass(frozen=True)
class OneStep(StepwiseMethod):
    r"""FreeDoM's gradient: that of one DDIM step from x_T to the end of the grid.

    The sampler runs as usual; :math:`a_0 = dL/dx_0` is then pulled back through

    .. math:: \hat x_0(x_T, z, \theta) = \frac{\alpha_0}{\alpha_T} x_T
              - \sigma_0 (e^{h} - 1)\, \epsilon_\theta(x_T, z, T),
              \qquad h = \lambda_0 - \lambda_T,

    which on a grid that ends at sigma = 0 is the data prediction
    :math:`(x_T - \sigma_T \epsilon) / \alpha_T`. x_T, z and theta receive its three partial
    derivatives. Exact for DDIM with N = 1; the guidance algorithm calls it from the current
    state, with the grid that is left. Bias: the Jacobian of all later steps. The direction is
    good, the length means nothing at high noise: users of it rescale.

    On an SDE sampler the same deterministic step is taken: the gradient of the mean that the
    network predicts, blind to the noise of the path.

    Cost: N evaluations forward, 1 more with a graph, 1 vector-Jacobian product; x_T alone is
    held.

    Raises:
        NotSupportedError: a scheduled condition requires a gradient; only its first entry
            would have one.
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient.

    When not to use: where the length of the gradient matters, or where early and late steps
    disagree about the condition; ``DiscreteAdjoint`` costs N products instead of 1.

    References:
        FreeDoM, https://arxiv.org/abs/2303.09833
    """

    ode: ClassVar[bool] = True
    sde: ClassVar[bool] = True
    x_T: ClassVar[bool] = True
    z: ClassVar[bool] = True
    z_t: ClassVar[bool] = False
    theta: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    memory: ClassVar[str] = "1 activation"

    def forward_pass(
        self, chain: Chain, x_T: Tensor, zs: Conditions, needs: Needs, watch: Watch
    ) -> tuple[Tensor, Surroundings]:
        del needs
        surroundings = Surroundings.capture(x_T)
        return watched_run(chain, x_T, zs, watch, keep=False)[0], surroundings

    def backward_pass(
        self,
        chain: Chain,
        record: Surroundings,
        x_T: Tensor,
        x_0: Tensor,
        zs: Conditions,
        parameters: Sequence[Tensor],
        needs: Needs,
        a_x: Tensor,
    ) -> tuple[Tensor | None, Sequence[Tensor | None], Sequence[Tensor | None]]:
        del x_0
        s, t, before = chain.grid[0], chain.grid[-1], chain.cost.nfe
        with torch.enable_grad(), record.replayed():
            x = detached(x_T, needs.x_T)
            z = detached(zs[0], needs.zs[0]) if zs else None
            predicted = signal_ratio(s, t) * x + eps_weight(s, t) * chain.denoiser(x, s.t, z)
        evaluations = chain.cost.nfe - before
        chain.cost.holds(1, graphs=evaluations)
        inputs = [x, *([] if z is None else [z]), *parameters]
        a_T, *rest = pull_back(chain, (predicted,), (a_x,), inputs, evaluations)
        a_z: list[Tensor | None] = [None] * len(zs)
        if z is not None:
            a_z[0] = rest.pop(0)
        return a_T, a_z, rest
