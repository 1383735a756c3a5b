"""Sweeps through submitit, and SLURM's part played by a script: killed, pre-empted, put back."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from run_directories import assert_same
from tiny_profile import PAIRS, ROOT, command_line, overrides

pytest.importorskip("hydra_plugins.hydra_submitit_launcher")

# Jobs start one after the other, and a machine may have other work.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

STEPS = (30, 31, 32)  # the points of the sweep; enough of them to strike at a job in its middle


def arguments(tiny: Path, root: Path, *more: str) -> list[str]:
    """One row, whose caches and outputs are below `root`."""
    plainest = ("optimisation.measure_gradient=false", "logger=none")
    own = (*plainest, "optimisation.batch_size=1", "name=points")
    return overrides(tiny, None, *own, *more, root=root, rows=("exact",), replicates=0)


def points(tiny: Path, root: Path, *more: str) -> list[str]:
    steps = f"optimisation.steps={','.join(map(str, STEPS))}"
    return ["-m", *arguments(tiny, root, steps), *more]


def folder(root: Path, steps: int) -> Path | None:
    """Run directory of a point, once it is there."""
    for config in root.glob("outputs/points/*/config.yaml"):
        if f"\n  steps: {steps}\n" in config.read_text():
            return config.parent
    return None


def wait_for(found: Callable[[], object], sweep: subprocess.Popen | None = None) -> None:
    deadline = time.time() + 1200
    while not found():
        assert time.time() < deadline, "nothing came of it"
        assert sweep is None or sweep.poll() is None, "the sweep is over"
        time.sleep(0.02)


def caught_at_work(root: Path, steps: int, sweep: subprocess.Popen | None = None) -> int:
    """Waits until a point has made its first morph; the process that is at work on it."""

    def under_way() -> bool:
        run = folder(root, steps)
        return run is not None and bool(list(run.glob("morphs/exact/*.json")))

    wait_for(under_way, sweep)
    run = folder(root, steps)
    assert run is not None
    lock = run.with_name(f".{run.name}.lock").read_text()
    return int(re.match(r"process (\d+) on ", lock)[1])


def started(arguments: list[str], cwd: Path, environ: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        command_line(arguments),
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(root: Path) -> set[int]:
    return {n for n in STEPS if (run := folder(root, n)) and (run / "done.json").is_file()}


def submitit_logs(root: Path) -> str:
    logs = root.glob("outputs/sweeps/*/.submitit/*/*_log.*")
    return "".join(path.read_text() for path in sorted(logs))


def assert_equal_points(one: Path, other: Path) -> None:
    for steps in STEPS:
        first, second = folder(one, steps), folder(other, steps)
        assert first is not None and second is not None and first.name == second.name
        assert_same(first, second)


@pytest.fixture(scope="module")
def one_by_one(tiny, tmp_path_factory) -> Path:
    """The same sweep under Hydra's own launcher, undisturbed."""
    root = tmp_path_factory.mktemp("basic")
    environ = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        command_line(points(tiny, root)), cwd=root, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_a_local_sweep_is_killed_preempted_and_completed(
    one_by_one, tiny, tmp_path, environ, program
) -> None:
    lines = points(tiny, tmp_path, "hydra/launcher=slurm_local")
    sweep = started(lines, tmp_path, environ)
    # The last point is pre-empted as submitit does it: the job puts itself back and goes on.
    os.kill(caught_at_work(tmp_path, STEPS[2], sweep), signal.SIGUSR2)
    os.kill(caught_at_work(tmp_path, STEPS[1], sweep), signal.SIGKILL)
    told = sweep.communicate(timeout=1200)[0]
    assert sweep.returncode == 1, told
    assert re.search(r"\d started and did not end: killed, or still at work", told)
    # Jobs outlive the command that started them, as they do on a cluster.
    wait_for(lambda: finished(tmp_path) == {STEPS[0], STEPS[2]})
    logs = submitit_logs(tmp_path)
    assert "Caught signal SIGUSR2" in logs and "this job is preempted" in logs

    kept = {p: p.stat().st_mtime_ns for p in tmp_path.glob("outputs/points/*/morphs/exact/*.json")}
    assert 2 * len(PAIRS) < len(kept) < 3 * len(PAIRS)
    again = program(lines, timeout=1200)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Sweep of 3 jobs: 1 ran, 2 were finished before, 0 failed." in again.stdout
    assert {p: p.stat().st_mtime_ns for p in kept} == kept, "no morph is made twice"
    assert_equal_points(one_by_one, tmp_path)


# SLURM's part


@pytest.fixture
def slurm(tmp_path, environ) -> Iterator[Path]:
    """SLURM's commands on the PATH, as one script; the folder of its states."""
    commands, states = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    states.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        (commands / name).symlink_to(ROOT / "tests" / "fake_slurm.sh")
    environ["PATH"] = f"{commands}:{environ['PATH']}"
    environ["FAKE_SLURM"] = str(states)
    yield states
    for path in states.glob("*.pids"):
        for pid in map(int, path.read_text().split()):
            # Only what is still one of these jobs: a number may have been given out again.
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and str(tmp_path) in command.read_text():
                os.kill(pid, signal.SIGKILL)


def test_a_slurm_sweep_is_killed_preempted_and_completed(
    one_by_one, tiny, tmp_path, environ, program, slurm
) -> None:
    lines = points(tiny, tmp_path, "hydra/launcher=slurm", "hydra.launcher.partition=gpu")
    sweep = started(lines, tmp_path, environ)
    # Time is up: SLURM sends SIGUSR2 first, and the job asks for its requeueing.
    os.kill(caught_at_work(tmp_path, STEPS[0], sweep), signal.SIGUSR2)
    # Pre-empted: SIGTERM, which announces it, then SIGKILL; SLURM puts the job back by itself.
    preempted = caught_at_work(tmp_path, STEPS[1], sweep)
    os.kill(preempted, signal.SIGTERM)
    wait_for(lambda: "Bypassing signal SIGTERM" in submitit_logs(tmp_path))
    (pids,) = [p for p in slurm.glob("*.pids") if str(preempted) in p.read_text().split()]
    pids.with_suffix(".requeue").touch()
    os.kill(preempted, signal.SIGKILL)
    # A node is lost.
    os.kill(caught_at_work(tmp_path, STEPS[2], sweep), signal.SIGKILL)
    told = sweep.communicate(timeout=1200)[0]
    assert sweep.returncode == 1, told
    assert "1 started and did not end: killed, or still at work." in told
    assert finished(tmp_path) == set(STEPS[:2]), told

    (script,) = slurm.glob("submitted-*.sh")
    asked = {line.split(" ", 1)[1] for line in script.read_text().splitlines() if "SBATCH" in line}
    assert {
        "--array=0-2%3", "--signal=USR2@120", "--time=240", "--nodes=1", "--gpus-per-node=1",
        "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=32GB", "--partition=gpu",
        "--open-mode=append",
    } <= asked  # fmt: skip
    logs = submitit_logs(tmp_path)
    assert "Caught signal SIGUSR2" in logs and "remaining timeouts" in logs

    again = program(lines, timeout=1200)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "Sweep of 3 jobs: 1 ran, 2 were finished before, 0 failed." in again.stdout
    assert_equal_points(one_by_one, tmp_path)


def test_processes_that_srun_started_stop_together(
    one_by_one, tiny, tmp_path, environ, slurm
) -> None:
    run = tmp_path / "outputs" / "points" / "two"
    lines = arguments(
        tiny,
        tmp_path,
        f"optimisation.steps={STEPS[0]}",
        f"paths.run={run}",
        "trainer=slurm",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
    )
    tasks = {"NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "JOB_NUM_NODES": "1"}
    host = {"JOB_NODELIST": "127.0.0.1", "NODELIST": "127.0.0.1", "JOB_NAME": "fake"}
    environ |= {f"SLURM_{k}": v for k, v in {**tasks, **host}.items()}
    environ["SLURM_JOB_ID"] = str(os.getpid())

    def srun() -> subprocess.Popen:
        return subprocess.Popen(
            ["srun", *command_line(lines)],
            cwd=tmp_path,
            env=environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = srun()
    caught_at_work(tmp_path, STEPS[0], first)
    victim = int((slurm / f"{environ['SLURM_JOB_ID']}.pids").read_text().split()[1])
    os.kill(victim, signal.SIGKILL)
    told = first.communicate(timeout=120)[1]
    assert first.returncode != 0
    assert "error: another process of this run has ended" in told
    made = {p: p.stat().st_mtime_ns for p in run.glob("morphs/exact/*.json")}
    assert 0 < len(made) < len(PAIRS)

    second = srun()
    told = second.communicate(timeout=1200)[1]
    assert second.returncode == 0, told[-3000:]
    assert {p: p.stat().st_mtime_ns for p in made} == made
    alone = folder(one_by_one, STEPS[0])
    assert alone is not None
    assert_same(alone, run)
