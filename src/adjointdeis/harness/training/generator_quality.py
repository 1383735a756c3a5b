"""Measured quality of a style generator: variety, likeness to its training faces, projections."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.faces.tensors import to_tensor, to_uint8
from adjointdeis.harness.assets import MINI
from adjointdeis.harness.benchmark import SOURCE, read_aligned
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.morphing.mipgan import MIPGAN
from adjointdeis.morphing.mipgan_attack import MIPGANAttack, resized
from adjointdeis.morphing.style_generator import StyleGenerator


@torch.no_grad()
def generator_quality(
    generator: StyleGenerator,
    recogniser: NetworkRecogniser,
    pool: np.ndarray,
    directory: Path,
    samples: int = 2048,
    projected: int = 16,
    projection_steps: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Numbers that say how far drawn faces are from rendered ones, by a recogniser's embeddings.

    Distances between sets are read beside the same distance between the two halves of the training
    pool, and likeness to the training faces beside that of faces never trained on: closer than
    those would mean faces learnt by heart. Unseen faces are also projected, as MIPGAN projects its
    sources. ``generator.png`` shows drawn faces above, sources and their projections below.

    Args:
        generator: Generator.
        recogniser: Whose embeddings measure; not the one whose features trained the generator.
        pool: Training images (n, S, S, 3) uint8.
        directory: Where the picture goes.
        samples: Faces to draw.
        projected: Unseen faces to project.
        projection_steps: Steps of a projection.
        seed: Of the latents.
    """
    network, draw = generator.network, torch.Generator().manual_seed(seed)
    latents = torch.randn(samples, network.config.z_dim, generator=draw).split(64)
    faces = np.concatenate([to_uint8(network(z).clamp(-1, 1)) for z in latents])
    dataset = load_folder(MINI / "faces", "mini")
    paths = [dataset.subject(i).images[SOURCE] for i in dataset.ids]
    unseen = read_aligned(paths, None)
    drawn, trained, held = (_unit(recogniser, images) for images in (faces, pool, unseen))
    half = len(trained) // 2
    sources = resized(to_tensor(unseen[:projected]), generator.image_size)
    method = MIPGAN(
        generator,
        generator.maps,
        IdentityLoss(recogniser.features),
        projection=MIPGANAttack(name="projection", projection_steps=projection_steps).projection,
    )
    found = method.project(sources).images()
    psnr = peak_signal_noise_ratio(found, sources, data_range=2.0)
    same = (_unit(recogniser, to_uint8(found)) * held[:projected]).sum(1)
    shown = (*to_tensor(faces[: 2 * projected]).split(projected), sources, found)
    rows = [torch.cat(list(row), 2) for row in shown]
    directory.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(torch.cat(rows, 1)[None])[0]).save(directory / "generator.png")
    return {
        "samples": samples,
        "frechet": frechet_distance(drawn, trained),
        "frechet_of_two_halves": frechet_distance(trained[:half], trained[half:]),
        "nearest_training_face": float((drawn @ trained.T).max(1).values.mean()),
        "nearest_training_face_of_unseen": float((held @ trained.T).max(1).values.mean()),
        "projected": projected,
        "projection_steps": projection_steps,
        "projection_psnr": float(psnr),
        "projection_similarity": float(same.mean()),
        "projection_similarity_least": float(same.min()),
    }


def frechet_distance(x: Tensor, y: Tensor) -> float:
    r"""Squared distance of two sets of vectors as normal distributions.

    .. math:: \lVert \mu_x - \mu_y \rVert^2
        + \operatorname{tr}\big(C_x + C_y - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2}\big)

    Args:
        x, y: (n, D) and (m, D), each with more vectors than dimensions.

    References:
        | GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
        | https://arxiv.org/abs/1706.08500
    """
    x, y = x.double(), y.double()
    # A covariance of one number is a number: made a matrix again.
    cov_x, cov_y = (torch.cov(v.T).reshape(v.shape[1], -1) for v in (x, y))
    values, axes = torch.linalg.eigh(cov_x)
    root = axes * values.clamp_min(0).sqrt() @ axes.T
    common = torch.linalg.eigvalsh(root @ cov_y @ root).clamp_min(0).sqrt().sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return float(shift + cov_x.trace() + cov_y.trace() - 2 * common)


def _unit(recogniser: NetworkRecogniser, images: np.ndarray) -> Tensor:
    embeddings, _ = recogniser.embed(np.asarray(images))
    return torch.nn.functional.normalize(torch.from_numpy(embeddings), dim=1)
