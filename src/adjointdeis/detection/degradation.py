r"""What happens to a document's image before anybody looks: compression, resizing, print-scan.

A degradation maps a batch of images to images of the same size, so that recognisers and detectors
take them as they take the originals. What is random in it is drawn from the seed, the degradation
and the **name** of each image: a picture is changed in the same way whatever the order, the batch
or the run, by whoever asks. Degradations are perturbations of an evaluation; nothing here prepares
a picture for a document.

The print-scan model, in its order, per image:

1. **printing**: the image is enlarged s times; every colour is screened: where h is the share of
   halftone, a dot pattern of period p turned by the angle of its ink (15, 75, 0 degrees) turns the
   tone c into :math:`(1-h)\,c + h\,\sigma((c - m)/w)`, m the screen's own value in (0, 1);
2. **ink and optics**: a Gaussian blur;
3. **scanning**: a slight rotation, scale and shift, drawn uniformly; reduction by area;
4. **tone**: :math:`c \mapsto b + (w - b)\,c^\gamma`, a black that is not black, a white that is
   not white, and a gamma drawn about its mean;
5. **sensor noise**: Gaussian, white.

It is a model, not a device: strengths were chosen so that an unfamiliar eye takes the result for a
scan, not fitted to a printer.

References:
    | Face Morphing Attack Generation and Detection: A Comprehensive Survey (Venkatesh et al., 2021)
    | https://arxiv.org/abs/2011.02045
    | ICAO Doc 9303 part 9: a compressed portrait takes 15 to 20 kB
    | https://www.icao.int/publications/doc-series/doc-9303
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor

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
        if not 1 <= self.quality <= 95 or self.subsampling not in (0, 1, 2):
            raise DegradationError(
                f"degradation {self.name}: quality={self.quality}, subsampling={self.subsampling}: "
                "expected a quality of 1 to 95 and a subsampling of 0, 1 or 2"
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
        for _ in range(30):
            data = _encoded(
                image, "JPEG2000", quality_mode="rates", quality_layers=[max(rate, 1.0)],
                irreversible=rate > 1,
            )  # fmt: skip
            if self.smallest <= len(data) <= self.largest or (
                rate <= 1 and len(data) < self.smallest
            ):
                return data
            low, high = (rate, high) if len(data) > self.largest else (low, rate)
            rate = (low * high) ** 0.5 if high > 1.01 * low else 1.0
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


@dataclass(frozen=True, kw_only=True)
class PrintScan:
    """Printed and scanned by the model that the module states.

    Args:
        oversampling: s, dots of the printer for a pixel and direction.
        halftone: h, share of the screen in the tone, in [0, 1]: 0 is a photo printer.
        period: p, of the screen in dots.
        softness: w, of a dot's edge in tones.
        blur: Standard deviation of ink and optics, in pixels of the image.
        rotation: Largest rotation in degrees.
        scale: Largest relative change of size.
        shift: Largest move in pixels of the image.
        black, white: Tones of black and white in the scan.
        gamma: Mean of the exponent.
        gamma_spread: Largest relative change of it.
        noise: Standard deviation of the sensor's noise, in tones of [0, 1].
        seed: Of what is random.
        name: In score files.

    Raises:
        DegradationError: A value outside its range.
    """

    oversampling: int = 4
    halftone: float = 0.25
    period: float = 3.0
    softness: float = 0.15
    blur: float = 0.5
    rotation: float = 0.5
    scale: float = 0.01
    shift: float = 0.5
    black: float = 0.06
    white: float = 0.96
    gamma: float = 0.95
    gamma_spread: float = 0.05
    noise: float = 0.012
    seed: int = 0
    name: str = "print_scan"

    def __post_init__(self) -> None:
        least = {"oversampling": 1, "period": 1, "softness": 1e-3, "gamma": 0.1}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not value >= least.get(field.name, 0):
                raise DegradationError(
                    f"degradation {self.name}: {field.name}={value}: expected "
                    f"{least.get(field.name, 0):g} or more"
                )
        if self.halftone > 1 or not self.black < self.white <= 1 or self.scale >= 1:
            raise DegradationError(
                f"degradation {self.name}: halftone={self.halftone}, black={self.black}, "
                f"white={self.white}, scale={self.scale}: expected a halftone of 0 to 1, black "
                "below a white of at most 1, and a scale below 1"
            )

    def __call__(self, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        if not len(images):
            return images.copy()
        draws = [generator(self.seed, self.name, name) for name in names]
        # Few at a time: what stays in a processor's cache takes a fifth of the time.
        most = max(1, 2**19 // (images[0].size * self.oversampling**2))
        parts = [
            self._scanned(images[k : k + most], draws[k : k + most])
            for k in range(0, len(images), most)
        ]
        return np.concatenate(parts)

    def _scanned(self, images: np.ndarray, draws: Sequence[np.random.Generator]) -> np.ndarray:
        height, width = images.shape[1:3]
        # In double precision a batch and a single image round to the same bytes.
        x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).double() / 255
        x = F.interpolate(x, scale_factor=self.oversampling, mode="bilinear", align_corners=False)
        if self.halftone:
            dots = torch.sigmoid((x - self._screen(*x.shape[-2:])) / self.softness)
            x = torch.lerp(x, dots, self.halftone)
        x = _blurred(x, self.blur * self.oversampling)
        around = np.stack([draw.uniform(-1, 1, 5) for draw in draws])
        x = F.grid_sample(
            x, self._moved(around, x), mode="bilinear", padding_mode="border", align_corners=False
        )
        x = F.avg_pool2d(x, self.oversampling)
        gamma = torch.from_numpy(self.gamma * (1 + self.gamma_spread * around[:, 4]))
        x = self.black + (self.white - self.black) * x.clamp(0, 1) ** gamma[:, None, None, None]
        noise = np.stack([draw.normal(0, self.noise, (height, width, 3)) for draw in draws])
        scanned = x.permute(0, 2, 3, 1).numpy() + noise
        return np.clip(np.rint(255 * scanned), 0, 255).astype(np.uint8)

    def _screen(self, height: int, width: int) -> Tensor:
        """(3, H, W) in (0, 1): by cosines at each ink's angle: the tone above which no ink is."""
        y, x = torch.meshgrid(
            torch.arange(height, dtype=torch.float64),
            torch.arange(width, dtype=torch.float64),
            indexing="ij",
        )
        screens = []
        for degrees in (15.0, 75.0, 0.0):
            angle = torch.tensor(np.deg2rad(degrees), dtype=torch.float64)
            along = (angle.cos() * x + angle.sin() * y) * (2 * np.pi / self.period)
            across = (angle.cos() * y - angle.sin() * x) * (2 * np.pi / self.period)
            screens.append((2 + along.cos() + across.cos()) / 4)
        return torch.stack(screens)

    def _moved(self, around: np.ndarray, x: Tensor) -> Tensor:
        """The grid at which the scanner looks, from draws (B, 5) in [-1, 1]."""
        height, width = x.shape[-2:]
        angle = np.deg2rad(self.rotation) * around[:, 0]
        scale = 1 + self.scale * around[:, 1]
        # In the grid's coordinates a side is 2.
        move = 2 * self.shift * self.oversampling * around[:, 2:4] / np.array([width, height])
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        theta = np.stack(
            [
                np.stack([cos, -sin * height / width, move[:, 0]], 1),
                np.stack([sin * width / height, cos, move[:, 1]], 1),
            ],
            1,
        )
        return F.affine_grid(torch.from_numpy(theta), list(x.shape), align_corners=False)


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


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """A separable Gaussian blur with a replicated border."""
    if not deviation:
        return x
    reach = max(1, round(3 * deviation))
    at = torch.arange(-reach, reach + 1, dtype=x.dtype)
    kernel = torch.exp(-(at**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).tolist()
    for dimension in (-1, -2):
        pad = (reach, reach, 0, 0) if dimension == -1 else (0, 0, reach, reach)
        padded = F.pad(x, pad, mode="replicate")
        size = x.shape[dimension]
        # Sums of shifted images, not a convolution: the same bits for one image and for many.
        x = sum(
            (w * padded.narrow(dimension, k, size) for k, w in enumerate(kernel)),
            torch.zeros_like(x),
        )
    return x


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
