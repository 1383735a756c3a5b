"""Landmarks of a benchmark's faces: the ones that came with them, else what dlib finds."""

import hashlib

import numpy as np

from adjointdeis.faces.datasets.folder import NAME, FaceDataset
from adjointdeis.faces.datasets.tem import read_tem
from adjointdeis.faces.dlib_models import DlibLandmarker
from adjointdeis.faces.image_io import AnyPath
from adjointdeis.faces.recogniser import NoFaceError
from adjointdeis.morphing.attack import Template


class BenchmarkLandmarks:
    """Landmarks of aligned faces, each found once.

    "tem" reads the template ``<subject>_<capture>.tem`` beside the image, in pixels of that image.
    "dlib68" asks dlib; the benchmark's faces are aligned, so its usual box stands in where the
    detector sees none.

    Arguments:
        dataset: The faces, with their templates where there are some.
        landmarker: Finds the 68 points.
    """

    def __init__(self, dataset: FaceDataset, landmarker: DlibLandmarker | None = None) -> None:
        self.dataset = dataset
        self.landmarker = landmarker or DlibLandmarker(box="hog-then-frame")
        self._found: dict[str, np.ndarray] = {}

    def __call__(self, path: AnyPath, image: np.ndarray, template: Template) -> np.ndarray:
        pixels = hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()
        key = f"{template} {path} {image.shape} {pixels}"
        if key not in self._found:
            find = self._template if template == "tem" else self._dlib
            self._found[key] = find(path, image)
        return self._found[key]

    def _dlib(self, path: AnyPath, image: np.ndarray) -> np.ndarray:
        return self.landmarker.landmarks(image, 68, name=str(path))

    def _template(self, path: AnyPath, image: np.ndarray) -> np.ndarray:
        named = NAME.match(path.name.rpartition(".")[0])
        templates = self.dataset.subject(named["subject"]).templates if named else {}
        if named is None or named["capture"] not in templates:
            raise NoFaceError(
                f"{path}: there is no template {path.name.rpartition('.')[0]}.tem beside it; give "
                "one, or choose points=dlib68"
            )
        return read_tem(templates[named["capture"]]).points
