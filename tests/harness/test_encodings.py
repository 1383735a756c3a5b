"""The cache of encodings: hits, misses, damage, and what the keys depend on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_profile import ENCODING, draw_face

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

        def encode(this, images, z, steps=250):
            self.count += len(images)
            return inner(this, images, z, steps)

        monkeypatch.setattr(type(autoencoder), "encode", encode)


def test_a_second_call_costs_nothing_and_gives_the_same(
    autoencoder, images, tmp_path, monkeypatch
) -> None:
    counter = Counting(autoencoder, monkeypatch)
    encodings = Encodings(autoencoder, ENCODING, tmp_path / "cache")
    first = encodings(images, CPU)
    assert counter.count == 3
    again = Encodings(autoencoder, ENCODING, tmp_path / "cache")(images[[2, 0]], CPU)
    assert counter.count == 3
    assert torch.equal(again.x_T, first.x_T[[2, 0]])
    assert torch.equal(again.z, first.z[[2, 0]])
    assert first.nfe == ENCODING
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_only_what_is_missing_is_encoded(autoencoder, images, tmp_path, monkeypatch) -> None:
    counter = Counting(autoencoder, monkeypatch)
    encodings = Encodings(autoencoder, ENCODING, tmp_path)
    encodings(images[:1], CPU)
    whole = encodings(images, CPU)
    assert counter.count == 3
    fresh = Encodings(autoencoder, ENCODING, None)(images, CPU)
    torch.testing.assert_close(whole.x_T, fresh.x_T, rtol=1e-4, atol=1e-4)


def test_without_a_cache_nothing_is_kept(autoencoder, images, monkeypatch) -> None:
    counter = Counting(autoencoder, monkeypatch)
    encodings = Encodings(autoencoder, ENCODING, None)
    encodings(images, CPU)
    encodings(images, CPU)
    assert counter.count == 6


def test_pixels_weights_and_steps_are_in_the_key(
    autoencoder, images, tmp_path, monkeypatch
) -> None:
    counter = Counting(autoencoder, monkeypatch)
    Encodings(autoencoder, ENCODING, tmp_path)(images[:1], CPU)
    other = images[:1].copy()
    other[0, 0, 0, 0] ^= 1
    Encodings(autoencoder, ENCODING, tmp_path)(other, CPU)
    assert counter.count == 2
    Encodings(autoencoder, 20, tmp_path)(images[:1], CPU)
    assert counter.count == 3
    Encodings(replace(autoencoder, fingerprint="1" * 64), ENCODING, tmp_path)(images[:1], CPU)
    assert counter.count == 4


def test_a_damaged_entry_is_made_again(autoencoder, images, tmp_path, monkeypatch) -> None:
    encodings = Encodings(autoencoder, ENCODING, tmp_path)
    first = encodings(images[:1], CPU)
    entry = next(tmp_path.iterdir())
    entry.write_bytes(entry.read_bytes()[:20])
    counter = Counting(autoencoder, monkeypatch)
    again = encodings(images[:1], CPU)
    assert counter.count == 1
    assert torch.equal(again.x_T, first.x_T)
    encodings(images[:1], CPU)
    assert counter.count == 1
