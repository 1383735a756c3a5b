"""The interface that every face recogniser of the project has, with gradients or without."""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np

Metric = Literal["cosine", "euclidean"]
"""How embeddings are compared: by the cosine of their angle, or by Euclidean distance."""


@runtime_checkable
class Recogniser(Protocol):
    """Maps images to embeddings and compares embeddings.

    Attributes:
        name: Short name used in score files.
        label: Name in printed tables.
        metric: How embeddings are compared natively.
        alignment: Label of the alignment its input must have (see `adjointdeis.faces.alignment`).
        score_type: Direction of what `compare` returns. The recognisers of this project return
            similarities, whatever their native score is.
        embedding_dim: D.
        white_box: Whether a differentiable form exists in this process.
        fingerprint: SHA-256 of the weights.
        licence: Licence of the weights, one line.
    """

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def metric(self) -> Metric: ...

    @property
    def alignment(self) -> str: ...

    @property
    def score_type(self) -> Literal["similarity", "dissimilarity"]: ...

    @property
    def embedding_dim(self) -> int: ...

    @property
    def white_box(self) -> bool: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def licence(self) -> str: ...

    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of images.

        Args:
            images: (B, H, W, 3) uint8 RGB.

        Returns:
            (B, D) float32 embeddings, and (B,) bool: False is a failure to acquire, its row NaN.
        """
        ...

    def compare(self, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
        """Similarities (...) of embeddings (..., D), broadcast over the leading axes; NaN stays."""
        ...


def cosine_similarity(e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
    """Cosine of the angle between embeddings (..., D), broadcast; in [-1, 1]."""
    e1, e2 = np.asarray(e1, np.float64), np.asarray(e2, np.float64)
    norms = np.linalg.norm(e1, axis=-1) * np.linalg.norm(e2, axis=-1)
    return (e1 * e2).sum(-1) / norms


def euclidean_distance(e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
    """Euclidean distance between embeddings (..., D), broadcast over the leading axes."""
    return np.linalg.norm(np.asarray(e1, np.float64) - np.asarray(e2, np.float64), axis=-1)


def similarity(metric: Metric, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
    """How alike embeddings are: their cosine, or 1 - their Euclidean distance.

    Args:
        metric: Which of the two.
        e1, e2: Embeddings (..., D), broadcast against each other.
    """
    return cosine_similarity(e1, e2) if metric == "cosine" else 1.0 - euclidean_distance(e1, e2)


def acquired(embeddings: np.ndarray, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (B, D) with NaN where one says nothing, and (B,) bool that is False there.

    One that is not finite does not, and none of length 0 has an angle to another.
    """
    ok = np.asarray(np.isfinite(embeddings).all(1))
    if metric == "cosine":
        ok &= embeddings.any(1)
    embeddings[~ok] = np.nan
    return embeddings, ok


def require_angle(dim: int, metric: Metric, what: str) -> None:
    """Refuses an embedding of one number that is to be compared by its angle.

    Raises:
        ValueError: naming `what`: often the second output was taken, which is a norm.
    """
    if dim < 2 and metric == "cosine":
        raise ValueError(
            f"{what}: its output is one number for each image, and the cosine of two numbers is 1 "
            "or -1; choose the output that is the embedding"
        )


class NoFaceError(ValueError):
    """No face was found in an image that must have one."""


def require_faces(ok: np.ndarray, names: Sequence[str], system: str) -> None:
    """Raises `NoFaceError` that names every image in which `system` found no face.

    Args:
        ok: (B,) bool as `Recogniser.embed` returns it.
        names: B file names.
        system: Name of the recogniser or detector.
    """
    missing = [str(name) for name, found in zip(names, ok, strict=True) if not found]
    if missing:
        raise NoFaceError(
            f"{system} found no face in {len(missing)} of {len(names)} images: "
            f"{', '.join(missing)}; check that they are upright photographs of one frontal face"
        )
