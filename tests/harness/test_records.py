"""Records of morphs: believed only where whole, and only beside the morph that they describe."""

import json
import shutil
from types import SimpleNamespace

import pytest

from adjointdeis.harness.benchmark import file_hash
from adjointdeis.harness.records import KEYS, SCHEMA, read_records, write_record

PAIRS = ("001_002", "003_004")
CONFIG = "c" * 12


class Pairs(SimpleNamespace):
    """What reading records needs of a benchmark."""

    pairs = [SimpleNamespace(morph_id=name) for name in PAIRS]

    def source_hashes(self, pair):
        return [pair.morph_id]


@pytest.fixture
def folder(tmp_path):
    """Two finished morphs with their records; the bytes of a morph are not looked into."""
    for name in PAIRS:
        (tmp_path / f"{name}.png").write_bytes(b"morph " + name.encode())
        record = dict.fromkeys(KEYS) | {
            "pair": name,
            "config_hash": CONFIG,
            "sources": [name],
            "sha256": file_hash(tmp_path / f"{name}.png"),
        }
        write_record(tmp_path / f"{name}.json", record)
    return tmp_path


def found(folder):
    return sorted(read_records(folder, Pairs(), CONFIG))


def test_whole_records_count(folder):
    assert found(folder) == sorted(PAIRS)
    assert read_records(folder, Pairs(), "another") == {}


@pytest.mark.parametrize(
    "damage",
    [b"[]", b"3", b"null", b"", b"{", b'{"config_hash": 1}', b"\xff\xfe\xff", b"\xe9",
     b"[" * 100_000, b"7" * 6000],
)  # fmt: skip
def test_a_damaged_record_does_not_count(folder, damage):
    (folder / f"{PAIRS[0]}.json").write_bytes(damage)
    assert found(folder) == [PAIRS[1]]


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_record_that_lacks_a_key_does_not_count(folder, key):
    path = folder / f"{PAIRS[0]}.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(record))
    assert found(folder) == [PAIRS[1]]


@pytest.mark.parametrize("damage", ["empty", "truncated", "swapped"])
def test_a_morph_that_is_not_that_of_its_record_does_not_count(folder, damage):
    morph, other = (folder / f"{name}.png" for name in PAIRS)
    if damage == "swapped":
        shutil.copy(other, morph)
    else:
        morph.write_bytes(b"" if damage == "empty" else morph.read_bytes()[:3])
    with pytest.warns(UserWarning, match=f"{morph.name}: damaged or replaced"):
        assert found(folder) == [PAIRS[1]]


def test_a_failed_pair_needs_no_morph_and_another_one_does(folder):
    (folder / f"{PAIRS[0]}.png").unlink()
    assert found(folder) == [PAIRS[1]]
    path = folder / f"{PAIRS[0]}.json"
    failed = json.loads(path.read_text()) | {"failed": "step 3", "sha256": None}
    path.write_text(json.dumps(failed | {"schema": SCHEMA}))
    assert found(folder) == sorted(PAIRS)
    # Before encodings had a checksum, a damaged one could be why a pair failed: it is tried again.
    for before in ({}, {"schema": 1}, {"schema": "2"}):
        path.write_text(json.dumps(failed | before))
        assert found(folder) == [PAIRS[1]]
