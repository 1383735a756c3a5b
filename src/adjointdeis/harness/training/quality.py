"""Measured quality of a diffusion autoencoder: what it draws from random noise, and how it inverts.

Reconstruction says little: a sampler that is barely trained inverts itself at 33 dB and more. What
tells is whether random noise becomes a clean face of the code's person, and whether encoded noise
is white, since a morph is sampled from a blend of encoded noises that are taken for random ones.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.faces.tensors import to_uint8
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.rollout import sample
from adjointdeis.solvers import DDIM

FINE = 0.35  # cycles a pixel; above it lies grain, and little of a face


@torch.no_grad()
def autoencoder_quality(autoencoder: Autoencoder, faces: Tensor, directory: Path) -> dict[str, Any]:
    """Measures an autoencoder on faces that it was not trained on, and draws what it makes of them.

    ``autoencoder.png`` shows source, reconstruction and two samples from random noise with the
    source's code; ``morphs.png`` shows source, DiM morph, the same blend of codes from random
    noise, and the other source.

    Args:
        autoencoder: Network.
        faces: Images in [-1, 1], with shape (B, 3, S, S), at least two.
        directory: Where the pictures go.

    Returns:
        Numbers by name, as follows.

        * ``random_noise_20``, ``random_noise_100``: faces drawn from white noise and their own
          codes, DDIM of so many steps, against the sources: PSNR (dB), SSIM, and ratios of the
          energy above 0.35 cycles a pixel and of the Laplacian's standard deviation, 1 being a
          picture as sharp as the source, more is grain.
        * ``reconstruction_psnr``, ``_ssim``: encoded in 250 steps, decoded in 20 on the official
          grid; ``reconstruction_lmbda_psnr``: decoded in 20 steps equal in log-SNR.
        * ``noise``: of encoded images, see :func:`whiteness`.
    """
    z = autoencoder.code(faces)
    x_T = autoencoder.encode(faces, z, 250).x_T
    reconstruction = autoencoder.decode(x_T, z)
    grid = TimeGrid.uniform_lmbda(autoencoder.schedule, 20)
    even = sample(autoencoder.denoiser, x_T, z, solver=DDIM(), grid=grid).x_0
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(x_T.shape, generator=generator) for _ in range(2)]
    drawn = [autoencoder.decode(noise, z) for noise in noises]
    directory.mkdir(parents=True, exist_ok=True)
    _draw(directory / "autoencoder.png", faces, reconstruction, *drawn)
    # Neighbours in the list stand in for pairs: the sheet shows the network, not an attack.
    half = len(faces) // 2
    a, b = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    blend = lerp(z[a], z[b], 0.5)
    morphs = autoencoder.decode(slerp(x_T[a], x_T[b]), blend)
    afresh = autoencoder.decode(noises[0][a], blend)
    _draw(directory / "morphs.png", faces[a], morphs, afresh, faces[b])
    return {
        "images": len(faces),
        "random_noise_20": _against(drawn[0], faces),
        "random_noise_100": _against(autoencoder.decode(noises[0], z, 100), faces),
        "reconstruction_psnr": _psnr(reconstruction, faces),
        "reconstruction_ssim": _ssim(reconstruction, faces),
        "reconstruction_lmbda_psnr": _psnr(even, faces),
        "noise": whiteness(x_T, faces),
        "code_norm": float(z.norm(dim=1).mean()),
    }


def whiteness(x_T: Tensor, images: Tensor) -> dict[str, float]:
    r"""How far encoded noise is from white noise of standard deviation 1, independent of the image.

    Args:
        x_T: Encoded noise, with shape (B, C, H, W), H and W multiples of 8.
        images: What it was encoded from, of the same shape.

    Returns:
        ``std``; ``block_means``: standard deviation of the means of 8x8 blocks, times 8, which is
        the standard deviation again if neighbours are independent, and up to 8 times it if they
        are equal; ``image_correlation``: of x_T and its image, averaged over images, 0 for white
        noise.
    """
    x, y = (v.flatten(1) - v.flatten(1).mean(1, keepdim=True) for v in (x_T, images))
    return {
        "std": float(x_T.std()),
        "block_means": 8 * float(F.avg_pool2d(x_T, 8).std()),
        "image_correlation": float(F.cosine_similarity(x, y, dim=1).mean()),
    }


def fine_energy(images: Tensor) -> Tensor:
    """Energy above 0.35 cycles a pixel of each image and channel: (B, C), a mean square."""
    height, width = images.shape[-2:]
    radius = (torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width) ** 2).sqrt()
    power = torch.fft.fft2(images).abs().square() / (height * width) ** 2
    return power[..., (radius > FINE).to(images.device)].sum(-1)


def laplacian(images: Tensor) -> Tensor:
    """Standard deviation of the Laplacian of each image in grey: (B)."""
    kernel = images.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return F.conv2d(images.mean(1, keepdim=True), kernel).std((1, 2, 3))


def _against(drawn: Tensor, faces: Tensor) -> dict[str, float]:
    return {
        "psnr": _psnr(drawn, faces),
        "ssim": _ssim(drawn, faces),
        "fine_energy_ratio": float((fine_energy(drawn) / fine_energy(faces)).mean()),
        "laplacian_ratio": float((laplacian(drawn) / laplacian(faces)).mean()),
    }


def _psnr(drawn: Tensor, faces: Tensor) -> float:
    return float(peak_signal_noise_ratio(drawn, faces, data_range=2.0))


def _ssim(drawn: Tensor, faces: Tensor) -> float:
    return float(structural_similarity_index_measure(drawn, faces, data_range=2.0))  # type: ignore[arg-type]


def _draw(path: Path, *columns: Tensor) -> None:
    """Rows of one face each, four to a column of the sheet."""
    rows = [torch.cat(column, 2) for column in zip(*columns, strict=True)]
    height = min(8, len(rows))
    rows += [torch.ones_like(rows[0])] * (-len(rows) % height)
    sheet = torch.cat([torch.cat(rows[k : k + height], 1) for k in range(0, len(rows), height)], 2)
    Image.fromarray(to_uint8(sheet[None])[0]).save(path)
