"""A recogniser that is a torch network: differentiable, and usable as a black box too."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from adjointdeis.faces.recogniser import Metric, acquired, similarity
from adjointdeis.faces.recognisers.crop import FaceCrop

_OF_BATCHES = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


@dataclass(frozen=True, eq=False)
class NetworkRecogniser:
    """Recogniser over aligned images.

    Satisfies :class:`adjointdeis.faces.recogniser.Recogniser` and adds :meth:`features`, the
    differentiable path that the identity loss needs.

    Args:
        name: Short name used in tables and score files.
        network: Backbone, frozen and in evaluation mode; a tuple output's first entry is used.
        crop: From an aligned image to the network's input.
        fingerprint: SHA-256 of the weight file.
        licence: Licence of the weights, one line.
        label: Name in printed tables; the name if empty.
        metric: How embeddings are compared.
        dim: D, where the network has no ``config`` that says it.
        batch_size: Images per forward pass of :meth:`embed`.
    """

    name: str
    network: nn.Module
    crop: FaceCrop
    fingerprint: str
    licence: str
    label: str = ""
    score_type: Literal["similarity", "dissimilarity"] = "similarity"
    white_box: bool = True
    metric: Metric = "cosine"
    dim: int | None = None
    batch_size: int = 128

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.name)
        if any(isinstance(m, _OF_BATCHES) and m.training for m in self.network.modules()):
            raise ValueError(
                f"recogniser {self.name}: its network is in training mode, and an embedding would "
                "depend on the batch; call network.eval() first"
            )

    @property
    def alignment(self) -> str:
        """Label of the alignment and crop that a threshold of this recogniser belongs to."""
        return self.crop.label

    @property
    def embedding_dim(self) -> int:
        """Length of the embedding."""
        if self.dim is not None:
            return self.dim
        return self.network.config.embedding_dim  # type: ignore[union-attr, return-value]

    @property
    def parts(self) -> tuple[tuple[int, Metric], ...]:
        """What an identity loss needs to know of the features: length and metric of each guide."""
        return ((self.embedding_dim, self.metric),)

    def features(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images in [-1, 1] with shape (B, 3, H, W), differentiably."""
        output = self.network(self.crop(images))
        found = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(images):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"recogniser {self.name}: its network returns {shape} for {len(images)} images, "
                "expected a tensor (B, D) or a tuple that begins with it; wrap the network in a "
                "module that returns the embedding"
            )
        return found

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (B, D) float32 of images (B, H, W, 3) uint8, and (B) acquired flags."""
        tensors = chain(self.network.parameters(), self.network.buffers())
        device = next(tensors, torch.empty(0)).device
        chunks = []
        for start in range(0, len(images), self.batch_size):
            stop = start + self.batch_size
            batch = torch.from_numpy(np.array(images[start:stop])).permute(0, 3, 1, 2)
            chunks.append(self.features(batch.to(device).float() / 127.5 - 1).float().cpu())
        if not chunks:
            return np.empty((0, self.embedding_dim), np.float32), np.empty(0, bool)
        return acquired(torch.cat(chunks).numpy(), self.metric)

    def compare(self, e1: np.ndarray, e2: np.ndarray) -> np.ndarray:
        """Cosine, or 1 - Euclidean distance, broadcast over leading axes."""
        return similarity(self.metric, e1, e2)


@dataclass(frozen=True, eq=False)
class Guides:
    """Several recognisers that guide a morph together; the identity loss is the mean of theirs.

    It offers what an identity loss takes from one recogniser. A judge that is among the guides is
    no black box, and tables mark it.

    Args:
        members: The recognisers, at least one.
    """

    members: tuple[NetworkRecogniser, ...]

    @property
    def name(self) -> str:
        """Names of the members, joined."""
        return "+".join(member.name for member in self.members)

    @cached_property
    def network(self) -> nn.Module:
        """The members' networks, to be moved together."""
        return nn.ModuleList(member.network for member in self.members)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the members' fingerprints; that of the member where there is one."""
        prints = [member.fingerprint for member in self.members]
        return prints[0] if len(prints) == 1 else sha256("\n".join(prints).encode()).hexdigest()

    @property
    def licence(self) -> str:
        """Licences of the members."""
        return "; ".join(f"{member.name}: {member.licence}" for member in self.members)

    @property
    def parts(self) -> tuple[tuple[int, Metric], ...]:
        """Length and metric of each member's features, in the order of :meth:`features`."""
        return tuple(part for member in self.members for part in member.parts)

    def features(self, images: Tensor) -> Tensor:
        """Embeddings of all members side by side, (B, sum of D), differentiably."""
        return torch.cat([member.features(images) for member in self.members], dim=1)
