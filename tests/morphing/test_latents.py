"""Latents of a morph: the ODE's and the SDE's, with a small random diffusion autoencoder."""

import pytest
import torch

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.faces.networks import DiffAE, DiffAEConfig
from adjointdeis.morphing.attack import EncodedFace
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.morphing.latents import PAPER, morph_latents, sde_morph_latents
from adjointdeis.rollout import sample
from adjointdeis.solvers import SDEDPMSolverPP

SIZE, STEPS = 8, 5
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module", params=["eps", "v", "x0"])
def autoencoder(request) -> Autoencoder:
    torch.manual_seed(5)
    config = DiffAEConfig(
        image_size=SIZE,
        model_channels=8,
        channel_mult=(1, 2),
        encoder_channel_mult=(1, 2),
        residual_blocks=1,
        attention_resolutions=(),
        embed_channels=16,
        code_channels=6,
        dropout=0.0,
    )
    network = DiffAE(config).double().eval().requires_grad_(False)
    for weight in network.parameters():
        # The official initialisation has zeros in its last layers, which would hide z.
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.6 / weight[0].numel() ** 0.5)
    spread = 0.5 if request.param == "x0" else 0.0
    return Autoencoder(network, request.param, "0" * 64, "none", spread=spread)


@pytest.fixture(scope="module")
def faces() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    shape = (3, 3, SIZE, SIZE)
    a, b = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for _ in "ab")
    return a, b


def grid(autoencoder: Autoencoder) -> TimeGrid:
    return TimeGrid.greedy_dim(autoencoder.schedule, STEPS)


def draw(autoencoder: Autoencoder, latents, solver=PAPER) -> torch.Tensor:
    return sample(
        autoencoder.denoiser,
        latents.x_T,
        latents.z,
        solver=solver,
        grid=grid(autoencoder),
        noise=latents.noise,
    ).x_0


def test_ode_latents_are_slerp_of_noise_and_lerp_of_codes() -> None:
    x_a, x_b = torch.randn(2, 3, 3, 4, 4, dtype=torch.float64)
    z_a, z_b = torch.randn(2, 3, 7, dtype=torch.float64)
    a, b = EncodedFace(z_a, x_a, 250), EncodedFace(z_b, x_b, 250)
    latents = morph_latents(a, b, 0.3)
    torch.testing.assert_close(latents.x_T, slerp(x_a, x_b, 0.3))
    torch.testing.assert_close(latents.z, lerp(z_a, z_b, 0.3))
    assert latents.noise is None
    assert latents.nfe == 250
    torch.testing.assert_close(morph_latents(a, b, 0.0).x_T, x_a)
    torch.testing.assert_close(morph_latents(a, b, 1.0).z, z_b)


@pytest.mark.parametrize("solver", [PAPER, SDEDPMSolverPP(1), SDEDPMSolverPP(2)], ids=repr)
@pytest.mark.parametrize(("weight", "source"), [(0.0, 0), (1.0, 1)])
def test_sde_weight_at_an_end_reproduces_that_source(
    autoencoder, faces, weight, source, solver
) -> None:
    latents = sde_morph_latents(autoencoder, *faces, grid(autoencoder), SEEDS, weight, solver)
    error = (draw(autoencoder, latents, solver) - faces[source]).abs().max()
    assert error < 1e-10
    other = (draw(autoencoder, latents, solver) - faces[1 - source]).abs().max()
    assert other > 0.1


def test_sde_latents_between_reproduce_neither(autoencoder, faces) -> None:
    latents = sde_morph_latents(autoencoder, *faces, grid(autoencoder), SEEDS)
    morph = draw(autoencoder, latents)
    assert torch.isfinite(morph).all()
    assert min((morph - face).abs().max() for face in faces) > 1e-2
    assert len(latents.noise.values) == STEPS
    assert latents.nfe == STEPS


def test_a_pairs_noise_does_not_depend_on_its_batch(autoencoder, faces) -> None:
    whole = sde_morph_latents(autoencoder, *faces, grid(autoencoder), SEEDS)
    a, b = (face[[2, 0]] for face in faces)
    part = sde_morph_latents(autoencoder, a, b, grid(autoencoder), [SEEDS[2], SEEDS[0]])
    torch.testing.assert_close(part.x_T, whole.x_T[[2, 0]], rtol=1e-12, atol=1e-12)
    for one, all_ in zip(part.noise.values, whole.noise.values, strict=True):
        torch.testing.assert_close(one, all_[[2, 0]], rtol=1e-9, atol=1e-9)


def test_both_sources_follow_one_wiener_path(autoencoder, faces) -> None:
    # The same picture twice: both paths agree, so the blend is that picture's own encoding.
    same = sde_morph_latents(autoencoder, faces[0], faces[0], grid(autoencoder), SEEDS, 0.5)
    assert (draw(autoencoder, same) - faces[0]).abs().max() < 1e-10
    other = sde_morph_latents(autoencoder, faces[0], faces[0], grid(autoencoder), [1, 2, 3], 0.5)
    assert (same.x_T - other.x_T).abs().max() > 0.1
