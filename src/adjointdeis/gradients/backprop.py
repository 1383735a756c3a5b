"""Plain backpropagation through every step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from adjointdeis.gradients.base import GradientMethod
from adjointdeis.gradients.chain import Chain


@dataclass(frozen=True)
class Backprop(GradientMethod):
    """Keep the graph of all N steps: the exact gradient at N times the activations.

    The graph also reaches tensors captured in the denoiser's closure, and supports second
    derivatives.

    When not to use: when N times the activations of the network do not fit in memory;
    ``DiscreteAdjoint`` gives the same numbers with the activations of one step.

    References:
        Learning representations by back-propagating errors, https://doi.org/10.1038/323533a0
    """

    noise: ClassVar[bool] = True
    trajectory: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "N activations"

    def sampled(self, chain: Chain, x_T: Tensor) -> Tensor:
        return chain.run(x_T)[0]

    def rollout(self, chain: Chain, x_T: Tensor, theta: Sequence[Tensor]) -> Tensor:
        del theta
        before = chain.cost.nfe_forward
        x, latents = chain.run(x_T)
        evaluations = chain.cost.nfe_forward - before
        # Beside the graphs of the parts of a batch that were sampled before.
        chain.cost.holds(latents, graphs=chain.cost.nfe_forward)

        def count(gradient: Tensor) -> None:
            del gradient
            chain.cost.vjps += evaluations

        if x.requires_grad:
            x.register_hook(count)
        return x
