"""Every reader on damaged and hostile files: the allowed errors only, within time and memory.

`make test` reads a few thousand files (`SHORT` a reader), `make studies` a hundred times as many,
others than those, and prints the counts. A case that escapes is made again by the command that the
failure shows; what was found so far has a test of its own beside its reader.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_targets import targets

FUZZING = Path(__file__).with_name("fuzzing.py")
NAMES = [target.name for target in targets()]
SHORT, LONG = 60, 4000


def fuzzed(tmp_path: Path, first: int, count: int, timeout: int) -> dict[str, dict]:
    """What became of every target's cases, in one process of its own."""
    journal = tmp_path / "journal"
    command = [sys.executable, str(FUZZING), "--first", str(first), "--count", str(count)]
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [*command, "--journal", str(journal)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": paths},
        cwd=tmp_path,
    )
    last = journal.read_text() if journal.is_file() else "nothing"
    assert done.returncode == 0, f"ended at {last}: {done.stderr[-3000:]}"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {line["target"]: line for line in lines}


def shown(name: str, found: dict) -> str:
    """What escaped, and how to see it again."""
    number = found["escaped"][0][0] if found["escaped"] else 0
    again = f"python tests/fuzzing.py --targets '{name}' --first {number} --count 1 --keep ."
    return f"{found['escaped'][:5]}\n{again}"


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> dict[str, dict]:
    return fuzzed(tmp_path_factory.mktemp("fuzz"), 0, SHORT, timeout=500)


@pytest.mark.parametrize("name", NAMES)
def test_only_allowed_errors_in_time_and_memory(short, name: str) -> None:
    found = short[name]
    assert found["cases"] >= SHORT * 0.1
    assert found["cases"] == found["read"] + found["refused"]
    assert not found["escaped"], shown(name, found)


def test_most_cases_are_refused_where_errors_are_allowed(short) -> None:
    """The changes reach what the readers check: a suite whose files are all sound tests nothing."""
    refusing = [line for line in short.values() if line["refused"]]
    assert len(refusing) >= 15
    assert sum(line["refused"] for line in refusing) > sum(line["read"] for line in refusing)


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
def test_many_cases_and_their_counts(tmp_path) -> None:
    found = fuzzed(tmp_path, SHORT, LONG, timeout=6 * 3600)
    total = {key: sum(line[key] for line in found.values()) for key in ("cases", "read", "refused")}
    for line in found.values():
        print({key: line[key] for key in ("target", "cases", "read", "refused", "slowest")})
    print(total)
    escaped = {name: shown(name, line) for name, line in found.items() if line["escaped"]}
    assert not escaped, escaped
