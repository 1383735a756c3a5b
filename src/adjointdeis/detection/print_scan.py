r"""A printed and scanned image: a stated model.

In its order, per image:

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
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adjointdeis.detection.degradation import DegradationError, generator


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
    # A gamma that is spread by its whole length may be negative, and whites are then infinite.
    _RANGES: ClassVar[Mapping[str, tuple[float, float, Any]]] = {
        "oversampling": (1, 16, int),
        "halftone": (0, 1, int | float),
        "period": (1, 1000, int | float),
        "softness": (1e-3, 1000, int | float),
        "blur": (0, 20, int | float),
        "rotation": (0, 180, int | float),
        "scale": (0, 0.9, int | float),
        "shift": (0, 1000, int | float),
        "black": (0, 1, int | float),
        "white": (0, 1, int | float),
        "gamma": (0.1, 10, int | float),
        "gamma_spread": (0, 0.9, int | float),
        "noise": (0, 1, int | float),
        "seed": (0, 2**63, int),
    }

    def __post_init__(self) -> None:
        for name, (least, most, kind) in self._RANGES.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
                raise DegradationError(
                    f"degradation {self.name}: {name}={value}: expected a "
                    f"{'whole number' if kind is int else 'number'} of {least:g} to {most:g}"
                )
        if not self.black < self.white:
            raise DegradationError(
                f"degradation {self.name}: black={self.black}, white={self.white}: expected black "
                "below white"
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
