"""Content credentials: signed, read back, tampered with; by a certificate made for the test."""

import datetime
import json
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adjointdeis.evaluation import EvaluationError
from adjointdeis.evaluation.cli import main
from adjointdeis.evaluation.credentials import is_signed, read_credentials, sign
from adjointdeis.evaluation.provenance import NOTICE, NoProvenance, read_provenance
from adjointdeis.extras import MissingPackageError

PROVENANCE = {
    "tool": "adjointdeis",
    "version": "0.1.0",
    "attack": "dim_a",
    "config_hash": "c0ffee",
    "source_hashes": {"001_03.png": "0" * 64},
    "notice": NOTICE,
}


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> tuple[Path, Path]:
    """PEM files of a signer's chain and key; C2PA refuses self-signed certificates."""
    pytest.importorskip("c2pa")
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "signer")}
    names = {
        name: x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test laboratory"),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        for name in keys
    }

    def certificate(name: str):
        authority = name == "root"
        usage = {
            "digital_signature": True, "content_commitment": False, "key_encipherment": False,
            "data_encipherment": False, "key_agreement": False, "key_cert_sign": authority,
            "crl_sign": authority, "encipher_only": False, "decipher_only": False,
        }  # fmt: skip
        root = keys["root"]
        builder = (
            x509.CertificateBuilder()
            .subject_name(names[name])
            .issuer_name(names["root"])
            .public_key(keys[name].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), False
            )
        )
        if not authority:
            mail = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(mail, critical=False)
        return builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    folder = tmp_path_factory.mktemp("identity")
    (folder / "chain.pem").write_bytes(certificate("signer") + certificate("root"))
    (folder / "key.pem").write_bytes(
        keys["signer"].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "chain.pem", folder / "key.pem"


@pytest.fixture
def morph(tmp_path) -> Path:
    info = PngInfo()
    info.add_itxt("adjointdeis", json.dumps(PROVENANCE))
    info.add_itxt("Description", NOTICE)
    Image.new("RGB", (32, 32), (200, 150, 120)).save(tmp_path / "m.png", pnginfo=info)
    return tmp_path / "m.png"


def retouched(path: Path) -> None:
    """Changes a text and mends its checksum, as a careful forger would."""
    data = path.read_bytes()
    at = data.index(NOTICE.encode(), data.index(b"Description"))
    start = data.rindex(b"iTXt", 0, at)
    (length,) = struct.unpack(">I", data[start - 4 : start])
    body = data[start + 4 : start + 4 + length].replace(b"synthetic morph", b"genuine picture")
    chunk = b"iTXt" + body
    path.write_bytes(
        data[: start - 4] + struct.pack(">I", len(body)) + chunk
        + struct.pack(">I", zlib.crc32(chunk)) + data[start + 8 + length :]
    )  # fmt: skip


def test_a_signature_holds_the_provenance_and_leaves_the_image(morph, identity, capsys) -> None:
    before = Image.open(morph).tobytes()
    assert not is_signed(morph) and read_credentials(morph) is None
    chain, key = identity
    assert main(["sign", str(morph), "--certificate", str(chain), "--key", str(key)]) == 0
    assert Image.open(morph).tobytes() == before
    assert read_provenance(morph) == PROVENANCE
    found = read_credentials(morph)
    assert found is not None and found["provenance"] == PROVENANCE
    # Sound, by a signer that no trust list names.
    assert found["state"] == "Valid" and found["problems"] == ["signingCredential.untrusted"]
    assert found["signer"] == "signer, Test laboratory"
    assert main(["verify", str(morph)]) == 0
    assert "signature: Valid, by signer, Test laboratory" in capsys.readouterr().out


def test_a_changed_file_is_found_out(morph, identity, capsys) -> None:
    sign(morph, *identity)
    retouched(morph)
    assert read_provenance(morph) == PROVENANCE  # the text chunk alone would be believed
    found = read_credentials(morph)
    assert found is not None and found["state"] == "Invalid"
    assert main(["verify", "--json", str(morph)]) == 1
    assert json.loads(capsys.readouterr().out)["credentials"]["state"] == "Invalid"


def test_what_cannot_be_signed(morph, identity, tmp_path, capsys) -> None:
    chain, key = identity
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(NoProvenance):
        sign(tmp_path / "plain.png", chain, key)
    with pytest.raises(EvaluationError, match=r"algorithm 'rsa': expected one of es256"):
        sign(morph, chain, key, "rsa")
    with pytest.raises(EvaluationError, match=r"absent\.pem: .*expected a PEM file"):
        sign(morph, chain, tmp_path / "absent.pem")
    with pytest.raises(EvaluationError, match=r"m\.png: not signed"):
        sign(morph, key, chain)
    assert not is_signed(morph)
    sign(morph, chain, key)
    assert main(["sign", str(morph), "--certificate", str(chain), "--key", str(key)]) == 2
    error = capsys.readouterr().err
    assert "signed already" in error and error.count("\n") == 1


def test_without_the_package_a_signature_is_seen_but_not_checked(
    morph, identity, monkeypatch, capsys
) -> None:
    sign(morph, *identity)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    assert main(["verify", str(morph)]) == 0
    assert "signature: Unchecked" in capsys.readouterr().out
    morph.unlink()
    info = PngInfo()
    info.add_itxt("adjointdeis", json.dumps(PROVENANCE))
    Image.new("RGB", (4, 4)).save(morph, pnginfo=info)
    with pytest.raises(MissingPackageError, match=r"need c2pa.*pip install 'adjointdeis\[c2pa\]'"):
        sign(morph, *identity)
