"""Early stopping of the guided attack: which pairs stop, what they cost, what they return."""

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.morphing.adjoint_dim import GuidedDiM
from adjointdeis.morphing.attack import EncodedFace, Sources, Workbench
from adjointdeis.solvers import DDIM, SDEDPMSolver, SDEDPMSolverPP

STEPS, SIZE = 12, 4


class Generator(torch.nn.Module):
    """A smooth denoiser of 4x4 images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = torch.nn.Parameter(torch.randn(48, 48, dtype=torch.float32) / 10, False)

    def forward(self, x, t, z):
        flat = x.flatten(1)
        return (0.8 * flat + torch.tanh(flat @ self.mix) + z.repeat(1, 12)).view_as(x)


def bench() -> tuple[Workbench, Sources]:
    generator = Generator()
    features = torch.nn.Linear(48, 6).requires_grad_(False)
    autoencoder = SimpleNamespace(
        denoiser=generator,
        schedule=DDPM(),
        code=lambda images: images.flatten(1)[:, :4],
    )
    identity = SimpleNamespace(features=lambda images: features(images.flatten(1)), parts=())

    def encode(images, device, steps, grid="ddim_stride", codes_of=None):
        noise = (
            np.random.default_rng(int(images.sum()))
            .normal(size=(len(images), 3, SIZE, SIZE))
            .astype(np.float32)
        )
        z = torch.from_numpy(noise[:, 0, :, 0].copy()) / 5
        return EncodedFace(z, torch.from_numpy(noise), steps)

    images = np.random.default_rng(1).integers(0, 255, (2, 3, SIZE, SIZE, 3), dtype=np.uint8)
    pairs = tuple(MorphPair(f"{k:03d}", f"{k + 10:03d}") for k in range(3))
    sources = Sources(pairs, images[0], images[1], (), ())
    resources = {"autoencoder": autoencoder, "identity": identity, "encoder": encode}
    made = Workbench(torch.device("cpu"), resources)
    return made, sources


def attack(**options) -> GuidedDiM:
    return GuidedDiM(
        name="guided",
        sampling_steps=4,
        encoding_steps=9,
        optimisation_steps=STEPS,
        gradient=DiscreteAdjoint(keep_activations=4),
        optimizer=partial(torch.optim.Adam, lr=0.05),
        **options,
    )


def run(made: GuidedDiM):
    torch.manual_seed(3)
    tools, sources = bench()
    work = made.begin(sources, tools)
    seen = [work.step() for _ in range(STEPS)]
    return work, seen, work.finish()


def similarity(work, images) -> torch.Tensor:
    distances = work.distances(images)
    return 1 - torch.maximum(distances.a, distances.b)


@pytest.mark.parametrize(
    "solver", [DDIM(), SDEDPMSolver(), SDEDPMSolverPP()], ids=["ode", "sde", "sde++"]
)
@pytest.mark.parametrize("keep", ["last", "best"])
def test_pairs_stop_by_themselves_and_are_not_charged_further(solver, keep: str) -> None:
    free, trace, whole = run(attack(solver=solver, keep=keep))
    # Every pair's similarity after each step, from the losses' own network.
    everywhere = torch.stack([step.loss for step in trace])
    reached = float(similarity(free, whole.images).median()) - 0.02
    work, seen, morphs = run(attack(solver=solver, keep=keep, stop_similarity=reached))
    stopped = work.optimisation.stopped
    assert 0 < len(stopped), "no pair stopped: the test sees nothing"
    for pair, details in enumerate(morphs.details):
        assert details["stopped_at"] == stopped.get(pair)
        spent = details["nfe"]
        if pair in stopped:
            gradients = stopped[pair] + 1  # the one that was accepted had its gradient taken
            assert spent["forward"] == 4 * gradients
            assert similarity(work, morphs.images)[pair] >= reached
        else:
            gradients = STEPS
            assert spent["forward"] == 4 * (STEPS + (2 if keep == "best" else 1))
            torch.testing.assert_close(
                morphs.images[pair], whole.images[pair], rtol=1e-3, atol=1e-4
            )
        assert spent["vjps"] == 4 * gradients
        until = torch.stack([step.loss for step in seen])[:gradients, pair]
        torch.testing.assert_close(until, everywhere[:gradients, pair], rtol=1e-3, atol=1e-4)


def test_a_similarity_that_all_have_at_once_costs_one_look() -> None:
    work, seen, morphs = run(attack(stop_similarity=-0.999))
    assert work.optimisation.stopped == {0: 0, 1: 0, 2: 0}
    assert morphs.cost.nfe_forward == 4 and morphs.cost.vjps == 4
    assert len(seen) == STEPS
    torch.testing.assert_close(seen[0].loss, seen[-1].loss)


def test_no_early_stopping_by_default() -> None:
    made = attack()
    assert made.stop_similarity is None and "stops a pair" not in " ".join(made.notes())
    _, _, morphs = run(made)
    assert morphs.cost.nfe_forward == 4 * (STEPS + 1)
    assert all("nfe" not in details for details in morphs.details)


@pytest.mark.parametrize("value", [1.0, 2.0, -1.5, math.nan])
def test_a_similarity_that_is_no_cosine(value: float) -> None:
    with pytest.raises(ValueError, match=r"expected a cosine between -1 and 1, or null"):
        attack(stop_similarity=value)


def test_the_row_says_that_it_stops() -> None:
    made = attack(stop_similarity=0.4)
    assert made.settings()["stop_similarity"] == 0.4
    assert any("0.4" in note for note in made.notes())
