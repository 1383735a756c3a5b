"""Degraded copies are made once, and again when they are not what was written."""

from pathlib import Path

import numpy as np
import pytest

from adjointdeis.detection import Jpeg
from adjointdeis.evaluation.provenance import png_texts
from adjointdeis.faces.image_io import read_image, write_image
from adjointdeis.harness.degrading import degraded_copies


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "001.png"
    write_image(path, np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), {})
    return path


def other_pixels(copy: Path) -> None:
    write_image(copy, 255 - read_image(copy), png_texts(copy))


def cut_short(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-40])


def flipped(copy: Path) -> None:
    data = bytearray(copy.read_bytes())
    data[data.index(b"IDAT") + 8] ^= 0xFF
    copy.write_bytes(data)


@pytest.mark.parametrize("damage", [other_pixels, cut_short, flipped, Path.unlink])
def test_a_damaged_copy_is_made_again(original: Path, tmp_path: Path, damage) -> None:
    def copied(quality: int = 50) -> Path:
        return degraded_copies({"a/001.png": original}, Jpeg(quality=quality), tmp_path / "copies")[
            "a/001.png"
        ]

    copy = copied()
    made, when = copy.read_bytes(), copy.stat().st_mtime_ns
    assert copied().stat().st_mtime_ns == when, "a whole copy is kept"
    damage(copy)
    assert copied().read_bytes() == made
    assert not np.array_equal(read_image(copied(10)), read_image(copied(90)))
