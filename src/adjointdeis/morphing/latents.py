"""Latents of a morph: the noises and codes of two encoded faces, interpolated."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from adjointdeis.diffusion.cycle_sde import AdditiveNoise, CycleSDE
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.noise import RecordedNoise
from adjointdeis.diffusion.transition import path_scale
from adjointdeis.morphing.attack import EncodedFace
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.solvers import SDEDPMSolver

Blend = Callable[[Tensor, Tensor, float], Tensor]
PAPER = SDEDPMSolver()


@dataclass(frozen=True, eq=False)
class MorphLatents:
    """Everything that a sampler needs to draw a batch of morphs.

    Attributes:
        x_T: Initial noise, with shape (B, 3, H, W).
        z: Codes, with shape (B, D).
        noise: Noises of the SDE's steps, or None for an ODE.
        nfe: Network evaluations per image spent on encoding, the two sources of a pair being one
            batch, as the paper counts them.
        failed: Reason by position in the batch, of pairs without latents; theirs are of no use.
    """

    x_T: Tensor
    z: Tensor
    noise: RecordedNoise | None
    nfe: int
    failed: dict[int, str] = field(default_factory=dict)


def morph_latents(
    a: EncodedFace, b: EncodedFace, weight: float = 0.5, blend: Blend = slerp
) -> MorphLatents:
    """Latents of an ODE morph: spherical interpolation of the noises, linear of the codes.

    Args:
        a, b: The two sources.
        weight: Share of ``b``.
        blend: Interpolation of the noises.
    """
    return MorphLatents(blend(a.x_T, b.x_T, weight), lerp(a.z, b.z, weight), None, a.nfe)


def sde_morph_latents(
    autoencoder: Autoencoder,
    images_a: Tensor,
    images_b: Tensor,
    grid: TimeGrid,
    seeds: list[int],
    weight: float = 0.5,
    solver: AdditiveNoise = PAPER,
) -> MorphLatents:
    """Latents of an SDE morph: noise and step noises of both sources, interpolated spherically.

    The paper encodes with Cycle-SDE and does not say how the noises of two sources become one
    path. Here both sources follow the same Wiener path (one seed a pair), so that at high noise
    their step noises nearly agree, and every step's noises are interpolated as x_T is: the result
    keeps the norm of a standard normal, and weight 0 or 1 reproduces a source exactly.

    Args:
        autoencoder: Network.
        images_a, images_b: Sources in [-1, 1], with shape (B, 3, H, W).
        grid: Sampling grid; encoding costs one evaluation per step.
        seeds: One per pair, so that a pair's noise does not depend on the batch it is in.
        weight: Share of ``b``.
        solver: Sampler of the morph, under which the noises reproduce the sources.
    """
    z_a, z_b = autoencoder.code(images_a), autoencoder.code(images_b)
    first, second = (
        CycleSDE.from_path(
            autoencoder.denoiser, _forward_path(x, grid, seeds), z, grid, solver=solver
        )
        for x, z in ((images_a, z_a), (images_b, z_b))
    )
    noises = tuple(
        slerp(p, q, weight) for p, q in zip(first.noise.values, second.noise.values, strict=True)
    )
    return MorphLatents(
        x_T=slerp(first.x_T, second.x_T, weight),
        z=lerp(z_a, z_b, weight),
        noise=RecordedNoise(noises),
        nfe=first.nfe,
    )


def _forward_path(images: Tensor, grid: TimeGrid, seeds: list[int]) -> tuple[Tensor, ...]:
    """States of the forward chain from the clean end, noisy first, one generator per image."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    path = [images]
    for index in range(grid.steps - 1, -1, -1):
        s, t = grid[index], grid[index + 1]
        draw = torch.stack(
            [torch.randn(images.shape[1:], generator=g, dtype=torch.float64) for g in generators]
        ).to(images)
        path.append(s.alpha / t.alpha * path[-1] + s.alpha * path_scale(s, t) * draw)
    return tuple(reversed(path))
