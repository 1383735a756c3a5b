"""File names of the Face Research Lab London Set and of the morphs made from it.

A bona fide image is `NNN_VV` (subject, view; 03 neutral front, 08 smiling front); a morph is
`001_002` (two subjects, AMSL) or `001_08-vs-010_08` (two images, SYN-MAD 2022). Since `001_03` is
also `NNN_NNN` by shape, a bona fide view has two digits and a subject three.

References:
    | Face Research Lab London Set
    | https://doi.org/10.6084/m9.figshare.5047666
    | SYN-MAD 2022
    | https://arxiv.org/abs/2208.07337
"""

import re
from dataclasses import dataclass
from pathlib import PurePath

from adjointdeis.evaluation.errors import ScoreError

_BONA_FIDE = re.compile(r"(\d{3})_(\d{2})")
_PAIR = re.compile(r"(\d{3})_(\d{3})")
_VERSUS = re.compile(r"(\d{3})_(\d{2})-vs-(\d{3})_(\d{2})")


@dataclass(frozen=True)
class ImageName:
    """What a file name says: one subject for a bona fide image, two for a morph."""

    stem: str
    subjects: tuple[str, ...]
    views: tuple[str, ...] = ()

    @property
    def is_morph(self) -> bool:
        """Whether two people contributed."""
        return len(self.subjects) > 1


def parse_name(path: str) -> ImageName:
    """Parses a file name or path, with or without suffix.

    Raises:
        ScoreError: when the name has none of the forms above.
    """
    stem = PurePath(path).stem
    if match := _VERSUS.fullmatch(stem):
        a, view_a, b, view_b = match.groups()
        return ImageName(stem, (a, b), (view_a, view_b))
    if match := _PAIR.fullmatch(stem):
        return ImageName(stem, match.groups())
    if match := _BONA_FIDE.fullmatch(stem):
        return ImageName(stem, (match[1],), (match[2],))
    raise ScoreError(
        f"image name {path!r}: expected NNN_VV, NNN_NNN or NNN_VV-vs-NNN_VV (digits), "
        "which say whose image it is"
    )
