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


def require_embedding(system: Recogniser, size: int, what: str) -> None:
    """Refuses a network whose output is no embedding, from what it makes of three pictures.

    Args:
        system: The recogniser.
        size: Side of the pictures.
        what: What messages call it.

    Raises:
        ValueError: Naming `what`: one number that is to be compared by its angle, probabilities
            of classes, the same for every picture, or not the same for a picture among others.
    """
    require_angle(system.embedding_dim, system.metric, what)
    # Of sixteen patches: a network that averages first sees no difference between fine noise.
    patches = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    places = np.arange(size) * 4 // size
    pictures = patches[:, places][:, :, places]
    together, ok = system.embed(pictures)
    if not ok.all():
        return
    alone = np.concatenate([system.embed(picture[None])[0] for picture in pictures])
    scale = np.abs(together).max()
    if np.abs(together - together[0]).max() <= 1e-5 * scale:
        raise ValueError(
            f"{what}: its output is the same for different pictures; choose the output that is the "
            "embedding, and check mean, std and colours"
        )
    if not np.abs(together - alone).max() <= 1e-2 * scale:
        raise ValueError(
            f"{what}: its output for a picture depends on the others of the batch or on chance; "
            "export the network in evaluation mode"
        )
    shares = together if together.min() >= 0 else np.exp(together.clip(max=1))
    if system.embedding_dim > 2 and np.abs(shares.sum(1) - 1).max() < 1e-3:
        raise ValueError(
            f"{what}: its output is probabilities of {system.embedding_dim} classes, which say "
            "nothing of people it was not trained on; choose the output before them, the embedding"
        )


class NoFaceError(ValueError):
    """An image that must show one face shows none, or several."""


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
