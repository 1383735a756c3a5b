"""The tiny profile on disk, and the program as a process of its own."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from tiny_profile import PAIRS, command_line, draw_face, write_landmarks, write_profile


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
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        and not key.startswith(("HYDRA_", "PL_"))
    }
    return {**clean, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "WANDB_MODE": "offline"}


@pytest.fixture
def program(environ, tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python run.py ...` to its end."""

    def run(
        arguments: list[str], timeout: float = 540, plots: bool = True
    ) -> subprocess.CompletedProcess:
        return subprocess.run(
            command_line(arguments, plots),
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def started() -> Callable[..., subprocess.CompletedProcess]:
    """Runs `python run.py ...` to its end in a folder and an environment of the caller's."""

    def run(arguments: list[str], cwd: Path, environ: dict[str, str], plots: bool = True):
        return subprocess.run(
            command_line(arguments, plots),
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=540,
        )

    return run
