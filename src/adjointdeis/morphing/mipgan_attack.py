"""MIPGAN as a row of a table; the method is in :mod:`adjointdeis.morphing.mipgan`.

References:
    | MIPGAN: Generating Strong and High Quality Morphing Attacks Using Identity Prior Driven GAN
    | https://arxiv.org/abs/2009.01729
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.morphing.attack import (
    Attack,
    MorphCost,
    Morphs,
    Progress,
    Sources,
    Workbench,
)
from adjointdeis.morphing.mipgan import MIPGAN, MIPGANTerms, MIPGANWeights, StyleDescent


@dataclass(frozen=True, kw_only=True)
class MIPGANAttack(Attack):
    """A MIPGAN morph of every pair.

    Args:
        version: "I" is the published method with a StyleGAN, "II" with a StyleGAN2. There is one
            generator in a profile, a StyleGAN2: both rows use it, and row I says so.
        optimisation_steps: Gradient steps of a morph.
        learning_rate: Of Adam on the morph's styles.
        decay, decay_every: See :class:`adjointdeis.morphing.mipgan.StyleDescent`.
        projection_steps: Gradient steps that find the sources' styles.
        projection_rate: Their learning rate.
        perceptual_weight: Weight of the perceptual loss; None takes what the profile's features
            call for.
        identity_weight, ms_ssim_weight, identity_difference_weight: Weights of the other losses.
    """

    version: Literal["I", "II"] = "II"
    optimisation_steps: int = 150
    learning_rate: float = 0.03
    decay: float = 1.0
    decay_every: int = 1
    projection_steps: int = 200
    projection_rate: float = 0.05
    perceptual_weight: float | None = None
    identity_weight: float = 10.0
    ms_ssim_weight: float = 1.0
    identity_difference_weight: float = 1.0

    resources: ClassVar[frozenset[str]] = frozenset({"generator", "identity"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.version not in ("I", "II"):
            raise ValueError(f"attack {self.name}: version={self.version!r} must be I or II")
        try:
            _ = self.descent, self.projection, self.weights(0.0)
        except ValueError as error:
            raise ValueError(f"attack {self.name}: {error}") from error

    def _derived_label(self) -> str:
        return f"MIPGAN-{self.version}"

    @property
    def steps(self) -> int:
        return self.optimisation_steps

    def expected_cost(self) -> MorphCost:
        # Both projections of a pair are one batch, as encodings are; the result is drawn once more.
        gradients = self.projection_steps + self.optimisation_steps
        return MorphCost(
            encode=self.projection_steps,
            nfe_forward=self.optimisation_steps + 1,
            vjps=gradients,
            loss_gradients=gradients,
        )

    @property
    def descent(self) -> StyleDescent:
        """The morph's."""
        return StyleDescent(
            self.optimisation_steps, self.learning_rate, self.decay, self.decay_every
        )

    @property
    def projection(self) -> StyleDescent:
        """The sources'; its rate falls to a twentieth, so that it comes to rest."""
        steps = self.projection_steps
        return StyleDescent(steps, self.projection_rate, 0.05 ** (1 / max(1, steps)), 1)

    def weights(self, of_features: float) -> MIPGANWeights:
        """Weights of the losses.

        Args:
            of_features: Perceptual weight that the features call for.
        """
        chosen = self.perceptual_weight
        return MIPGANWeights(
            of_features if chosen is None else chosen,
            self.identity_weight,
            self.ms_ssim_weight,
            self.identity_difference_weight,
        )

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"optimizer": "Adam"}

    def begin(self, sources: Sources, bench: Workbench) -> "_Descending":
        return _Descending(self, sources, bench)


class _Descending:
    """Projection at once, then one gradient step on the morphs' styles per step."""

    def __init__(self, attack: MIPGANAttack, sources: Sources, bench: Workbench) -> None:
        self.attack, generator = attack, bench.resource("generator")
        self.method = MIPGAN(
            generator,
            generator.maps,
            bench.identity_loss(),
            attack.weights(generator.perceptual_weight),
            attack.projection,
            attack.descent,
        )
        images = [resized(side, generator.image_size) for side in sources.tensors(bench.device)]
        projected = self.method.project(torch.cat(images))
        found = projected.images()
        self.fidelity = (found - torch.cat(images)).square().flatten(1).mean(1).chunk(2)
        styles = projected.styles.chunk(2)
        self.optimisation, self.objective = self.method.begin(images[0], images[1], styles)

    def step(self) -> Progress:
        self.optimisation.step()
        terms = self.objective.terms
        assert terms is not None
        # Detached: a curve that kept its graphs would keep every step's activations.
        return Progress(identity_loss(terms).detach(), self.optimisation.gradient_norm)

    def finish(self) -> Morphs:
        images = self.optimisation.images()
        with torch.no_grad():
            total = self.objective(images)
        terms = self.objective.terms
        assert terms is not None
        details = [
            {
                "mipgan_loss": float(total[k]),
                "mipgan_terms": {name: float(value[k]) for name, value in vars(terms).items()},
                # Peak signal-to-noise ratio for values in [-1, 1].
                "projection_psnr": [
                    float(10 * torch.log10(4 / side[k].clamp_min(1e-12))) for side in self.fidelity
                ],
            }
            for k in range(len(images))
        ]
        return Morphs(images, self.attack.expected_cost(), details=details)


def identity_loss(terms: MIPGANTerms) -> Tensor:
    """The paper's identity loss L*, with shape (B): what rows of other attacks report."""
    return 2 * terms.identity + terms.identity_difference


def resized(images: Tensor, size: int) -> Tensor:
    """Images (B, 3, H, W) at the generator's size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)
