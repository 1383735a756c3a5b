"""Reading provenance from PNG text chunks, as any writer may have written them."""

import hashlib
import json
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from adjointdeis.evaluation import EvaluationError
from adjointdeis.evaluation.provenance import (
    NOTICE,
    NoProvenance,
    png_texts,
    read_provenance,
    sources_match,
)

PROVENANCE = {
    "tool": "adjointdeis",
    "version": "0.1.0",
    "attack": "DiM-A, naïve",
    "config_hash": "c0ffee",
    "source_hashes": {"a": hashlib.sha256(b"a").hexdigest(), "b": hashlib.sha256(b"b").hexdigest()},
    "notice": NOTICE,
}


def save(path, text=None, method="add_itxt", **options):
    info = PngInfo()
    if text is not None:
        getattr(info, method)("adjointdeis", text, **options)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_international_text(tmp_path, zipped):
    path = save(tmp_path / "m.png", json.dumps(PROVENANCE, ensure_ascii=False), zip=zipped)
    assert read_provenance(path) == PROVENANCE


@pytest.mark.parametrize("zipped", [False, True])
def test_plain_text(tmp_path, zipped):
    path = save(tmp_path / "m.png", json.dumps(PROVENANCE), method="add_text", zip=zipped)
    assert read_provenance(path) == PROVENANCE


def test_png_without_provenance(tmp_path):
    with pytest.raises(NoProvenance, match="no 'adjointdeis' text in this PNG"):
        read_provenance(save(tmp_path / "plain.png"))


def test_bad_provenance(tmp_path):
    with pytest.raises(EvaluationError, match="is not JSON"):
        read_provenance(save(tmp_path / "a.png", "{"))
    with pytest.raises(EvaluationError, match="is not a JSON object"):
        read_provenance(save(tmp_path / "b.png", "[]"))
    lacking = {k: v for k, v in PROVENANCE.items() if k != "notice"}
    with pytest.raises(EvaluationError, match="lacks 'notice'"):
        read_provenance(save(tmp_path / "c.png", json.dumps(lacking)))


def test_damaged_files(tmp_path):
    path = save(tmp_path / "m.png", json.dumps(PROVENANCE))
    data = path.read_bytes()
    for cut in (20, len(data) - 5, len(data) - 12):
        path.write_bytes(data[:cut])
        with pytest.raises(EvaluationError, match="truncated PNG"):
            png_texts(path)
    at = data.index(b"DiM-A")
    path.write_bytes(data[:at] + b"MIPG!" + data[at + 5 :])
    with pytest.raises(EvaluationError, match="chunk iTXt has a wrong checksum"):
        read_provenance(path)
    path.write_bytes(b"GIF89a")
    with pytest.raises(EvaluationError, match="not a PNG file"):
        read_provenance(path)
    with pytest.raises(EvaluationError, match="no such file"):
        read_provenance(tmp_path / "absent.png")


def test_decompression_bomb_is_refused(tmp_path):
    path = save(tmp_path / "m.png", "x" * (1 << 21), zip=True)
    assert path.stat().st_size < 10_000
    with pytest.raises(EvaluationError, match="damaged iTXt"):
        read_provenance(path)
    assert len(zlib.compress(b"x" * (1 << 21))) < 10_000


def test_sources(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode())
    assert sources_match(PROVENANCE, [tmp_path / "a", tmp_path / "b"])
    assert not sources_match(PROVENANCE, [tmp_path / "a", tmp_path / "c"])
    short = {**PROVENANCE, "source_hashes": [hashlib.sha256(b"a").hexdigest()[:16]]}
    assert sources_match(short, [tmp_path / "a"])
    assert not sources_match({**PROVENANCE, "source_hashes": [""]}, [tmp_path / "a"])
