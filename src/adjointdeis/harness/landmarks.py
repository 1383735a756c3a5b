"""Landmarks of a benchmark's faces: the ones that came with them, else what dlib finds."""

from functools import cached_property
from pathlib import Path

import numpy as np

from adjointdeis.faces.datasets.folder import NAME, DatasetError, FaceDataset
from adjointdeis.faces.datasets.tem import read_tem
from adjointdeis.faces.dlib_models import DlibLandmarker
from adjointdeis.faces.image_io import AnyPath, sha256_of
from adjointdeis.faces.recogniser import NoFaceError
from adjointdeis.files import read_arrays
from adjointdeis.morphing.attack import Template

STORED = "landmarks.npz"
"""File beside the images: ``stems``, ``points`` (images, K, 2) of which 68 lead, and ``size``; and
``sha256`` of every image's pixels, where whoever wrote it knew them."""


class BenchmarkLandmarks:
    """Landmarks of aligned faces, each found once.

    ==========  ==================================================================================
    "dlib68"    the first 68 points of ``landmarks.npz`` beside the images; else what dlib finds
    "tem"       ``<subject>_<capture>.tem`` beside the image; else all points of ``landmarks.npz``
    ==========  ==================================================================================

    All in pixels of the aligned image. The faces are aligned, so that dlib takes its usual box
    where its detector sees no face.

    Args:
        dataset: The faces.
        landmarker: Finds the 68 points.
    """

    def __init__(self, dataset: FaceDataset, landmarker: DlibLandmarker | None = None) -> None:
        self.dataset = dataset
        self.landmarker = landmarker or DlibLandmarker(box="hog-then-frame")
        self._found: dict[str, np.ndarray] = {}

    def __call__(self, path: AnyPath, image: np.ndarray, template: Template) -> np.ndarray:
        key = f"{template} {path} {sha256_of(image)}"
        if key not in self._found:
            find = self._template if template == "tem" else self._dlib68
            self._found[key] = find(path, image)
        return self._found[key]

    def _dlib68(self, path: AnyPath, image: np.ndarray) -> np.ndarray:
        points = self._of_file(path, image)
        if points is None:
            return self.landmarker.landmarks(image, 68, name=str(path))
        return points[:68]

    def _template(self, path: AnyPath, image: np.ndarray) -> np.ndarray:
        named = NAME.match(_stem(path))
        templates = self.dataset.subject(named["subject"]).templates if named else {}
        if named is not None and named["capture"] in templates:
            return read_tem(templates[named["capture"]]).points
        points = self._of_file(path, image)
        if points is None:
            raise NoFaceError(
                f"{path}: there is no template {_stem(path)}.tem beside it, in pixels of the "
                "aligned image; give one, or choose points=dlib68"
            )
        return points

    def _of_file(self, path: AnyPath, image: np.ndarray) -> np.ndarray | None:
        points = self._stored.get(_stem(path))
        if points is None:
            return None
        if self._size != image.shape[0]:
            raise DatasetError(
                f"{self.dataset.root / STORED} holds landmarks of images of {self._size} pixels, "
                f"{path} has {image.shape[0]}; remove it, or scale it with the images"
            )
        if self._pixels.get(_stem(path), seen := sha256_of(image)) != seen:
            raise DatasetError(
                f"{path} is another picture than the one whose landmarks {STORED} beside it holds; "
                "remove that file and they are found anew, or put the picture back"
            )
        return points

    @cached_property
    def _file(self) -> dict[str, np.ndarray]:
        path = Path(self.dataset.root) / STORED
        if not path.is_file():
            return {}
        found = read_arrays(path, DatasetError)
        if lacking := [key for key in ("stems", "points", "size") if key not in found]:
            raise DatasetError(f"{path}: not a landmark file (it has no {lacking[0]!r})")
        stems, points, size = found["stems"], found["points"], found["size"]
        if stems.ndim != 1 or points.ndim != 3 or size.size != 1 or points.dtype.kind not in "fiu":
            raise DatasetError(f"{path}: not a landmark file (arrays of another shape or kind)")
        if points.shape != (len(stems), points.shape[1], 2) or points.shape[1] < 68:
            raise DatasetError(
                f"{path}: points of shape {points.shape} for {len(stems)} stems; expected "
                "(images, 68 or more, 2)"
            )
        if size.dtype.kind not in "iu" or not np.isfinite(points).all():
            raise DatasetError(f"{path}: not a landmark file (points or size that are no numbers)")
        if found.get("sha256", stems).shape != stems.shape:
            raise DatasetError(f"{path}: not a landmark file (sha256 of other images)")
        return found

    @cached_property
    def _stored(self) -> dict[str, np.ndarray]:
        if not self._file:
            return {}
        points = self._file["points"].astype(np.float64)
        return dict(zip(self._file["stems"].tolist(), points, strict=True))

    @cached_property
    def _pixels(self) -> dict[str, str]:
        hashes = self._file.get("sha256")
        if hashes is None:
            return {}
        return dict(zip(self._file["stems"].tolist(), hashes.tolist(), strict=True))

    @property
    def _size(self) -> int:
        return int(self._file["size"].item())


def _stem(path: AnyPath) -> str:
    return path.name.rpartition(".")[0]
