"""A visible patch of the head: one row per pixel, with texture coordinates and masks."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Surface:
    """Visible points of the head.

    Attributes:
        rest: (n, 3) position on the mean head, the texture coordinate.
        position: (n, 3) posed position; ``normal`` (n, 3), unit length.
        occlusion: (n,) ambient visibility.
        lid, ear: (n,) masks.
        part: (n,) index into ``PARTS``.
    """

    rest: Tensor
    position: Tensor
    normal: Tensor
    occlusion: Tensor
    lid: Tensor
    ear: Tensor
    part: Tensor
