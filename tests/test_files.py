"""Files are whole or absent; text of others is read in the encoding it shows, or refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adjointdeis.files import JSON_LIMIT, read_csv, read_json, read_text, write_atomically
from adjointdeis.texts import canonical, confusable, file_key, printable, slug, spreadsheet_cell

CASES = Path(__file__).parents[2] / "shared" / "cases"


def half(file):
    file.write("half" if "b" not in file.mode else b"half")
    raise OSError("disk full")


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_write_that_fails_leaves_nothing(tmp_path, mode):
    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "entry", half, mode)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, mode):
    path = tmp_path / "s.csv"
    path.write_text("old")
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half, mode)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]


def test_text_and_bytes_arrive_as_they_are(tmp_path):
    write_atomically(tmp_path / "new" / "a.txt", "é\n\r\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa9\n\r\n"
    write_atomically(tmp_path / "new" / "b", b"\xff\x00")
    assert (tmp_path / "new" / "b").read_bytes() == b"\xff\x00"
    assert (tmp_path / "new" / "b").stat().st_mode & 0o777 == 0o644


def test_the_umask_says_who_may_read(tmp_path):
    former = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", lambda f: f.write("x"))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(former)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("content") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("name") or replace(a, b))
    write_atomically(tmp_path / "a.txt", lambda f: f.write("x"))
    assert order == ["content", "name"]


TEXT = "subject_id,sex\nZoé,f\n001,m\n"
MARKED = ("utf-8-sig", "utf-16", "utf-32")
UNMARKED = ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


@pytest.mark.parametrize("encoding", [*MARKED, *UNMARKED])
def test_every_unicode_encoding_is_read(encoding, tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT
    assert list(read_csv(path))[1] == (2, ["Zoé", "f"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("latin-1"), r"s\.csv:2: not UTF-8 text \(byte 0xe9\).*iconv"),
        (TEXT.encode("cp1252"), r"s\.csv:2: not UTF-8"),
        (TEXT.encode("utf-16")[:-1], r"s\.csv:\d+: not UTF-16-LE text"),
        (b"a,b\n1,\0\n", r"s\.csv:2: not a text file"),
        (b'a,b\n1,"2\n', r"s\.csv:\d: unexpected end of data"),
        (b"a,b\n1," + b"x" * 140_000, r"s\.csv:2: field larger than field limit"),
    ],
)
def test_what_cannot_be_told_is_refused_with_file_and_line(data, message, tmp_path):
    path = tmp_path / "s.csv"
    path.write_bytes(data)
    with pytest.raises(LookupError, match=message) as caught:
        list(read_csv(path, _Named))
    assert "\n" not in str(caught.value)


class _Named(ValueError, LookupError):
    """The error that the caller asked for."""


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": }', "\ufeff{", "9" * 6000])
def test_bad_json_is_one_line(text, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(_Named, match=r"t\.json.*not JSON"):
        read_json(path, _Named)


@pytest.mark.parametrize(
    "spelling", ["Zoe\u0301", "Ｚｏé", "Zo\u200bé", " Zoé\u00a0", "\ufeffZoé", "Zoé\t"]
)
def test_spellings_of_one_id_are_one(spelling):
    assert canonical(spelling) == "Zoé"


def test_what_people_take_for_one_id():
    assert confusable("ZOÉ-01") == confusable("zoé–01") and confusable("001") == confusable("1")
    assert confusable("10") != confusable("1") and confusable("0") == "0"


@pytest.mark.parametrize(
    "case", ["06-png-with-large-xmp", "07-encodings-of-score-files", "13-heic-people-left-out",
             "14-one-long-id"],
)  # fmt: skip
def test_cases_of_users(case, tmp_path):
    if not (CASES / case).is_dir():
        pytest.skip("the cases are not part of the project")
    folder = shutil.copytree(CASES / case, tmp_path / case, copy_function=shutil.copyfile)
    os.chmod(folder, 0o755)
    done = subprocess.run([sys.executable, folder / "case.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["arcface", "adaface-1.0_b", "grösse"])
def test_an_innocent_name_is_its_own_slug(name):
    assert slug(name) == name


def test_slugs_are_one_part_of_a_path_and_differ(tmp_path):
    names = ["", ".", "..", ".hidden", "a/b", "a\\b", "a_b", "../x", "a\0", "\ud800", "n" * 300]
    names += ["é" * 200, "C:x", "a b", "a\nb", "x", "X", "ss", "ß", "é", "e\u0301", "É"]
    slugs = [slug(name) for name in names]
    # Where file systems do not tell X from x.
    assert len({file_key(found) for found in slugs}) == len(names)
    for found in slugs:
        (tmp_path / f"operating_{found}.svg").write_text("")
        (tmp_path / found).write_text("")
        assert not found.startswith(".")
    assert len(list(tmp_path.iterdir())) == 2 * len(names)


def test_control_characters_are_shown_and_text_is_left_alone():
    assert printable("größe 10\u202f% 顔") == "größe 10\u202f% 顔"
    assert printable("a\x1b[0m\nb\r\x9b\u202e\u2028") == (r"a\x1b[0m\nb\r\x9b\u202e\u2028")
    assert printable("a\nb\x07", keep="\n") == "a\nb\\x07"
    assert printable(ValueError("x\0")) == "x\\x00"


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\t=1"),
        ("-1.2 (-3.4–5.6)", "-1.2 (-3.4–5.6)"),
        ("DiM-A", "DiM-A"),
        (-3, -3),
    ],
)
def test_text_starts_no_formula_in_a_spreadsheet(value, cell):
    assert spreadsheet_cell(value) == cell


def test_only_regular_files_of_a_limited_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(ValueError, match="not a regular file"):
            read_text(path)
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(JSON_LIMIT + 1)
    with pytest.raises(ValueError, match=r"large\.json: larger than 64 MiB"):
        read_json(tmp_path / "large.json")
