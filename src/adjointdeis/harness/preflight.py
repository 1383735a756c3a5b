"""What could be wrong with the images of a run, found before anything expensive starts."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from adjointdeis.faces.dlib_models import DlibLandmarker
from adjointdeis.faces.image_io import ImageError, read_image
from adjointdeis.harness.benchmark import OTHER, SOURCE, Benchmark

CAPTURES = (SOURCE, OTHER)

CountFaces = Callable[[np.ndarray], int]


@dataclass(frozen=True)
class ImageCheck:
    """Looks at every image that a run may read: the probes too, and the faces of people in no pair,
    whose comparisons the thresholds may come from.

    Args:
        size: Side that the autoencoder takes; None where none is needed.
        count_faces: Faces on an (H, W, 3) uint8 image; None does not look for faces.
    """

    size: int | None
    count_faces: CountFaces | None = None

    def __call__(self, benchmark: Benchmark) -> list[str]:
        """One line for every image that cannot be used."""
        sides = {side for pair in benchmark.pairs for side in pair.sides}
        probes = {(s.id, capture) for s in benchmark.dataset.subjects for capture in CAPTURES}
        known = {subject.id: subject for subject in benchmark.dataset.subjects}
        problems = []
        for subject, capture in sorted(sides | probes):
            # Whoever is not there is told of by the check of the pair list.
            images = known[subject].images if subject in known else {}
            if capture in images:
                needs_size = (subject, capture) in sides
                problems += self._problems(images[capture], needs_size)
        return problems

    def _problems(self, path, needs_size: bool) -> list[str]:
        try:
            image = read_image(path)
        except (ImageError, OSError) as error:
            return [str(error)]
        height, width = image.shape[:2]
        if needs_size and self.size is not None and (height, width) != (self.size, self.size):
            return [
                f"{path} is {width}x{height}, not {self.size}x{self.size} as the autoencoder "
                "needs; align the photographs first, python run.py task=align data=real data.root="
                f"{path.parent} task.size={self.size} task.destination=FOLDER, and give that "
                "folder as data.faces"
            ]
        faces = 1 if self.count_faces is None else self.count_faces(image)
        if faces == 0:
            return [f"{path}: no face was found; expected an upright frontal face"]
        if faces > 1:
            return [f"{path}: {faces} faces were found; expected one, crop the image to it"]
        return []


def face_detector() -> CountFaces:
    """Counts faces with dlib's detector."""
    landmarker = DlibLandmarker(box="hog")

    def count(image: np.ndarray) -> int:
        found = landmarker.detect(image)
        return 0 if found is None else found.faces

    return count
