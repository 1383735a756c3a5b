"""insightface packages from a local folder: a small detector and a small recogniser."""

import sys

import numpy as np
import pytest

from adjointdeis.extras import MissingPackageError
from adjointdeis.faces.alignment import ARCFACE_TEMPLATE, align_arcface
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.recognisers.insightface_package import InsightFaceRecogniser
from adjointdeis.faces.weights import WeightsError

POINTS = ARCFACE_TEMPLATE / 112 * 40 + 12


@pytest.fixture
def insightface():
    return pytest.importorskip("insightface.app")


@pytest.fixture
def package(tmp_path, models):
    folder = tmp_path / "package"
    folder.mkdir()
    models.detector(folder / "det.onnx", POINTS)
    return folder, models.recogniser(folder / "rec.onnx", side=112)[1]


def photograph(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def test_a_package_detects_aligns_and_embeds(insightface, package):
    folder, matrix = package
    judge = InsightFaceRecogniser(folder, detection_size=64)
    assert isinstance(judge, Recogniser)
    dark = np.zeros((64, 64, 3), np.uint8)
    embeddings, acquired = judge.embed([photograph(), dark, photograph(1)])
    assert acquired.tolist() == [True, False, True]
    assert np.isnan(embeddings[1]).all()
    face = align_arcface(photograph(), POINTS, 112)
    blob = (face.astype(np.float64).transpose(2, 0, 1) - 127.5) / 127.5
    # The package's landmarks are float32, which rounds a few pixels of the crop differently.
    np.testing.assert_allclose(embeddings[0], blob.ravel() @ matrix, rtol=0, atol=1.5)
    assert np.abs(embeddings[0] - blob[::-1].ravel() @ matrix).max() > 10
    assert judge.compare(embeddings[0], embeddings[2]) < 0.999
    assert (judge.name, judge.alignment, judge.embedding_dim) == ("package", "arcface-5pt", 5)
    assert "non commercial" in judge.licence
    assert len(judge.fingerprint) == 64


def test_the_fingerprint_covers_the_detector(insightface, package, models):
    folder, _ = package
    before = InsightFaceRecogniser(folder, detection_size=64).fingerprint
    models.detector(folder / "det.onnx", POINTS + 1)
    assert InsightFaceRecogniser(folder, detection_size=64).fingerprint != before


def test_coinciding_landmarks_are_a_failure_to_acquire(insightface, package, models):
    folder, _ = package
    models.detector(folder / "det.onnx", np.full((5, 2), 20.0))
    embeddings, acquired = InsightFaceRecogniser(folder, detection_size=64).embed([photograph()])
    assert not acquired.any()
    assert np.isnan(embeddings).all()


def test_what_is_not_an_image_is_named(insightface, package):
    judge = InsightFaceRecogniser(package[0], detection_size=64)
    with pytest.raises(ValueError, match=r"expected \(H, W, 3\) uint8 RGB"):
        judge.embed([np.zeros((64, 64))])


def test_a_bare_name_is_refused_and_downloads_nothing(monkeypatch):
    def forbidden(name):
        raise AssertionError(f"{name} was imported for a package that is not there")

    monkeypatch.setattr("adjointdeis.extras.import_module", forbidden)
    with pytest.raises(WeightsError, match=r"buffalo_l is not a folder.*Names are not accepted"):
        InsightFaceRecogniser("buffalo_l")


def test_an_empty_folder_says_what_is_expected(tmp_path):
    with pytest.raises(WeightsError, match=r"no \.onnx file; expected a detector"):
        InsightFaceRecogniser(tmp_path)


def test_a_package_without_a_detector_is_named(insightface, package):
    folder, _ = package
    (folder / "det.onnx").unlink()
    with pytest.raises(WeightsError, match=r"no detector .* among rec\.onnx"):
        InsightFaceRecogniser(folder)


def test_a_package_without_a_recogniser_is_named(insightface, package):
    folder, _ = package
    (folder / "rec.onnx").unlink()
    with pytest.raises(WeightsError, match=r"no recogniser .* among det\.onnx.*OnnxRecogniser"):
        InsightFaceRecogniser(folder)


def test_a_damaged_package_is_named(insightface, package):
    folder, _ = package
    (folder / "rec.onnx").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match="package cannot be loaded"):
        InsightFaceRecogniser(folder)


def test_without_insightface_the_extra_is_named(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(MissingPackageError, match=r"pip install .adjointdeis\[insightface\]"):
        InsightFaceRecogniser(package[0])
