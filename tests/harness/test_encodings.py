"""The cache of encodings: hits, misses, damage, and what the keys depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_profile import ENCODING, draw_face

from adjointdeis.faces.tensors import to_tensor
from adjointdeis.harness import assets
from adjointdeis.harness.encodings import Encodings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def autoencoder(tiny):
    return assets.autoencoder("diffae.safetensors", assets.profile("mini", str(tiny / "profile")))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.stack([draw_face(seed, False) for seed in (1, 2, 3)])


class Counting:
    """Counts the images that are really encoded."""

    def __init__(self, autoencoder, monkeypatch) -> None:
        self.count, inner = 0, type(autoencoder).encode

        def encode(this, images, z, *settings):
            self.count += len(images)
            return inner(this, images, z, *settings)

        monkeypatch.setattr(type(autoencoder), "encode", encode)


def test_a_second_call_costs_nothing_and_gives_the_same(
    autoencoder, images, tmp_path, monkeypatch
) -> None:
    counter = Counting(autoencoder, monkeypatch)
    encodings = Encodings(autoencoder, tmp_path / "cache")
    first = encodings(images, CPU, ENCODING)
    assert counter.count == 3
    again = Encodings(autoencoder, tmp_path / "cache")(images[[2, 0]], CPU, ENCODING)
    assert counter.count == 3
    assert torch.equal(again.x_T, first.x_T[[2, 0]])
    assert torch.equal(again.z, first.z[[2, 0]])
    assert first.nfe == ENCODING
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_only_what_is_missing_is_encoded(autoencoder, images, tmp_path, monkeypatch) -> None:
    counter = Counting(autoencoder, monkeypatch)
    encodings = Encodings(autoencoder, tmp_path)
    encodings(images[:1], CPU, ENCODING)
    whole = encodings(images, CPU, ENCODING)
    assert counter.count == 3
    fresh = Encodings(autoencoder, None)(images, CPU, ENCODING)
    torch.testing.assert_close(whole.x_T, fresh.x_T, rtol=1e-4, atol=1e-4)


def test_without_a_cache_nothing_is_kept(autoencoder, images, monkeypatch) -> None:
    counter = Counting(autoencoder, monkeypatch)
    encodings = Encodings(autoencoder, None)
    encodings(images, CPU, ENCODING)
    encodings(images, CPU, ENCODING)
    assert counter.count == 6


def test_pixels_weights_and_steps_are_in_the_key(
    autoencoder, images, tmp_path, monkeypatch
) -> None:
    counter = Counting(autoencoder, monkeypatch)
    Encodings(autoencoder, tmp_path)(images[:1], CPU, ENCODING)
    other = images[:1].copy()
    other[0, 0, 0, 0] ^= 1
    Encodings(autoencoder, tmp_path)(other, CPU, ENCODING)
    assert counter.count == 2
    Encodings(autoencoder, tmp_path)(images[:1], CPU, 20)
    assert counter.count == 3
    Encodings(replace(autoencoder, fingerprint="1" * 64), tmp_path)(images[:1], CPU, ENCODING)
    assert counter.count == 4
    Encodings(autoencoder, tmp_path)(images[:1], CPU, ENCODING, "greedy_dim")
    assert counter.count == 5
    Encodings(autoencoder, tmp_path)(images[:1], CPU, ENCODING, codes_of=images[1:2])
    assert counter.count == 6
    # An image under its own code is the plain encoding, however it is asked for.
    Encodings(autoencoder, tmp_path)(images[:1], CPU, ENCODING, codes_of=images[:1].copy())
    assert counter.count == 6


def test_a_pre_morph_is_encoded_under_the_code_of_the_photograph(autoencoder, images) -> None:
    encodings = Encodings(autoencoder, None)
    mixed = encodings(images[:1], CPU, ENCODING, codes_of=images[1:2])
    z = autoencoder.code(to_tensor(images[1:2]))
    torch.testing.assert_close(mixed.z, z)
    x_T = autoencoder.encode(to_tensor(images[:1]), z, ENCODING).x_T
    torch.testing.assert_close(mixed.x_T, x_T)
    assert not torch.allclose(mixed.x_T, encodings(images[:1], CPU, ENCODING).x_T, atol=1e-3)


def test_a_damaged_entry_is_made_again(autoencoder, images, tmp_path, monkeypatch) -> None:
    encodings = Encodings(autoencoder, tmp_path)
    first = encodings(images[:1], CPU, ENCODING)
    entry = next(tmp_path.iterdir())
    entry.write_bytes(entry.read_bytes()[:20])
    counter = Counting(autoencoder, monkeypatch)
    again = encodings(images[:1], CPU, ENCODING)
    assert counter.count == 1
    assert torch.equal(again.x_T, first.x_T)
    encodings(images[:1], CPU, ENCODING)
    assert counter.count == 1
