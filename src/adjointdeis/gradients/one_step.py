"""The whole chain replaced, for its gradient, by one long step."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from adjointdeis.diffusion.transition import eps_weight, signal_ratio
from adjointdeis.gradients.base import StepwiseMethod
from adjointdeis.gradients.chain import Chain
from adjointdeis.gradients.inputs import Inputs
from adjointdeis.gradients.trace import Trace


@dataclass(frozen=True)
class OneStep(StepwiseMethod):
    r"""FreeDoM's gradient: that of one DDIM step from x_T to the end of the grid.

    The sampler runs as usual; :math:`a_0 = dL/dx_0` is then pulled back through

    .. math:: \hat x_0(x_T, z, \theta) = \frac{\alpha_0}{\alpha_T} x_T
              - \sigma_0 (e^{h} - 1)\, \epsilon_\theta(x_T, z, T),
              \qquad h = \lambda_0 - \lambda_T,

    which on a grid that ends at sigma = 0 is the data prediction
    :math:`(x_T - \sigma_T \epsilon) / \alpha_T`. x_T, z and theta receive its three partial
    derivatives. Exact for DDIM with N = 1. Bias: the Jacobian of all later steps. The direction is
    good, the length means nothing at high noise: users of it rescale.

    On an SDE sampler the same deterministic step is taken: the gradient of the mean that the
    network predicts, blind to the noise of the path.

    Args:
        check: as for ``StepwiseMethod``.

    Raises:
        NotSupportedError: a scheduled condition requires a gradient; only its first entry
            would have one.

    When not to use: where the length of the gradient matters, or where early and late steps
    disagree about the condition; ``DiscreteAdjoint`` costs N products instead of 1.

    References:
        FreeDoM, https://arxiv.org/abs/2303.09833
    """

    z_t: ClassVar[bool] = False
    memory: ClassVar[str] = "1 activation"

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, Trace]:
        return self.traced(chain, by)

    def backward_pass(
        self, chain: Chain, record: Trace, by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        del x_0
        s, t, before = chain.grid[0], chain.grid[-1], chain.cost.nfe
        check = record.reevaluations(chain, by)

        def predicted(x: Tensor, z: Any) -> Tensor:
            eps = chain.denoiser(x, s.t, z)
            check.compare(x, s.t, 0, eps)
            return signal_ratio(s, t) * x + eps_weight(s, t) * eps

        a_T, rest, _ = by.product(predicted, by.x_T, 0, a_x, record.contexts[0])
        chain.cost.holds(1, graphs=chain.cost.nfe - before)
        check.finish()
        by.add(rest)
        return a_T
