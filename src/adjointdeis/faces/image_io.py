"""Reading and writing of face images as uint8 RGB arrays, with errors that name the file."""

import hashlib
import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from zipfile import Path as ZipPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

AnyPath = Path | ZipPath
"""A file on disk or a member of a zip archive; both offer `read_bytes`, `name`, `iterdir`."""


class ImageError(ValueError):
    """The file is not an image that can be decoded."""


def read_image(path: AnyPath | str) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Args:
        path: A file, or a `zipfile.Path` inside an archive.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: The file is not an image, or is truncated; the message names it.
    """
    path = Path(path) if isinstance(path, str) else path
    if not path.is_file():
        raise FileNotFoundError(f"image {path}: no such file")
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"{path}: not a readable image ({error}); expected one of {', '.join(IMAGE_SUFFIXES)}"
        ) from error


def write_image(path: Path | str, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Writes (H, W, 3) uint8 RGB in the format of the suffix, atomically.

    Args:
        path: Where to; folders are made.
        image: The pixels.
        text: Provenance that a PNG carries as international text chunks; for .png only.

    Raises:
        ValueError: `text` for a format that has no place for it.
    """
    path = Path(path)
    options = {}
    if text:
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: provenance text needs a .png file")
        options["pnginfo"] = info = PngInfo()
        for key, value in text.items():
            info.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=path.suffix, prefix=".partial-", dir=path.parent)
    os.close(handle)
    try:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, **options)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def sha256_of(data: bytes | np.ndarray) -> str:
    """Hexadecimal SHA-256 of bytes, or of an array's shape, dtype and content."""
    if isinstance(data, np.ndarray):
        header = f"{data.dtype.str}{data.shape}".encode()
        return hashlib.sha256(header + np.ascontiguousarray(data).tobytes()).hexdigest()
    return hashlib.sha256(data).hexdigest()
