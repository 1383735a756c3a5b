r"""Demorphing: the live person is taken out of the suspect image; who is left?

A morph's code lies between those of its subjects,
:math:`z_m = (z_{\text{live}} + z_{\text{accomplice}})/2`, so that

.. math:: z_{\text{accomplice}} = 2 z_m - z_{\text{live}}

is the other person's, and of a bona fide image the live person's own. Decoded to an image, that
person is compared with the live capture, decoded in the same way: the less they are alike, the more
likely a morph. Nothing is trained.

When not to use it: with an autoencoder whose codes are not linear in who is shown, or on
photographs that differ in pose or light, which the subtraction doubles.

References:
    | Face Demorphing (Ferrara, Franco, Maltoni, 2018), which subtracts images
    | https://doi.org/10.1109/TIFS.2017.2777340
    | Diffusion Autoencoders (Preechakul et al., 2022), for the codes
    | https://arxiv.org/abs/2111.15640
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from adjointdeis.detection.detector import Kind, Suspects
from adjointdeis.detection.linear import unit_embeddings
from adjointdeis.faces.image_io import sha256_of
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.faces.tensors import to_tensor, to_uint8


class Decoder(Protocol):
    """What demorphing needs of an autoencoder.

    Attributes:
        fingerprint: SHA-256 of its weights.
    """

    @property
    def fingerprint(self) -> str: ...

    def code(self, images: Tensor) -> Tensor:
        """Codes (B, D) of images (B, 3, H, W) in [-1, 1]."""
        ...

    def decode(self, x_T: Tensor, z: Tensor, steps: int = 20) -> Tensor:
        """Images in [-1, 1] from noise (B, 3, H, W) and codes (B, D)."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Demorphing:
    """Scores suspects by how little the accomplice that is left is like the live person.

    Args:
        name: Of the detector.
        autoencoder: Codes and decodes images.
        recogniser: Compares the accomplice with the live person.
        steps: Sampling steps of the decoder.
        amount: w in :math:`z_m + w (z_m - z_{live})`: 1 where morphs are half and half.
        seed: Of the noise that is decoded, the same for every image.
    """

    name: str
    autoencoder: Decoder
    recogniser: Recogniser
    steps: int = 5
    amount: float = 1.0
    seed: int = 0
    kind: ClassVar[Kind] = "demorphing"
    training: ClassVar[str] = "none"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the two networks' fingerprints and the settings."""
        parts = (self.autoencoder.fingerprint, self.recogniser.fingerprint)
        settings = f"{self.steps} {self.amount} {self.seed}"
        return sha256_of("\n".join([*parts, settings]).encode())

    def score(self, suspects: Suspects) -> np.ndarray:
        """(B,): 1 - similarity of the accomplice and the live person, both decoded."""
        live = suspects.require_live(self.name)
        # Many suspects may be presented by one person, whose capture is decoded once.
        captures, presented = np.unique(live, axis=0, return_inverse=True)
        decoded = self.decoded(self.codes(captures), live.shape[1:3])
        found = (self.accomplices(suspects.images, live), decoded[np.ravel(presented)])
        u, v = (unit_embeddings(self.recogniser, x, suspects.names) for x in found)
        return 1 - (u * v).sum(1)

    def accomplices(self, images: np.ndarray, live: np.ndarray) -> np.ndarray:
        """Who is left of each image (B, H, W, 3) when the live person is taken out; uint8."""
        z_m, z_live = self.codes(images), self.codes(live)
        return self.decoded(z_m + self.amount * (z_m - z_live), images.shape[1:3])

    @torch.no_grad()
    def codes(self, images: np.ndarray) -> Tensor:
        """Codes (B, D) of images (B, H, W, 3) uint8."""
        return self.autoencoder.code(to_tensor(images))

    @torch.no_grad()
    def decoded(self, z: Tensor, size: tuple[int, ...]) -> np.ndarray:
        """Images (B, H, W, 3) uint8 of codes (B, D), all from one noise."""
        generator = torch.Generator().manual_seed(self.seed)
        x_T = torch.randn((1, 3, *size), generator=generator).expand(len(z), -1, -1, -1)
        return to_uint8(self.autoencoder.decode(x_T, z, self.steps))
