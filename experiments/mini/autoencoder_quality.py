"""Measured quality of a diffusion autoencoder: reconstruction, and faces from random noise."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.tensors import to_tensor, to_uint8
from adjointdeis.harness.assets import MINI
from adjointdeis.harness.benchmark import SOURCE, read_aligned
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM


@torch.no_grad()
def autoencoder_quality(
    autoencoder: Autoencoder, directory: Path, images: int = 32, seed: int = 0
) -> dict[str, Any]:
    """PSNR and SSIM of encoding in 250 steps and decoding in 20, on faces never trained on.

    The same codes are also decoded from random noise: an autoencoder whose code is semantic gives
    the same person there, one that merely inverts its sampler gives a blob. Both are drawn side by
    side in ``autoencoder.png``: source, reconstruction, two samples.

    Args:
        autoencoder: Network.
        directory: Where the picture goes.
        images: Number of test faces.
        seed: Of the random noise.
    """
    dataset = load_folder(MINI / "faces", "mini")
    paths = [dataset.subject(i).images[SOURCE] for i in dataset.ids[:images]]
    x_0 = to_tensor(read_aligned(paths, autoencoder.network.config.image_size))
    z = autoencoder.code(x_0)
    x_T = autoencoder.encode(x_0, z, 250).x_T
    reconstruction = decode(autoencoder, x_T, z)
    generator = torch.Generator().manual_seed(seed)
    drawn = [decode(autoencoder, torch.randn(x_T.shape, generator=generator), z) for _ in range(2)]
    rows = [torch.cat(column, 2) for column in zip(x_0, reconstruction, *drawn, strict=True)]
    sheet = torch.cat([torch.cat(rows[k : k + 4], 1) for k in range(0, len(rows), 4)], 2)
    directory.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_uint8(sheet[None])[0]).save(directory / "autoencoder.png")

    def score(name: str, y: Tensor) -> dict[str, float]:
        return {
            f"{name}_psnr": float(peak_signal_noise_ratio(y, x_0, data_range=2.0)),
            f"{name}_ssim": float(
                structural_similarity_index_measure(y, x_0, data_range=2.0)  # type: ignore[arg-type]
            ),
        }

    return {
        "images": images,
        **score("reconstruction", reconstruction),
        **score("random_noise", drawn[0]),
        "code_norm": float(np.linalg.norm(z.numpy(), axis=1).mean()),
    }


def decode(autoencoder: Autoencoder, x_T: Tensor, z: Tensor, steps: int = 20) -> Tensor:
    """Images by the autoencoder's own decoder: DDIM, predicted images clipped."""
    grid = TimeGrid.ddim_stride(autoencoder.schedule, steps)
    rollout = sample(autoencoder.denoiser, x_T, z, solver=DDIM(clip_x0=True), grid=grid)
    return rollout.x_0.clamp(-1, 1)
