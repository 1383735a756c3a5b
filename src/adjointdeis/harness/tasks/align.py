"""Aligns a set of photographs once, so that morphing finds faces of the size it needs.

    python run.py task=align data=real data.root=/data/photographs task.size=64

Takes FRLL as it is downloaded, or photographs of one's own, ``001_03.jpg`` and ``001_08.jpg``.
Writes ``NNN_03.png`` and ``NNN_08.png`` (FFHQ's recipe from dlib's 68 points), ``landmarks.npz``
with those points, and ``NNN_03.tem`` where the set has templates, all in pixels of the aligned
images. A folder that holds these faces aligned otherwise is refused.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from tqdm import tqdm

from adjointdeis.faces.alignment import align_ffhq, ffhq_quad, quad_to_square
from adjointdeis.faces.array_cache import ArrayCache
from adjointdeis.faces.datasets.folder import NEUTRAL, SMILING, DatasetError, FaceDataset
from adjointdeis.faces.datasets.frll import load_frll
from adjointdeis.faces.datasets.tem import read_tem, write_tem
from adjointdeis.faces.dlib_models import DlibLandmarker
from adjointdeis.faces.image_io import (
    ImageError,
    first_few,
    read_image,
    sha256_of,
    write_image,
)
from adjointdeis.faces.recogniser import NoFaceError
from adjointdeis.files import read_bytes, write_atomically
from adjointdeis.harness.landmarks import STORED
from adjointdeis.harness.validation import ConfigError


def photographs(cfg: DictConfig, need_info: bool = True) -> FaceDataset:
    """The photographs of data.root.

    Raises:
        ConfigError: The command names none.
        DatasetError: As `load_frll` raises it.
    """
    root = cfg.data.get("root")
    if root is None:
        raise ConfigError(
            "data.root: this task reads photographs; name their folder, or archive, by "
            "data=real data.root=/path/to/photographs"
        )
    return load_frll(root, need_templates=False, need_info=need_info)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Aligns every subject's neutral and smiling image.

    Raises:
        NoFaceError: Names photographs without a face, with several, or that cannot be read; the
            others are written.
        DatasetError: The set is incomplete or has one picture of two people, or the folder holds
            another picture by a name.
    """
    task, target = cfg.task, Path(cfg.task.destination)
    dataset = photographs(cfg, need_info=False)
    dataset.refuse_one_picture_twice()
    landmarker = DlibLandmarker(detection_side=task.detection_side, several="refuse")
    cache = ArrayCache(Path(cfg.paths.run) / "cache")
    stems, points, pixels, problems, small = [], [], [], [], []
    jobs = [(s, c) for s in dataset.subjects for c in (NEUTRAL, SMILING)]
    for subject, capture in tqdm(jobs, desc="align", unit="face"):
        path, stem = subject.images[capture], f"{subject.id}_{capture}"
        key = (
            "align",
            sha256_of(read_bytes(path, DatasetError)),
            landmarker,
            task.size,
            task.transform_size,
        )

        def make(path=path) -> dict[str, np.ndarray]:
            image = read_image(path)
            found = landmarker.landmarks(image, 68, name=str(path))
            return {
                "image": align_ffhq(image, found, task.size, task.transform_size),
                "points": found,
            }

        try:
            made = cache.get(key, make)
        except (NoFaceError, ImageError) as error:
            problems.append(str(error))
            continue
        file = target / f"{stem}.png"
        if not file.is_file():
            write_image(file, made["image"])
        elif not np.array_equal(read_image(file), made["image"]):
            raise DatasetError(
                f"{file} is another picture than {path.name} aligned with these settings: name "
                "another folder, task.destination=..., or remove that one"
            )
        quad = ffhq_quad(made["points"])
        if 2 * (side := np.linalg.norm(quad[3] - quad[0])) < task.size:
            small.append(f"{path.name} ({side:.0f} pixels)")
        if capture in subject.templates:
            template = read_tem(subject.templates[capture])
            moved = quad_to_square(template.points, quad, task.size)
            write_tem(target / f"{stem}.tem", moved)
        stems.append(stem)
        points.append(quad_to_square(made["points"], quad, task.size))
        pixels.append(sha256_of(made["image"]))

    def save(file: Any) -> None:
        arrays = {"stems": np.array(stems), "points": np.float32(np.stack(points))}
        arrays |= {"sha256": np.array(pixels), "size": np.int64(task.size)}
        np.savez_compressed(file, **arrays)

    if stems:
        write_atomically(target / STORED, save, "wb")
    if small:
        warnings.warn(
            f"{len(small)} of {len(stems)} faces are less than half as wide as the {task.size} "
            f"pixels that they are blown up to, such as {small[0]}: take larger photographs, or a "
            "smaller task.size=",
            stacklevel=2,
        )
    if problems:
        said = f"{len(problems)} of {len(jobs)} photographs cannot be aligned"
        raise NoFaceError(f"{said}: {first_few(problems, 20)}")
    print(f"{len(stems)} aligned faces in {target}")
    return {"faces": len(stems)}
