"""Morph-PIPE: sample a morph at every blend weight, keep the one of least identity loss.

Paper: Appendix H.2, after *Morph-PIPE: Plugging in Identity Prior to Enhance Face Morphing Attack
Based on Diffusion Model* (Zhang et al., NIKT 2023), whose program is under a signed licence: this
follows the descriptions in print.

References:
    | AdjointDEIS: Efficient Gradients for Diffusion Models
    | https://arxiv.org/abs/2405.15020
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from adjointdeis.morphing.attack import (
    MorphCost,
    Morphs,
    Progress,
    Sources,
    Workbench,
)
from adjointdeis.morphing.dim import BLENDS, DiM
from adjointdeis.morphing.latents import morph_latents


@dataclass(frozen=True, kw_only=True)
class MorphPIPE(DiM):
    """DiM at ``blends`` weights, evenly from the first source to the second.

    Args:
        blends: B, how many weights in [0, 1], both ends included; the paper's 21.

    ``weight`` is the share of the second source in a pre-morph only; the blends are its part in
    codes and noises.
    """

    blends: int = 21

    resources: ClassVar[frozenset[str]] = frozenset({"autoencoder", "encoder", "identity"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blends < 2:
            raise ValueError(f"attack {self.name}: blends={self.blends}, expected 2 or more")
        if self.stochastic:
            raise ValueError(f"attack {self.name}: Morph-PIPE samples an ODE; choose an ODE solver")

    def _derived_label(self) -> str:
        return f"Morph-PIPE, {self.blends} blends"

    @property
    def steps(self) -> int:
        return self.blends

    @property
    def nfe_paper(self) -> int | None:
        """N_E + B N."""
        return self.encoding_steps + self.blends * self.sampling_steps

    def expected_cost(self) -> MorphCost:
        return MorphCost(self.blends * self.sampling_steps, encode=self.encoding_steps)

    def device_cost(self) -> MorphCost:
        return replace(super().device_cost(), loss_evaluations=self.blends)

    @property
    def weights(self) -> tuple[float, ...]:
        """Shares of the second source that are tried."""
        return tuple(np.linspace(0, 1, self.blends).tolist())

    def begin(self, sources: Sources, bench: Workbench) -> "_Choosing":
        return _Choosing(self, sources, bench)


class _Choosing:
    """One blend per step; of each pair the best so far is kept."""

    def __init__(self, attack: MorphPIPE, sources: Sources, bench: Workbench) -> None:
        self.attack, self.bench = attack, bench
        self.a, self.b, self.failed = attack.encoded(sources, bench)
        self.distances = bench.against(sources)
        self.cost = MorphCost(encode=self.a.nfe)
        self.tried = 0
        self.lowest = torch.full((len(sources),), float("inf"), device=bench.device)
        self.chosen = torch.full((len(sources),), float("nan"))
        self.images = torch.full_like(self.a.x_T, float("nan"))

    def step(self) -> Progress:
        weight = self.attack.weights[self.tried]
        blend = BLENDS[self.attack.noise_blend]
        latents = morph_latents(self.a, self.b, weight, blend)
        rollout = self.attack.draw(self.bench, latents)
        with torch.no_grad():
            loss = self.distances(rollout.x_0).loss
        better = loss < self.lowest
        self.lowest = torch.where(better, loss, self.lowest)
        self.images[better] = rollout.x_0[better]
        self.chosen[better.cpu()] = weight
        self.cost.nfe_forward += rollout.cost.nfe_forward
        self.tried += 1
        return Progress(loss)

    def finish(self) -> Morphs:
        details: list[dict[str, Any]] = [{"blend": weight} for weight in self.chosen.tolist()]
        return Morphs(self.images, self.cost, self.failed, details)
