"""An insightface model package (detector and recogniser) from a local folder."""

import hashlib
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adjointdeis.extras import load
from adjointdeis.faces.alignment import ARCFACE_5PT, align_arcface
from adjointdeis.faces.image_io import require_rgb
from adjointdeis.faces.recogniser import Metric, acquired, cosine_similarity
from adjointdeis.faces.weights import WeightsError, fingerprint


class InsightFaceRecogniser:
    """Detector, five-point alignment and embedding of an insightface package, as a black box.

    Satisfies :class:`adjointdeis.faces.recogniser.Recogniser`. Takes upright photographs of any
    size, not aligned crops: the package's own detector finds the face, the largest near the centre
    where there are several. An image without a face is a failure to acquire.

    Only a folder is accepted. insightface would download a package for any other name, and it does
    not check what it downloads.

    Args:
        directory: Folder of the package: a detector and a recogniser as ``.onnx`` files, with or
            without a ``manifest.json``.
        name: Short name used in score files; the folder's name if None.
        label: Name in printed tables; the name if empty.
        detection_size: Side in pixels to which images are fitted for detection, a multiple of 32.
        detection_threshold: Least detection score, in [0, 1].

    Raises:
        MissingPackageError: insightface or onnxruntime is not installed.
        WeightsError: The folder is missing or is not a package; the message names what is missing.
    """

    white_box = False
    finds_faces = True
    alignment = ARCFACE_5PT
    score_type: Literal["similarity", "dissimilarity"] = "similarity"
    metric: Metric = "cosine"

    def __init__(
        self,
        directory: str | Path,
        name: str | None = None,
        detection_size: int = 640,
        detection_threshold: float = 0.5,
        label: str = "",
    ) -> None:
        folder = Path(directory)
        if not folder.is_dir():
            raise WeightsError(
                f"insightface package {directory} is not a folder; give the path of an unpacked "
                "package, with its detector (det_*.onnx) and its recogniser (such as "
                "w600k_r50.onnx). Names are not accepted: insightface would download them "
                "unchecked. Packages: https://github.com/deepinsight/insightface/releases, "
                "non-commercial research only"
            )
        files = sorted(path.name for path in folder.glob("*.onnx"))
        if not files:
            raise WeightsError(
                f"insightface package {folder} has no .onnx file; expected a detector "
                "(det_*.onnx) and a recogniser (such as w600k_r50.onnx)"
            )
        analysis = _load_package(folder, files)
        try:
            analysis.prepare(
                ctx_id=-1,
                det_thresh=detection_threshold,
                det_size=(detection_size, detection_size),
            )
        except Exception as error:
            raise WeightsError(f"insightface package {folder}: {error}") from error
        self._detector = analysis.models["detection"]
        self._network = analysis.models["recognition"]
        self.name = folder.name if name is None else name
        self.label = label or self.name
        self.licence = _licence(folder)
        self.fingerprint = _fingerprint(self._detector.model_file, self._network.model_file)
        self._side = int(self._network.input_size[0])
        blank = np.zeros((self._side, self._side, 3), np.uint8)
        self.embedding_dim = int(self._network.get_feat([blank]).shape[1])

    def embed(self, images: np.ndarray | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (B, D) float32, and (B) bool that is False where no face was found.

        Args:
            images: (B, H, W, 3) uint8 RGB, or a sequence of (H, W, 3) of any sizes.
        """
        embeddings = np.full((len(images), self.embedding_dim), np.nan, np.float32)
        for index, image in enumerate(images):
            face = self._align(np.asarray(image))
            if face is not None:
                embeddings[index] = self._network.get_feat([face[..., ::-1]])[0]
        return acquired(embeddings, "cosine")

    def compare(self, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
        """Cosine similarities, broadcast over leading axes."""
        return cosine_similarity(e1, e2)

    def _align(self, image: np.ndarray) -> np.ndarray | None:
        require_rgb(image)
        bgr = np.ascontiguousarray(image[..., ::-1])
        _, points = self._detector.detect(bgr, max_num=1)
        if points is None or not len(points):
            return None
        try:
            # The package's own crop answers coinciding landmarks with NaN; ours raises.
            return align_arcface(image, points[0], self._side)
        except ValueError:
            return None


def _load_package(folder: Path, files: Sequence[str]) -> Any:
    application = load("insightface.app", "model packages of insightface")
    try:
        analysis = application.FaceAnalysis(
            name=str(folder.resolve()),
            allowed_modules=["detection", "recognition"],
            providers=["CPUExecutionProvider"],
        )
    except AssertionError as error:
        # insightface asserts, without a message, that there is a detector.
        raise WeightsError(
            f"insightface package {folder} has no detector that insightface recognises among "
            f"{', '.join(files)}; expected a file such as det_10g.onnx"
        ) from error
    except Exception as error:
        raise WeightsError(f"insightface package {folder} cannot be loaded: {error}") from error
    if "recognition" not in analysis.models:
        raise WeightsError(
            f"insightface package {folder} has no recogniser that insightface recognises among "
            f"{', '.join(files)}; expected a file such as w600k_r50.onnx. A lone recogniser runs "
            "as OnnxRecogniser with a spec"
        )
    return analysis


def _licence(folder: Path) -> str:
    """Licence status of the package, as insightface itself states it."""
    try:
        module = importlib.import_module("insightface.model_zoo.model_license")
        status = module.inspect_model_package_license(folder).status
    except (ImportError, AttributeError):
        # Releases before 2.0 have no licence files; their packages are non-commercial.
        status = "default_non_commercial"
    return f"insightface package, {str(status).replace('_', ' ')}"


def _fingerprint(*files: str) -> str:
    """One SHA-256 for several files: that of their SHA-256, one per line."""
    return hashlib.sha256("\n".join(fingerprint(file) for file in files).encode()).hexdigest()
