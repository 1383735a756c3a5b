"""Degraded copies of the images of a run, as files: what judges and detectors then see.

A copy carries the provenance of its original and says what was done to it. It depends on the
original's bytes, the degradation and the image's name, and is made again when one of them changes
or its pixels are no longer those that were written.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from adjointdeis.detection.degradation import Degradation, DegradationError, Degradations
from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.provenance import png_texts
from adjointdeis.faces.image_io import AnyPath, ImageError, read_image, sha256_of, write_image
from adjointdeis.harness.benchmark import file_hash
from adjointdeis.texts import is_file_name

KEY = "Degradation"
"""PNG text that says what a copy went through, and of which file it is a copy."""
BATCH = 64


def degradation_of(steps: DictConfig | None) -> Degradation | None:
    """The degradation of a configuration: its entries one after the other, or None where it is
    empty.

    Args:
        steps: By name; ``degradation=[print_scan,jpeg2000]`` gives two, in that order.

    Raises:
        DegradationError: A value that cannot be.
    """
    found = [instantiate(step) for step in (steps or {}).values() if step]
    names = [step.name for step in found]
    if strange := [name for name in names if not is_file_name(name)]:
        raise DegradationError(f"degradation name {strange[0]!r}: expected a folder name")
    if len(set(names)) < len(names):
        raise DegradationError(
            f"degradations {', '.join(names)}: two of one name would draw the same; give each a "
            "name of its own (degradation.<key>.name=...)"
        )
    return found[0] if len(found) == 1 else Degradations(tuple(found)) if found else None


def degraded_copies(
    originals: Mapping[str, AnyPath], degradation: Degradation, folder: Path
) -> dict[str, Path]:
    """Copies of images after a degradation, by the same names.

    Args:
        originals: File of each image by its name, such as ``morphs/dim_a/001_002.png``: from the
            name what is random is drawn.
        degradation: What they go through.
        folder: Where the copies go, each under its name with the suffix ``.png``.
    """
    found = {name: (folder / name).with_suffix(".png") for name in originals}
    wanted = {name: f"{degradation!r} of {file_hash(path)}" for name, path in originals.items()}
    todo = [name for name in originals if not _is_whole(found[name], wanted[name])]
    started = time.perf_counter()
    for k in range(0, len(todo), BATCH):
        names = todo[k : k + BATCH]
        images = {name: read_image(originals[name]) for name in names}
        for shape in {image.shape for image in images.values()}:
            same = [name for name in names if images[name].shape == shape]
            changed = degradation(np.stack([images[name] for name in same]), same)
            for name, image in zip(same, changed, strict=True):
                said = f"{wanted[name]}, pixels {sha256_of(image)}"
                text = _texts(originals[name]) | {KEY: said}
                write_image(found[name], image, text)
    if todo:
        print_speed(degradation.name, len(todo), time.perf_counter() - started)
    return found


def print_speed(what: str, images: int, seconds: float) -> None:
    """Says on standard error how many images a second something took.

    Args:
        what: A degradation or a detector.
        images: How many.
        seconds: How long.
    """
    rate = images / max(seconds, 1e-9)
    print(f"{what}: {images} images, {rate:.3g} images/s", file=sys.stderr)


def _is_whole(path: Path, wanted: str) -> bool:
    """Whether a copy is there, is the one that is wanted, and has the pixels that it says."""
    try:
        said, _, pixels = png_texts(path).get(KEY, "").rpartition(", pixels ")
        return said == wanted and pixels == sha256_of(read_image(path))
    except (EvaluationError, ImageError):
        return False


def _texts(path: AnyPath) -> dict[str, str]:
    """The PNG texts of an original, its provenance among them; none of another format."""
    try:
        return png_texts(path) if isinstance(path, Path) else {}
    except EvaluationError:
        return {}
