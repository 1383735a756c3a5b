"""Purification: how robust a recogniser looks, by the gradient that attacks it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import RecordedNoise
from adjointdeis.diffusion.oracles import MixtureDenoiser
from adjointdeis.diffusion.schedule import VPLinear
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.gradients.discrete_adjoint import DiscreteAdjoint
from adjointdeis.guidance.diffpure import DiffPure, Draw, ProjectedAscent
from adjointdeis.harness.bench.faces import (
    embedded_autoencoder,
    embedded_faces,
    embedded_recogniser,
    subjects,
    threshold_of,
)
from adjointdeis.harness.bench.mixture import seeded_normal
from adjointdeis.harness.bench.problem import Kind, Outcome
from adjointdeis.harness.benchmark import OTHER, SOURCE
from adjointdeis.rollout import Rollout
from adjointdeis.solvers import SDEDPMSolver


@dataclass(frozen=True, eq=False)
class Purifying:
    """An attack problem.

    Attributes:
        images: probes, shape (B, 3, 64, 64).
        purify: ``(images, draw, gradient) -> Rollout``, the whole defence, code included.
        loss: ``purified -> dissimilarity to the enrolled face``, to be made large.
        draw: ``number -> Draw``.
        quality: ``images -> measures`` behind the defence, with draws no attack saw.
        unit: what a radius of 1 means.
        reach: images lie in [-reach, reach].
    """

    images: Tensor
    purify: Callable[[Tensor, Draw, GradientMethod | None], Rollout]
    loss: Callable[[Tensor], Tensor]
    draw: Callable[[int], Draw]
    quality: Callable[[Tensor], dict[str, Tensor]]
    unit: float = 2 / 255
    reach: float = 1.0


@dataclass(frozen=True)
class Purification:
    """A verification system that purifies probes, attacked to reject its own subject.

    A probe (smiling capture) is compared with the subject's enrolled neutral capture at the
    threshold of the stated FMR. Measures: ``robust``, whether the purified adversarial probe still
    matches in the majority of the evaluation's draws, and ``similarity``, their mean.
    ``cosine`` is of the attack's first gradient and the exact one.

    Args:
        samples: Probes per seed.
        steps: N of the reverse SDE.
        t_star: Time to which probes are noised.
        recogniser: The system, known to the attacker.
        draws: Draws of the evaluation.
        fmr: False match rate of the threshold, 0.01 or 0.001.
    """

    samples: int = 8
    steps: int = 6
    t_star: float = 0.1
    recogniser: str = "arcface"
    draws: int = 3
    fmr: float = 0.01
    kind: ClassVar[Kind] = "image"

    def instance(self, seed: int) -> Purifying:
        autoencoder, system = embedded_autoencoder(), embedded_recogniser(self.recogniser)
        chosen = subjects(seed, self.samples)
        probes, enrolled = embedded_faces(OTHER)[chosen], embedded_faces(SOURCE)[chosen]
        grid = TimeGrid.uniform_time(autoencoder.schedule, self.steps, 1e-3, self.t_star)
        with torch.no_grad():
            reference = system.features(enrolled)
        threshold = threshold_of(self.recogniser, self.fmr)

        def purify(images: Tensor, draw: Draw, gradient: GradientMethod | None) -> Rollout:
            pure = DiffPure(autoencoder.denoiser, SDEDPMSolver(), grid, gradient)
            return pure.purify(images, draw, autoencoder.code(images))

        def similarity(images: Tensor) -> Tensor:
            return F.cosine_similarity(system.features(images), reference)

        def draw(number: int) -> Draw:
            generator = torch.Generator().manual_seed(100_000 * seed + number)
            start = torch.randn(probes.shape, generator=generator)
            return Draw(start, RecordedNoise.draw(self.steps, probes.shape, 7 + number))

        def quality(images: Tensor) -> dict[str, Tensor]:
            with torch.no_grad():
                found = torch.stack(
                    [
                        similarity(purify(images, draw(50_000 + k), None).x_0)
                        for k in range(self.draws)
                    ]
                )
            matches = (found > threshold).float().mean(0)
            return {"robust": (matches > 0.5).float(), "similarity": found.mean(0)}

        return Purifying(probes, purify, lambda x: -similarity(x), draw, quality)


@dataclass(frozen=True)
class MixturePurification:
    """A Bayes classifier behind purification by the exact score: what the gradient alone decides.

    Points of a mixture with two modes per class are classified by their posterior class after
    purification. Measures: ``robust``, whether the attacked point is still classified rightly in
    the majority of the evaluation's draws; ``margin``, the mean log-odds of its class; and
    ``cosine``, as in :class:`Purification`.

    Args:
        dimension: D.
        samples: Points per seed.
        steps: N of the reverse SDE.
        t_star: Time to which points are noised.
        draws: Draws of the evaluation.
    """

    dimension: int = 16
    samples: int = 64
    steps: int = 5
    t_star: float = 0.3
    draws: int = 9
    kind: ClassVar[Kind] = "image"

    def instance(self, seed: int) -> Purifying:
        schedule, modes = VPLinear(), 4
        means = 0.7 * seeded_normal(modes, self.dimension, seed=7)
        scales = torch.full((modes,), 0.3, dtype=torch.float64)
        denoiser = MixtureDenoiser(schedule, means, scales).requires_grad_(False)
        generator = torch.Generator().manual_seed(100 + seed)
        mode = torch.randint(modes, (self.samples,), generator=generator)
        points = means[mode] + 0.3 * seeded_normal(self.samples, self.dimension, seed=200 + seed)
        grid = TimeGrid.uniform_time(schedule, self.steps, t_max=self.t_star)
        pure = partial(DiffPure, denoiser, SDEDPMSolver(), grid)

        def log_odds(x: Tensor) -> Tensor:
            exponent = -0.5 * (x.unsqueeze(1) - means).square().sum(-1) / 0.3**2
            odds = exponent[:, ::2].logsumexp(1) - exponent[:, 1::2].logsumexp(1)
            return torch.where(mode % 2 == 0, odds, -odds)

        def draw(number: int) -> Draw:
            key = 100_000 * seed + number
            noise = RecordedNoise.draw(self.steps, points.shape, key + 7, torch.float64)
            return Draw(seeded_normal(*points.shape, seed=key), noise)

        def quality(x: Tensor) -> dict[str, Tensor]:
            drawn = [draw(50_000 + k) for k in range(self.draws)]
            found = torch.stack([log_odds(pure().purify(x, d).x_0) for d in drawn])
            return {
                "robust": ((found > 0).double().mean(0) > 0.5).double(),
                "margin": found.mean(0),
            }

        return Purifying(
            points,
            lambda x, d, gradient: pure(gradient=gradient).purify(x, d),
            lambda x: -log_odds(x),
            draw,
            quality,
            unit=1.0,
            reach=float("inf"),
        )


@dataclass(frozen=True)
class NoAttack:
    """Probes as they are."""

    kind: ClassVar[Kind] = "image"

    def run(self, instance: Purifying) -> Outcome:
        measured = instance.quality(instance.images)
        nothing = torch.full((len(instance.images),), float("nan"))
        return Outcome({**measured, "cosine": nothing}, Cost())


@dataclass(frozen=True)
class Attacked:
    """Projected gradient ascent through the defence by a gradient method, or around it.

    Args:
        gradient: Any gradient method for SDEs; null attacks the recogniser alone, as if there
            were no defence.
        steps: Ascent steps.
        radius: Largest change of a pixel, in 1/255 of the range of images; of a coordinate of
            points.
        draws: Draws of the defence per step.
    """

    gradient: GradientMethod | None = None
    steps: int = 10
    radius: float = 8.0
    draws: int = 1
    kind: ClassVar[Kind] = "image"

    def run(self, instance: Purifying) -> Outcome:
        radius, reach = self.radius * instance.unit, instance.reach
        ascent = ProjectedAscent(radius, 2.5 * radius / self.steps, self.steps, -reach, reach)

        def defence(images: Tensor, draw: Draw) -> Rollout:
            if self.gradient is None:
                return Rollout(images)
            return instance.purify(images, draw, self.gradient)

        def draws(step: int) -> Sequence[Draw]:
            return [instance.draw(self.draws * step + k) for k in range(self.draws)]

        found = ascent.attack(defence, instance.images, instance.loss, draws)
        measured = instance.quality(found.images)
        return Outcome({**measured, "cosine": self._cosine(instance, defence)}, found.cost)

    def _cosine(self, instance: Purifying, defence: Callable[[Tensor, Draw], Rollout]) -> Tensor:
        """Cosine of the first gradient and the exact one; not counted as the attack's cost."""
        draw = instance.draw(0)

        def exact(images: Tensor, drawn: Draw) -> Rollout:
            return instance.purify(images, drawn, DiscreteAdjoint())

        found = []
        for run in (defence, exact):
            leaf = instance.images.clone().requires_grad_()
            losses = instance.loss(run(leaf, draw).x_0)
            found.append(torch.autograd.grad(losses.sum(), leaf)[0].flatten(1))
        return F.cosine_similarity(*found)
