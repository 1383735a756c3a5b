"""Backpropagation through the last steps only."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from adjointdeis.gradients.base import refuse_count
from adjointdeis.gradients.surrogate import Surrogate


@dataclass(frozen=True)
class Truncated(Surrogate):
    r"""The exact gradient of the last K steps; what comes before counts as a constant.

    With :math:`x_{N-K}` held fixed, theta receives :math:`\sum_{i \ge N-K} a_{i+1}\,
    \partial\Phi_i/\partial\theta` instead of the sum over all steps, z alike, and a scheduled
    z_i with i < N - K receives zero. Bias: the influence of the early steps is left out; it
    vanishes for K >= N, where this is ``DiscreteAdjoint``. It is ``Surrogate`` with the last K
    steps active, weights 1 and bridge 1.

    Args:
        snapshots, keep_activations, budget: as in ``DiscreteAdjoint``, for the last K steps.
        last: K, at least 1. ``alignprop()`` draws it for every rollout.
        check: as for ``StepwiseMethod``.

    Raises:
        ValueError: last < 1.
        NotSupportedError: x_T requires a gradient, which under this definition is zero.

    When not to use: to optimise x_T or z. Early steps decide the layout of an image, so what
    is left out is not small; it is a choice for fine-tuning weights against a reward.

    References:
        DRaFT, https://arxiv.org/abs/2309.17400
        AlignProp, https://arxiv.org/abs/2310.03739
    """

    last: int = 1
    active: Any = field(init=False, repr=False, default="all")
    weights: Any = field(init=False, repr=False, default=1.0)
    bridge: Any = field(init=False, repr=False, default=1.0)
    x_T: ClassVar[bool] = False
    memory: ClassVar[str] = "K latents"

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_count("Truncated.last", self.last, 1)

    def steps(self, total: int) -> list[int]:
        return list(range(max(0, total - self.last), total))
