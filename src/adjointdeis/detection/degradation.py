"""What happens to a document's image before anybody looks: compression, resizing, print-scan.

A degradation maps a batch of images to images of the same size, so that recognisers and detectors
take them as they take the originals. What is random in it is drawn from the seed, the degradation
and the **name** of each image: a picture is changed in the same way whatever the order, the batch
or the run, by whoever asks. Degradations are perturbations of an evaluation; nothing here prepares
a picture for a document.

References:
    | ICAO Doc 9303 part 9: a compressed portrait takes 15 to 20 kB
    | https://www.icao.int/publications/doc-series/doc-9303
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image, features

NONE = "none"
"""Name of the images as they are."""


class DegradationError(ValueError):
    """A degradation cannot be made with these settings; the message says which would do."""


@runtime_checkable
class Degradation(Protocol):
    """A change of images that keeps their size.

    Attributes:
        name: In score files.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Changed images.

        Args:
            images: (B, H, W, 3) uint8 RGB.
            names: B names, from which what is random is drawn.

        Returns:
            (B, H, W, 3) uint8.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Jpeg:
    """JPEG, compressed and read again.

    Args:
        quality: Of libjpeg, 1 to 95.
        subsampling: Chroma: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0.
        name: In score files.

    Raises:
        DegradationError: A value outside its range.
    """

    quality: int = 75
    subsampling: int = 2
    name: str = "jpeg"

    def __post_init__(self) -> None:
        whole = isinstance(self.quality, int) and not isinstance(self.quality, bool)
        if not (whole and 1 <= self.quality <= 95) or self.subsampling not in (0, 1, 2):
            raise DegradationError(
                f"degradation {self.name}: quality={self.quality}, subsampling={self.subsampling}: "
                "expected a whole quality of 1 to 95 and a subsampling of 0, 1 or 2"
            )

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        options = {"quality": self.quality, "subsampling": self.subsampling}
        return _each(images, lambda image: _decoded(_encoded(image, "JPEG", **options)))


@dataclass(frozen=True, kw_only=True)
class Jpeg2000:
    """JPEG 2000 as a passport's chip holds it: a portrait of its size in 15 to 20 kB.

    The image is resized so that its shorter side has ``side`` pixels, compressed by the smallest
    rate whose file takes ``smallest`` to ``largest`` bytes, read and resized back. An image so
    plain that its lossless file is smaller keeps that one.

    Args:
        smallest, largest: Bytes of the file; a kB is 1000 bytes.
        side: Shorter side of the stored portrait in pixels: 413 are 35 mm at 300 dots an inch.
            None stores the image at its own size.
        name: In score files.

    Raises:
        DegradationError: An empty range, no such side, or a Pillow without OpenJPEG.
    """

    smallest: int = 15_000
    largest: int = 20_000
    side: int | None = 413
    name: str = "jpeg2000"

    def __post_init__(self) -> None:
        if not 0 < self.smallest < self.largest or (self.side is not None and self.side < 1):
            raise DegradationError(
                f"degradation {self.name}: smallest={self.smallest}, largest={self.largest}, "
                f"side={self.side}: expected 0 < smallest < largest bytes and a side of 1 or more"
            )
        if not features.check("jpg_2000"):
            raise DegradationError(
                "this Pillow was built without OpenJPEG, so that it writes no JPEG 2000; install "
                "a wheel of it (pip install --force-reinstall pillow)"
            )

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return _each(images, self._stored)

    def file_of(self, image: np.ndarray) -> bytes:
        """The file of an image (H, W, 3) uint8 at the portrait's size.

        Raises:
            DegradationError: No rate gives a file of that many bytes.
        """
        height, width = image.shape[:2]
        if self.side is not None:
            scale = self.side / min(height, width)
            image = _resized(image, (round(height * scale), round(width * scale)))
        # Rates are how many times smaller the file is than the pixels; files grow as rates fall.
        low, high = 1.0, float(image.nbytes)
        rate = 2 * image.nbytes / (self.smallest + self.largest)
        last = False
        while True:
            data = _encoded(
                image, "JPEG2000", quality_mode="rates", quality_layers=[max(rate, 1.0)],
                irreversible=rate > 1,
            )  # fmt: skip
            if self.smallest <= len(data) <= self.largest or (
                rate <= 1 and len(data) < self.smallest
            ):
                return data
            if last:
                break
            low, high = (rate, high) if len(data) > self.largest else (low, rate)
            last = high <= 1.01 * low
            rate = 1.0 if last else (low * high) ** 0.5
        raise DegradationError(
            f"degradation {self.name}: no JPEG 2000 file of an image of {image.shape[1]} x "
            f"{image.shape[0]} pixels takes {self.smallest} to {self.largest} bytes; widen the "
            "range"
        )

    def _stored(self, image: np.ndarray) -> np.ndarray:
        return _resized(_decoded(self.file_of(image)), image.shape[:2])


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Reduced and enlarged again: detail below the smaller grid is lost.

    Args:
        share: Side of the smaller image as a share of the image's, in (0, 1).
        name: In score files.

    Raises:
        DegradationError: A share outside its range.
    """

    share: float = 0.5
    name: str = "resize"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise DegradationError(f"degradation {self.name}: share={self.share}: expected 0 .. 1")

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        def smaller(image: np.ndarray) -> np.ndarray:
            height, width = image.shape[:2]
            small = (max(1, round(self.share * height)), max(1, round(self.share * width)))
            return _resized(_resized(image, small), (height, width))

        return _each(images, smaller)


@dataclass(frozen=True)
class Degradations:
    """Several degradations, one after the other.

    Args:
        steps: In their order; at least one.

    Raises:
        DegradationError: There is none.
    """

    steps: tuple[Degradation, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise DegradationError("a sequence of no degradations; give one, or None for none")

    @property
    def name(self) -> str:
        """Names of the steps, joined by a plus."""
        return "+".join(step.name for step in self.steps)

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        for step in self.steps:
            images = step(images, names)
        return images


def generator(seed: int, degradation: str, image: str) -> np.random.Generator:
    """What is random of one image under one degradation, whatever else is degraded.

    Args:
        seed: Of the run.
        degradation: Its name.
        image: The image's name.
    """
    text = f"{seed}\n{degradation}\n{image}".encode()
    return np.random.default_rng(np.frombuffer(hashlib.sha256(text).digest(), np.uint32))


def _each(images: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if not len(images):
        return images.copy()
    return np.stack([change(image) for image in images])


def _encoded(image: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def _decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 at another (height, width): bicubic, low-passed where it shrinks."""
    if image.shape[:2] == tuple(size):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image))
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
