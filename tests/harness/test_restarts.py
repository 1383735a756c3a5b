"""Killed at any moment, out of disk, asked to stop: the next start goes on, the result is equal."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from run_directories import assert_same
from tiny_profile import ROOT, ROWS, composed, overrides

from adjointdeis.harness.launch import launch

DRIVER = ROOT / "tests" / "killed.py"


def arguments(tiny: Path, run: Path, few: bool, *more: str) -> list[str]:
    """A run whose caches are its own, with all four rows or two."""
    rows = ("dim_a", "exact") if few else ROWS
    return overrides(tiny, run, *more, root=run.parent, rows=rows, replicates=0)


@pytest.fixture
def drive(start, environ, tmp_path) -> Callable[[dict], tuple[list[int], str]]:
    """Exit statuses of the attempts of a plan of `killed.py`, and what they told."""

    def run(plan: dict) -> tuple[list[int], str]:
        done = start([sys.executable, str(DRIVER), json.dumps(plan)], tmp_path, environ, 2900)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.strip().splitlines()[-1])["statuses"], done.stderr

    return run


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    launch(composed(arguments(tiny, run, few=True)))
    return run


def moments(count: int, seed: int) -> list[list]:
    """Seeded moments at which to strike, a few files into every attempt."""
    draw = np.random.default_rng(seed)
    points = ("opened", "before", "after")
    return [[int(draw.integers(1, 8)), points[int(draw.integers(3))]] for _ in range(count)]


def test_killed_three_times(undisturbed, tiny, tmp_path, drive) -> None:
    run = tmp_path / "run"
    plan = {"arguments": arguments(tiny, run, few=True), "moments": moments(3, seed=1)}
    statuses, _ = drive(plan)
    assert statuses == [-signal.SIGKILL] * 3 + [0]
    assert_same(undisturbed, run)


@pytest.mark.slow
@pytest.mark.timeout(3000)  # twelve starts, on a machine that has other work
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_ten_times_with_every_row(tiny, tmp_path, drive, seed: int) -> None:
    calm, run = tmp_path / "calm" / "run", tmp_path / "killed" / "run"
    drive({"arguments": arguments(tiny, calm, few=False), "moments": []})
    plan = {"arguments": arguments(tiny, run, few=False), "moments": moments(10, seed)}
    statuses, _ = drive(plan)
    assert statuses == [-signal.SIGKILL] * 10 + [0]
    assert_same(calm, run)


def test_asked_to_stop(undisturbed, tiny, tmp_path, drive) -> None:
    run = tmp_path / "run"
    plan = {
        "arguments": arguments(tiny, run, few=True),
        "moments": [[5, "opened"], [6, "before"]],
        "signal": int(signal.SIGTERM),
    }
    statuses, told = drive(plan)
    assert statuses == [128 + signal.SIGTERM] * 2 + [0]
    assert told.count(f"stopped by SIGTERM; the same command continues {run}") == 2
    assert_same(undisturbed, run)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 48 KiB, and a way to enlarge it; skipped where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting needs root; test_a_quota_stops_a_run is the same with a stub")
    made = subprocess.run([mount, "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(disk)])
    if made.returncode:
        pytest.skip("this system does not allow mounts")
    try:
        yield disk, lambda: subprocess.run([mount, "-o", "remount,size=64m", str(disk)], check=True)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def refused(lines: list[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        launch(composed(lines))
    return str(caught.value)


def assert_whole(run: Path) -> None:
    """Nothing is half-written: every record can be read and has its morph, nothing temporary."""
    assert not list(run.rglob(".partial-*"))
    for record in run.glob("morphs/*/*.json"):
        json.loads(record.read_text())
        assert record.with_suffix(".png").stat().st_size > 0


def test_a_full_disk_stops_a_run_and_room_continues_it(
    undisturbed, tiny, tmp_path, small_disk
) -> None:
    disk, enlarge = small_disk
    lines = [
        line if not line.startswith("paths.root") else f"paths.root={tmp_path}"
        for line in arguments(tiny, disk / "run", few=True)
    ]
    told = refused(lines)
    assert told.startswith(f"error: no space left on the disk of {disk / 'run'}")
    assert "start the same command again: it continues" in told
    assert not (disk / "run" / "done.json").exists()
    assert_whole(disk / "run")
    enlarge()
    launch(composed(lines))
    assert_same(undisturbed, disk / "run")


def test_what_is_no_place_for_a_run_is_named(tiny, tmp_path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (file, file / "below"):
        told = refused(arguments(tiny, place, few=True))
        assert told.startswith(f"error: {place}: no run can be kept there (")
        assert told.endswith("name another place, paths.outputs=... or paths.run=...")
    assert file.read_text() == "mine"


@pytest.mark.parametrize("number", [1, 4, 11])
def test_a_quota_stops_a_run(undisturbed, tiny, tmp_path, monkeypatch, number: int) -> None:
    run, count, replace = tmp_path / "run", [0], os.replace
    of_a_file = errno.EFBIG if number == 4 else errno.EDQUOT  # ulimit -f

    def exhausted(*args, **options):
        count[0] += 1
        if count[0] >= number:
            raise OSError(of_a_file, os.strerror(of_a_file))
        replace(*args, **options)

    lines = arguments(tiny, run, few=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", exhausted)
        assert "no space left on the disk of" in refused(lines)
    assert_whole(run)
    if number == 11:  # one of them to the end
        launch(composed(lines))
        assert_same(undisturbed, run)
