"""Files are whole or absent."""

import os

import pytest

from adjointdeis.files import write_atomically


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
    write_atomically(tmp_path / "new" / "a.txt", lambda f: f.write("é\n\r\n"))
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xa9\n\r\n"
    write_atomically(tmp_path / "new" / "b", lambda f: f.write(b"\xff\x00"), "wb")
    assert (tmp_path / "new" / "b").read_bytes() == b"\xff\x00"
    assert (tmp_path / "new" / "b").stat().st_mode & 0o777 == 0o644


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    order, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: order.append("content") or sync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("name") or replace(a, b))
    write_atomically(tmp_path / "a.txt", lambda f: f.write("x"))
    assert order == ["content", "name"]
