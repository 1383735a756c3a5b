"""What a ``torch.save`` file may ask of the machine, checked before anything is allocated.

A file of a few megabytes can ask for gigabytes: members that are compressed (torch never
compresses), members that overlap, storages counted many times, memo slots with huge numbers,
tuples that hold themselves twice and again twice (hashing or printing one takes for ever). The
checks here read the archive's directory and the opcodes of the pickles; they allocate nothing
that the file does not already hold on the disk, and run nothing.

References:
    | pickletools: Tools for pickle developers
    | https://docs.python.org/3/library/pickletools.html
"""

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

#: The pickle of a checkpoint names its tensors; 2,500 of them take some 300 kB.
LARGEST_PICKLE = 64 << 20
#: About ten seconds of reading; the official checkpoints have fewer than 200,000.
MOST_OPCODES = 4_000_000
#: Entries of one tuple, the entries of its entries included. A shape or a storage has a dozen.
LARGEST_TUPLE = 100_000
_LEGACY_PICKLES = 5

_PUT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_IMMUTABLE = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "REDUCE"}
_MARK = object()


class LimitError(ValueError):
    """A file that asks for more than such a file can need."""


def check_torch_file(path: Path) -> None:
    """Refuses a file of ``torch.save`` that would cost more than its size explains.

    Args:
        path: A zip archive or a stream of pickles, as ``torch.save`` writes them.

    Raises:
        LimitError: Compressed, encrypted or overlapping members; a pickle beyond the limits
            above, or whose opcodes do not fit together.
        zipfile.BadZipFile, OSError: Not readable as what it is.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
            for member in archive.infolist():
                if member.filename.endswith("/data.pkl"):
                    if member.file_size > LARGEST_PICKLE:
                        raise LimitError(
                            f"its pickle has {member.file_size} bytes; at most {LARGEST_PICKLE} "
                            "are read, for tensors lie beside it"
                        )
                    with archive.open(member) as stream:
                        _check_pickle(stream)
        return
    with path.open("rb") as stream:
        if stream.read(1) != b"\x80":
            raise LimitError(
                "not a complete file of torch.save (it begins neither as a zip archive nor as a "
                "pickle); download it again"
            )
        stream.seek(0)
        for _ in range(_LEGACY_PICKLES):
            _check_pickle(stream)
            if not stream.peek(1):
                # Fewer than torch writes: the reader says so, and nothing is left to check.
                return


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuses members that are larger than the bytes they take in an archive of ``size`` bytes.

    Raises:
        LimitError: Names the member.
    """
    total = 0
    for member in archive.infolist():
        if member.flag_bits & 1:
            raise LimitError(f"its member {member.filename!r} is encrypted")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise LimitError(
                f"its member {member.filename!r} is compressed, and torch.save compresses nothing; "
                "if the file is trusted, load it and save it again with torch.save"
            )
        total += member.file_size
    if total > size:
        raise LimitError(f"its members take {total} bytes of a file of {size}: they overlap")


def _check_pickle(stream: IO[bytes]) -> None:
    """Reads the opcodes of one pickle and refuses what would take memory or time without bound.

    The stack is followed with one number an object: how many entries it has, those of nested
    tuples included. Lists and dictionaries count one, for nothing hashes them.

    Args:
        stream: At the beginning of a pickle; afterwards just behind its end.

    Raises:
        LimitError: More opcodes, a larger nested tuple, or a higher memo slot than a checkpoint
            needs; opcodes that take what is not there.
    """
    stack: list[Any] = []
    memo: dict[Any, int] = {}
    bounded: Any = _Bounded(stream)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
            if count >= MOST_OPCODES:
                raise LimitError(f"its pickle has more than {MOST_OPCODES} opcodes")
            if opcode.name in _PUT:
                slot: Any = len(memo) if argument is None else argument
                if slot > count:
                    raise LimitError(f"its pickle uses memo slot {slot} after {count} opcodes")
                memo[slot] = stack[-1]
            elif opcode.name in _GET:
                stack.append(memo[argument])
            elif opcode.name == "DUP":
                stack.append(stack[-1])
            else:
                _follow(opcode, stack)
    except LimitError:
        raise
    except (IndexError, KeyError, TypeError, EOFError) as error:
        raise LimitError("its pickle takes from an empty stack or memo") from error
    except ValueError as error:
        raise LimitError(f"its pickle cannot be followed ({str(error)[:200]})") from error


class _Bounded:
    """A stream that gives at most one pickle's worth at a time, whatever length is asked for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.readline = stream.readline
        self._read = stream.read

    def read(self, count: int) -> bytes:
        """The next bytes, fewer than asked for where that is more than any pickle has."""
        return self._read(min(count, LARGEST_PICKLE))


def _follow(opcode: pickletools.OpcodeInfo, stack: list[Any]) -> None:
    """One opcode's effect on the stack of sizes."""
    taken: list[int] = []
    # OBJ takes its class from the slice above the mark, where pickletools lists it beside it.
    before = [kind for kind in opcode.stack_before if opcode.name != "OBJ" or kind.name != "any"]
    for kind in reversed(before):
        if kind is pickletools.stackslice:
            while stack[-1] is not _MARK:
                taken.append(stack.pop())
        elif kind is pickletools.markobject:
            if stack.pop() is not _MARK:
                raise IndexError
        else:
            taken.append(stack.pop())
    if opcode.name == "POP_MARK":
        return
    for kind in opcode.stack_after:
        size = 1 + sum(taken) if opcode.name in _IMMUTABLE else 1
        if size > LARGEST_TUPLE:
            raise LimitError(f"its pickle nests a tuple of more than {LARGEST_TUPLE} entries")
        stack.append(_MARK if kind is pickletools.markobject else size)
