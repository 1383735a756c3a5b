"""The cache of encodings: hits, misses, damage, and what the keys depend on."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_profile import ENCODING, draw_face

from adjointdeis.faces.image_io import read_image
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
    """Counts the different images that are really encoded."""

    def __init__(self, autoencoder, monkeypatch) -> None:
        self.count, inner = 0, type(autoencoder).encode

        def encode(this, images, z, *settings):
            self.count += len(images.flatten(1).unique(dim=0))
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
    assert torch.equal(whole.x_T, fresh.x_T) and torch.equal(whole.z, fresh.z)


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


def test_an_encoding_does_not_depend_on_what_is_encoded_with_it(images) -> None:
    """With the network that ships, whose rounding does depend on the size of a batch."""
    autoencoder = assets.autoencoder("diffae.safetensors", assets.profile("mini"))
    folder = sorted((assets.MINI / "faces").glob("*_03.png"))
    faces = np.stack([read_image(path) for path in folder[:6]])
    encodings = Encodings(autoencoder, None)
    whole = encodings(faces, CPU, 4)
    for chosen in ([3], [5, 4], [2, 0, 2], [5, 4, 3, 2, 1, 0]):
        some = encodings(faces[chosen], CPU, 4)
        assert torch.equal(some.x_T, whole.x_T[chosen]), chosen
        assert torch.equal(some.z, whole.z[chosen]), chosen


def test_the_same_image_twice_is_encoded_once(autoencoder, images, monkeypatch) -> None:
    counter = Counting(autoencoder, monkeypatch)
    twice = Encodings(autoencoder, None)(images[[0, 1, 0, 1, 0]], CPU, ENCODING)
    assert counter.count == 2
    assert torch.equal(twice.x_T[0], twice.x_T[4]) and torch.equal(twice.z[1], twice.z[3])


def spoil_cut(entry: Path, other: Path) -> None:
    entry.write_bytes(entry.read_bytes()[:-1])


def spoil_empty(entry: Path, other: Path) -> None:
    entry.write_bytes(b"")


def spoil_bit(entry: Path, other: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[-3] ^= 64  # an exponent: a number that is finite and wrong
    entry.write_bytes(data)


def spoil_swapped(entry: Path, other: Path) -> None:
    shutil.copy(other, entry)


def spoil_foreign(entry: Path, other: Path) -> None:
    entry.write_bytes(entry.read_bytes()[32:])  # a whole safetensors file, without the checksum


def spoil_earlier(entry: Path, other: Path) -> None:
    with entry.open("wb") as file:
        np.savez(file, z=np.zeros(8, np.float32))


def spoil_pipe(entry: Path, other: Path) -> None:
    entry.unlink()
    os.mkfifo(entry)


def spoil_dangling(entry: Path, other: Path) -> None:
    entry.unlink()
    entry.symlink_to("nowhere")


def spoil_huge(entry: Path, other: Path) -> None:
    with entry.open("wb") as file:
        file.truncate(2**40)


SPOILED = [value for name, value in list(globals().items()) if name.startswith("spoil_")]


@pytest.mark.parametrize("spoil", SPOILED)
def test_an_entry_that_cannot_be_believed_is_said_and_made_again(
    autoencoder, images, tmp_path, monkeypatch, spoil
) -> None:
    encodings = Encodings(autoencoder, tmp_path)
    first = encodings(images[:1], CPU, ENCODING)
    (entry,) = tmp_path.iterdir()
    encodings(images[1:2], CPU, ENCODING)
    (other,) = set(tmp_path.iterdir()) - {entry}
    spoil(entry, other)
    counter = Counting(autoencoder, monkeypatch)
    with pytest.warns(UserWarning, match=f"{entry.name}: a damaged, truncated or foreign entry"):
        again = encodings(images[:1], CPU, ENCODING)
    assert counter.count == 1
    assert torch.equal(again.x_T, first.x_T) and torch.equal(again.z, first.z)
    encodings(images[:2], CPU, ENCODING)
    assert counter.count == 1
