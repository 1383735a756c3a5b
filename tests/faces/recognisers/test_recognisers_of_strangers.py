"""Networks and descriptions of other people: the right embedding, or a refusal by name."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from adjointdeis.faces.datasets.pairs import most_similar_pairs
from adjointdeis.faces.recogniser import acquired, similarity
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.network import NetworkRecogniser
from adjointdeis.faces.recognisers.onnx import OnnxRecogniser, OnnxSpec
from adjointdeis.harness import assets


class Means(nn.Module):
    """(B, 3): the mean of every channel; no parameter, and `shape` is what it returns."""

    def __init__(self, shape=lambda found: found):
        super().__init__()
        self.shape = shape

    def forward(self, x):
        return self.shape(x.mean((2, 3)))


def plain(network: nn.Module, **changes) -> NetworkRecogniser:
    given = {"name": "plain", "crop": FaceCrop(4), "fingerprint": "0" * 64, "licence": "MIT",
             "dim": 3}  # fmt: skip
    return NetworkRecogniser(network=network, **(given | changes))


IMAGES = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
EXPECTED = IMAGES.mean((1, 2)) / 127.5 - 1


@pytest.mark.parametrize("shape", [lambda e: e, lambda e: (e, e.norm(dim=1)), lambda e: [e, None]])
def test_a_plain_module_with_or_without_a_norm(shape):
    found, ok = plain(Means(shape)).embed(IMAGES)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-6)
    assert ok.all()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (lambda e: {"embedding": e}, "dict"),
        (lambda e: (), "tuple"),
        (lambda e: e[:, :, None, None], r"\(2, 3, 1, 1\)"),
        (lambda e: e.mean(0), r"\(3,\)"),
        (lambda e: e[:1], r"\(1, 3\)"),
        (lambda e: e.numpy(), "ndarray"),
    ],
)
def test_what_is_no_embedding_is_named(shape, said):
    with pytest.raises(ValueError, match=f"plain: its network returns {said} for 2 images"):
        plain(Means(shape)).embed(IMAGES)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3), nn.Dropout(0.5)])
def test_a_network_that_still_trains_is_refused(layer):
    network = nn.Sequential(Means(), layer)
    with pytest.raises(ValueError, match=r"plain: .* call network.eval\(\) first"):
        plain(network)
    found, _ = plain(network.eval()).embed(IMAGES)
    np.testing.assert_allclose(found, EXPECTED, atol=1e-4)


def test_an_embedding_of_no_length_is_a_failure_to_acquire():
    """Cosines of it are 0 / 0, and a list of similar pairs sorted by them is in no order."""
    rows = np.array([[3, 4], [0, 0], [np.nan, 1], [np.inf, 1]], np.float32)
    assert acquired(rows.copy(), "cosine")[1].tolist() == [True, False, False, False]
    assert acquired(rows.copy(), "euclidean")[1].tolist() == [True, True, False, False]
    assert similarity("euclidean", rows[0], rows[1]) == 1 - 5
    judge = plain(Means(lambda e: e * torch.tensor([[1.0], [0.0]])))
    found, ok = judge.embed(IMAGES)
    assert ok.tolist() == [True, False] and np.isnan(found[1]).all()
    with pytest.raises(ValueError, match=r"no embedding \(failure to acquire\) for b"):
        most_similar_pairs(found, ["a", "b"], ["", ""], judge, 1)


def described(tmp_path, models, **changes):
    path, _ = models.recogniser(tmp_path / "m.onnx", outputs=2)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entry = {"format": "onnx", "sha256": {"m.onnx": digest}, "size": 8, "colours": "rgb",
             "mean": [127.5] * 3, "std": [127.5] * 3, "licence": "mine"}  # fmt: skip
    entry |= changes
    if entry["sha256"] == "capitals":
        entry["sha256"] = {"m.onnx": digest.upper()}
    (tmp_path / "m.json").write_text(json.dumps(entry))
    return assets.recogniser(str(tmp_path / "m.json"), assets.profile("mini", None))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sha256": "capitals"},
        {"outputs": "embedding"},
        {"outputs": ["embedding"]},
        {"mean": [0, 0, 0], "std": [1] * 3},
    ],
)
def test_a_description_that_can_be_read_one_way(tmp_path, models, changes):
    assert described(tmp_path, models, **changes).embedding_dim == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mertic": "euclidean"}, "recogniser m: unknown key 'mertic'; expected some of name, siz"),
        ({"mean": 127.5}, "mean=127.5 of m must be one number per channel"),
        ({"mean": None}, "mean=None of m"),
        ({"std": "abc"}, "std='abc' of m"),
        ({"size": "8"}, "size='8' of m: expected a side in pixels"),
        ({"size": 8.0}, "size=8.0 of m"),
        ({"size": True}, "size=True of m"),
        ({"box": [0, 0, 1]}, r"box=\[0, 0, 1\] of m must be left, top"),
        ({"box": "all"}, "box='all' of m"),
        ({"sha256": ["abc"]}, "sha256 of m must name its files"),
        ({"licence": None}, "licence=None of m"),
        ({"outputs": ["norm", "embedding"]}, "outputs=.* of m: expected the embedding's name"),
        ({"outputs": "norm"}, r"m\.onnx: its output is one number for each image"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, r"from 0 to 1.*: \[127.5, 127.5, 127.5\]"),
        ({"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, r"\[58.395, 57.12, 57"),
    ],
)  # fmt: skip
def test_a_description_that_is_wrong_is_named(tmp_path, models, changes, message):
    with pytest.raises(ValueError, match=message):
        described(tmp_path, models, **changes)


def test_capitals_of_a_fingerprint(tmp_path, models):
    path, _ = models.recogniser(tmp_path / "m.onnx")
    digest = hashlib.sha256(path.read_bytes()).hexdigest().upper()
    three: Any = np.full(3, 127.5, np.float32)
    side: Any = np.int64(8)
    given = OnnxSpec(name="m", alignment="x", sha256=digest, size=side, colours="rgb",
                     licence="mine", mean=three, std=three)  # fmt: skip
    assert OnnxRecogniser(path, given).embedding_dim == 5
