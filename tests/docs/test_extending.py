"""The changes of docs/extending.md apply to these sources, and what they add works."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_profile import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.S | re.M)
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with every change applied, in the order of the page."""
    if shutil.which("git") is None:
        pytest.skip("git applies the changes")
    copy = tmp_path_factory.mktemp("extended")
    for folder in ("src", "conf"):
        leave = shutil.ignore_patterns("__pycache__", "*.safetensors", "faces", "*.egg-info")
        shutil.copytree(ROOT / folder, copy / folder, ignore=leave)
    # `faces` is the folder of the embedded images, and a room of the package.
    room = Path("src", "adjointdeis", "faces")
    shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    for change in DIFFS:
        done = subprocess.run(
            ["git", "apply", "-C1", "--recount", "-"],
            cwd=copy,
            input=change,
            text=True,
            capture_output=True,
            env={**os.environ, "GIT_CEILING_DIRECTORIES": str(copy.parent)},
        )
        assert done.returncode == 0, f"{done.stderr}\n{change}"
    return copy


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}
    environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the page's tests use none of them
    return subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environ, capture_output=True, text=True
    )


def test_the_tests_of_what_is_added_pass(extended: Path) -> None:
    done = run(extended, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_calls_of_the_page_run(extended: Path) -> None:
    assert len(SNIPPETS) == 3
    done = run(extended, "-c", "\n".join(SNIPPETS))
    assert done.returncode == 0, done.stderr


# What the design allows, tests and pages left out.
MOST = {
    "A gradient method": 4,
    "A solver": 3,
    "An attack": 2,
    "A resource of an attack": 3,
    "A metric": 1,
    "A recogniser": 2,
    "An experiment": 1,
}


@pytest.mark.parametrize("section", MOST)
def test_no_more_files_are_touched_than_the_design_allows(section: str) -> None:
    (change,) = re.findall(rf"^## {section}\n.*?^```diff\n(.*?)^```", PAGE, re.S | re.M)[:1]
    files = re.findall(r"^diff --git a/(\S+)", change, re.M)
    own = [name for name in files if not name.startswith("tests/")]
    if section == "A resource of an attack":  # the attack itself is there already
        own.remove("src/adjointdeis/morphing/pixel_mean.py")
    assert len(own) == MOST[section]
