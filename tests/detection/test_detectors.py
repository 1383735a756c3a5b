"""Detectors: what they learn, in which direction they score, and what they refuse."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adjointdeis.detection import (
    CallableDetector,
    Demorphing,
    DetectorError,
    DifferenceDetection,
    Examples,
    MorphDetector,
    OnnxDetector,
    PrecomputedScores,
    Suspects,
    TextureDetection,
    TorchDetector,
    score_in_batches,
)
from adjointdeis.detection.linear import lbp_histograms, luminance, residual_statistics
from adjointdeis.faces.networks import MorphNet, MorphNetConfig
from adjointdeis.faces.weights import load_network, save_network
from adjointdeis.harness.training.detector import ConvolutionalDetection

pytest.importorskip("sklearn")


def no_trainer(**_: Any) -> None:
    raise AssertionError("no gradient steps here")


def trainer(**options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **options
    )


def pictures(count: int, seed: int, size: int = 32) -> np.ndarray:
    """Smooth pictures with noise of standard deviation 12."""
    rng = np.random.default_rng(seed)
    smooth = rng.uniform(60, 190, (count, 4, 4, 3)).repeat(size // 4, 1).repeat(size // 4, 2)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)


def warped(count: int, seed: int) -> np.ndarray:
    """Averages looked up half a pixel further, as a landmark morph is: neighbours are alike."""
    found = averages(count, seed).astype(float)
    return np.rint((found + np.roll(found, 1, axis=2)) / 2).astype(np.uint8)


def averages(count: int, seed: int) -> np.ndarray:
    """Means of two pictures: half of the noise's variance is left, as in a pixel average."""
    pair = pictures(count, seed).astype(float), pictures(count, seed + 1).astype(float)
    return np.rint((pair[0] + pair[1]) / 2).astype(np.uint8)


def suspects(bona: np.ndarray, morphs: np.ndarray, live: np.ndarray | None = None) -> Suspects:
    images = np.concatenate([bona, morphs])
    return Suspects(images, tuple(f"{k}.png" for k in range(len(images))), live)


def labels(bona: int, morphs: int) -> np.ndarray:
    return np.arange(bona + morphs) >= bona


def separation(detector: MorphDetector, bona: np.ndarray, morphs: np.ndarray) -> float:
    """Share of (morph, bona fide) pairs of which the morph scores higher."""
    scores = score_in_batches(detector, suspects(bona, morphs), batch_size=7)
    b, m = scores[: len(bona)], scores[len(bona) :]
    return float((m[:, None] > b[None]).mean())


RECIPES = {
    "lbp": TextureDetection(name="lbp"),
    "residual": TextureDetection(name="residual", feature="residual"),
    "convolutional": ConvolutionalDetection(
        name="convolutional", network=MorphNetConfig(widths=(8, 12)), steps=60, batch_size=32
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_single_image_detectors_learn_what_warping_leaves_and_score_morphs_higher(
    name: str,
) -> None:
    examples = Examples(
        suspects(pictures(60, 0), warped(40, 10)), labels(60, 40), "60 pictures and 40 morphs"
    )
    detector = RECIPES[name].train(examples, 0, trainer)
    assert isinstance(detector, MorphDetector)
    assert detector.kind == "s_mad" and detector.training == "60 pictures and 40 morphs"
    assert separation(detector, pictures(30, 100), warped(30, 200)) > 0.95
    again = RECIPES[name].train(examples, 0, trainer)
    assert again.fingerprint == detector.fingerprint and len(detector.fingerprint) == 64
    swapped = Examples(examples.suspects, ~examples.morph, "swapped")
    turned = RECIPES[name].train(swapped, 0, trainer)
    assert separation(turned, pictures(30, 100), warped(30, 200)) < 0.05


def test_the_linear_score_is_that_of_scikit_learn() -> None:
    svm = pytest.importorskip("sklearn.svm")
    examples = Examples(suspects(pictures(20, 0), averages(20, 10)), labels(20, 20), "x")
    recipe = TextureDetection(name="lbp", regularisation=0.5)
    detector = recipe.train(examples, 0, no_trainer)
    values = recipe.features(examples.suspects)
    deviation = np.where(values.std(0) > 1e-9, values.std(0), 1)
    scaled = (values - values.mean(0)) / deviation
    machine = svm.LinearSVC(C=0.5, class_weight="balanced", random_state=0, max_iter=20_000)
    wanted = machine.fit(scaled, examples.morph).decision_function(scaled)
    np.testing.assert_allclose(detector.score(examples.suspects), wanted, atol=1e-9)


def test_saved_and_loaded(tmp_path) -> None:
    examples = Examples(suspects(pictures(20, 0), averages(20, 10)), labels(20, 20), "forty")
    recipe = TextureDetection(name="lbp")
    detector = recipe.train(examples, 0, no_trainer)
    detector.save(tmp_path / "a.npz")
    again = TextureDetection(name="lbp").load(str(tmp_path / "a.npz"))
    assert again.training == "forty" and again.fingerprint == detector.fingerprint
    assert (again.score(examples.suspects) == detector.score(examples.suspects)).all()
    for other, words in (
        (DifferenceDetection(name="d", recognisers=[MeanColour()]), "embeddings of f+"),
        (TextureDetection(name="d", cells=8), "lbp in 8 x 8 cells"),
        (TextureDetection(name="d", feature="residual"), "residual in 4 x 4 cells"),
    ):
        with pytest.raises(
            DetectorError, match=f"on lbp in 4 x 4 cells, and .* sees {words}: give"
        ):
            other.load(str(tmp_path / "a.npz"))
    (tmp_path / "b.npz").write_bytes(b"nothing")
    for path in ("b.npz", "absent.npz"):
        with pytest.raises(DetectorError, match="not the file of a linear detector"):
            recipe.load(str(tmp_path / path))


def test_pattern_histograms_sum_to_one_and_know_no_brightness() -> None:
    grey = luminance(pictures(1, 0))[0]
    found = lbp_histograms(grey, 4)
    assert found.shape == (16 * (10 + 18),)
    assert found.sum() == pytest.approx(32)
    grey = np.rint(grey / 2)
    np.testing.assert_array_equal(lbp_histograms(grey + 40, 4), lbp_histograms(grey, 4))


def test_residual_variance_falls_as_that_of_the_noise() -> None:
    one = residual_statistics(luminance(pictures(1, 0, 64))[0], 1)
    half = residual_statistics(luminance(averages(1, 0))[0], 1)
    assert one[0] - half[0] == pytest.approx(np.log(2), abs=0.35)
    tiny = np.random.default_rng(0).uniform(0, 255, (8, 8))
    assert np.isfinite(residual_statistics(tiny, 2)).all()
    constant = residual_statistics(np.full((32, 32), 7.0), 2)
    assert np.isfinite(constant).all() and constant[:8:2] == pytest.approx(np.log(1e-3))


@dataclass
class MeanColour:
    """A recogniser of mean colours, without a mean grey that all share."""

    name: str = "colours"
    fingerprint: str = "f" * 64
    calls: int = 0

    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.calls += len(images)
        mean = images.reshape(len(images), -1, 3).mean(1) - 128
        return mean.astype(np.float32), np.abs(mean).max(1) > 1


def test_differential_detectors_compare_with_who_is_there() -> None:
    rng = np.random.default_rng(0)

    def people(count: int) -> np.ndarray:
        """Flat pictures, a colour a person."""
        return rng.integers(0, 256, (count, 1, 1, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)

    def noisy(images: np.ndarray) -> np.ndarray:
        noise = rng.normal(0, 3, (len(images), 1, 1, 3))
        return np.clip(images + noise, 0, 255).astype(np.uint8)

    def half_way(images: np.ndarray) -> np.ndarray:
        return ((images.astype(float) + people(len(images))) / 2).astype(np.uint8)

    bona, one = people(80), people(80)
    live = np.concatenate([noisy(bona), noisy(one)])
    shown = suspects(bona, half_way(one), live)
    system = MeanColour()
    recipe = DifferenceDetection(name="difference", recognisers=[system])
    detector = recipe.train(Examples(shown, labels(80, 80), "colours"), 0, no_trainer)
    # Each image and live capture is embedded once, however many detectors score it.
    assert system.calls == 2 * len(shown)
    scores = detector.score(shown)
    assert system.calls == 2 * len(shown) and detector.kind == "d_mad"
    assert (scores[80:, None] > scores[None, :80]).mean() > 0.9
    with pytest.raises(DetectorError, match=r"trusted live capture.*live="):
        detector.score(suspects(bona, one))
    both = DifferenceDetection(name="both", recognisers=[system], texture=True)
    assert both.features(shown).shape == (160, 3 + 1 + 16 * 28)
    # The same image twice differs in nothing.
    same = both.features(Suspects(bona, shown.names[:80], bona))
    assert same[:, :3] == pytest.approx(0) and same[:, 3] == pytest.approx(1)
    assert (same[:, 4:] == 0).all()


class Linear:
    """An autoencoder whose code is the image: demorphing must find the accomplice exactly."""

    fingerprint = "a" * 64

    def code(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def decode(self, x_T: Tensor, z: Tensor, steps: int = 20) -> Tensor:
        assert x_T.shape == (len(z), 3, 8, 8)
        return z.reshape(x_T.shape)


def test_demorphing_finds_the_accomplice() -> None:
    rng = np.random.default_rng(0)
    live, accomplice = (2 * rng.integers(30, 90, (6, 8, 8, 3)).astype(np.uint8) for _ in range(2))
    morph = ((live.astype(int) + accomplice) // 2).astype(np.uint8)
    detector = Demorphing(name="demorphing", autoencoder=Linear(), recogniser=MeanColour())
    assert (detector.accomplices(morph, live) == accomplice).all()
    assert (detector.decoded(detector.codes(live), (8, 8)) == live).all()
    names = tuple("abcdef")
    bona_fide = detector.score(Suspects(live, names, live))
    assert bona_fide == pytest.approx(0, abs=1e-12)
    assert (detector.score(Suspects(morph, names, live)) > 1e-6).all()
    # Presented by one person or by many, in any order, a suspect's score is the same.
    order = np.array([3, 0, 3, 5, 0, 1])
    mixed = Suspects(morph[order], tuple("uvwxyz"), live[order])
    wanted = detector.score(Suspects(morph, names, live))[order]
    assert detector.score(mixed) == pytest.approx(wanted, abs=1e-12)
    assert detector.kind == "demorphing" and detector.training == "none"


def test_a_network_scores_any_size_and_keeps_its_numbers(tmp_path) -> None:
    network = MorphNet(MorphNetConfig(widths=(4, 6))).eval()
    images = torch.randn(2, 3, 33, 47).clamp(-1, 1)
    logits = network(images)
    assert logits.shape == (2,)
    save_network(network, tmp_path / "a.safetensors", dtype=torch.float32)
    again = load_network(tmp_path / "a.safetensors")
    assert isinstance(again, MorphNet)
    torch.testing.assert_close(again(images), logits)
    with pytest.raises(ValueError, match="widths"):
        MorphNetConfig(widths=())


def bright(images: np.ndarray) -> np.ndarray:
    return images.mean((1, 2, 3))


def test_plugged_detectors_score_higher_for_a_morph_whatever_their_own_direction() -> None:
    dark, light = np.full((2, 8, 8, 3), 10, np.uint8), np.full((2, 8, 8, 3), 250, np.uint8)
    shown = suspects(dark, light)
    plain = CallableDetector(name="bright", function=bright, higher_is="morph")
    turned = CallableDetector(name="dark", function=bright, higher_is="bonafide")
    assert plain.score(shown).tolist() == [10, 10, 250, 250]
    assert turned.score(shown).tolist() == [-10, -10, -250, -250]

    class Two(nn.Module):
        def forward(self, images: Tensor, live: Tensor) -> Tensor:
            difference = (images - live).mean((1, 2, 3))
            return torch.stack([-difference, difference], 1)

    network = TorchDetector(name="two", network=Two(), higher_is="morph", kind="d_mad", column=1)
    live = np.concatenate([dark, dark])
    scores = network.score(suspects(dark, light, live))
    assert scores == pytest.approx([0, 0, 240 / 127.5, 240 / 127.5])
    with pytest.raises(DetectorError, match="trusted live capture"):
        network.score(shown)
    for column in (2, -1, None):
        with pytest.raises(DetectorError, match=f"column={column} of 2 outputs"):
            replace(network, column=column).score(suspects(dark, light, live))
    for wrong in ({"kind": "x"}, {"higher_is": "fake"}):
        with pytest.raises(DetectorError, match=r"expected|is none of"):
            CallableDetector(name="bright", function=bright, **{"higher_is": "morph", **wrong})
    # Half of the published detectors have it one way and half the other: nobody guesses.
    for kind in (CallableDetector, TorchDetector, OnnxDetector, PrecomputedScores):
        with pytest.raises(TypeError, match="higher_is"):
            kind(name="x", function=bright) if kind is CallableDetector else kind(
                **{"network": Two(), "name": "x"} if kind is TorchDetector else {"file": "x"}
            )


def test_what_a_plugged_detector_returns_is_a_number_an_image() -> None:
    shown = Suspects(pictures(2, 0, 8), ("a", "b"))

    class Returns(nn.Module):
        def __init__(self, what: Any) -> None:
            super().__init__()
            self.what = what

        def forward(self, images: Tensor) -> Any:
            return self.what

    for output, words in (
        (torch.zeros(2, 3, 5), r"shape \(2, 3, 5\): expected"),
        ({"logits": torch.zeros(2)}, "returned dict"),
        (torch.zeros(1), r"shape \(1,\) for 2 images"),
    ):
        detector = TorchDetector(name="theirs", network=Returns(output), higher_is="morph")
        with pytest.raises(DetectorError, match=words):
            score_in_batches(detector, shown)
    flat = TorchDetector(name="x", network=Returns(torch.ones(2, 1, 1, 1)), higher_is="bonafide")
    assert flat.score(shown).tolist() == [-1, -1]
    words = CallableDetector(name="x", function=lambda x: ["high", "low"], higher_is="morph")
    with pytest.raises(DetectorError, match="returned list"):
        words.score(shown)
    gradient = CallableDetector(
        name="x", function=lambda x: torch.ones(2, requires_grad=True), higher_is="morph"
    )
    assert gradient.score(shown).tolist() == [1, 1]


def test_an_onnx_file_is_a_detector(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one"], ["column"]),
        helper.make_node("Neg", ["column"], ["minus"]),
        helper.make_node("Concat", ["minus", "column"], ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("x", kind, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
        [onnx.numpy_helper.from_array(np.array([1]), "one")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "mean.onnx").write_bytes(model.SerializeToString())
    stated = {
        "size": 8, "colours": "rgb", "mean": [0, 0, 0], "std": [1, 1, 1], "licence": "CC0",
    }  # fmt: skip
    images = pictures(3, 0, 8)
    shown = Suspects(images, ("a", "b", "c"))
    file = str(tmp_path / "mean.onnx")
    detector = OnnxDetector(file, "morph", column=1, **stated)
    assert detector.name == "mean" and len(detector.fingerprint) == 64
    assert score_in_batches(detector, shown) == pytest.approx(bright(images), rel=1e-5)
    # A score that is low for a morph is turned round.
    turned = OnnxDetector(file, "bonafide", column=1, **stated)
    assert turned.score(shown).tolist() == (-detector.score(shown)).tolist()
    for column in (2, None):
        with pytest.raises(DetectorError, match=rf"column={column} of 2 outputs"):
            OnnxDetector(file, "morph", column=column, **stated)


def test_scores_of_a_file(tmp_path) -> None:
    shown = Suspects(pictures(2, 0, 8), ("morphs/x/001_002.png", "faces/001_03.png"))
    path = tmp_path / "theirs.csv"
    path.write_text("score,image,degradation\n0.25,001_002.png,\n-1,faces/001_03.png,none\n"
                    "7,001_002.png,jpeg\n")  # fmt: skip
    detector = PrecomputedScores(str(path), "bonafide")
    assert detector.name == "theirs" and detector.degradations == ("none", "jpeg")
    assert detector.score(shown).tolist() == [-0.25, 1.0]
    with pytest.raises(DetectorError, match=r"no score of 1 of 2 images under.*jpeg.*faces/001_03"):
        detector.of(shown.names, "jpeg")
    # Without its folder a morph's name is that of every attack's morph of the pair.
    with pytest.raises(DetectorError, match=r"001_002.png is the name of 2 images.*folder"):
        detector.of((*shown.names, "morphs/y/001_002.png"), "none")
    for text, words in (
        ("image\na\n", "column 'score' is missing"),
        ("image,score\na,x\n", ":2: score 'x'"),
        ("image,score\na,1\na,2\n", ":3: a has a score already"),
    ):
        path.write_text(text)
        with pytest.raises(DetectorError, match=words):
            PrecomputedScores(str(path), "morph")


def test_what_is_no_score_is_refused_by_the_name_of_the_image() -> None:
    shown = Suspects(pictures(3, 0, 8), ("a.png", "b.png", "c.png"))

    def detector(found: Any) -> Any:
        return SimpleNamespace(name="theirs", score=lambda suspects: found)

    with pytest.raises(DetectorError, match=r"of 1 images, such as b\.png"):
        score_in_batches(detector([0.0, np.nan, 1.0]), shown)
    with pytest.raises(DetectorError, match=r"shape \(2,\) for 3 images"):
        score_in_batches(detector([0.0, 1.0]), shown)
    assert len(score_in_batches(detector([]), shown.at([]))) == 0


def test_images_and_examples_that_contradict_are_refused() -> None:
    images = pictures(2, 0, 8)
    with pytest.raises(DetectorError, match="uint8 RGB"):
        Suspects(images.astype(float), ("a", "b"))
    with pytest.raises(DetectorError, match="2 images and 1 names"):
        Suspects(images, ("a",))
    for live in (images[:1], images[:, :4], images[..., 0]):
        with pytest.raises(DetectorError, match="one each"):
            Suspects(images, ("a", "b"), live)
    with pytest.raises(DetectorError, match="some of both"):
        Examples(Suspects(images, ("a", "b")), np.array([True, True]), "x")
    for kind, wrong, words in (
        (TextureDetection, {"feature": "x"}, "lbp or residual"),
        (DifferenceDetection, {"recognisers": []}, "at least one"),
        (ConvolutionalDetection, {"steps": 0}, "at least 1 step"),
    ):
        with pytest.raises(DetectorError, match=words):
            kind(name="x", **wrong)
