r"""Greedy-DiM: every sampling step's noise prediction is chosen by the identity loss of its x_0.

Greedy-DiM* descends over the prediction itself (Algorithm 1 of its paper); Greedy-DiM-S searches
blends of the predictions under the two sources' codes (its eq. 10).  Neither differentiates the
network: the price is N_E + N evaluations, and the loss network's gradients.

Open in the public sources, and decided here:

* Which optimiser.  The public configuration names rate and betas only; the authors' pseudo-code
  says RAdam, later descriptions Adam.  Adam here; ``conf/optimizer/radam.yaml`` is the other.
* Greedy-DiM-S is reported at 350 evaluations, while its configuration samples in N = 20 steps. Both
  predictions of a step counted as one batch, as the sources' encodings are, make 350 = 250 + 100:
  N = 100 here. What is counted beside it is 250 + 200.
* The two predictions of Greedy-DiM-S are interpolated spherically, as noises are everywhere in DiM.

References:
    | Greedy-DiM: Greedy Algorithms for Unreasonably Effective Face Morphs
    | https://arxiv.org/abs/2404.06025
    | Its public configuration
    | https://github.com/zblasingame/Greedy-DiM
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
from torch import Tensor

from adjointdeis.guidance.greedy import (
    ADAM,
    Greedy,
    GreedySampling,
    OptimiseEps,
    SearchBlend,
    Strategy,
)
from adjointdeis.guidance.problem import OptimizerFactory
from adjointdeis.morphing.attack import (
    EncodedFace,
    MorphCost,
    Morphs,
    Progress,
    Sources,
    Workbench,
    optimizer_name,
)
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.morphing.dim import BLENDS, DiM
from adjointdeis.morphing.latents import morph_latents


@dataclass(frozen=True, kw_only=True)
class _Greedy(DiM):
    """What both variants share: a batch makes one of its N sampling steps per step."""

    resources: ClassVar[frozenset[str]] = frozenset({"autoencoder", "encoder", "identity"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stochastic:
            raise ValueError(
                f"attack {self.name}: Greedy-DiM as published samples an ODE; choose an ODE solver"
            )

    @property
    def steps(self) -> int:
        return self.sampling_steps

    @abstractmethod
    def strategy(self) -> Strategy:
        """How a step's noise prediction is chosen."""

    @abstractmethod
    def conditions(self, a: EncodedFace, b: EncodedFace) -> Tensor | tuple[Tensor, Tensor]:
        """The code that the strategy asks under, or both."""

    def begin(self, sources: Sources, bench: Workbench) -> "_Sampling":
        return _Sampling(self, sources, bench)


@dataclass(frozen=True, kw_only=True)
class GreedyDiM(_Greedy):
    """Greedy-DiM*: the noise prediction of every step is optimised.

    Args:
        sampling_steps: N.
        inner_steps: Gradient steps on each step's prediction; 0 is DiM.
        optimizer: Factory of their optimiser, fresh at every sampling step.
    """

    sampling_steps: int = 20
    inner_steps: int = 50
    optimizer: OptimizerFactory = ADAM

    def _derived_label(self) -> str:
        return f"Greedy-DiM*, {self.inner_steps} inner steps"

    def strategy(self) -> Strategy:
        return OptimiseEps(self.inner_steps, self.optimizer)

    def expected_cost(self) -> MorphCost:
        gradients = self.inner_steps * self.sampling_steps
        return MorphCost(self.sampling_steps, encode=self.encoding_steps, loss_gradients=gradients)

    def device_cost(self) -> MorphCost:
        return replace(super().device_cost(), loss_evaluations=self.sampling_steps)

    def conditions(self, a: EncodedFace, b: EncodedFace) -> Tensor:
        return lerp(a.z, b.z, self.weight)

    def settings(self) -> dict[str, Any]:
        keywords = getattr(self.optimizer, "keywords", {})
        return super().settings() | {
            "optimizer": optimizer_name(self.optimizer),
            "learning_rate": keywords.get("lr"),
            "optimizer_options": {
                key: repr(value) for key, value in sorted(keywords.items()) if key != "lr"
            },
        }


@dataclass(frozen=True, kw_only=True)
class GreedyDiMSearch(_Greedy):
    """Greedy-DiM-S: every step takes the best of ``blends`` interpolated predictions.

    Args:
        sampling_steps: N.
        blends: How many weights in [0, 1] are tried, both ends included; the paper's 21.
    """

    sampling_steps: int = 100
    blends: int = 21

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blends < 2:
            raise ValueError(f"attack {self.name}: blends={self.blends}, expected 2 or more")

    def _derived_label(self) -> str:
        return f"Greedy-DiM-S, {self.blends} blends"

    def strategy(self) -> Strategy:
        return SearchBlend(tuple(np.linspace(0, 1, self.blends).tolist()), slerp)

    def expected_cost(self) -> MorphCost:
        return MorphCost(2 * self.sampling_steps, encode=self.encoding_steps)

    def device_cost(self) -> MorphCost:
        return replace(super().device_cost(), loss_evaluations=self.blends * self.sampling_steps)

    def conditions(self, a: EncodedFace, b: EncodedFace) -> tuple[Tensor, Tensor]:
        return a.z, b.z


class _Sampling:
    """A batch under greedy sampling."""

    def __init__(self, attack: _Greedy, sources: Sources, bench: Workbench) -> None:
        a, b, self.failed = attack.encoded(sources, bench)
        distances = bench.against(sources)
        self.encode = a.nfe
        latents = morph_latents(a, b, attack.weight, BLENDS[attack.noise_blend])
        problem = attack.problem(
            bench, latents, lambda x_0, rows: distances(x_0).loss, attack.conditions(a, b)
        )
        self.run = cast(GreedySampling, Greedy(attack.strategy()).start(problem))

    def step(self) -> Progress:
        return Progress(self.run.step().loss)

    def finish(self) -> Morphs:
        cost = MorphCost(
            self.run.cost.nfe_forward,
            encode=self.encode,
            loss_gradients=self.run.loss_gradients,
        )
        return Morphs(self.run.x, cost, self.failed)
