"""Problems whose denoiser is a trained network, as the studies and the leaderboard see them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adjointdeis.diffusion import from_k_diffusion
from adjointdeis.faces.graphs import load_onnx
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import load_benchmark, read_aligned
from adjointdeis.harness.encodings import Encodings
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.morphing.latents import morph_latents
from adjointdeis.problems import LOSSES, GradientProblem, loss_of

TERRAIN_SHA256 = "95be54b4a39d58320e187a7ec533351c957f16a00be58773c86074828ee67887"
TERRAIN_LEVELS = (80.0, 0.002)
INSTALL_TERRAIN = "pip install --no-deps adaptive-terrain-diffusion==0.4.2"


def mini(pairs: int = 2, encoding_steps: int = 100, only: slice = slice(None)) -> GradientProblem:
    """DiM-A's latents of a few pairs, under the identity loss of the embedded guide.

    Everything that a guided morph of ``assets=mini`` differentiates, at its first step.

    Args:
        pairs: how many, spread evenly over the list.
        encoding_steps: of each image's latent.
        only: which of these pairs to take.
    """
    profile = assets.profile("mini")
    benchmark = load_benchmark("mini", "mini", pairs)
    autoencoder = assets.autoencoder("diffae.safetensors", profile)
    guide = assets.recogniser("guide.safetensors", profile)
    encode = Encodings(autoencoder, None)
    images = [
        read_aligned([benchmark.image(*pair.sides[i]) for pair in benchmark.pairs[only]], None)
        for i in (0, 1)
    ]
    a, b = (encode(side, torch.device("cpu"), encoding_steps) for side in images)
    latents = morph_latents(a, b)
    with torch.no_grad():
        v_a, v_b = (guide.features(to_tensor(side)) for side in images)
    loss = IdentityLoss(guide.features)
    return GradientProblem(
        name="mini DiffAE",
        denoiser=autoencoder.denoiser,
        schedule=autoencoder.schedule,
        x_T=latents.x_T,
        z=latents.z,
        loss=lambda x_0: loss(x_0, v_a, v_b).loss.sum(),
        # Timestep 0, where the official samplers end.
        t_min=1.0 / autoencoder.schedule.timesteps,
    )


class Terrain(nn.Module):
    """The exported graph as a denoiser of k-diffusion; its condition is the difficulty, 0 to 99."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.graph = load_onnx(path, sha256=TERRAIN_SHA256).requires_grad_(False)

    def forward(self, x: Tensor, sigma: Tensor, difficulty: Tensor) -> Tensor:
        return self.graph(x, sigma, difficulty)


def terrain_file() -> Path:
    """The terrain model's file in the installed package.

    Raises:
        FileNotFoundError: it is not installed.
    """
    found = importlib.util.find_spec("terrain_diffusion")
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"the terrain model is not installed: {INSTALL_TERRAIN}")
    folder = Path(found.submodule_search_locations[0]) / "weights"
    return folder / "terrain_consistency_unet_difficulty100.onnx"


def roughness(x_0: Tensor) -> Tensor:
    """Mean squared difference of neighbours, summed over the batch."""
    across, down = x_0.diff(dim=2).square(), x_0.diff(dim=3).square()
    return (across.flatten(1).mean(1) + down.flatten(1).mean(1)).sum()


def network_problem(name: str, loss: str, number: int = 0) -> GradientProblem:
    """A problem of the leaderboard on a trained network.

    Args:
        name: "mini", the embedded diffusion autoencoder at DiM-A's latents of one pair, or
            "terrain", a consistency model of 128 x 128 terrains with its difficulty as condition.
        loss: as in ``adjointdeis.problems.LOSSES``; "distance" is that of the pair's identities,
            and the terrain's roughness.
        number: which pair, 0 to 2, and the seed of the terrain's noise and of what the loss draws.

    Raises:
        ValueError: another name, or a number of no problem.
        FileNotFoundError: the terrain model is not installed.
    """
    if not 0 <= number < len(LOSSES):
        raise ValueError(f"{name} has the problems 0 to {len(LOSSES) - 1}, and no {number}")
    if name == "mini":
        problem = mini(len(LOSSES), encoding_steps=20, only=slice(number, number + 1))
    elif name == "terrain":
        most, least = TERRAIN_LEVELS
        adapted = from_k_diffusion(Terrain(terrain_file()), condition="difficulty", sigma_max=most)
        noise = torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(number))
        problem = GradientProblem(
            "terrain", adapted.denoiser, adapted.schedule, most * noise, torch.tensor([50.0]),
            roughness, least / most,
        )  # fmt: skip
    else:
        raise ValueError(f"{name!r} is no network of the leaderboard; there are mini and terrain")
    if loss == "distance":
        return replace(problem, name=name)
    return replace(problem, name=name, loss=loss_of(loss, problem.x_T[0].numel(), seed=number))
