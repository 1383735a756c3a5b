"""Files: written whole or not at all; those of others read in any encoding that says so.

Text comes from spreadsheets, shells and other tools. A byte-order mark or the zero bytes of UTF-16
and UTF-32 name an encoding beyond doubt; other bytes are UTF-8 or are refused, for a guess between
Latin-1 and Windows-1252 would change people's names without a word.
"""

import csv
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

# Longest first: the mark of UTF-32 begins with that of UTF-16.
_MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
# Where ASCII characters have their zero bytes, by position in four.
_ZEROS = {
    "utf-32-le": (0, 1, 1, 1),
    "utf-32-be": (1, 1, 1, 0),
    "utf-16-le": (0, 1, 0, 1),
    "utf-16-be": (1, 0, 1, 0),
}
# What packed files begin with, and what to do about them.
_PACKED = {
    b"\x1f\x8b": "packed by gzip; unpack it (gunzip)",
    b"BZh": "packed by bzip2; unpack it (bunzip2)",
    b"\xfd7zXZ": "packed by xz; unpack it (unxz)",
    b"\x28\xb5\x2f\xfd": "packed by zstd; unpack it (unzstd)",
    b"PK\x03\x04": "a zip archive, or a workbook of a spreadsheet; unpack it, or save it as CSV",
    b"PAR1": "Parquet; give the file a name that ends in .parquet",
}


JSON_LIMIT = 64 * 2**20
"""Bytes of the largest JSON file that is read: what it holds takes tens of times its size."""


class Readable(Protocol):
    """What reading needs of a path: `pathlib.Path`, or `zipfile.Path` inside an archive."""

    def is_file(self) -> bool: ...

    def read_bytes(self) -> bytes: ...


def read_bytes(
    path: Readable, error: type[Exception] = ValueError, largest: int | None = None
) -> bytes:
    """Content of a file on disk, or of a member of a zip archive.

    Args:
        path: The file.
        error: What to raise.
        largest: Bytes beyond which it is refused unread, those of a member unpacked; None for no
            limit.

    Raises:
        error: No such file, not a regular one (a pipe, a folder), too large, or not to be read: a
            member that is encrypted or damaged, say. Names the file.
    """
    try:
        if not path.is_file():
            there = isinstance(path, Path) and os.path.lexists(path)
            raise error(f"{path}: {'not a regular file' if there else 'no such file'}")
        if largest is not None and _size(path) > largest:
            raise error(f"{path}: larger than {largest // 2**20} MiB, which is not read")
        return path.read_bytes()
    # A damaged archive brings about whatever its decoders do.
    except Exception as wrong:
        if type(wrong) is error and str(wrong).startswith(f"{path}: "):
            raise
        why = getattr(wrong, "strerror", None) or str(wrong) or type(wrong).__name__
        raise error(f"{path}: cannot be read ({why})") from None


def _size(path: Readable) -> int:
    if isinstance(path, zipfile.Path):
        return path.root.getinfo(path.at).file_size
    return path.stat().st_size if isinstance(path, Path) else 0


def read_arrays(
    path: Path, error: type[Exception] = ValueError, largest: int = 2**30
) -> "dict[str, np.ndarray]":
    """Arrays of a .npz file by name, or that of a .npy file under the name ``""``; no pickles.

    Args:
        path: The file.
        error: What to raise.
        largest: Bytes that all arrays may take together.

    Raises:
        error: No such file, too large, or not such a file; names it.
    """
    # Only here: the command line shows its help before numpy is loaded.
    import numpy as np

    try:
        if not path.is_file():
            raise OSError("no such file")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(member.file_size for member in archive.infolist()) > largest:
                    raise ValueError(f"larger than {largest // 2**20} MiB when unpacked")
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"": loaded}
        with loaded:
            found = {name: loaded[name] for name in loaded.files}
        if not all(isinstance(array, np.ndarray) for array in found.values()):
            raise ValueError("a member that is no array")
    # Its header is Python text, and may bring about anything that reading such text does.
    except Exception as wrong:
        # numpy's advice, to load what it refused in another way, is not ours.
        why = str(wrong).partition("\n")[0].partition(". If")[0][:200] or type(wrong).__name__
        raise error(f"{path}: not a file of arrays ({why})") from None
    return found


def read_text(
    path: Readable, error: type[ValueError] = ValueError, largest: int | None = None
) -> str:
    """A text file as text: UTF-8, or UTF-16 or UTF-32 with a byte-order mark or by its zero bytes.

    Line ends stay as they are.

    Args:
        path: The file.
        error: What to raise.
        largest: Bytes beyond which a file on disk is refused unread; None for no limit.

    Raises:
        error: No such file, not a regular one (a pipe, a folder), too large, not to be read, not
            text, or in an encoding that cannot be told; names file and line.
    """
    data = read_bytes(path, error, largest)
    if packed := next((said for mark, said in _PACKED.items() if data.startswith(mark)), None):
        raise error(f"{path}: not text but {packed}")
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is not None:
        data = data[next(len(mark) for mark, name in _MARKS if name == encoding) :]
    else:
        encoding = _by_zero_bytes(data[:4096]) or "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as wrong:
        line = data[: wrong.start].count(b"\n") + 1
        raise error(
            f"{path}:{line}: not {encoding.upper()} text (byte 0x{data[wrong.start]:02x}); if it "
            "is Latin-1 or Windows-1252, save it as UTF-8, as with "
            f"`iconv -f WINDOWS-1252 -t UTF-8 {path}`"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise error(f"{path}:{line}: not a text file (a zero byte); export it as CSV or JSON text")
    return text


def _by_zero_bytes(data: bytes) -> str | None:
    """The wide encoding whose zero bytes stand where those of mostly ASCII text would."""
    data = data[: len(data) // 4 * 4]
    if not data:
        return None
    share = [data[k::4].count(0) / (len(data) // 4) for k in range(4)]
    for name, zeros in _ZEROS.items():
        if all(abs(found - wanted) < 0.3 for found, wanted in zip(share, zeros, strict=True)):
            return name
    return None


class _TwiceError(ValueError):
    """A key of a JSON object is there twice: one of its values would be lost without a word."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return found


def read_json(path: Readable, error: type[ValueError] = ValueError) -> Any:
    """What a JSON file holds; encodings as `read_text`.

    Raises:
        error: Larger than `JSON_LIMIT`, not text, not JSON, or nested deeper than Python reads;
            names file and line.
    """
    text = read_text(path, error, JSON_LIMIT)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as wrong:
        raise error(f"{path}:{wrong.lineno}: not JSON ({wrong.msg})") from None
    except RecursionError:
        raise error(f"{path}: not JSON of ours (nested too deeply)") from None
    except _TwiceError as wrong:
        raise error(f"{path}: the key {wrong.args[0]!r} is there twice; keep one") from None
    except ValueError:
        # Python refuses integers of thousands of digits, because reading them is slow.
        raise error(f"{path}: not JSON of ours (a number of thousands of digits)") from None


def read_record(path: Path) -> dict[str, Any] | None:
    """What a JSON record says; None where it is absent, damaged or no object."""
    try:
        found = read_json(path)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read_csv(
    path: Readable,
    error: type[ValueError] = ValueError,
    *,
    delimiter: str = ",",
    quotechar: str | None = '"',
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every non-empty line, fields trimmed; encodings as `read_text`.

    Args:
        path: The file.
        error: What to raise.
        delimiter: Between two fields, one character.
        quotechar: Around a field that holds it; None for no quotes.

    Raises:
        error: Not text, an open quotation mark, or a field over csv's limit; names file and line.
    """
    reader = csv.reader(
        io.StringIO(read_text(path, error), newline=""),
        delimiter=delimiter,
        quotechar=quotechar,
        quoting=csv.QUOTE_NONE if quotechar is None else csv.QUOTE_MINIMAL,
        skipinitialspace=True,
        strict=True,
    )
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as wrong:
            raise error(
                f"{path}:{reader.line_num}: {wrong}; is a quotation mark left open?"
            ) from None
        fields = [field.strip() for field in row]
        if any(fields):
            yield reader.line_num, fields


def read_table(
    path: Readable, error: type[ValueError] = ValueError
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """The header of a CSV file, and what `records` gives of the lines below it."""
    lines = read_csv(path, error)
    _, header = next(lines, (1, []))
    return header, records(path, header, lines, error)


def records(
    path: Readable,
    header: Sequence[str],
    lines: Iterable[tuple[int, list[str]]],
    error: type[ValueError] = ValueError,
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, fields by column) of lines as `read_csv` gives them.

    Raises:
        error: A column that is there twice, or a line of another length than the header; names file
            and line.
    """
    refuse_twice(path, header, error)
    for line, fields in lines:
        if len(fields) != len(header):
            raise error(f"{path}:{line}: {len(fields)} fields, expected {len(header)}")
        yield line, dict(zip(header, fields, strict=True))


def refuse_twice(path: Readable, header: Sequence[str], error: type[ValueError]) -> None:
    """Refuses a header with one name twice, for either column could be the one that is meant."""
    for name in header:
        if name and header.count(name) > 1:
            raise error(f"{path}:1: column {name!r} appears twice; rename or drop one of the two")


def write_csv(path: str | os.PathLike[str], rows: Iterable[Iterable[object]]) -> None:
    """Writes rows as CSV, atomically; lines end in a line feed."""
    write_atomically(path, lambda f: csv.writer(f, lineterminator="\n").writerows(rows))


def _umask() -> int:
    # There is no way to ask but to set it; a private one, for what another thread makes meanwhile.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_atomically(
    path: str | os.PathLike[str],
    content: str | bytes | Callable[[IO[Any]], Any],
    mode: Literal["w", "wb"] = "w",
) -> None:
    """Writes a temporary file beside `path`, which takes its place when that succeeded.

    A run that is killed, a power cut, or a disk that is full leaves the former file or none, never
    half of one; two processes that write the same file leave one of the two.

    Args:
        path: Where to; folders are made.
        content: Text, bytes, or what receives the open file and writes into it. Text is UTF-8
            whatever the locale, with line ends as they are given, and file names that are no UTF-8
            byte by byte.
        mode: How the file is open for a callable; "wb" for bytes.
    """
    if isinstance(content, bytes):
        mode = "wb"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".partial-{path.name}-", dir=path.parent)
    text: dict[str, Any] = (
        {} if mode == "wb" else {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    )
    try:
        with os.fdopen(handle, mode, **text) as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            # After a power cut, a name on the disk without its content would be half a file.
            file.flush()
            os.fsync(file.fileno())
        # Temporary files are private; who may read a result is for the user's umask to say.
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
