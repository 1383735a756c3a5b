"""The tiny profile on disk, and the program as a process of its own."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny_profile import PAIRS, ROOT, command_line, draw_face, write_landmarks, write_profile


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `profile/`, `faces/` and `pairs.csv`."""
    root = tmp_path_factory.mktemp("tiny")
    (root / "faces").mkdir()
    for subject in range(1, 5):
        for capture in ("03", "08"):
            image = Image.fromarray(draw_face(subject, capture == "08"))
            image.save(root / "faces" / f"{subject:03d}_{capture}.png")
    write_landmarks(root / "faces")
    lines = (f"{p[:3]}_03.png,{p[4:]}_03.png,{p}.png" for p in PAIRS)
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    (root / "profile").mkdir()
    write_profile(root / "profile")
    return root


@pytest.fixture
def quiet_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves pictures out of runs that are not about them."""
    from adjointdeis.harness.tasks import detection, morph, photographs

    for task in (detection, morph, photographs):
        monkeypatch.setattr(task, "write_report", lambda directory, **options: None)


@pytest.fixture
def environ() -> dict[str, str]:
    """Environment of a fresh process of the program."""
    return bare()


def bare() -> dict[str, str]:
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        and not key.startswith(("HYDRA_", "PL_"))
    }
    return {**clean, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"}


class Warm:
    """Processes of the program that begin with its imports made; `warm.py` says how.

    `test_quiet_process.py`, `test_install.py` and the tests that kill start it as a user does.
    """

    def __init__(self, folder: Path) -> None:
        self.told = {name: str(folder / name) for name in ("stdout", "stderr")}
        command = [sys.executable, str(ROOT / "tests" / "warm.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=bare(), stdin=pipe, stdout=pipe, text=True)

    def run(
        self, command: list[str], cwd: Path, environ: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess:
        """What `subprocess.run` gives of a Python program, with its outputs as text."""
        assert self.process.stdin is not None and self.process.stdout is not None
        order = {"command": command, "cwd": str(cwd), "environ": environ, **self.told}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], timeout)[0]:
            self.process.kill()  # the next order would be answered with this one's status
            raise subprocess.TimeoutExpired(command, timeout)
        status = self.process.stdout.readline()
        assert status, "tests/warm.py has ended: by its own error, or after a time-out"
        told = (Path(name).read_text() for name in self.told.values())
        return subprocess.CompletedProcess(command, int(status), *told)


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """One for all tests of a worker."""
    found = Warm(tmp_path_factory.mktemp("warm"))
    yield found
    found.process.communicate()


def cold(
    command: list[str], cwd: Path, environ: dict[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """The same of a process that makes its imports itself, seconds of them."""
    return subprocess.run(
        command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[..., subprocess.CompletedProcess]:
    """How a test starts the program: as a fork that has its imports, in a study as a user does."""
    study = request.node.get_closest_marker("slow")
    return cold if study else request.getfixturevalue("warm").run


@pytest.fixture
def program(start, environ, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python run.py ...` to its end."""

    def run(
        arguments: list[str], timeout: float = 540, plots: bool = True
    ) -> subprocess.CompletedProcess:
        return start(command_line(arguments, plots), tmp_path, environ, timeout)

    return run


@pytest.fixture
def started(start) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python run.py ...` to its end in a folder and an environment of the caller's."""

    def run(arguments: list[str], cwd: Path, environ: dict[str, str], plots: bool = True):
        return start(command_line(arguments, plots), cwd, environ, 540)

    return run
