"""MIPGAN as an attack: what it takes from the bench, what it reports, what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_profile import SIZE, draw_face, write_profile

from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.networks import VGG16
from adjointdeis.faces.weights import WeightsError, save_network
from adjointdeis.harness import assets
from adjointdeis.harness.tasks.morph import recipe_of
from adjointdeis.morphing.attack import Sources, Workbench
from adjointdeis.morphing.mipgan import MIPGAN
from adjointdeis.morphing.mipgan_attack import MIPGANAttack, resized
from adjointdeis.morphing.perceptual import TrunkMaps
from adjointdeis.reporting.paper_tables import departures

SHORT = {"optimisation_steps": 3, "projection_steps": 4, "ms_ssim_weight": 2.0}


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> assets.Profile:
    root = tmp_path_factory.mktemp("profile")
    write_profile(root)
    return assets.profile("mini", str(root))


@pytest.fixture(scope="module")
def bench(profile) -> Workbench:
    gan = assets.style_generator("stylegan2.safetensors", "guide.safetensors", profile)
    identity = assets.recogniser("arcface.safetensors", profile)
    return Workbench(torch.device("cpu"), {"generator": gan, "identity": identity})


def sources(size: int = SIZE) -> Sources:
    faces = np.stack([draw_face(seed, False) for seed in range(4)]).repeat(size // SIZE, 1)
    faces = faces.repeat(size // SIZE, 2)
    pairs = (MorphPair("001", "002"), MorphPair("003", "004"))
    paths = (Path("001_03.png"), Path("003_03.png"), Path("002_03.png"), Path("004_03.png"))
    return Sources(pairs, faces[:2], faces[2:], paths[:2], paths[2:])


def finished(attack: MIPGANAttack, bench: Workbench, of: Sources):
    work = attack.begin(of, bench)
    progress = [work.step() for _ in range(attack.steps)]
    return work.finish(), progress


def test_makes_what_the_method_makes(bench) -> None:
    attack = MIPGANAttack(name="x", **SHORT)
    morphs, progress = finished(attack, bench, sources())
    method = MIPGAN(
        bench.resource("generator"),
        bench.resource("generator").maps,
        bench.identity_loss(),
        attack.weights(bench.resource("generator").perceptual_weight),
        attack.projection,
        attack.descent,
    )
    expected = method(*sources().tensors(bench.device))
    torch.testing.assert_close(morphs.images, expected.images)
    assert morphs.images.shape == (2, 3, SIZE, SIZE) and morphs.images.abs().max() <= 1
    distances = bench.against(sources())
    start = method.generator.synthesise(
        sum(method.project(x).styles.detach() for x in sources().tensors(bench.device)) / 2
    )
    # The curve is the identity loss that every attack reports, not MIPGAN's own sum.
    torch.testing.assert_close(progress[0].loss, distances(start).loss.detach())
    assert len(progress) == 3 and all((p.gradient_norm > 0).all() for p in progress)
    assert not any(p.loss.requires_grad for p in progress)
    for k, detail in enumerate(morphs.details):
        assert detail["mipgan_loss"] == pytest.approx(float(expected.losses[-1, k]), rel=1e-5)
        terms = detail["mipgan_terms"]
        assert terms["identity"] == pytest.approx(float(expected.terms.identity[k]), rel=1e-4)
        for side, images in enumerate(sources().tensors(bench.device)):
            error = (expected.projections[side][k] - images[k]).square().mean()
            psnr = 10 * np.log10(4 / float(error))
            assert detail["projection_psnr"][side] == pytest.approx(psnr, rel=1e-4)
    assert morphs.cost.counters() == {
        "encode": 4, "forward": 4, "backward": 0, "vjps": 7, "loss_gradients": 7
    }  # fmt: skip


def test_sources_of_another_size_are_resized(bench) -> None:
    images = sources(2 * SIZE).tensors(torch.device("cpu"))[0]
    # Filtered before it is reduced, with a window wider than the two pixels that are one.
    reduced, box = resized(images, SIZE), torch.nn.functional.avg_pool2d(images, 2)
    assert reduced.shape == box.shape and (reduced - box).abs().mean() < 0.08
    assert resized(images, 2 * SIZE) is images
    attack = MIPGANAttack(name="x", optimisation_steps=1, projection_steps=1)
    morphs, _ = finished(attack, bench, sources(2 * SIZE))
    assert morphs.images.shape == (2, 3, SIZE, SIZE)


def test_the_features_call_for_their_weight(bench, profile, tmp_path) -> None:
    assert MIPGANAttack(name="x").weights(0.0002).perceptual == 0.0002
    assert MIPGANAttack(name="x", perceptual_weight=0.0).weights(0.0002).perceptual == 0.0
    assert isinstance(bench.resource("generator").maps, TrunkMaps)
    assert bench.resource("generator").perceptual_weight == assets.TRUNK_WEIGHT
    sha256 = save_network(VGG16(), profile.root / "vgg16.safetensors")
    profile.manifest["vgg16.safetensors"] = {"sha256": sha256, "licence": "none"}
    gan = assets.style_generator("stylegan2.safetensors", "vgg16.safetensors", profile)
    assert gan.perceptual_weight == 0.0002
    assert len(gan.maps(torch.zeros(1, 3, 16, 16))) == 4


def test_a_morph_depends_on_generator_and_features(bench) -> None:
    attack = MIPGANAttack(name="x")
    recipe = recipe_of(attack, bench)
    for key in ("fingerprint", "maps_fingerprint", "perceptual_weight"):
        changed = replace(bench.resource("generator"), **{key: "other"})
        other = replace(bench, resources={**bench.resources, "generator": changed})
        assert recipe_of(attack, other) != recipe, key


def test_what_is_not_what_it_should_be_is_refused(profile, bench) -> None:
    with pytest.raises(WeightsError, match="holds a IResNet, not a StyleGAN2"):
        assets.style_generator("guide.safetensors", "guide.safetensors", profile)
    with pytest.raises(WeightsError, match="takes a VGG16 or an IResNet"):
        assets.style_generator("stylegan2.safetensors", "diffae.safetensors", profile)
    nothing = Workbench(bench.device, {"identity": bench.resource("identity")})
    with pytest.raises(ValueError, match="works with 'generator', which is not there"):
        MIPGANAttack(name="x").begin(sources(), nothing)
    for settings, message in (
        ({"version": "III"}, r"attack x: version='III' must be I or II"),
        ({"optimisation_steps": -1}, r"attack x: steps=-1"),
        ({"projection_rate": 0.0}, r"attack x: learning_rate=0.0"),
        ({"identity_weight": -1.0}, r"attack x: identity=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            MIPGANAttack(name="x", **settings)


def test_the_rate_of_a_projection_comes_to_rest() -> None:
    projection = MIPGANAttack(name="x", projection_steps=50, projection_rate=0.1).projection
    assert projection.rate(0) == 0.1
    assert projection.rate(50) == pytest.approx(0.005)
    assert MIPGANAttack(name="x", projection_steps=0).projection.steps == 0


def test_departures_are_said() -> None:
    (note,) = departures("MIPGAN-II", MIPGANAttack(name="x").settings())
    assert "found by projection" in note
    (note,) = departures("MIPGAN-I", MIPGANAttack(name="x", version="I").settings())
    assert "the paper's with a StyleGAN" in note
    note, _ = departures("MIPGAN-II", MIPGANAttack(name="x", optimisation_steps=9).settings())
    assert note == "optimisation steps 9 instead of 150"
    assert MIPGANAttack(name="x").label == "MIPGAN-II"
