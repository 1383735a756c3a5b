"""Morphs that somebody else has made: a folder of published images, read, judged, never altered.

This is how attacks that cannot be run enter a table: Webmorph and MIPGAN in the paper's, the
authors' own morphs when a protocol is calibrated.

References:
    | SYN-MAD 2022: Competition on Face Morphing Attack Detection (Huber et al., 2022)
    | https://arxiv.org/abs/2208.07337
    | DiM-FRLL-Morphs
    | https://huggingface.co/datasets/zblasingame/DiM-FRLL-Morphs
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adjointdeis.faces.datasets.folder import warn_left_out, why_left_out
from adjointdeis.faces.datasets.pairs import MorphPair, PairListError, parse_pair
from adjointdeis.faces.image_io import IMAGE_SUFFIXES, read_image, read_images, sha256_of
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.morphing.attack import Attack, MorphCost, Morphs, Progress, Sources, Workbench


@dataclass(frozen=True, kw_only=True)
class Precomputed(Attack):
    """Published morphs, matched to pairs by their file names.

    Known names are ``001_013.png`` (DiM-FRLL-Morphs) and ``001_03-vs-013_03.jpg`` (MAD22); the
    order of the two subjects does not matter, the captures do where the name has them.

    Args:
        folder: Folder of images, one a pair; other files are passed over.
        resize: Whether images of another size than the sources are resized (bilinear,
            antialiased); otherwise they are an error. A morph must be aligned like its sources.
        nfe: Network evaluations that its authors report, for the table, or None.

    A pair without a file is recorded as failed.
    """

    folder: str
    resize: bool = False
    nfe: int | None = None

    @property
    def nfe_paper(self) -> int | None:
        return self.nfe

    @cached_property
    def files(self) -> dict[frozenset[tuple[str, str]], Path]:
        """File by the two (subject, capture) of its name.

        Raises:
            FileNotFoundError: No such folder.
            PairListError: No file is named as a pair, or two are of the same pair.
            ImageError: Some cannot be read.
        """
        folder = Path(self.folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"attack {self.name}: folder {self.folder} does not exist; expected published "
                "morphs such as 001_013.png or 001_03-vs-013_03.jpg"
            )
        found: dict[frozenset[tuple[str, str]], Path] = {}
        clashes = []
        left_out: dict[str, list[str]] = {}
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            try:
                if path.suffix.lower() not in IMAGE_SUFFIXES:
                    raise ValueError
                key = _key(parse_pair(path.name))
            except ValueError:
                if reason := why_left_out(path.name, "not named like a pair"):
                    left_out.setdefault(reason, []).append(path.name)
                continue
            first = found.setdefault(key, path)
            if first is not path:
                clashes.append(f"{first.name} and {path.name}")
        if clashes:
            raise PairListError(f"{folder}: two files of one pair: {'; '.join(clashes)}")
        warn_left_out(folder, left_out)
        read_images(found.values(), np.shape)
        if not found:
            raise PairListError(
                f"{folder}: no image is named like a pair, 001_013.png or 001_03-vs-013_03.jpg"
            )
        return found

    def settings(self) -> dict[str, Any]:
        # The folder may move; what is in it may not change.
        return super().settings() | {"folder": Path(self.folder).name}

    def fingerprints(self) -> dict[str, str]:
        digest = hashlib.sha256()
        for path in sorted(self.files.values()):
            digest.update(f"{path.name} {sha256_of(path.read_bytes())}\n".encode())
        return {"folder": digest.hexdigest()}

    def begin(self, sources: Sources, bench: Workbench) -> "_Reading":
        return _Reading(self, sources, bench)

    def image(self, pair: MorphPair, size: tuple[int, int]) -> np.ndarray:
        """The morph of a pair, (H, W, 3) uint8.

        Args:
            pair: The two images that the morph was made of.
            size: (H, W) of the sources.

        Raises:
            KeyError: There is none.
            ValueError: It has another size, and ``resize`` is false.
        """
        path = self.files[_key(pair)]
        image = read_image(path)
        if image.shape[:2] == size:
            return image
        if not self.resize:
            raise ValueError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, its sources are "
                f"{size[1]}x{size[0]}: align it like them (adjointdeis.faces.alignment), or set "
                "resize=true if it is an aligned image of another size"
            )
        picture = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.asarray(picture)


class _Reading:
    def __init__(self, attack: Precomputed, sources: Sources, bench: Workbench) -> None:
        self.attack, self.sources, self.bench = attack, sources, bench

    def step(self) -> Progress:
        raise RuntimeError("published morphs are read, not made in steps")

    def finish(self) -> Morphs:
        images, failed = self.sources.images_a.copy(), {}
        for k, pair in enumerate(self.sources.pairs):
            try:
                images[k] = self.attack.image(pair, images.shape[1:3])
            except KeyError:
                failed[k] = f"{self.attack.folder} holds no morph of {pair.image_a}, {pair.image_b}"
        return Morphs(to_tensor(images).to(self.bench.device), MorphCost(), failed)


def _key(pair: MorphPair) -> frozenset[tuple[str, str]]:
    return frozenset(pair.sides)
