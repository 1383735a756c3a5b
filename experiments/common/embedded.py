"""The embedded diffusion autoencoder with the identity loss, as the studies see it."""

import torch

from adjointdeis.faces.tensors import to_tensor
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import load_benchmark, read_aligned
from adjointdeis.harness.encodings import Encodings
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.morphing.latents import morph_latents
from adjointdeis.problems import GradientProblem


def mini(pairs: int = 2, encoding_steps: int = 100) -> GradientProblem:
    """DiM-A's latents of a few pairs, under the identity loss of the embedded guide.

    Everything that a guided morph of ``assets=mini`` differentiates, at its first step.
    """
    profile = assets.profile("mini")
    benchmark = load_benchmark("mini", "mini", pairs)
    autoencoder = assets.autoencoder("diffae.safetensors", profile)
    guide = assets.recogniser("guide.safetensors", profile)
    encode = Encodings(autoencoder, None)
    images = [
        read_aligned([benchmark.image(*pair.sides[i]) for pair in benchmark.pairs], None)
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
