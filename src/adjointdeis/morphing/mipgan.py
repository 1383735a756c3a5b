r"""MIPGAN: morphs by optimising the style of a face generator.

Both sources are projected onto the generator, the mean of their styles is where the morph begins,
and Adam descends

.. math::
    L = \lambda_1 L_{\text{perc}} + \lambda_2 L_{\text{id}} + \lambda_3 L_{\text{MS-SSIM}}
        + \lambda_4 L_{\text{ID-diff}}

over the morph's styles :math:`w`, one row per layer (W+). With :math:`x = G(w)`, sources
:math:`x_a, x_b`, embeddings :math:`v` and :math:`d(u, v) = 1 - \cos(u, v)`,

.. math::
    L_{\text{perc}} &= \tfrac12 \sum_{s \in \{a, b\}} \sum_i \tfrac{1}{N_i}
        \lVert F_i(x) - F_i(x_s) \rVert^2, &
    L_{\text{id}} &= \tfrac12 \big(d(v, v_a) + d(v, v_b)\big), \\
    L_{\text{MS-SSIM}} &= 1 - \tfrac12 \sum_{s \in \{a, b\}} \mathrm{MS\text{-}SSIM}(x, x_s), &
    L_{\text{ID-diff}} &= \lvert d(v, v_a) - d(v, v_b) \rvert .

MIPGAN-I and MIPGAN-II share losses, weights and schedule; they differ in the generator, StyleGAN
or StyleGAN2. What this module takes from public accounts of the method are the losses, the weights
0.0002, 10, 1, 1, the 150 iterations and the rate 0.03. It departs from the paper where it must:
no encoder predicts the sources' styles, they are found by descent; how the rate decays was not
available to the author, so that it is constant unless stated; the published weight of the
perceptual loss belongs to VGG16 features (:mod:`adjointdeis.faces.networks.vgg`) and means nothing
for others.

When not to use it: to reproduce published rates of MIPGAN, score the published morphs. The
generators there were fine-tuned on passport-like photographs that are not public.

References:
    | MIPGAN: Generating Strong and High Quality Morphing Attacks Using Identity Prior Driven GAN
    | https://arxiv.org/abs/2009.01729
    | Image2StyleGAN: How to Embed Images Into the StyleGAN Latent Space?
    | https://arxiv.org/abs/1904.03189
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.morphing.ms_ssim import ms_ssim
from adjointdeis.morphing.perceptual import FeatureMaps, perceptual_distance


class Synthesis(Protocol):
    """What MIPGAN needs of a generator: images as a differentiable function of styles."""

    def synthesise(self, styles: Tensor) -> Tensor:
        """Images (B, 3, S, S) in about [-1, 1] of styles (B, n, D), without randomness."""
        ...

    @property
    def average_style(self) -> Tensor:
        """Mean style (n, D), where a projection starts."""
        ...


@dataclass(frozen=True)
class StyleDescent:
    """Adam on styles, for a number of steps.

    Args:
        steps: Gradient steps.
        learning_rate: Of the first step.
        decay: Factor on the rate after every ``decay_every`` steps; 1 keeps it constant.
        decay_every: Steps.

    Raises:
        ValueError: A number is outside its range.
    """

    steps: int = 150
    learning_rate: float = 0.03
    decay: float = 1.0
    decay_every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps={self.steps}: expected 0 or more")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: expected a positive number")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay}: expected a factor in (0, 1]")
        if self.decay_every < 1:
            raise ValueError(f"decay_every={self.decay_every}: expected 1 or more")

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        return self.learning_rate * self.decay ** (step // self.decay_every)


@dataclass(frozen=True)
class MIPGANWeights:
    """Weights of the terms; the defaults are the published ones, for VGG16 features."""

    perceptual: float = 0.0002
    identity: float = 10.0
    ms_ssim: float = 1.0
    identity_difference: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"{name}={value}: expected 0 or more")


@dataclass(frozen=True, eq=False)
class MIPGANTerms:
    """The four losses of a batch of morphs, unweighted, each with shape (B).

    Attributes:
        perceptual, identity, ms_ssim, identity_difference: See the module.
    """

    perceptual: Tensor
    identity: Tensor
    ms_ssim: Tensor
    identity_difference: Tensor

    def total(self, weights: MIPGANWeights) -> Tensor:
        """The weighted sum, with shape (B)."""
        return (
            weights.perceptual * self.perceptual
            + weights.identity * self.identity
            + weights.ms_ssim * self.ms_ssim
            + weights.identity_difference * self.identity_difference
        )


@dataclass(frozen=True, eq=False)
class MIPGANLoss:
    """The losses of morphs against two batches of sources.

    Args:
        maps: Feature maps of the perceptual loss.
        identity: Loss of the recogniser that guides.
        images_a, images_b: Sources in [-1, 1], with shape (B, 3, S, S).
    """

    maps: FeatureMaps
    identity: IdentityLoss
    images_a: Tensor
    images_b: Tensor

    @cached_property
    def _sources(self) -> tuple[tuple[Sequence[Tensor], Tensor], ...]:
        """Feature maps and embedding of each source."""
        with torch.no_grad():
            return tuple(
                (self.maps(images), self.identity.features(images))
                for images in (self.images_a, self.images_b)
            )

    def __call__(self, morphs: Tensor) -> MIPGANTerms:
        """Terms of morphs (B, 3, S, S)."""
        maps = self.maps(morphs)
        (maps_a, v_a), (maps_b, v_b) = self._sources
        distances = self.identity(morphs, v_a, v_b)
        perceptual = [perceptual_distance(maps, of) for of in (maps_a, maps_b)]
        similar = [ms_ssim(morphs, of) for of in (self.images_a, self.images_b)]
        return MIPGANTerms(
            perceptual=(perceptual[0] + perceptual[1]) / 2,
            identity=distances.total / 2,
            ms_ssim=1 - (similar[0] + similar[1]) / 2,
            identity_difference=distances.imbalance,
        )


@dataclass(frozen=True, eq=False)
class ProjectionLoss:
    r"""Distance of generated images to given ones, with shape (B).

    .. math:: \lambda_p \sum_i \tfrac{1}{N_i} \lVert F_i(x) - F_i(y) \rVert^2
        + \lambda_s (1 - \mathrm{MS\text{-}SSIM}(x, y)) + \lambda_2 \overline{(x - y)^2}

    The last term fixes colours, to which the recogniser's features and a similarity of structure
    are nearly blind.

    Args:
        maps: Feature maps of the perceptual term.
        images: Images in [-1, 1], with shape (B, 3, S, S).
        perceptual, ms_ssim, pixel: Weights.
    """

    maps: FeatureMaps
    images: Tensor
    perceptual: float = 1.0
    ms_ssim: float = 1.0
    pixel: float = 1.0

    @cached_property
    def _maps(self) -> Sequence[Tensor]:
        with torch.no_grad():
            return self.maps(self.images)

    def __call__(self, images: Tensor) -> Tensor:
        difference = (images - self.images).square().flatten(1).mean(1)
        return (
            self.perceptual * perceptual_distance(self.maps(images), self._maps)
            + self.ms_ssim * (1 - ms_ssim(images, self.images))
            + self.pixel * difference
        )


class StyleOptimisation:
    """A batch of styles under Adam.

    Every sample descends as if it were alone: the loss is summed over the batch and Adam works on
    single numbers. Without randomness in the generator the result depends on nothing but the
    arguments, and a run that continues from :meth:`state_dict` ends where one without a break does.

    Args:
        generator: Generator, frozen.
        objective: Images to losses with shape (B).
        styles: Where to begin, (B, n, D); not modified.
        descent: Steps and rates.
    """

    def __init__(
        self,
        generator: Synthesis,
        objective: Callable[[Tensor], Tensor],
        styles: Tensor,
        descent: StyleDescent,
    ) -> None:
        self.generator, self.objective, self.descent = generator, objective, descent
        self.styles = styles.detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.styles], lr=descent.rate(0))
        self.steps = 0
        self.gradient_norm: Tensor | None = None

    def step(self) -> Tensor:
        """One gradient step; returns the losses (B) before it.

        ``gradient_norm`` then holds the Euclidean norm of each sample's gradient, (B).

        Raises:
            RuntimeError: A loss is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.descent.rate(self.steps)
        with torch.enable_grad():
            losses = self.objective(self.generator.synthesise(self.styles))
            (gradient,) = torch.autograd.grad(losses.sum(), self.styles)
        if not losses.isfinite().all():
            raise RuntimeError(
                f"step {self.steps}: the losses are {losses.tolist()}; lower the learning rate "
                f"({self.descent.learning_rate}) or check the sources"
            )
        self.styles.grad = gradient
        self.gradient_norm = gradient.flatten(1).norm(dim=1)
        self.optimizer.step()
        self.steps += 1
        return losses.detach()

    def run(self) -> Tensor:
        """All steps that are left; returns their losses, with shape (steps, B)."""
        losses = [self.step() for _ in range(self.steps, self.descent.steps)]
        return torch.stack(losses) if losses else self.styles.new_zeros(0, len(self.styles))

    @torch.no_grad()
    def images(self) -> Tensor:
        """Images of the present styles, in [-1, 1]."""
        return self.generator.synthesise(self.styles).clamp(-1, 1)

    def state_dict(self) -> dict[str, Any]:
        """All that a later :meth:`load_state_dict` needs to go on."""
        return {
            "styles": self.styles.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where another optimisation of the same problem was."""
        self.styles.data.copy_(state["styles"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


@dataclass(frozen=True, eq=False)
class StyleMorphs:
    """What MIPGAN made of a batch of pairs.

    Attributes:
        images: Morphs in [-1, 1], with shape (B, 3, S, S).
        styles: Their styles, with shape (B, n, D).
        losses: Loss before each step and of the result, with shape (steps + 1, B).
        terms: Unweighted terms of the result.
        projections: Images of the two sources' projected styles, each (B, 3, S, S).
        nfe: Evaluations of the generator per pair: both projections, the descent, and the result.
    """

    images: Tensor
    styles: Tensor
    losses: Tensor
    terms: MIPGANTerms
    projections: tuple[Tensor, Tensor]
    nfe: int


@dataclass(frozen=True, eq=False)
class MIPGAN:
    """The attack, ready to be given pairs of faces.

    Args:
        generator: Generator, frozen.
        maps: Feature maps of the perceptual losses.
        identity: Loss of the recogniser that guides.
        weights: Weights of the four terms.
        projection: Descent that finds the sources' styles. Zero steps morph from the average face.
        descent: Descent of the morph.
        projection_loss: From feature maps and images to the loss of a projection.
    """

    generator: Synthesis
    maps: FeatureMaps
    identity: IdentityLoss
    weights: MIPGANWeights = MIPGANWeights()
    projection: StyleDescent = StyleDescent(steps=300, learning_rate=0.05)
    descent: StyleDescent = StyleDescent()
    projection_loss: Callable[[FeatureMaps, Tensor], Callable[[Tensor], Tensor]] = ProjectionLoss

    def project(self, images: Tensor) -> StyleOptimisation:
        """Styles whose images are closest to given ones in [-1, 1], (B, 3, S, S), after descent."""
        average = self.generator.average_style.to(images)
        start = average.expand(len(images), *average.shape)
        objective = self.projection_loss(self.maps, images)
        optimisation = StyleOptimisation(self.generator, objective, start, self.projection)
        optimisation.run()
        return optimisation

    def begin(
        self, images_a: Tensor, images_b: Tensor, styles: Sequence[Tensor]
    ) -> tuple[StyleOptimisation, "WeightedLoss"]:
        """The morph's optimisation, at the mean of the sources' styles, and its loss.

        Args:
            images_a, images_b: Sources (B, 3, S, S) in [-1, 1].
            styles: Of each source, found by projection.
        """
        loss = MIPGANLoss(self.maps, self.identity, images_a, images_b)
        objective = WeightedLoss(loss, self.weights)
        start = (styles[0] + styles[1]).detach() / 2
        return StyleOptimisation(self.generator, objective, start, self.descent), objective

    def __call__(self, images_a: Tensor, images_b: Tensor) -> StyleMorphs:
        """Morphs two batches of sources in [-1, 1], (B, 3, S, S)."""
        sources = [self.project(images) for images in (images_a, images_b)]
        optimisation, objective = self.begin(images_a, images_b, [s.styles for s in sources])
        losses = optimisation.run()
        images = optimisation.images()
        with torch.no_grad():
            terms = objective.loss(images)
        return StyleMorphs(
            images=images,
            styles=optimisation.styles.detach(),
            losses=torch.cat([losses, terms.total(self.weights)[None]]),
            terms=terms,
            projections=(sources[0].images(), sources[1].images()),
            nfe=self.nfe,
        )

    @property
    def nfe(self) -> int:
        """Evaluations of the generator per pair; the two projections run as one batch would."""
        return self.projection.steps + self.descent.steps + 1


class WeightedLoss:
    """The weighted sum of MIPGAN's losses; ``terms`` are those of the last images it saw."""

    def __init__(self, loss: MIPGANLoss, weights: MIPGANWeights) -> None:
        self.loss, self.weights = loss, weights
        self.terms: MIPGANTerms | None = None

    def __call__(self, images: Tensor) -> Tensor:
        self.terms = self.loss(images)
        return self.terms.total(self.weights)
