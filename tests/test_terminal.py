"""The terminal: nothing acts, nothing fails, nothing is glued, and Ctrl-C is one line."""

import io
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from adjointdeis.terminal import INTERRUPTED, Terminal

ROOT = Path(__file__).parents[1]


class Encoded(io.TextIOWrapper):
    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="")

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def nothing_unfinished():
    Terminal.overwriting = None
    yield
    Terminal.overwriting = None


def test_control_characters_are_shown() -> None:
    stream = Encoded()
    print("a\x1b[2Jb\x07\tc\n\u202ed", file=Terminal(stream))
    assert stream.text() == "a\\x1b[2Jb\\x07\tc\n\\u202ed\n"


def test_what_the_encoding_lacks_is_shown() -> None:
    stream = Encoded("ascii")
    print("café λ", file=Terminal(stream))
    assert stream.text() == "caf\\xe9 \\u03bb\n"


def test_a_message_begins_a_line_of_its_own() -> None:
    stream = Encoded()
    terminal = Terminal(stream)
    terminal.write("\rDiM-A 1/8 pairs")
    terminal.write("\rDiM-A 2/8 pairs")
    print("error: no such file", file=terminal)
    print("the next line", file=terminal)
    terminal.write("\rDiM-A 3/8 pairs\n")
    print("after the last", file=terminal)
    assert stream.text().split("\n") == [
        "\rDiM-A 1/8 pairs\rDiM-A 2/8 pairs",
        "error: no such file",
        "the next line",
        "\rDiM-A 3/8 pairs",
        "after the last",
        "",
    ]


def program(body: str, **options) -> subprocess.Popen:
    text = "from adjointdeis.terminal import prepare\nprepare()\nimport sys, time\n"
    return subprocess.Popen(
        [sys.executable, "-c", text + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        **options,
    )


def test_a_closed_pipe_ends_nothing(tmp_path) -> None:
    done = tmp_path / "done"
    process = program(
        f"""
        for k in range(20000):
            print("line", k)
        open({str(done)!r}, "w").close()
        """
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"line 0\n"
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == b""
    assert done.is_file(), "the run completes"


@pytest.mark.parametrize("unfinished", [False, True])
def test_ctrl_c_is_one_line(unfinished: bool) -> None:
    progress = r"sys.stderr.write('\rstep 1 of 9'); sys.stderr.flush()" if unfinished else "pass"
    process = program(f"{progress}\nprint('ready', flush=True)\ntime.sleep(60)")
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == INTERRUPTED == 130
    said = process.stderr.read()
    assert said == (b"\rstep 1 of 9\n" if unfinished else b"") + b"stopped by Ctrl-C\n"


def test_ctrl_c_while_the_program_is_still_being_loaded(tmp_path) -> None:
    """A module that the program imports early is one that presses Ctrl-C."""
    pressed = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"
    (tmp_path / "hydra.py").write_text(pressed)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "+experiment=quickstart"],
        cwd=tmp_path,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    assert done.returncode == INTERRUPTED
    assert done.stderr.decode().splitlines() == ["stopped by Ctrl-C"]


def test_errors_of_the_evaluation_and_its_tables_pass_an_ascii_locale(tmp_path) -> None:
    environ = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    scores = tmp_path / "sc\u00f6res.csv"
    call = "import sys; from adjointdeis.__main__ import evaluation; evaluation()"

    def run(*arguments: str) -> subprocess.CompletedProcess:
        words = [sys.executable, "-c", call, *arguments]
        return subprocess.run(words, env=environ, capture_output=True, cwd=ROOT, timeout=300)

    size = ("--n-subjects", "8", "--n-morphs", "4")
    assert run("synth", str(scores), *size).returncode == 0
    text = scores.read_text(encoding="utf-8")
    scores.write_text(text.replace("arcface", "arcf\u00e4ce"), encoding="utf-8")
    done = run(str(scores), "--fmr", "0.1", "--replicates", "0")
    assert done.returncode == 0, done.stderr
    assert rb"arcf\xe4ce" in done.stdout and b"Traceback" not in done.stderr
    absent = run(str(tmp_path / "\u00e4bsent.csv"))
    assert absent.returncode == 2 and absent.stderr.count(b"\n") == 1
