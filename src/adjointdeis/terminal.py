"""What a program of ours writes to the terminal, and how it ends when the user stops it."""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any, TextIO

from adjointdeis.texts import printable

INTERRUPTED = 128 + signal.SIGINT


def prepare() -> None:
    """Makes standard output and error streams of this module's, and Ctrl-C an orderly end.

    To be called first of all, before imports that take seconds; again is the same as once. Where
    Python takes file names and arguments for ASCII, as under ``LC_ALL=C PYTHONUTF8=0``, the program
    begins again in Python's UTF-8 mode: names with other letters could not be opened.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Terminal):
            setattr(sys, name, Terminal(stream))
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)


def stop(signum: int, frame: FrameType | None) -> None:
    """Handler of SIGINT: one line, exit status 130; a second Ctrl-C ends the process at once."""
    stopped()


def stopped(continues: object = None) -> None:
    """Ends the program with one line after Ctrl-C.

    Args:
        continues: What the same command goes on with; None where it would begin again.

    Raises:
        SystemExit: Always.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The other processes of a run get the signal too.
    if not int(os.environ.get("LOCAL_RANK") or 0):
        hint = "" if continues is None else f"; the same command continues {continues}"
        line = ("\n" if Terminal.overwriting else "") + printable(f"stopped by Ctrl-C{hint}") + "\n"
        Terminal.overwriting = None
        # Not print: the signal may have come in the middle of one.
        with contextlib.suppress(OSError):
            os.write(2, line.encode(errors="backslashreplace"))
    sys.exit(INTERRUPTED)


class Terminal:
    """A text stream that shows anything and never fails.

    * Control characters come out as `\\x1b`: text from data cannot move the cursor.
    * What the locale's encoding lacks comes out as `\\xe9`.
    * A message that follows a line that is written over, as progress is, begins a new one.
    * When the reader has closed the pipe, as `| head` does, the rest goes nowhere: the run ends as
      it would have, and its files are complete.

    Args:
        stream: The stream behind it, which all other attributes are of.
    """

    overwriting: "Terminal | None" = None
    """The stream on which a line of progress is unfinished."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]

    def write(self, text: str) -> int:
        """Writes a text; see the class."""
        shown = printable(text, "\n\r\t")
        unfinished = Terminal.overwriting
        # Both streams of a terminal share its line; what goes to a file has lines of its own.
        same = unfinished is self or (unfinished and unfinished.isatty() and self.isatty())
        if same and shown and shown[0] not in "\r\n":
            shown = "\n" + shown
        if shown.startswith("\r"):
            Terminal.overwriting = None if shown.endswith(("\n", "\r")) else self
        elif shown and same:
            Terminal.overwriting = None
        try:
            self._stream.write(shown)
        except BrokenPipeError:
            self._to_nowhere()
        return len(text)

    def flush(self) -> None:
        """Flushes the stream behind it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._to_nowhere()

    def writelines(self, lines: Any) -> None:
        """Writes several texts."""
        for line in lines:
            self.write(line)

    def _to_nowhere(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
