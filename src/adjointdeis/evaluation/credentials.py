"""Content credentials (C2PA): the provenance of a morph under a signature that tampering breaks.

The text chunks of a PNG say where a morph comes from, but anyone can write them. A signature over
the whole file says who wrote them, and that no byte changed since. It needs the signer's own
certificate and key, and the package c2pa-python (extra `c2pa`), imported only here and only when
asked for.

When not to use it: like the text chunks, credentials do not survive a re-encoding, and a file
without them may still be a morph. A valid signature names a signer; whether to trust that name is
for the reader to decide.

References:
    | C2PA technical specification
    | https://spec.c2pa.org/specifications/specifications/2.2/specs/C2PA_Specification.html
    | IPTC, digital source type
    | https://cv.iptc.org/newscodes/digitalsourcetype/
"""

import io
import json
import os
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.provenance import chunks, read_provenance
from adjointdeis.extras import MissingPackageError, load
from adjointdeis.files import write_atomically

ASSERTION = "org.adjointdeis.provenance"
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeSynthetic"
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")
# The PNG chunk that holds a C2PA manifest store.
CHUNK = b"caBX"
_MIME = "image/png"
UNCHECKED = "Unchecked"


def sign(
    path: str | os.PathLike[str],
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
    algorithm: str = "es256",
) -> None:
    """Signs a morph in place: its provenance becomes an assertion of the manifest.

    Args:
        path: a PNG that `read_provenance` can read and that is not signed yet.
        certificate: PEM chain of the signer, its own certificate first.
        key: PEM private key, PKCS 8.
        algorithm: one of `ALGORITHMS`; must fit the key.

    Raises:
        NoProvenance: the file says nothing about its origin, so there is nothing to sign.
        EvaluationError: signed already, or the signer refused.
        MissingPackageError: c2pa-python is absent.
    """
    path = Path(path)
    if algorithm not in ALGORITHMS:
        raise EvaluationError(f"algorithm {algorithm!r}: expected one of {', '.join(ALGORITHMS)}")
    provenance = read_provenance(path)
    if is_signed(path):
        raise EvaluationError(f"{path}: signed already; sign the file as it was written")
    c2pa = _package()
    manifest = {
        "claim_generator_info": [{"name": provenance["tool"], "version": provenance["version"]}],
        "title": path.name,
        "format": _MIME,
        "assertions": [
            {
                "label": "c2pa.actions",
                "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE_TYPE}]},
            },
            {"label": ASSERTION, "data": provenance},
        ],
    }
    signed = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(algorithm, _text(certificate), _text(key), None)
        builder = c2pa.Builder.from_json(json.dumps(manifest))
        builder.sign(c2pa.Signer.from_info(info), _MIME, io.BytesIO(path.read_bytes()), signed)
    except c2pa.C2paError as error:
        raise EvaluationError(f"{path}: not signed ({error}); see --certificate, --key") from None
    write_atomically(path, signed.getvalue())


def read_credentials(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """State, signer and provenance of a signed file; None for one that is not signed.

    Returns:
        `state` is `Trusted`, `Valid` (sound, by a signer that no trust list names) or `Invalid`
        (the file changed, or the signature is broken), or `Unchecked` where c2pa-python is absent;
        `signer` and `problems` say more.

    Raises:
        EvaluationError: a manifest that cannot be read.
    """
    path = Path(path)
    if not is_signed(path):
        return None
    try:
        c2pa = _package()
    except MissingPackageError as error:
        return {"state": UNCHECKED, "signer": "?", "problems": [str(error)], "provenance": None}
    try:
        with c2pa.Reader(_MIME, io.BytesIO(path.read_bytes())) as reader:
            state, found = reader.get_validation_state(), json.loads(reader.json())
    except c2pa.C2paError as error:
        raise EvaluationError(f"{path}: unreadable content credentials ({error})") from None
    active = found["manifests"][found["active_manifest"]]
    signature = active.get("signature_info", {})
    names = [signature.get(k) for k in ("common_name", "issuer")]
    stated = [a["data"] for a in active.get("assertions", ()) if a["label"] == ASSERTION]
    return {
        "state": state,
        "signer": ", ".join(name for name in names if name) or "unnamed",
        "problems": [status["code"] for status in found.get("validation_status", ())],
        "provenance": stated[0] if stated else None,
    }


def is_signed(path: str | os.PathLike[str]) -> bool:
    """Whether a PNG holds content credentials, sound or not; needs no package."""
    return any(kind == CHUNK for kind, _ in chunks(path))


def _text(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise EvaluationError(f"{path}: {error.strerror}; expected a PEM file") from None


def _package() -> Any:
    return load("c2pa", "content credentials")
