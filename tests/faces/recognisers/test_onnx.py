"""ONNX recognisers with an explicit spec, on a linear model whose answer is known."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from adjointdeis.extras import MissingPackageError
from adjointdeis.faces.alignment import ARCFACE_5PT
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.onnx import OnnxRecogniser, OnnxSpec
from adjointdeis.faces.weights import WeightsError, fingerprint

pytest.importorskip("onnxruntime")


def spec(path, **changes) -> OnnxSpec:
    numbers = {
        "name": "linear",
        "size": 8,
        "colours": "rgb",
        "mean": (127.5, 127.5, 127.5),
        "std": (127.5, 127.5, 127.5),
        "alignment": ARCFACE_5PT,
        "sha256": fingerprint(path),
        "licence": "MIT",
        "origin": "the tests",
    }
    return OnnxSpec(**(numbers | changes))


@pytest.fixture
def linear(tmp_path, models):
    return models.recogniser(tmp_path / "linear.onnx")


@pytest.fixture
def photographs() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


def expected(images, matrix, mean, std, colours="rgb", layout="nchw") -> np.ndarray:
    pixels = images[..., ::-1] if colours == "bgr" else images
    blob = (pixels.astype(np.float64) - mean) / std
    blob = blob if layout == "nhwc" else blob.transpose(0, 3, 1, 2)
    return blob.reshape(len(images), -1) @ matrix


@pytest.mark.parametrize("colours", ["rgb", "bgr"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_spec_decides_colours_mean_and_layout(tmp_path, models, photographs, colours, layout):
    path, matrix = models.recogniser(tmp_path / "model.onnx", layout=layout)
    mean, std = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
    judge = OnnxRecogniser(
        path, spec(path, colours=colours, mean=mean, std=std, layout=layout), batch_size=2
    )
    assert isinstance(judge, Recogniser)
    embeddings, acquired = judge.embed(photographs)
    wanted = expected(photographs, matrix, mean, std, colours, layout)
    np.testing.assert_allclose(embeddings, wanted, rtol=1e-4, atol=1e-4)
    assert embeddings.dtype == np.float32
    assert acquired.all()
    assert judge.embedding_dim == 5
    assert judge.fingerprint == fingerprint(path)
    assert not judge.white_box


def test_a_fixed_batch_gives_the_same_embeddings(tmp_path, models, linear, photographs):
    path, _ = models.recogniser(tmp_path / "fixed.onnx", batch=4)
    got, _ = OnnxRecogniser(path, spec(path)).embed(photographs)
    wanted, _ = OnnxRecogniser(linear[0], spec(linear[0])).embed(photographs)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_embedding_may_be_any_output(tmp_path, models, photographs):
    path, _ = models.recogniser(tmp_path / "pair.onnx", outputs=2)
    feature, _ = OnnxRecogniser(path, spec(path)).embed(photographs)
    second = spec(path, output=1, score_type="dissimilarity")
    norm, _ = OnnxRecogniser(path, second).embed(photographs)
    assert norm.shape == (5, 1)
    np.testing.assert_allclose(norm[:, 0], np.linalg.norm(feature, axis=1), rtol=1e-5)
    # AdaFace exports (embedding, norm): by cosine, everybody would be like everybody.
    with pytest.raises(ValueError, match=r"pair\.onnx: its output is one number for each image"):
        OnnxRecogniser(path, spec(path, output=1))
    with pytest.raises(WeightsError, match=r"has 2 outputs, the spec of linear asks for output 2"):
        OnnxRecogniser(path, spec(path, output=2))


def test_another_size_is_an_error_unless_the_spec_resizes(linear):
    path, matrix = linear
    large = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="takes arcface-5pt images of 8 x 8 pixels, got 32 x 32"):
        OnnxRecogniser(path, spec(path)).embed(large)
    crop = FaceCrop(8, (0.25, 0.25, 0.75, 0.75))
    rules = spec(path, resize=True, box=crop.box, alignment=crop.label)
    got, _ = OnnxRecogniser(path, rules).embed(large)
    pixels = crop(torch.from_numpy(large).permute(0, 3, 1, 2).float()).numpy()
    wanted = ((pixels - 127.5) / 127.5).reshape(2, -1) @ matrix
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_scores_follow_the_score_type(linear):
    path = linear[0]
    e1, e2 = np.array([3.0, 4, 0, 0, 0]), np.array([[3.0, 0, 0, 0, 0], [3, 4, 0, 0, 12]])
    similar = OnnxRecogniser(path, spec(path))
    np.testing.assert_allclose(similar.compare(e1, e2), [0.6, 5 / 13], atol=1e-12)
    distant = OnnxRecogniser(path, spec(path, score_type="dissimilarity"))
    np.testing.assert_allclose(distant.compare(e1, e2), [1 - 4, 1 - 12], atol=1e-12)
    # Of either metric a larger value is more alike, and score files must say so.
    assert similar.score_type == distant.score_type == "similarity"


def test_an_embedding_that_is_not_a_number_is_a_failure_to_acquire(tmp_path, models):
    """Values near the largest float overflow in the sum."""
    path, _ = models.recogniser(tmp_path / "model.onnx")
    judge = OnnxRecogniser(path, spec(path, std=(1e-36, 1e-36, 1e-36)))
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    embeddings, acquired = judge.embed(white)
    assert not acquired.any()
    assert np.isnan(embeddings).all()


def test_no_images_give_no_embeddings(linear):
    judge = OnnxRecogniser(linear[0], spec(linear[0]))
    embeddings, acquired = judge.embed(np.zeros((0, 8, 8, 3), np.uint8))
    assert embeddings.shape == (0, 5)
    assert acquired.shape == (0,)


@pytest.mark.parametrize("images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)])
def test_what_is_not_a_batch_of_pixels_is_named(linear, images):
    with pytest.raises(ValueError, match=r"expected \(B, H, W, 3\) uint8 RGB"):
        OnnxRecogniser(linear[0], spec(linear[0])).embed(images)


def test_a_missing_file_names_its_origin_and_licence(tmp_path, linear):
    with pytest.raises(WeightsError, match=r"absent\.onnx is missing; .*the tests.*MIT"):
        OnnxRecogniser(tmp_path / "absent.onnx", spec(linear[0]))


def test_another_model_is_refused_before_it_is_loaded(linear):
    path, _ = linear
    with pytest.raises(WeightsError, match="it was altered or is another model"):
        OnnxRecogniser(path, spec(path, sha256="0" * 64))


def test_a_damaged_file_is_named(linear):
    path, _ = linear
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"linear\.onnx cannot be run"):
        OnnxRecogniser(path, spec(path))


@pytest.mark.parametrize("changes", [{"size": 16}, {"layout": "nhwc"}])
def test_a_spec_that_contradicts_the_file_is_refused(linear, changes):
    with pytest.raises(WeightsError, match="correct size or layout"):
        OnnxRecogniser(linear[0], spec(linear[0], **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"colours": "gbr"},
        {"std": (0.0, 1, 1)},
        {"mean": (1.0, 2.0)},
        {"layout": "chw"},
        {"score_type": "distance"},
        {"size": 0},
    ],
)
def test_an_impossible_spec_is_refused(linear, changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        replace(spec(linear[0]), **changes)


def test_without_onnxruntime_the_extra_is_named(linear, monkeypatch):
    rules = spec(linear[0])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingPackageError, match=r"pip install .adjointdeis\[insightface\]"):
        OnnxRecogniser(linear[0], rules)


def test_the_command_line_makes_it(tmp_path, models, photographs) -> None:
    from hydra.utils import instantiate
    from tiny_profile import composed

    path, _ = models.recogniser(tmp_path / "mine.onnx")
    line = ["judges=onnx", f"judges.onnx.file={path}", "judges.onnx.size=8", "paths.root=."]
    judge = instantiate(composed(line).judges.onnx)
    assert isinstance(judge, Recogniser)
    assert (judge.name, judge.label, judge.metric) == ("mine", "mine", "cosine")
    assert judge.fingerprint == fingerprint(path) and judge.alignment == FaceCrop(8).label
    same = OnnxRecogniser(path, spec(path, alignment=judge.alignment))
    np.testing.assert_array_equal(judge.embed(photographs)[0], same.embed(photographs)[0])
    assert (
        judge.embed(photographs.repeat(2, 1).repeat(2, 2))[0].shape
        == judge.embed(photographs)[0].shape
    )
    line += ["judges.onnx.name=other", "judges.onnx.label=Other", f"judges.onnx.sha256={'0' * 64}"]
    with pytest.raises(Exception, match="the spec of other says 0000"):
        instantiate(composed(line).judges.onnx)
    with pytest.raises(Exception, match=r"nowhere\.onnx is missing"):
        instantiate(
            composed([*line[:1], "judges.onnx.file=nowhere.onnx", "paths.root=."]).judges.onnx
        )


def test_it_can_stand_beside_dlib() -> None:
    from tiny_profile import composed

    line = ["judges=[dlib,onnx]", "judges.onnx.file=x.onnx", "paths.root=."]
    assert list(composed(line).judges) == ["dlib", "onnx"]
