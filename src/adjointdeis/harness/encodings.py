"""Encoded faces, computed once and kept on disk by the content they were made from."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from adjointdeis.files import write_atomically
from adjointdeis.harness.benchmark import to_tensor
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.dim import EncodedFace


class Encodings:
    """Codes and noises of images under one autoencoder.

    The key of an entry hashes the pixels, the weights and the number of steps, so that a changed
    image or network never meets a stale encoding. Encoding 250 steps costs as much as several
    optimisation steps, and every attack and every pair of a subject needs the same one.

    Arguments:
        autoencoder: Network.
        steps: N_E.
        cache: Folder of the cache, or None to keep nothing.
    """

    def __init__(self, autoencoder: Autoencoder, steps: int, cache: Path | None) -> None:
        self.autoencoder, self.steps, self.cache = autoencoder, steps, cache

    def __call__(self, images: np.ndarray, device: torch.device) -> EncodedFace:
        """Encodes images (B, H, W, 3) uint8; only those not in the cache cost anything."""
        found = [self._read(image) for image in images]
        missing = [i for i, entry in enumerate(found) if entry is None]
        if missing:
            batch = to_tensor(images[missing]).to(device)
            with torch.no_grad():
                z = self.autoencoder.code(batch)
            x_T = self.autoencoder.encode(batch, z, self.steps).x_T
            for row, index in enumerate(missing):
                found[index] = {
                    "z": z[row].cpu().clone(),
                    "x_T": x_T[row].cpu().contiguous().clone(),
                }
                self._write(images[index], found[index])
        return EncodedFace(
            z=torch.stack([entry["z"] for entry in found]).to(device),  # type: ignore[index]
            x_T=torch.stack([entry["x_T"] for entry in found]).to(device),  # type: ignore[index]
            nfe=self.steps,
        )

    def _path(self, image: np.ndarray) -> Path | None:
        if self.cache is None:
            return None
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes())
        digest.update(f"{image.shape}|{self.autoencoder.fingerprint}|{self.steps}".encode())
        return self.cache / f"{digest.hexdigest()[:32]}.safetensors"

    def _read(self, image: np.ndarray) -> dict[str, torch.Tensor] | None:
        path = self._path(image)
        if path is None or not path.is_file():
            return None
        try:
            return load(path.read_bytes())
        except Exception:
            # A damaged entry is only a cache miss; it is overwritten below.
            return None

    def _write(self, image: np.ndarray, entry: dict[str, torch.Tensor]) -> None:
        path = self._path(image)
        if path is None:
            return
        write_atomically(path, lambda file: file.write(save(entry)), "wb")
