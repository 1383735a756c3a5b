"""Seeded changes that make damaged and hostile files of sound ones; used by the fuzz suite."""

import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

INTEGERS = (0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
TOKENS = (
    "", "nan", "-inf", "1e999", "-1", "0", "9" * 5000, "\0", "\ufeff", "é", '"', "'", ",", "\t",
    "\n", "\r", "../../../x", "/etc/passwd", "\x1b[2J", "=1+1", "<script>", "\u202e", "null", "[]",
    "001", "x" * 3000, "{{", "${x}", "\ud800",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 10**300, 2**63, 0.5, float("nan"), float("inf"), "", "x", "../../x",
    "\x1b[2J", "9" * 50, [], [1], [[]], {}, {"a": 1}, "\ud800",
)  # fmt: skip

Random = np.random.Generator


def changed_bytes(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A few changes of bytes: flipped, cut, doubled, spliced, numbers that lie."""
    found = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(found) + 1))
        length = int(rng.integers(1, 64))
        match int(rng.integers(9)):
            case 0 if at < len(found):
                found[at] ^= 1 << int(rng.integers(8))
            case 1:
                found[at : at + 1] = bytes([int(rng.choice([0, 1, 127, 128, 255]))])
            case 2:
                del found[at:]
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                found[at:at] = rng.bytes(length)
            case 6:
                size, order = int(rng.choice([2, 4, 8])), str(rng.choice(["little", "big"]))
                number = int(INTEGERS[rng.integers(len(INTEGERS))]) % 256**size
                found[at : at + size] = number.to_bytes(size, order)  # type: ignore[arg-type]
            case 7:
                other = others[int(rng.integers(len(others)))]
                found[at:] = other[int(rng.integers(len(other) + 1)) :]
            case _:
                found[at : at + length] = found[at : at + length][::-1]
    return bytes(found)


def changed_text(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Tokens of a text replaced; lines doubled and cut; at times bytes."""
    if rng.random() < 0.3:
        return changed_bytes(rng, data, others)
    text = data.decode()
    for _ in range(int(rng.integers(1, 4))):
        token = TOKENS[int(rng.integers(len(TOKENS)))]
        at = int(rng.integers(len(text) + 1))
        end = at + int(rng.integers(0, 8))
        text = text[:at] + token + text[end:]
        if rng.random() < 0.2:
            lines = text.split("\n")
            k = int(rng.integers(len(lines)))
            text = "\n".join([*lines[:k], *lines[: int(rng.integers(k + 1))]])
    return text.encode(errors="surrogatepass")


def changed_json(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Values of a JSON text replaced, keys taken away, deep nesting, huge numbers."""
    if rng.random() < 0.25:
        return changed_text(rng, data, others)
    value = json.loads(data)
    for _ in range(int(rng.integers(1, 4))):
        value = _changed_value(rng, value)
    text = json.dumps(value)
    if rng.random() < 0.1:
        text = text.replace("0.5", "7" * 6000)
    return text.encode()


def _changed_value(rng: Random, value: Any) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.15:
            if isinstance(value, dict):
                return {k: v for k, v in value.items() if k != key}
            return value[:key]
        made = dict(value) if isinstance(value, dict) else list(value)
        made[key] = _changed_value(rng, value[key])
        return made
    new = _VALUES[int(rng.integers(len(_VALUES)))]
    for _ in range(int(rng.choice([0, 0, 0, 5, 400]))):
        new = [new]
    return new


def changed_png(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Chunks of a PNG changed with a right checksum, so that the change is looked at."""
    if not data.startswith(b"\x89PNG") or rng.random() < 0.4:
        return changed_bytes(rng, data, others)
    parts, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    k = int(rng.integers(len(parts)))
    kind, body = parts[k]
    if rng.random() < 0.2:
        body = zlib.compress(bytes(2**26))[: 2**17]  # 64 MiB of zeros in 64 KiB
        kind = (b"IDAT", b"zTXt", b"iCCP")[int(rng.integers(3))]
        body = body if kind == b"IDAT" else b"x\0\0" + body
    else:
        body = changed_bytes(rng, body or b"\0", [b for _, b in parts])
    parts[k] = (kind, body)
    return data[:8] + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in parts
    )


def changed_zip(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Members of an archive changed, renamed, compressed or doubled, with right checksums."""
    if not data.startswith(b"PK") or rng.random() < 0.4:
        return changed_bytes(rng, data, others)
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        victim = names[int(rng.integers(len(names)))]
        for name in names:
            body, to, how = old.read(name), name, zipfile.ZIP_STORED
            if name == victim:
                match int(rng.integers(4)):
                    case 0:
                        to = TOKENS[int(rng.integers(len(TOKENS) - 1))] or "x"
                    case 1:
                        how = zipfile.ZIP_DEFLATED
                        body = bytes(2**24)
                    case _:
                        body = changed_bytes(rng, body or b"\0", [body or b"\0"])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                new.writestr(zipfile.ZipInfo(to.replace("\0", "0") or "x"), body, how)
    return made.getvalue()


def changed_safetensors(rng: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """The header's JSON changed, its length right; at times bytes."""
    if rng.random() < 0.3:
        return changed_bytes(rng, data, others)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    if "__metadata__" in header and rng.random() < 0.5:
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps(_changed_value(rng, config))
        text = json.dumps(header).encode()
    else:
        text = changed_json(rng, json.dumps(header).encode(), [b"{}"])
    return struct.pack("<Q", len(text)) + text + data[8 + length :]
