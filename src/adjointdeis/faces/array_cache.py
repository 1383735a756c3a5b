"""Arrays on disk by content hash, so that a run that was stopped does not repeat its work."""

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adjointdeis.faces.image_io import sha256_of
from adjointdeis.files import write_atomically


@dataclass(frozen=True)
class ArrayCache:
    """A folder of `.npz` files, one per key.

    Attributes:
        folder: Where they lie; belongs in a run directory, never in the repository, for it holds
            images derived from the data.
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
            Arrays by name. A truncated file counts as absent.
        """
        path = self.folder / f"{sha256_of(repr(parts).encode())}.npz"
        if path.is_file():
            try:
                with np.load(path, allow_pickle=False) as stored:
                    return dict(stored)
            except (zipfile.BadZipFile, ValueError, OSError, EOFError):
                path.unlink()
        arrays = dict(make())
        write_atomically(path, lambda f: np.savez(f, allow_pickle=False, **arrays), "wb")
        return arrays
