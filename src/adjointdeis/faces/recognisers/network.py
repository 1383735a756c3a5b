"""A recogniser that is a torch network: differentiable, and usable as a black box too."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from adjointdeis.faces.recogniser import cosine_similarity
from adjointdeis.faces.recognisers.crop import FaceCrop


@dataclass(frozen=True, eq=False)
class NetworkRecogniser:
    """Cosine recogniser over aligned images.

    Satisfies :class:`adjointdeis.faces.recogniser.Recogniser` and adds :meth:`features`, the
    differentiable path that the identity loss needs.

    Args:
        name: Short name used in tables and score files.
        network: Backbone, frozen and in evaluation mode; a tuple output's first entry is used.
        crop: From an aligned image to the network's input.
        fingerprint: SHA-256 of the weight file.
        licence: Licence of the weights, one line.
        label: Name in printed tables.
    """

    name: str
    network: nn.Module
    crop: FaceCrop
    fingerprint: str
    licence: str
    label: str = ""
    score_type: Literal["similarity", "dissimilarity"] = "similarity"
    white_box: bool = True
    metric: Literal["cosine"] = "cosine"

    @property
    def alignment(self) -> str:
        """Label of the alignment and crop that a threshold of this recogniser belongs to."""
        return self.crop.label

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding."""
        return self.network.config.embedding_dim  # type: ignore[union-attr, return-value]

    def features(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images in [-1, 1] with shape (B, 3, H, W), differentiably."""
        output = self.network(self.crop(images))
        return output[0] if isinstance(output, tuple) else output

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (B, D) float32 of images (B, H, W, 3) uint8, and (B) acquired flags."""
        device = next(self.network.parameters()).device
        chunks = []
        for start in range(0, len(images), 128):
            batch = torch.from_numpy(np.array(images[start : start + 128])).permute(0, 3, 1, 2)
            chunks.append(self.features(batch.to(device).float() / 127.5 - 1).float().cpu())
        if not chunks:
            return np.empty((0, self.embedding_dim), np.float32), np.empty(0, bool)
        embeddings = torch.cat(chunks).numpy()
        acquired = np.all(np.isfinite(embeddings), axis=1)
        embeddings[~acquired] = np.nan
        return embeddings, acquired

    def compare(self, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
        """Cosine similarities, broadcast over leading axes."""
        return cosine_similarity(e1, e2)
