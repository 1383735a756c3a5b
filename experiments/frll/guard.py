"""Refuses files that show people or were trained on them; a check before every commit.

    python experiments/frll/guard.py FILE...     exits with 1 and names what must not be committed

Refused are images and weights below ``outputs``, ``data`` and ``experiments/frll``, images named
``<subject>_<capture>`` that are not the embedded faces, morphs made from anything else, and weights
whose training read a folder of faces.
"""

import hashlib
import json
import re
import sys
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError, safe_open

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = Path("src/adjointdeis/assets/mini")
IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
WEIGHTS = {".safetensors", ".ckpt", ".pt", ".pth", ".onnx", ".tflite", ".bin", ".tgz"}
PRIVATE = ("outputs", "data", "experiments/frll")
FACE = re.compile(r"^[A-Za-z]*\d{1,6}_\d{2}$")


@cache
def embedded_faces(root: Path) -> frozenset[str]:
    """SHA-256 of the embedded faces, which are of nobody."""
    files = (root / EMBEDDED / "faces").glob("*.png")
    return frozenset(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)


def reason(path: Path, root: Path = ROOT) -> str | None:
    """Why a file must not be committed; None where nothing speaks against it.

    Args:
        path: The file, relative to the root.
        root: The checkout.
    """
    kind, file = path.suffix.lower(), root / path
    if kind not in IMAGES | WEIGHTS:
        return None
    what = "an image" if kind in IMAGES else "weights or a package"
    for folder in PRIVATE:
        if path.is_relative_to(folder):
            return f"{what} below {folder}, where pictures of people and what is made of them lie"
    if kind in IMAGES:
        if FACE.match(path.stem) and not path.is_relative_to(EMBEDDED):
            return "an image named as a photograph of a data set"
        return _image(file, root)
    if kind != ".safetensors":
        return f"weights of the kind {kind}, which do not say what they were trained on"
    return _weights(file)


def _image(file: Path, root: Path) -> str | None:
    try:
        with Image.open(file) as image:
            marks = [str(value) for value in image.info.values() if "source_hashes" in str(value)]
    except (UnidentifiedImageError, OSError) as error:
        return f"it cannot be read as an image ({error})"
    for mark in marks:
        try:
            sources = set(json.loads(mark)["source_hashes"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            return "a morph whose mark cannot be read"
        if not sources <= embedded_faces(root):
            return "a morph of faces that are not the embedded ones"
    return None


def _weights(file: Path) -> str | None:
    try:
        with safe_open(file, framework="np") as stored:
            header = dict(stored.metadata() or {})
    except (SafetensorError, OSError) as error:
        return f"it cannot be read as safetensors ({error})"
    training = json.loads(header.get("training", "{}"))
    faces = training.get("recipe", {}).get("faces") or training.get("held_out")
    return "weights that were trained on a folder of faces" if faces else None


def main(arguments: list[str]) -> int:
    """Prints what must not be committed; 1 if there is anything."""
    found = [(path, why) for path in map(Path, arguments) if (why := reason(path)) is not None]
    for path, why in found:
        print(f"{path}: {why}; keep it out of the repository (git restore --staged {path})")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
