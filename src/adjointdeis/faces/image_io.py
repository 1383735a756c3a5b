"""Reading and writing of face images as uint8 RGB arrays, with errors that name the file."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adjointdeis.files import write_atomically
from adjointdeis.images import IMAGE_SUFFIXES, AnyPath, ImageError, open_rgb

__all__ = [
    "IMAGE_SUFFIXES", "AnyPath", "ImageError", "first_few", "read_image", "read_images",
    "require_rgb", "sha256_of", "write_image",
]  # fmt: skip


def read_image(path: AnyPath | str) -> np.ndarray:
    """An image file as (H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Args:
        path: A file, or a `zipfile.Path` inside an archive.

    Raises:
        FileNotFoundError: There is no such file.
        ImageError: Not an image, truncated, or of a kind without one reading; names the file.
    """
    return np.array(open_rgb(Path(path) if isinstance(path, str) else path))


def read_images(
    paths: Iterable[AnyPath], take: Callable[[np.ndarray], Any] | None = None
) -> list[Any]:
    """Every image of a list, read as by `read_image`; all that cannot be are told of together.

    Args:
        paths: The files.
        take: What to keep of each image, such as its shape where all of them would fill the memory;
            None keeps the image.

    Raises:
        ImageError: Names those that cannot be read: the first few, and how many there are.
    """
    found, problems = [], []
    for path in paths:
        try:
            image = read_image(path)
        except (ImageError, OSError) as error:
            problems.append(error)
            continue
        found.append(image if take is None else take(image))
    if len(problems) == 1:
        raise problems[0]
    if problems:
        total = len(found) + len(problems)
        raise ImageError(f"{len(problems)} of {total} images cannot be read: {first_few(problems)}")
    return found


def first_few(problems: Sequence[object], most: int = 5) -> str:
    """Problems in one line: the first ones, and how many more there are."""
    left = len(problems) - most
    return "; ".join([*map(str, problems[:most]), *([f"and {left} more"] if left > 0 else [])])


def write_image(path: Path | str, image: np.ndarray, text: Mapping[str, str] | None = None) -> None:
    """Writes (H, W, 3) uint8 RGB in the format of the suffix, atomically.

    Args:
        path: Where to; folders are made.
        image: The pixels.
        text: Provenance that a PNG carries as international text chunks; for .png only.

    Raises:
        ValueError: `text` for a format that has no place for it, or an unknown suffix.
    """
    path = Path(path)
    options: dict[str, PngInfo] = {}
    if text:
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: provenance text needs a .png file")
        options["pnginfo"] = info = PngInfo()
        for key, value in text.items():
            info.add_itxt(key, value)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: no image format; expected one of {', '.join(IMAGE_SUFFIXES)}")
    picture = Image.fromarray(np.ascontiguousarray(image))
    write_atomically(path, lambda file: picture.save(file, format=kind, **options), "wb")


def require_rgb(image: np.ndarray) -> None:
    """Refuses an array that is no image.

    Raises:
        ValueError: Another shape or type than (H, W, 3) uint8.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8 RGB, got {image.shape} of {image.dtype}")


def sha256_of(data: bytes | np.ndarray) -> str:
    """Hexadecimal SHA-256 of bytes, or of an array's shape, dtype and content."""
    if isinstance(data, np.ndarray):
        header = f"{data.dtype.str}{data.shape}".encode()
        return hashlib.sha256(header + np.ascontiguousarray(data).tobytes()).hexdigest()
    return hashlib.sha256(data).hexdigest()
