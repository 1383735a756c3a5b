"""Encoded faces, computed once and kept on disk by the content they were made from."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from adjointdeis.faces.tensors import to_tensor
from adjointdeis.files import write_atomically
from adjointdeis.morphing.attack import EncodedFace
from adjointdeis.morphing.autoencoder import Autoencoder, EncodingGrid


class Encodings:
    """Codes and noises of images under one autoencoder; an :class:`Encoder` with a memory.

    The key of an entry hashes the pixels, the weights, how they are run, the grid and the steps,
    so that a changed image or network never meets a stale encoding. Encoding 250 steps costs as
    much as several optimisation steps, and every attack and every pair of a subject needs the same
    one.

    Args:
        autoencoder: Network.
        cache: Folder of the cache, or None to keep nothing.
    """

    def __init__(self, autoencoder: Autoencoder, cache: Path | None) -> None:
        self.autoencoder, self.cache = autoencoder, cache

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
        paths = [
            self._path(image, code, steps, grid) for image, code in zip(images, coded, strict=True)
        ]
        found = [self._read(path) for path in paths]
        missing = [i for i, entry in enumerate(found) if entry is None]
        if missing:
            batch = to_tensor(images[missing]).to(device)
            with torch.no_grad():
                z = self.autoencoder.code(to_tensor(coded[missing]).to(device))
            x_T = self.autoencoder.encode(batch, z, steps, grid).x_T
            for row, index in enumerate(missing):
                entry = {
                    "z": z[row].cpu().clone(),
                    "x_T": x_T[row].cpu().contiguous().clone(),
                }
                self._write(paths[index], entry)
                found[index] = entry
        entries = [entry for entry in found if entry is not None]
        return EncodedFace(
            z=torch.stack([entry["z"] for entry in entries]).to(device),
            x_T=torch.stack([entry["x_T"] for entry in entries]).to(device),
            nfe=steps,
        )

    def _path(
        self, image: np.ndarray, coded: np.ndarray, steps: int, grid: EncodingGrid
    ) -> Path | None:
        if self.cache is None:
            return None
        digest = hashlib.sha256(np.ascontiguousarray(image).tobytes())
        digest.update(f"{image.shape}|{self.autoencoder.fingerprint}|{steps}".encode())
        # The official encoding of an image under its own code is what earlier caches hold.
        if grid != "ddim_stride":
            digest.update(f"|{grid}".encode())
        if not self.autoencoder.execution.plain:
            digest.update(f"|{self.autoencoder.execution}".encode())
        if not np.array_equal(image, coded):
            digest.update(b"|under|" + np.ascontiguousarray(coded).tobytes())
        return self.cache / f"{digest.hexdigest()[:32]}.safetensors"

    def _read(self, path: Path | None) -> dict[str, torch.Tensor] | None:
        if path is None or not path.is_file():
            return None
        try:
            return load(path.read_bytes())
        except Exception:
            # A damaged entry is only a cache miss; it is overwritten below.
            return None

    def _write(self, path: Path | None, entry: dict[str, torch.Tensor]) -> None:
        if path is not None:
            write_atomically(path, lambda file: file.write(save(entry)), "wb")
