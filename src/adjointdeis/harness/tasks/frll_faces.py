"""Faces of the FRLL landmark experiment: aligned once, embedded once, both kept in a cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from adjointdeis.faces.alignment import align_ffhq, ffhq_quad, quad_to_square
from adjointdeis.faces.array_cache import ArrayCache
from adjointdeis.faces.datasets.folder import NEUTRAL, SMILING, FaceDataset
from adjointdeis.faces.datasets.tem import read_tem
from adjointdeis.faces.dlib_models import DlibLandmarker
from adjointdeis.faces.image_io import read_image, sha256_of
from adjointdeis.faces.recogniser import NoFaceError, Recogniser
from adjointdeis.harness.tasks.frll_config import Config


@dataclass(frozen=True)
class Face:
    """An aligned photograph: pixels, and landmarks in its own pixels."""

    image: np.ndarray
    dlib68: np.ndarray
    tem: np.ndarray | None


def align_all(
    dataset: FaceDataset,
    landmarker: DlibLandmarker,
    config: Config,
    cache: ArrayCache,
    templates: bool,
) -> dict[str, Face]:
    """Aligned neutral and smiling faces by image stem; templates follow the neutral ones.

    Raises:
        NoFaceError: Naming every photograph without a face.
    """
    faces, problems = {}, []
    jobs = [(s, capture) for s in dataset.subjects for capture in (NEUTRAL, SMILING)]
    for subject, capture in tqdm(jobs, desc="align", unit="face"):
        path = subject.images[capture]
        content = sha256_of(path.read_bytes())
        key = ("align", content, landmarker, config.size, config.transform_size)

        def make(path=path) -> dict[str, np.ndarray]:
            image = read_image(path)
            points = landmarker.landmarks(image, 68, name=str(path))
            aligned = align_ffhq(image, points, config.size, config.transform_size)
            return {"image": aligned, "points": points}

        try:
            stored = cache.get(key, make)
        except NoFaceError as error:
            problems.append(str(error))
            continue
        quad = ffhq_quad(stored["points"])
        tem = None
        if templates and capture == NEUTRAL:
            template = read_tem(subject.templates[capture])
            tem = quad_to_square(template.points, quad, config.size)
        points = quad_to_square(stored["points"], quad, config.size)
        faces[f"{subject.id}_{capture}"] = Face(stored["image"], points, tem)
    if problems:
        raise NoFaceError("; ".join(problems))
    return faces


def embed_all(
    recogniser: Recogniser, images: Sequence[np.ndarray], cache: ArrayCache, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (B, D) and success (B,) of images, each taken from the cache if it is there."""
    rows = []
    for image in tqdm(images, desc=f"embed {what}", unit="face"):
        key = ("embed", sha256_of(image), repr(recogniser), recogniser.fingerprint)

        def make(image=image) -> dict[str, np.ndarray]:
            embedding, ok = recogniser.embed(image[None])
            return {"embedding": embedding[0], "ok": ok[0]}

        rows.append(cache.get(key, make))
    return np.stack([r["embedding"] for r in rows]), np.array([bool(r["ok"]) for r in rows])
