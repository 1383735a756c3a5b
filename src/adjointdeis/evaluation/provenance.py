"""Reading the provenance that every morph written by this project carries in its PNG text chunks.

The key `adjointdeis` holds a JSON object {tool, version, attack, config_hash, source_hashes,
notice}. This reader needs no imaging library and decodes no pixel. Metadata do not survive a
re-encoding: a file without them may still be a morph.

References:
    | Portable Network Graphics, textual information
    | https://www.w3.org/TR/png-3/#11textinfo
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.files import read_bytes

TEXT_KEY = "adjointdeis"
NOTICE = "synthetic morph, research use"
REQUIRED = ("tool", "version", "attack", "config_hash", "source_hashes", "notice")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# A text chunk of more than this is no provenance; it protects against decompression bombs.
_LIMIT = 1 << 20
_LARGEST = 1 << 28


class _TooLong(ValueError):
    """A compressed text beyond the limit."""


class NoProvenance(EvaluationError):
    """A sound PNG file that carries no provenance of this project."""


def read_provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The provenance of a morph.

    Raises:
        NoProvenance: the file is a PNG without the key.
        EvaluationError: not a PNG, a damaged one, or provenance that is not what it should be.
    """
    path = Path(path)
    text = png_texts(path).get(TEXT_KEY)
    if text is None:
        raise NoProvenance(
            f"{path}: no {TEXT_KEY!r} text in this PNG; it was not written by this project, or was "
            "re-encoded since"
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: the {TEXT_KEY!r} text is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise EvaluationError(f"{path}: the {TEXT_KEY!r} text is not a JSON object")
    for name in REQUIRED:
        if name not in found:
            raise EvaluationError(f"{path}: the provenance lacks {name!r}")
    return found


def png_texts(path: str | os.PathLike[str]) -> dict[str, str]:
    """All texts (tEXt, zTXt, iTXt) of a PNG by key; checksums are verified.

    A compressed text of more than a mebibyte, as editors write beside a picture, is left out.

    Raises:
        EvaluationError: missing file, not a PNG, truncated, or with a wrong checksum.
    """
    path = Path(path)
    found = (chunk for chunk in chunks(path) if chunk[0] in (b"tEXt", b"zTXt", b"iTXt"))
    texts = (_text(path, kind, body) for kind, body in found)
    return dict(text for text in texts if text is not None)


def chunks(path: str | os.PathLike[str]) -> Iterator[tuple[bytes, bytes]]:
    """(kind, body) of every chunk of a PNG up to its end; checksums are verified.

    Raises:
        EvaluationError: missing file, not a PNG, truncated, or with a wrong checksum.
    """
    path = Path(path)
    data = read_bytes(path, EvaluationError, _LARGEST)
    if not data.startswith(_SIGNATURE):
        raise EvaluationError(f"{path}: not a PNG file; morphs of this project are PNG")
    at = len(_SIGNATURE)
    while at < len(data):
        if at + 12 > len(data):
            raise EvaluationError(f"{path}: truncated PNG")
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind = data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        check = data[at + 8 + length : at + 12 + length]
        if len(check) < 4:
            raise EvaluationError(f"{path}: truncated PNG")
        if zlib.crc32(kind + body) != struct.unpack(">I", check)[0]:
            raise EvaluationError(f"{path}: chunk {kind.decode('latin-1')} has a wrong checksum")
        yield kind, body
        at += 12 + length
        if kind == b"IEND":
            return
    raise EvaluationError(f"{path}: truncated PNG")


def sources_match(provenance: dict[str, Any], sources: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether the SHA-256 of every given file is among the source hashes."""
    stated = provenance["source_hashes"]
    values = stated.values() if isinstance(stated, dict) else stated
    hashes = {str(value).removeprefix("sha256:") for value in values}
    digests = {hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources}
    # Writers may shorten a digest; sixteen hexadecimal digits are still beyond chance.
    return all(any(len(h) >= 16 and d.startswith(h) for h in hashes) for d in digests)


def _text(path: Path, kind: bytes, body: bytes) -> tuple[str, str] | None:
    try:
        key, rest = body.split(b"\0", 1)
        if kind == b"tEXt":
            return key.decode("latin-1"), rest.decode("latin-1")
        if kind == b"zTXt":
            return key.decode("latin-1"), _inflate(rest[1:]).decode("latin-1")
        compressed = rest[0] == 1
        _, _, text = rest[2:].split(b"\0", 2)
        return key.decode("latin-1"), (_inflate(text) if compressed else text).decode("utf-8")
    except (ValueError, IndexError, zlib.error) as error:
        # Ours is short; editors write long ones, which are none of our business.
        if isinstance(error, _TooLong) and not body.startswith(f"{TEXT_KEY}\0".encode()):
            return None
        raise EvaluationError(f"{path}: a damaged {kind.decode()} chunk in this PNG") from None


def _inflate(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    text = inflater.decompress(data, _LIMIT)
    if inflater.unconsumed_tail:
        raise _TooLong
    return text
