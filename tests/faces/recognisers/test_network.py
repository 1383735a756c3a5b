"""Torch recognisers: the differentiable path and the black-box path are one network."""

import numpy as np
import pytest
import torch

from adjointdeis.faces.networks import AdaFace, AdaFaceConfig, IResNet, IResNetConfig
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.network import Guides, NetworkRecogniser

SMALL = {"image_size": 16, "layers": (1, 1, 1, 1), "widths": (4, 4, 6, 8), "embedding_dim": 5}


def recogniser(kind: str = "iresnet") -> NetworkRecogniser:
    torch.manual_seed(0)
    adaface = kind == "adaface"
    network = AdaFace(AdaFaceConfig(**SMALL)) if adaface else IResNet(IResNetConfig(**SMALL))
    return NetworkRecogniser(
        name=kind,
        network=network.eval().requires_grad_(False),
        crop=FaceCrop(16, bgr=adaface),
        fingerprint="0" * 64,
        licence="MIT",
    )


@pytest.fixture
def photographs() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (130, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["iresnet", "adaface"])
def test_both_paths_give_the_same_embedding(photographs, kind):
    judge = recogniser(kind)
    assert isinstance(judge, Recogniser)
    embeddings, acquired = judge.embed(photographs)
    pixels = torch.from_numpy(photographs).permute(0, 3, 1, 2) / 127.5 - 1
    features = judge.features(pixels)
    np.testing.assert_allclose(embeddings, features.numpy(), rtol=1e-4, atol=1e-5)
    assert embeddings.shape == (130, judge.embedding_dim) == (130, 5)
    assert embeddings.dtype == np.float32
    assert acquired.all()


def test_the_identity_loss_gets_a_gradient(photographs):
    judge = recogniser()
    pixels = (torch.from_numpy(photographs[:2]).permute(0, 3, 1, 2) / 127.5 - 1).requires_grad_()
    judge.features(pixels)[:, 0].sum().backward()
    assert (pixels.grad.abs().amax((1, 2, 3)) > 0).all()


def test_an_embedding_that_is_not_a_number_is_a_failure_to_acquire(photographs):
    judge = recogniser()
    judge.network.features.running_mean[0] = float("inf")
    embeddings, acquired = judge.embed(photographs[:3])
    assert not acquired.any()
    assert np.isnan(embeddings).all()
    assert np.isnan(judge.compare(embeddings, embeddings)).all()


def test_no_images_give_no_embeddings():
    embeddings, acquired = recogniser().embed(np.zeros((0, 16, 16, 3), np.uint8))
    assert embeddings.shape == (0, 5)
    assert acquired.shape == (0,)


def test_scores_are_cosines_over_all_pairs():
    judge = recogniser()
    e = np.array([[3.0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [-2, 0, 0, 0, 0]])
    expected = [[1, 0.5**0.5, -1], [0.5**0.5, 1, -(0.5**0.5)], [-1, -(0.5**0.5), 1]]
    np.testing.assert_allclose(judge.compare(e[:, None], e[None]), expected, atol=1e-12)


def test_the_alignment_is_the_crops():
    assert recogniser().alignment == "ffhq-resize16"
    assert recogniser().score_type == "similarity"
    assert recogniser().white_box


def test_guides_stand_side_by_side(photographs):
    one, two = recogniser(), recogniser("adaface")
    both = Guides((one, two))
    x = torch.from_numpy(photographs[:3]).permute(0, 3, 1, 2) / 127.5 - 1
    expected = torch.cat([one.features(x), two.features(x)], 1)
    torch.testing.assert_close(both.features(x), expected)
    assert both.parts == ((5, "cosine"), (5, "cosine"))
    assert both.name == "iresnet+adaface"
    assert both.fingerprint != one.fingerprint == Guides((one,)).fingerprint
    assert sum(1 for _ in both.network.parameters()) == sum(
        1 for g in (one, two) for _ in g.network.parameters()
    )
