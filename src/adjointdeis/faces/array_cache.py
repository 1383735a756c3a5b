"""Arrays on disk by what they were computed from, believed only where their checksum says so."""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adjointdeis.files import write_atomically

SUFFIX = ".arrays"
DAMAGED = "a damaged, truncated or foreign entry of the cache"
LARGEST = 2**30
"""Bytes of the largest entry that is read: what is larger is no entry of ours."""


@dataclass(frozen=True)
class ArrayCache:
    """A folder of entries, one per key: the SHA-256 of the key and the content, then the content.

    The checksum covers what the arrays were computed from, so that an entry under another's name is
    found as surely as a damaged one. Nothing of an entry is parsed before its checksum is right.
    Such an entry counts as absent, is said in a warning of one line, and is made again.

    Attributes:
        folder: Where they lie; belongs in a run directory or among the data, never in the
            repository, for it holds images derived from the data.
    """

    folder: Path

    def get(
        self, parts: tuple[object, ...], make: Callable[[], Mapping[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """The arrays of a key, made now if the folder does not have them.

        Args:
            parts: Everything that the arrays depend on: content hashes and settings.
            make: Makes them.

        Returns:
            Arrays by name.
        """
        arrays = self.read(parts)
        if arrays is None:
            arrays = dict(make())
            self.write(parts, arrays)
        return arrays

    def read(self, parts: tuple[object, ...]) -> dict[str, np.ndarray] | None:
        """The arrays of a key, or None where there is no entry, or none that can be believed."""
        path = self.path(parts)
        if not os.path.lexists(path):
            return None
        arrays = read_entry(path)
        if arrays is None:
            warnings.warn(f"{path}: {DAMAGED}; it is made again", stacklevel=2)
        return arrays

    def write(self, parts: tuple[object, ...], arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the arrays of a key."""
        data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        path = self.path(parts)
        data = _checksum(path.stem, data) + data
        write_atomically(path, data)

    def path(self, parts: tuple[object, ...]) -> Path:
        """Where the entry of a key lies: named by the SHA-256 of the key."""
        key = hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()
        return self.folder / f"{key}{SUFFIX}"


def read_entry(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of one entry; None where its checksum does not fit its name and content."""
    try:
        if path.is_file() and path.stat().st_size <= LARGEST:
            data = path.read_bytes()
            if data[:32] == _checksum(path.stem, data[32:]):
                return load(data[32:])
    except (OSError, SafetensorError):
        pass
    return None


def _checksum(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass") + b"\0" + content).digest()
