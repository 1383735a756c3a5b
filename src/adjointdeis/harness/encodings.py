"""Encoded faces, computed once and kept on disk by the content they were made from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from adjointdeis.faces.array_cache import ArrayCache
from adjointdeis.faces.image_io import sha256_of
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.morphing.attack import EncodedFace
from adjointdeis.morphing.autoencoder import Autoencoder, EncodingGrid

_SMALL = 96  # pixels of side below which one image leaves a processor half idle
_TOGETHER = 4


class Encodings:
    """Codes and noises of images under one autoencoder; an :class:`Encoder` with a memory.

    The key of an entry hashes the pixels, the weights, how and on what kind of device they are run,
    the grid and the steps, so that a changed image or network never meets a stale encoding.
    Encoding 250 steps costs as much as several optimisation steps, and every attack and every pair
    of a subject needs the same one. Damaged entries are found by their checksum
    (:class:`ArrayCache`) and made again.

    On a CPU an encoding does not depend on the images beside it, so neither on the batch size nor
    on what was in the cache: rounding follows the shape of a batch, which is therefore always the
    same, one large image or four small ones, the last one repeated where there are fewer. It does
    depend on the number of threads (by 1e-5 of a noise), which is part of the key. On other devices
    the images that are missing are encoded together.

    Args:
        autoencoder: Network.
        cache: Folder of the cache, or None to keep nothing.
    """

    def __init__(self, autoencoder: Autoencoder, cache: Path | None) -> None:
        self.autoencoder = autoencoder
        self.cache = None if cache is None else ArrayCache(cache)

    def __call__(
        self,
        images: np.ndarray,
        device: torch.device,
        steps: int,
        grid: EncodingGrid = "ddim_stride",
        codes_of: np.ndarray | None = None,
    ) -> EncodedFace:
        """Encodes images (B, H, W, 3) uint8; only those not in the cache cost anything."""
        coded = images if codes_of is None else codes_of
        keys = [
            self._key(image, code, device, steps, grid)
            for image, code in zip(images, coded, strict=True)
        ]
        entries = {} if self.cache is None else {key: self.cache.read(key) for key in set(keys)}
        found = {key: entry for key, entry in entries.items() if entry is not None}
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        missing = sorted(index for key, index in first.items() if key not in found)
        together = len(missing)
        if device.type == "cpu":
            together = _TOGETHER if images.shape[1] < _SMALL else 1
        for start in range(0, len(missing), together or 1):
            chosen = missing[start : start + together]
            made = self._encode(images, coded, chosen, together, device, steps, grid)
            for index, z, x_T in zip(chosen, *made, strict=False):
                found[keys[index]] = entry = {"z": z.cpu().numpy(), "x_T": x_T.cpu().numpy()}
                if self.cache is not None:
                    self.cache.write(keys[index], entry)
        return EncodedFace(
            z=torch.stack([torch.from_numpy(found[key]["z"]) for key in keys]).to(device),
            x_T=torch.stack([torch.from_numpy(found[key]["x_T"]) for key in keys]).to(device),
            nfe=steps,
        )

    def _encode(
        self,
        images: np.ndarray,
        coded: np.ndarray,
        chosen: list[int],
        together: int,
        device: torch.device,
        steps: int,
        grid: EncodingGrid,
    ) -> tuple[Tensor, Tensor]:
        """Codes and noises of the chosen images, in a batch filled up with the last of them."""
        rows = chosen + chosen[-1:] * (together - len(chosen))
        with torch.no_grad():
            z = self.autoencoder.code(to_tensor(coded[rows]).to(device))
        return z, self.autoencoder.encode(to_tensor(images[rows]).to(device), z, steps, grid).x_T

    def _key(
        self,
        image: np.ndarray,
        coded: np.ndarray,
        device: torch.device,
        steps: int,
        grid: EncodingGrid,
    ) -> tuple[object, ...]:
        return (
            "encoding",
            sha256_of(image),
            sha256_of(coded),
            self.autoencoder.fingerprint,
            repr(self.autoencoder.execution),
            device.type,
            torch.get_num_threads() if device.type == "cpu" else 0,
            steps,
            grid,
        )
