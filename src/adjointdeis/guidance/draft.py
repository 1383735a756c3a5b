"""DRaFT-K: fine-tuning of the weights to a reward through the last K sampling steps.

``FineTuning`` with the gradient of the last K steps: what comes before counts as a constant. K =
1 costs one product a sample; K = N is the full gradient.

References:
    Directly fine-tuning diffusion models on differentiable rewards,
    https://arxiv.org/abs/2309.17400
"""

from dataclasses import dataclass
from typing import ClassVar

from adjointdeis.gradients.truncated import Truncated
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.guidance.problem import Algorithm, AlgorithmRun, OptimizerFactory, WeightProblem


@dataclass(frozen=True, eq=False)
class DRaFT(Algorithm):
    """Fine-tuning with DRaFT's truncated gradient.

    Optimises theta. Cost of a step: N evaluations, K more with a graph and K products.

    Args:
        optimizer, steps, clip_norm: As for :class:`FineTuning`.
        last: K, 1 or more.

    Raises:
        ValueError: K below 1, or ``clip_norm`` is not positive.

    When not to use: for what early steps decide (layout, pose); the last steps mend texture.
    """

    optimizer: OptimizerFactory
    steps: int = 15
    last: int = 1
    clip_norm: float | None = None
    solves: ClassVar[type] = WeightProblem

    def __post_init__(self) -> None:
        self._tuning()

    def _start(self, problem: WeightProblem) -> AlgorithmRun:
        return self._tuning().start(problem)

    def _tuning(self) -> FineTuning:
        return FineTuning(self.optimizer, self.steps, Truncated(last=self.last), self.clip_norm)
