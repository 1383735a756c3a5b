"""Faces and pairs of a morphing experiment, validated before anything runs."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adjointdeis.faces.datasets.folder import FaceDataset, load_folder
from adjointdeis.faces.datasets.pairs import Pair, PairListError, read_pairs, validate_pairs
from adjointdeis.faces.image_io import AnyPath, read_image
from adjointdeis.harness.assets import MINI

SOURCE, OTHER = "03", "08"  # captures: neutral, which is morphed, and smiling, which probes


@dataclass(frozen=True)
class Benchmark:
    """Aligned faces with two captures a subject, and the pairs to morph.

    Attributes:
        dataset: The faces.
        pairs: Pairs in the order of the list.
    """

    dataset: FaceDataset
    pairs: tuple[Pair, ...]

    def image(self, subject: str, capture: str) -> AnyPath:
        """Image file of a subject."""
        return self.dataset.subject(subject).images[capture]

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects that are in some pair, sorted."""
        return tuple(sorted({s for pair in self.pairs for s in pair.subjects}))

    @cached_property
    def _hashes(self) -> dict[str, str]:
        return {s: file_hash(self.image(s, SOURCE)) for s in self.subjects}

    def source_hashes(self, pair: Pair) -> dict[str, str]:
        """SHA-256 of both images that a pair's morphs are made from, by file name."""
        return {self.image(s, SOURCE).name: self._hashes[s] for s in pair.subjects}


def load_benchmark(faces: str, pairs: str, limit: int | None = None) -> Benchmark:
    """Faces and pairs, with every problem of the list reported at once.

    Arguments:
        faces: Folder of aligned images ``NNN_03.png`` and ``NNN_08.png``; "mini" for the embedded
            ones.
        pairs: Pair list; "mini" for the embedded one.
        limit: Use this many pairs, spread evenly over the list; None uses all. Evenly, because a
            list is sorted by similarity within its groups and its head is its easiest part.

    Raises:
        PairListError, DatasetError: See the messages.
    """
    dataset = load_folder(MINI / "faces" if faces == "mini" else faces, faces)
    source = MINI / "pairs.csv" if pairs == "mini" else Path(pairs)
    listed = read_pairs(source)
    validate_pairs(listed, dataset, str(source))
    dataset.require((SOURCE, OTHER))
    if limit is not None:
        if limit < 1:
            raise PairListError(f"data.limit={limit}: expected 1 or more, or null for all pairs")
        chosen = np.unique(np.linspace(0, len(listed) - 1, min(limit, len(listed))).round())
        listed = [listed[int(i)] for i in chosen]
    return Benchmark(dataset, tuple(listed))


def read_aligned(paths: Sequence[AnyPath], size: int) -> np.ndarray:
    """Aligned images as (B, size, size, 3) uint8.

    Raises:
        ValueError: Images of another size, all listed.
    """
    images = [read_image(path) for path in paths]
    wrong = [
        f"{path} is {image.shape[1]}x{image.shape[0]}"
        for path, image in zip(paths, images, strict=True)
        if image.shape != (size, size, 3)
    ]
    if wrong:
        raise ValueError(
            f"{len(wrong)} images are not {size}x{size} as the autoencoder needs: "
            f"{', '.join(wrong[:5])}; align them first (see adjointdeis.faces.alignment)"
        )
    return np.stack(images)


def to_tensor(images: np.ndarray) -> Tensor:
    """(B, H, W, 3) uint8 to (B, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1], clipped, to (B, H, W, 3) uint8."""
    scaled = ((images.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def file_hash(path: AnyPath) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
