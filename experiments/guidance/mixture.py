r"""Gaussian mixtures with closed-form answers: a noisy observation, and a hidden condition."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.oracles import MixtureDenoiser
from adjointdeis.diffusion.schedule import VPLinear
from adjointdeis.guidance.problem import Algorithm, AlgorithmRun, Instance, LatentProblem, Outcome
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM


def seeded_normal(*shape: int, seed: int) -> Tensor:
    """Standard normals in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class DiagonalMixture:
    """A mixture of K Gaussians with diagonal covariances, one mixture per sample.

    Attributes:
        log_weights: shape (B, K), normalised.
        means, variances: shape (B, K, D).
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density at x, shape (B, D) to (B)."""
        return self._joint(x).logsumexp(1)

    def draw(self, seed: int) -> Tensor:
        """One sample of each mixture, shape (B, D)."""
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.log_weights.exp(), 1, generator=generator)[:, 0]
        rows = torch.arange(len(k))
        noise = seeded_normal(len(k), self.means.shape[-1], seed=seed + 1)
        return self.means[rows, k] + self.variances[rows, k].sqrt() * noise

    def mode(self, iterations: int = 200) -> Tensor:
        """The highest mode of each mixture, climbed to from every component mean."""
        best, height = self.means[:, 0], torch.full((len(self.means),), -math.inf).double()
        for k in range(self.means.shape[1]):
            x = self.means[:, k]
            for _ in range(iterations):
                share = self._joint(x).softmax(1).unsqueeze(-1) / self.variances
                x = (share * self.means).sum(1) / share.sum(1)
            found = self.log_density(x)
            best = torch.where((found > height).unsqueeze(1), x, best)
            height = torch.maximum(found, height)
        return best

    def _joint(self, x: Tensor) -> Tensor:
        offset = x.unsqueeze(1) - self.means
        exponent = (offset.square() / self.variances + (2 * math.pi * self.variances).log()).sum(-1)
        return self.log_weights - 0.5 * exponent


@dataclass(frozen=True, eq=False)
class PosteriorProblem(LatentProblem):
    """A problem whose perfect answer is known.

    Args:
        posterior: Law of the samples that were observed.
        seed: Of samples of it.
    """

    posterior: DiagonalMixture = field(kw_only=True)
    seed: int = field(kw_only=True)


@dataclass(frozen=True)
class PosteriorSamples(Algorithm):
    """Samples of the posterior, in closed form: what a perfect method would give."""

    solves: ClassVar[type] = PosteriorProblem

    def _start(self, problem: PosteriorProblem) -> "_ClosedForm":
        return _ClosedForm(problem)


class _ClosedForm(AlgorithmRun):
    finished = True

    def __init__(self, problem: PosteriorProblem) -> None:
        super().__init__()
        self.problem = problem

    def step(self) -> None:
        raise RuntimeError("a closed form makes no steps")

    def outcome(self) -> Outcome:
        x_0 = self.problem.posterior.draw(self.problem.seed)
        return Outcome(x_0, self.problem.loss(x_0, self.problem.rows), self.cost)


@dataclass(frozen=True)
class MixturePosterior:
    r"""Half of the coordinates are observed, :math:`y = A x_0 + s\,n`; the rest must be found.

    The loss is :math:`|A x_0 - y|^2 / 2 s^2`, which says nothing about the unobserved half: that
    is what the generator knows. The posterior of a mixture is a mixture, so the best x_0 is known.
    Measures: ``misfit``, the loss per observed coordinate (about 1/2 for the truth), and
    ``regret``, the log-density of the posterior's mode less that of x_0, per coordinate, in nats
    (about 1/2 for perfect posterior samples, 0 for the mode).

    Args:
        dimension: D, even.
        modes: Components of the mixture.
        noise: Standard deviation s of the observation.
        samples: Batch size.
        steps: N.
    """

    dimension: int = 2
    modes: int = 4
    noise: float = 0.2
    samples: int = 16
    steps: int = 20

    def instance(self, seed: int) -> Instance:
        """A batch of observations of points drawn from the mixture."""
        schedule = VPLinear()
        means = 1.5 * seeded_normal(self.modes, self.dimension, seed=7)
        scales = torch.linspace(0.3, 0.6, self.modes, dtype=torch.float64)
        denoiser = MixtureDenoiser(schedule, means, scales).requires_grad_(False)
        data = DiagonalMixture(
            torch.full((self.samples, self.modes), -math.log(self.modes)).double(),
            means.expand(self.samples, -1, -1),
            scales.square()[:, None].expand(self.samples, -1, self.dimension),
        )
        seen = self.dimension // 2
        truth = data.draw(1000 * seed + 11)
        y = truth[:, :seen] + self.noise * seeded_normal(self.samples, seen, seed=1000 * seed + 13)
        posterior = observed(data, y, self.noise)
        peak = posterior.log_density(posterior.mode())

        def loss(x_0: Tensor, rows: Tensor) -> Tensor:
            return 0.5 * ((x_0[:, :seen] - y[rows]) / self.noise).square().sum(1)

        def quality(outcome: Outcome) -> dict[str, Tensor]:
            x_0 = outcome.x_0
            return {
                "misfit": loss(x_0, torch.arange(len(x_0))) / seen,
                "regret": (peak - posterior.log_density(x_0)) / self.dimension,
            }

        return Instance(
            PosteriorProblem(
                denoiser=denoiser,
                solver=DDIM(),
                grid=TimeGrid.uniform_lmbda(schedule, self.steps),
                x_T=seeded_normal(self.samples, self.dimension, seed=1000 * seed + 17),
                moves="x_T",
                loss=loss,
                posterior=posterior,
                seed=1000 * seed + 19,
            ),
            quality,
        )


def observed(data: DiagonalMixture, y: Tensor, noise: float) -> DiagonalMixture:
    """The posterior of a mixture whose first coordinates were observed with Gaussian noise.

    Args:
        data: The prior.
        y: Observations, with shape (B, d), d not larger than D.
        noise: Their standard deviation.
    """
    seen = y.shape[1]
    mean, variance = data.means[..., :seen], data.variances[..., :seen]
    total = variance + noise**2
    evidence = -0.5 * ((y[:, None] - mean).square() / total + total.log()).sum(-1)
    gain = variance / total
    return DiagonalMixture(
        (data.log_weights + evidence).log_softmax(1),
        torch.cat((mean + gain * (y[:, None] - mean), data.means[..., seen:]), -1),
        torch.cat((variance * noise**2 / total, data.variances[..., seen:]), -1),
    )


@dataclass(frozen=True)
class HiddenCondition:
    """Reach a sample that a hidden condition made, by moving the condition alone.

    The truth is either one z for all steps, or a z that changes half-way: only a scheduled
    condition can reproduce the second one. Measure: ``error``, the distance to the target over
    the distance of the start.

    Args:
        changing: Whether the hidden condition changes half-way.
        dimension, condition, samples, steps: D, d, B and N.
    """

    changing: bool = False
    dimension: int = 6
    condition: int = 2
    samples: int = 16
    steps: int = 20

    def instance(self, seed: int) -> Instance:
        """A batch of targets, from z = 0."""
        schedule = VPLinear()
        denoiser = MixtureDenoiser(
            schedule,
            0.7 * seeded_normal(3, self.dimension, seed=7),
            torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64),
            weight=0.7 * seeded_normal(3, self.dimension, self.condition, seed=8),
        ).requires_grad_(False)
        grid = TimeGrid.uniform_lmbda(schedule, self.steps)
        x_T = seeded_normal(self.samples, self.dimension, seed=1000 * seed + 17)
        first, second = seeded_normal(2, self.samples, self.condition, seed=1000 * seed + 23)
        hidden = [
            second if self.changing and step >= self.steps // 2 else first
            for step in range(self.steps)
        ]
        start = torch.zeros_like(first)
        target = sample(denoiser, x_T, PerStep(hidden), solver=DDIM(), grid=grid).x_0
        before = sample(denoiser, x_T, start, solver=DDIM(), grid=grid).x_0
        distance = (before - target).norm(dim=1)

        return Instance(
            LatentProblem(
                denoiser=denoiser,
                solver=DDIM(),
                grid=grid,
                x_T=x_T,
                z=start,
                moves="z",
                loss=lambda x_0, rows: 0.5 * (x_0 - target[rows]).square().sum(1),
            ),
            lambda outcome: {"error": (outcome.x_0 - target).norm(dim=1) / distance},
        )
