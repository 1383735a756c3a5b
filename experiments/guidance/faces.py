"""Tasks on the embedded diffusion autoencoder, each with its truth: faces that were held back."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.guidance.problem import Instance, LatentProblem, Outcome
from adjointdeis.harness.benchmark import OTHER, SOURCE, load_benchmark
from adjointdeis.harness.embedded import (
    embedded_autoencoder,
    embedded_faces,
    embedded_recogniser,
    noise_like,
    psnr,
    subjects,
    threshold_of,
)
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.solvers import DDIM


def ssim(x: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity per image."""
    found = structural_similarity_index_measure(
        x.clamp(-1, 1), truth, data_range=2.0, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.reshape(-1)


@dataclass(frozen=True)
class Restoration:
    """A linear inverse problem: part of a face's pixels are known, the face is wanted.

    "inpainting": the middle square is missing. "super_resolution": averages of 4 by 4 pixels are
    known. The sampler starts from random noise and the code of the degraded image (mean grey in the
    hole, or enlarged). Measures against the held-back face: ``psnr``, ``ssim``, and ``misfit``,
    the root mean square error on what is known.

    Args:
        degradation: Which.
        samples: Faces per seed.
        steps: N.
        hole: Side of the missing square in pixels.
    """

    degradation: Literal["inpainting", "super_resolution"] = "inpainting"
    samples: int = 4
    steps: int = 10
    hole: int = 24

    def instance(self, seed: int) -> Instance:
        autoencoder = embedded_autoencoder()
        truth = embedded_faces(SOURCE)[subjects(seed, self.samples)]
        known = self.degrade(truth)

        def loss(x_0: Tensor, rows: Tensor) -> Tensor:
            return 100 * (self.degrade(x_0) - known[rows]).square().flatten(1).mean(1)

        def quality(outcome: Outcome) -> dict[str, Tensor]:
            x_0 = outcome.x_0
            residual = self.degrade(x_0.clamp(-1, 1)) - known
            return {
                "psnr": psnr(x_0, truth),
                "ssim": ssim(x_0, truth),
                "misfit": residual.square().flatten(1).mean(1).sqrt(),
            }

        with torch.no_grad():
            z = autoencoder.code(self.naive(known, truth))
        return Instance(
            LatentProblem(
                denoiser=autoencoder.denoiser,
                solver=DDIM(),
                grid=TimeGrid.ddim_stride(autoencoder.schedule, self.steps),
                x_T=noise_like(self.samples, 100 + seed),
                z=z,
                loss=loss,
            ),
            quality,
        )

    def degrade(self, images: Tensor) -> Tensor:
        """What is known of images (B, 3, 64, 64), linear in them."""
        if self.degradation == "super_resolution":
            return F.avg_pool2d(images, 4)
        return images * self._mask(images)

    def naive(self, known: Tensor, like: Tensor) -> Tensor:
        """The degraded image at full size, as the encoder sees it."""
        if self.degradation == "super_resolution":
            return F.interpolate(known, size=like.shape[-2:], mode="bilinear", align_corners=False)
        return known

    def _mask(self, images: Tensor) -> Tensor:
        mask = torch.ones_like(images[:1, :1])
        low = (images.shape[-1] - self.hole) // 2
        mask[..., low : low + self.hole, low : low + self.hole] = 0
        return mask


@dataclass(frozen=True)
class IdentityMorph:
    """One face that two identities match: the paper's task, on pairs of the embedded list.

    Guided by the guide network's identity loss (eq. 5.1). Measures by a network that does not
    guide: ``identity``, the smaller of the two similarities to the other captures of both
    subjects, and ``match``, whether both pass the threshold at FMR 0.1%.

    Args:
        samples: Pairs per seed.
        steps: N.
        encoding: N_E.
        judge: Recogniser that measures.
    """

    samples: int = 4
    steps: int = 10
    encoding: int = 50
    judge: str = "arcface"

    def instance(self, seed: int) -> Instance:
        autoencoder = embedded_autoencoder()
        guide, judge = embedded_recogniser("guide"), embedded_recogniser(self.judge)
        benchmark = load_benchmark("mini", "mini", None)
        pairs = benchmark.pairs[seed * self.samples : (seed + 1) * self.samples]
        order = {name: k for k, name in enumerate(benchmark.dataset.ids)}
        sides = [[order[p.subject_a] for p in pairs], [order[p.subject_b] for p in pairs]]
        with torch.no_grad():
            faces = [embedded_faces(SOURCE)[side] for side in sides]
            codes = [autoencoder.code(face) for face in faces]
            noises = [
                autoencoder.encode(face, code, self.encoding).x_T
                for face, code in zip(faces, codes, strict=True)
            ]
            v_a, v_b = (guide.features(face) for face in faces)
            probes = [judge.features(embedded_faces(OTHER)[side]) for side in sides]
        identity, threshold = IdentityLoss(guide.features), threshold_of(self.judge)

        def quality(outcome: Outcome) -> dict[str, Tensor]:
            x_0 = outcome.x_0
            with torch.no_grad():
                found = judge.features(x_0.clamp(-1, 1))
            both = torch.stack([F.cosine_similarity(found, probe) for probe in probes])
            least = both.amin(0)
            return {"identity": least, "match": (least > threshold).float()}

        return Instance(
            LatentProblem(
                denoiser=autoencoder.denoiser,
                solver=DDIM(),
                grid=TimeGrid.ddim_stride(autoencoder.schedule, self.steps),
                x_T=slerp(noises[0], noises[1]),
                z=lerp(codes[0], codes[1]),
                loss=lambda x_0, rows: identity(x_0, v_a[rows], v_b[rows]).loss,
            ),
            quality,
        )


@dataclass(frozen=True)
class Smile:
    """Make a neutral face smile, by the renderer's own label, and leave the person alone.

    The guide is a linear probe on 16 by 16 pixels, the judge one on the semantic code; both are
    fitted to the neutral and smiling captures of subjects that are not steered. Measures:
    ``smiles``, whether the judge says so; ``score``, how far (-1 neutral, +1 smiling); and
    ``identity``, the similarity to the neutral source by a recogniser.

    Args:
        samples: Faces per seed; seeds 0 to 3 leave 102 - 4 samples subjects for the probes.
        steps: N.
        encoding: N_E.
        keep: Weight of the distance to the source in the loss.
    """

    samples: int = 4
    steps: int = 10
    encoding: int = 50
    keep: float = 1.0

    def instance(self, seed: int) -> Instance:
        autoencoder, recogniser = embedded_autoencoder(), embedded_recogniser("arcface")
        steered = torch.cat([subjects(k, self.samples) for k in range(4)])
        rest = [k for k in range(len(embedded_faces(SOURCE))) if k not in steered.tolist()]
        neutral, smiling = (embedded_faces(capture)[rest] for capture in (SOURCE, OTHER))
        with torch.no_grad():
            guide = LinearProbe.fit(_coarse(neutral), _coarse(smiling))
            judge = LinearProbe.fit(autoencoder.code(neutral), autoencoder.code(smiling))
            source = embedded_faces(SOURCE)[subjects(seed, self.samples)]
            z = autoencoder.code(source)
            x_T = autoencoder.encode(source, z, self.encoding).x_T
            person = recogniser.features(source)

        def loss(x_0: Tensor, rows: Tensor) -> Tensor:
            wanted = (guide(_coarse(x_0)) - 1).square()
            return wanted + self.keep * (x_0 - source[rows]).square().flatten(1).mean(1)

        def quality(outcome: Outcome) -> dict[str, Tensor]:
            x_0 = outcome.x_0
            with torch.no_grad():
                x_0 = x_0.clamp(-1, 1)
                score = judge(autoencoder.code(x_0))
                kept = F.cosine_similarity(recogniser.features(x_0), person)
            return {"smiles": (score > 0).float(), "score": score, "identity": kept}

        return Instance(
            LatentProblem(
                denoiser=autoencoder.denoiser,
                solver=DDIM(),
                grid=TimeGrid.ddim_stride(autoencoder.schedule, self.steps),
                x_T=x_T,
                z=z,
                loss=loss,
            ),
            quality,
        )


def _coarse(images: Tensor) -> Tensor:
    """Images (B, 3, H, W) as 16 by 16 averages, flattened."""
    return F.adaptive_avg_pool2d(images, 16).flatten(1)


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A ridge regression of a label -1 or +1 on features.

    Attributes:
        centre: mean feature, shape (D).
        weight: shape (D).
    """

    centre: Tensor
    weight: Tensor

    @classmethod
    def fit(cls, negative: Tensor, positive: Tensor, ridge: float = 0.1) -> "LinearProbe":
        """Fitted to features (B, D) of both labels, in as many samples as there are.

        Args:
            negative, positive: Features of the label -1 and of the label +1.
            ridge: Share of the features' mean variance that is added to every direction.
        """
        features = torch.cat((negative, positive)).double()
        labels = torch.cat((-torch.ones(len(negative)), torch.ones(len(positive)))).double()
        centre = features.mean(0)
        centred = features - centre
        # In the space of samples: there are fewer of them than of features.
        kernel = centred @ centred.mT
        strength = ridge * kernel.diagonal().mean()
        dual = torch.linalg.solve(kernel + strength * torch.eye(len(kernel)).double(), labels)
        return cls(centre.to(negative), (centred.mT @ dual).to(negative))

    def __call__(self, features: Tensor) -> Tensor:
        """Scores (B) of features (B, D): near -1 or +1 on the training classes."""
        return (features - self.centre) @ self.weight
