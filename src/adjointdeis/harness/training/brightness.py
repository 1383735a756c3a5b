"""Fine-tuning the embedded generator: brighter faces that are otherwise the same."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.guidance.problem import Batch, Instance, Outcome, WeightProblem
from adjointdeis.harness.benchmark import SOURCE
from adjointdeis.harness.embedded import (
    embedded_autoencoder,
    embedded_faces,
    embedded_recogniser,
    noise_like,
    psnr,
    subjects,
)
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM


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

    def __post_init__(self) -> None:
        if not 0 < abs(self.raise_by) <= 2:
            raise ValueError(f"raise_by={self.raise_by}: expected a change of at most 2, not 0")

    def instance(self, seed: int) -> Instance:
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

        def quality(_: Outcome | None) -> dict[str, Tensor]:
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

        def draw(iteration: int) -> Batch:
            # Noise near the encoded one: pure random noise shows the generator's grain.
            wobble = 0.1 * noise_like(self.samples, 1000 * seed + iteration)
            return Batch((x_train + wobble) / 1.01**0.5, z_train)

        problem = WeightProblem(tuned, draw, loss=loss, solver=DDIM(), grid=grid)
        return Instance(problem, quality)


def _sampled(denoiser: Callable[..., Tensor], x_T: Tensor, z: Tensor, grid: TimeGrid) -> Tensor:
    return sample(denoiser, x_T, z, solver=DDIM(), grid=grid).x_0


def _mean(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1)
