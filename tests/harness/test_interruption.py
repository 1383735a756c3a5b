"""One worker in a directory, none without its parent, and whose answer to a signal counts."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from tiny_profile import composed

from adjointdeis.files import write_atomically
from adjointdeis.harness.interruption import (
    PARENT,
    DirectoryInUse,
    end_with_parent,
    ending_cleanly,
    holding,
    remove_leftovers,
)
from adjointdeis.harness.launch import launch
from adjointdeis.harness.sweep import SweepReport


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """A process that does some work until it is killed; its number, and a pipe from it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(writing)
            time.sleep(120)
        finally:
            os._exit(3)
    os.close(writing)
    return child, reading


@pytest.fixture
def holder(tmp_path):
    """Another process at work in `run`."""
    run = tmp_path / "outputs" / "run"

    def work(pipe: int) -> None:
        with holding(run):
            os.write(pipe, b"held")
            time.sleep(120)

    child, pipe = forked(work)
    assert os.read(pipe, 4) == b"held"
    yield run, child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with holding(run):  # the lock ended with its holder
        assert run.with_name(".run.lock").is_file()
    assert not run.with_name(".run.lock").exists()


def test_a_second_worker_is_refused(holder) -> None:
    run, child = holder
    with pytest.raises(DirectoryInUse, match=f"run is being worked on by process {child} on "):
        with holding(run):
            pass
    link = run.parents[1] / "link"
    link.symlink_to(run, target_is_directory=True)
    with pytest.raises(DirectoryInUse, match=f"link is being worked on by process {child} on "):
        with holding(link):
            pass


def test_a_run_leaves_those_below_it_alone(holder) -> None:
    run, _ = holder
    run.mkdir()
    (run / ".partial-x").touch()
    lines = ["task._target_=tiny_profile.counting_task", f"paths.run={run.parent}", "logger=none"]
    launch(composed([*lines, f"paths.root={run.parents[1]}"]))
    launch(composed([*lines, f"paths.root={run.parents[1]}", "force=true"]))
    assert (run / ".partial-x").is_file() and run.with_name(".run.lock").is_file()
    (aside,) = run.parents[1].glob("outputs.*")
    assert (aside / "calls.txt").is_file() and not (aside / "run").exists()


def sweep_in(folder: Path) -> DictConfig:
    trainer = {"devices": 1, "num_nodes": 1}
    hydra = {"sweep": {"dir": str(folder)}}
    return OmegaConf.create({"hydra": hydra, "trainer": trainer, "dry_run": False})


def test_a_second_sweep_of_one_folder_is_refused(holder) -> None:
    folder, child = holder
    with pytest.raises(SystemExit, match=f"worked on by process {child} on .*hydra.sweep.dir"):
        SweepReport().on_multirun_start(sweep_in(folder))
    (folder.parent / "file").touch()
    with pytest.raises(SystemExit, match=r"no sweep can be kept there \(.*hydra.sweep.dir="):
        SweepReport().on_multirun_start(sweep_in(folder.parent / "file" / "sweep"))


def test_a_sweep_does_not_count_the_jobs_of_an_earlier_one(tmp_path, capsys) -> None:
    job = {"job": 7, "overrides": [], "directory": "x", "status": "failed", "reason": "y"}
    write_atomically(tmp_path / "jobs" / "00007.json", json.dumps(job))
    report, config = SweepReport(), sweep_in(tmp_path)
    report.on_multirun_start(config)
    own = {**job, "job": 0, "status": "done", "reason": ""}
    write_atomically(tmp_path / "jobs" / "00000.json", json.dumps(own))
    report.on_multirun_end(config)
    assert "Sweep of 1 jobs: 1 ran, 0 were finished before, 0 failed." in capsys.readouterr().out


def test_a_run_that_is_under_way_is_not_started_again(holder) -> None:
    run, child = holder
    (run / "morphs").mkdir(parents=True)
    (run / "morphs" / ".partial-x").touch()
    lines = ["task._target_=tiny_profile.counting_task", f"paths.run={run}", "logger=none"]
    with pytest.raises(SystemExit, match=rf"^error: .* is being worked on by process {child}"):
        launch(composed([*lines, f"paths.root={run.parents[1]}"]))
    assert [p.name for p in run.rglob("*")] == ["morphs", ".partial-x"], "nothing was touched"


def test_a_process_ends_with_its_parent(monkeypatch) -> None:
    def parent(pipe: int) -> None:
        grandchild = os.fork()
        if grandchild == 0:
            os.environ |= {"LOCAL_RANK": "1", PARENT: str(os.getppid())}
            end_with_parent(period=0.02)
            os.write(pipe, f"{os.getpid()} ".encode())
            time.sleep(120)

    child, pipe = forked(parent)
    orphan = Path(f"/proc/{int(os.read(pipe, 20))}/stat")
    time.sleep(0.1)
    assert alive(orphan), "as long as its parent lives"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.time() + 30
    while alive(orphan):
        assert time.time() < deadline
        time.sleep(0.01)


def alive(stat: Path) -> bool:
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("parent", [None, "1"])
def test_processes_that_another_launcher_started_are_left_to_it(monkeypatch, parent) -> None:
    monkeypatch.delenv(PARENT, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "1" if parent is None else "0")
    end_with_parent(period=0.01)  # would end this process at its first look
    time.sleep(0.05)
    assert os.environ.get(PARENT) == (None if parent is None else str(os.getpid()))


def test_a_launcher_keeps_its_answer_to_sigterm(tmp_path) -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda signum, frame: heard.append(signum))
    try:
        with ending_cleanly(tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path, capfd) -> None:
    with pytest.raises(SystemExit) as ended, ending_cleanly(tmp_path / "run"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert ended.value.code == 130
    said = capfd.readouterr().err
    assert said == f"stopped by Ctrl-C; the same command continues {tmp_path / 'run'}\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_may_work_in_the_folder_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with holding(Path(".")):
        assert (tmp_path.parent / f".{tmp_path.name}.lock").is_file()


def test_leftovers_of_a_shared_folder_go_when_they_are_old(tmp_path) -> None:
    fresh, old = tmp_path / ".partial-fresh", tmp_path / ".partial-old"
    fresh.touch()
    old.touch()
    before = time.time() - 2 * 86400
    os.utime(old, (before, before))
    remove_leftovers(tmp_path, older_than=86400)
    assert [p.name for p in tmp_path.iterdir()] == [fresh.name]
