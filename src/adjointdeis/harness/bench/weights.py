"""Fine-tuning the embedded generator: brighter faces that are otherwise the same."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.cost import Cost
from adjointdeis.guidance.draft import draft
from adjointdeis.guidance.fine_tuning import FineTuning
from adjointdeis.guidance.implicit_diffusion import Fresh, ImplicitDiffusion
from adjointdeis.harness.bench.faces import (
    embedded_autoencoder,
    embedded_faces,
    embedded_recogniser,
    noise_like,
    psnr,
    subjects,
)
from adjointdeis.harness.bench.methods import Optimizer, optimizer_factory
from adjointdeis.harness.bench.problem import Kind, Outcome
from adjointdeis.harness.benchmark import SOURCE
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM
from adjointdeis.solvers.base import Solver


@dataclass(frozen=True, eq=False)
class Weights:
    """A fine-tuning problem.

    Attributes:
        denoiser: a trainable copy of the generator.
        solver, grid: ODE sampler.
        draw: ``iteration -> Fresh`` noise and codes to train on.
        loss: ``x_0 -> losses``.
        quality: measures of the generator's present weights on inputs never trained on.
    """

    denoiser: nn.Module
    solver: Solver
    grid: TimeGrid
    draw: Callable[[int], Fresh]
    loss: Callable[[Tensor], Tensor]
    quality: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Brightness:
    """Raise the mean brightness of what the generator samples by a known amount.

    The reward has a known optimum: every sample ``raise_by`` brighter than the untouched
    generator's mean. Measures on other people and other noise: ``error``, the distance of the mean
    brightness to the wanted one over ``raise_by`` (1 before, 0 at the optimum); ``psnr`` between
    the sample and the untouched generator's sample, brightness removed; ``identity``, their
    similarity to a recogniser.

    Args:
        raise_by: In units of the range [-1, 1].
        samples: Batch size, and number of test faces.
        steps: N.
    """

    raise_by: float = 0.2
    samples: int = 4
    steps: int = 10
    kind: ClassVar[Kind] = "weights"

    def instance(self, seed: int) -> Weights:
        untouched = embedded_autoencoder()
        tuned = copy.deepcopy(untouched.denoiser)
        for name, weight in tuned.named_parameters():
            # The semantic encoder makes z, which the sampler takes as given.
            weight.requires_grad_(".encoder." not in f".{name}")
        recogniser: NetworkRecogniser = embedded_recogniser("arcface")
        grid = TimeGrid.ddim_stride(untouched.schedule, self.steps)
        test = embedded_faces(SOURCE)[subjects(seed, self.samples)]
        train = embedded_faces(SOURCE)[subjects(seed + 10, self.samples)]
        with torch.no_grad():
            z_test, z_train = untouched.code(test), untouched.code(train)
            x_test = untouched.encode(test, z_test, 50).x_T
            x_train = untouched.encode(train, z_train, 50).x_T
            before = _sampled(untouched.denoiser, x_test, z_test, grid)
            level = _mean(_sampled(untouched.denoiser, x_train, z_train, grid))

        def loss(x_0: Tensor) -> Tensor:
            return 100 * (_mean(x_0) - level - self.raise_by).square()

        def quality() -> dict[str, Tensor]:
            with torch.no_grad():
                after = _sampled(tuned, x_test, z_test, grid)
                raised = _mean(after) - _mean(before)
                level_back = after - raised[:, None, None, None]
                then, now = (recogniser.features(x.clamp(-1, 1)) for x in (before, after))
            return {
                "error": (raised - self.raise_by).abs() / self.raise_by,
                "psnr": psnr(level_back, before.clamp(-1, 1)),
                "identity": torch.nn.functional.cosine_similarity(then, now),
            }

        def draw(iteration: int) -> Fresh:
            # Noise near the encoded one: pure random noise shows the generator's grain.
            wobble = 0.1 * noise_like(self.samples, 1000 * seed + iteration)
            return Fresh((x_train + wobble) / 1.01**0.5, z_train)

        return Weights(tuned, DDIM(), grid, draw, loss, quality)


def _sampled(denoiser: Callable[..., Tensor], x_T: Tensor, z: Tensor, grid: TimeGrid) -> Tensor:
    return sample(denoiser, x_T, z, solver=DDIM(), grid=grid).x_0


def _mean(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1)


@dataclass(frozen=True)
class Untuned:
    """The generator as it is."""

    kind: ClassVar[Kind] = "weights"

    def run(self, instance: Weights) -> Outcome:
        return Outcome(instance.quality(), Cost())


@dataclass(frozen=True)
class Tuned:
    """Fine-tuning by a gradient method with theta, fresh noise at every step.

    Args:
        gradient: Any gradient method with ``theta``.
        steps: Updates of the weights.
        optimizer, lr: How they move.
        clip: Largest norm of the gradient; null leaves it.
        last: K of DRaFT-K, which replaces the gradient method; null for the method.
    """

    gradient: GradientMethod
    steps: int = 15
    optimizer: Optimizer = "adam"
    lr: float = 1e-4
    clip: float | None = 1.0
    last: int | None = None
    kind: ClassVar[Kind] = "weights"

    def run(self, instance: Weights) -> Outcome:
        common = {"solver": instance.solver, "grid": instance.grid, "clip_norm": self.clip}
        factory = optimizer_factory(self.optimizer, self.lr)
        if self.last is not None:
            tuning = draft(instance.denoiser, instance.loss, factory, last=self.last, **common)
        else:
            tuning = FineTuning(
                instance.denoiser, instance.loss, factory, gradient=self.gradient, **common
            )
        for step in range(self.steps):
            fresh = instance.draw(step)
            tuning.step(fresh.x_T, fresh.z)
        return Outcome(instance.quality(), tuning.cost)


@dataclass(frozen=True)
class SingleLoop:
    """Implicit Diffusion: as many updates, after N - 1 iterations that fill the queue.

    Args:
        steps: Updates of the weights.
        optimizer, lr: How they move.
        clip: Largest norm of the gradient; null leaves it.
    """

    steps: int = 15
    optimizer: Optimizer = "adam"
    lr: float = 1e-4
    clip: float | None = 1.0
    kind: ClassVar[Kind] = "weights"

    def run(self, instance: Weights) -> Outcome:
        loop = ImplicitDiffusion(
            instance.denoiser,
            instance.loss,
            optimizer_factory(self.optimizer, self.lr),
            instance.draw,
            solver=instance.solver,
            grid=instance.grid,
            clip_norm=self.clip,
        )
        updates = 0
        while updates < self.steps:
            updates += loop.step() is not None
        return Outcome(instance.quality(), loop.cost)
