"""From an aligned square image to a recogniser's input."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class FaceCrop:
    """Crop of a face box, resized bilinearly to the recogniser's input, colours reordered.

    The box is given as fractions of the side, so that one crop serves every resolution; where its
    edges fall between pixels the image is resampled there, not at the nearest pixel. The paper's
    recognisers take the whole aligned image (``box=(0, 0, 1, 1)``, size 112).

    Args:
        size: Side of the result in pixels.
        box: Left, top, right, bottom as fractions of the image's side.
        bgr: Reverse the colour channels, as AdaFace's official network expects.
        antialias: Low-pass filter before reducing. The paper does not state it; thresholds must
            be made with the same choice.
    """

    size: int
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    bgr: bool = False
    antialias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "box", tuple(float(v) for v in self.box))
        left, top, right, bottom = self.box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(
                f"box={self.box} must be left < right and top < bottom, all within [0, 1]"
            )

    @property
    def label(self) -> str:
        """Name of the alignment that scores made through this crop belong to."""
        box = (
            ""
            if self.box == (0.0, 0.0, 1.0, 1.0)
            else "-crop" + "_".join(f"{100 * v:g}" for v in self.box)
        )
        return f"ffhq{box}-resize{self.size}{'' if self.antialias else '-aliased'}"

    def __call__(self, images: Tensor) -> Tensor:
        """Crops images in [-1, 1] with shape (B, 3, H, W) to (B, 3, size, size)."""
        height, width = images.shape[-2:]
        left, top, right, bottom = self.box
        edges = (left * width, right * width, top * height, bottom * height)
        if all(abs(edge - round(edge)) < 1e-3 for edge in edges):
            first, last, upper, lower = (round(edge) for edge in edges)
            x = images[..., upper:lower, first:last]
            if x.shape[-2:] != (self.size, self.size):
                x = F.interpolate(
                    x,
                    (self.size, self.size),
                    mode="bilinear",
                    align_corners=False,
                    antialias=self.antialias,
                )
        else:
            columns = self._weights(width, left, right).to(images)
            rows = self._weights(height, top, bottom).to(images)
            x = rows @ images @ columns.T
        return x.flip(1) if self.bgr else x

    def _weights(self, pixels: int, start: float, stop: float) -> Tensor:
        """Weights (size, pixels) of a triangle filter along one axis, rows summing to one.

        As Pillow's ``resize(..., BILINEAR, box=...)``: pixels outside of the box count where the
        filter reaches them.
        """
        scale = (stop - start) * pixels / self.size
        reach = max(1.0, scale) if self.antialias else 1.0
        centres = start * pixels + (torch.arange(self.size, dtype=torch.float64) + 0.5) * scale
        places = torch.arange(pixels, dtype=torch.float64) + 0.5
        weights = (1 - (places - centres[:, None]).abs() / reach).clamp(min=0)
        return weights / weights.sum(1, keepdim=True)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a network's file does not say about its input, and scores and thresholds depend on.

    Args:
        name: Short name used in tables and score files.
        size: Side of the square input in pixels.
        colours: Order of the channels that the network expects.
        mean: Taken from each channel, in pixel units 0..255, in the network's channel order.
        std: What the result is divided by, in pixel units.
        licence: Licence of the weights, one line.
        box: Part of the aligned image that is the input, as fractions (left, top, right, bottom).
        layout: Order of the input's axes.
        label: Name in printed tables; the name if empty.

    Raises:
        ValueError: A value that cannot be; names it.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {
        "colours": ("rgb", "bgr"),
        "layout": ("nchw", "nhwc"),
    }

    name: str
    size: int
    colours: Literal["rgb", "bgr"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    layout: Literal["nchw", "nhwc"] = "nchw"
    label: str = ""

    def __post_init__(self) -> None:
        for key in ("name", "licence"):
            if not isinstance(value := getattr(self, key), str) or not value.strip():
                raise ValueError(f"{key}={value!r} of {self.name}: expected a text")
        if not isinstance(self.size, Integral) or isinstance(self.size, bool) or self.size < 1:
            raise ValueError(f"size={self.size!r} of {self.name}: expected a side in pixels, 112")
        for key, length in (("mean", 3), ("std", 3), ("box", 4)):
            # JSON and YAML give lists.
            given = getattr(self, key)
            listed = list(given) if isinstance(given, Iterable) else []
            numbers = all(isinstance(v, Real) and math.isfinite(v) for v in listed)
            if not numbers or len(listed) != length:
                each = "one number per channel" if length == 3 else "left, top, right, bottom"
                raise ValueError(f"{key}={given!r} of {self.name} must be {each}")
            object.__setattr__(self, key, tuple(map(float, listed)))
        if min(self.std) <= 0:
            raise ValueError(f"std={self.std} of {self.name} must be positive pixel units")
        if 0 < min(self.mean) and max(*self.mean, *self.std) <= 1:
            scaled = [[round(255 * v, 3) for v in values] for values in (self.mean, self.std)]
            raise ValueError(
                f"mean={self.mean} and std={self.std} of {self.name} are of pixels from 0 to 1, "
                f"expected those of 0 to 255: {scaled[0]} and {scaled[1]}"
            )
        for key, known in self.CHOICES.items():
            if (value := getattr(self, key)) not in known:
                raise ValueError(
                    f"{key}={value!r} of {self.name} must be one of {', '.join(known)}"
                )
