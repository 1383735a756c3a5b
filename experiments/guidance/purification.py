"""Purification: how robust a recogniser looks, by the gradient that attacks it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import RecordedNoise
from adjointdeis.diffusion.oracles import MixtureDenoiser
from adjointdeis.diffusion.schedule import VPLinear
from adjointdeis.gradients import GradientMethod
from adjointdeis.guidance.diffpure import AttackOutcome, DefenceProblem, DiffPure, Draw
from adjointdeis.guidance.problem import Instance
from adjointdeis.harness.benchmark import OTHER, SOURCE
from adjointdeis.harness.embedded import (
    embedded_autoencoder,
    embedded_faces,
    embedded_recogniser,
    subjects,
    threshold_of,
)
from adjointdeis.rollout import Rollout
from adjointdeis.solvers import SDEDPMSolver
from experiments.guidance.mixture import seeded_normal


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

    def instance(self, seed: int) -> Instance:
        autoencoder, system = embedded_autoencoder(), embedded_recogniser(self.recogniser)
        chosen = subjects(seed, self.samples)
        probes, enrolled = embedded_faces(OTHER)[chosen], embedded_faces(SOURCE)[chosen]
        grid = TimeGrid.uniform_time(autoencoder.schedule, self.steps, 1e-3, self.t_star)
        with torch.no_grad():
            reference = system.features(enrolled)
        threshold = threshold_of(self.recogniser, self.fmr)
        pure = DiffPure(autoencoder.denoiser, SDEDPMSolver(), grid)

        def purify(images: Tensor, draw: Draw, gradient: GradientMethod | None) -> Rollout:
            return pure.purify(images, draw, gradient, autoencoder.code(images))

        def similarity(images: Tensor) -> Tensor:
            return F.cosine_similarity(system.features(images), reference)

        def draw(number: int) -> Draw:
            generator = torch.Generator().manual_seed(100_000 * seed + number)
            start = torch.randn(probes.shape, generator=generator)
            return Draw(start, RecordedNoise.draw(self.steps, probes.shape, 7 + number))

        problem = DefenceProblem(probes, purify, loss=lambda x: -similarity(x), draw=draw)

        def quality(outcome: AttackOutcome) -> dict[str, Tensor]:
            drawn = [draw(50_000 + k) for k in range(self.draws)]
            with torch.no_grad():
                found = torch.stack([similarity(purify(outcome.x_0, d, None).x_0) for d in drawn])
            matches = (found > threshold).float().mean(0)
            return {
                "robust": (matches > 0.5).float(),
                "similarity": found.mean(0),
                "cosine": cosine_to_exact(problem, outcome),
            }

        return Instance(problem, quality)


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

    def instance(self, seed: int) -> Instance:
        schedule, modes = VPLinear(), 4
        means = 0.7 * seeded_normal(modes, self.dimension, seed=7)
        scales = torch.full((modes,), 0.3, dtype=torch.float64)
        denoiser = MixtureDenoiser(schedule, means, scales).requires_grad_(False)
        generator = torch.Generator().manual_seed(100 + seed)
        mode = torch.randint(modes, (self.samples,), generator=generator)
        points = means[mode] + 0.3 * seeded_normal(self.samples, self.dimension, seed=200 + seed)
        grid = TimeGrid.uniform_time(schedule, self.steps, t_max=self.t_star)
        pure = DiffPure(denoiser, SDEDPMSolver(), grid)

        def log_odds(x: Tensor) -> Tensor:
            exponent = -0.5 * (x.unsqueeze(1) - means).square().sum(-1) / 0.3**2
            odds = exponent[:, ::2].logsumexp(1) - exponent[:, 1::2].logsumexp(1)
            return torch.where(mode % 2 == 0, odds, -odds)

        def draw(number: int) -> Draw:
            key = 100_000 * seed + number
            noise = RecordedNoise.draw(self.steps, points.shape, key + 7, torch.float64)
            return Draw(seeded_normal(*points.shape, seed=key), noise)

        problem = DefenceProblem(
            points,
            pure.purify,
            loss=lambda x: -log_odds(x),
            draw=draw,
            low=-float("inf"),
            high=float("inf"),
        )

        def quality(outcome: AttackOutcome) -> dict[str, Tensor]:
            drawn = [draw(50_000 + k) for k in range(self.draws)]
            found = torch.stack([log_odds(pure.purify(outcome.x_0, d).x_0) for d in drawn])
            return {
                "robust": ((found > 0).double().mean(0) > 0.5).double(),
                "margin": found.mean(0),
                "cosine": cosine_to_exact(problem, outcome),
            }

        return Instance(problem, quality)


def cosine_to_exact(problem: DefenceProblem, outcome: AttackOutcome) -> Tensor:
    """Cosine of an attack's first gradient and the exact one, with shape (B); NaN without steps."""
    if outcome.first_gradient is None:
        return torch.full((len(problem.images),), float("nan"))
    leaf = problem.images.clone().requires_grad_()
    losses = problem.loss(problem.defence(leaf, problem.draw(0), None).x_0)
    (exact,) = torch.autograd.grad(losses.sum(), leaf)
    return F.cosine_similarity(outcome.first_gradient.flatten(1), exact.flatten(1))
