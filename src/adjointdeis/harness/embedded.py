"""The embedded networks and faces, loaded once: what studies and the default problem work on."""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from adjointdeis.faces.datasets.folder import load_folder
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import SOURCE, read_aligned
from adjointdeis.morphing.autoencoder import Autoencoder


@cache
def embedded_autoencoder() -> Autoencoder:
    """The embedded generator, loaded once."""
    return assets.autoencoder("diffae.safetensors", assets.profile("mini"))


@cache
def embedded_recogniser(name: str) -> Any:
    """An embedded recogniser, loaded once."""
    return assets.recogniser(f"{name}.safetensors", assets.profile("mini"))


@cache
def embedded_faces(capture: str) -> Tensor:
    """All embedded faces of a capture in [-1, 1], in the order of their subjects."""
    dataset = load_folder(assets.MINI / "faces", "mini")
    paths = [dataset.subject(i).images[capture] for i in dataset.ids]
    return to_tensor(read_aligned(paths, 64))


def subjects(seed: int, count: int) -> Tensor:
    """Numbers of the subjects of a seed: disjoint between seeds."""
    total = len(embedded_faces(SOURCE))
    order = torch.randperm(total, generator=torch.Generator().manual_seed(5))
    if (seed + 1) * count > total:
        raise ValueError(f"seed {seed} with {count} faces needs more than the {total} subjects")
    return order[seed * count : (seed + 1) * count]


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB per image of range [-1, 1], clipped first."""
    error = (x.clamp(-1, 1) - truth).square().flatten(1).mean(1)
    return 10 * (4 / error.clamp_min(1e-12)).log10()


def noise_like(count: int, seed: int) -> Tensor:
    """Initial noise of ``count`` faces."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 64, 64, generator=generator)


def threshold_of(name: str, fmr: float = 0.001) -> float:
    """Similarity at a false match rate over all impostors."""
    for record in assets.thresholds("thresholds.json", assets.profile("mini")):
        if (record.model, record.target_fmr, record.impostor_policy) == (name, fmr, "all"):
            return record.value
    raise assets.AssetError(f"thresholds.json has no record of {name} at FMR {fmr}")
