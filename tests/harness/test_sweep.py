"""A sweep of twelve jobs, interrupted, with a failing job, rerun: skipped, retried, complete."""

import json
import signal
from pathlib import Path

import pytest
from tiny_profile import ROOT

from adjointdeis.harness.sweep import SweepReport, summary

SEEDS = list(range(12))


@pytest.fixture
def sweep(program, environ, tmp_path):
    """Runs the twelve jobs, all in one process, one after the other."""
    environ["PYTHONPATH"] = f"{ROOT / 'tests'}:{environ.get('PYTHONPATH', ROOT / 'src')}"

    def run(*more: str):
        return program(
            [
                "-m",
                "task._target_=tiny_profile.flaky_task",
                "name=twelve",
                f"paths.root={tmp_path}",
                "logger=none",
                f"seed={','.join(map(str, SEEDS))}",
                *more,
            ]
        )

    return run


def finished(root: Path) -> list[int]:
    """Seeds of the jobs with a result, sorted."""
    done = [path.parent for path in root.glob("outputs/twelve/*/done.json")]
    return sorted(int(json.loads((run / "result.json").read_text())["objective"]) for run in done)


def calls(root: Path) -> dict[int, int]:
    """How often each job's task was called."""
    found: dict[int, int] = {}
    for path in root.glob("outputs/twelve/*/calls.txt"):
        lines = path.read_text().splitlines()
        found[int(lines[0].split()[0])] = len(lines)
    return found


def test_interrupted_rerun_complete(sweep, tmp_path) -> None:
    (tmp_path / "broken").touch()
    (tmp_path / "deadly").touch()
    first = sweep()
    assert first.returncode == -signal.SIGKILL
    assert finished(tmp_path) == [0, 1, 2, 3, 5, 6, 7]
    assert "error: the probe of subject 4 is unreadable" in first.stderr

    (tmp_path / "deadly").unlink()
    second = sweep()
    assert second.returncode == 1, "a sweep with a failed job does not end well"
    assert finished(tmp_path) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert (
        "Sweep of 12 jobs: 4 ran, 7 were finished before, 1 failed. "
        "The same command tries the failed ones again." in second.stdout
    )
    assert "failed before (ValueError: the probe of subject 4 is unreadable)" in second.stdout

    (tmp_path / "broken").unlink()
    third = sweep()
    assert third.returncode == 0, third.stderr[-2000:]
    assert "Sweep of 12 jobs: 1 ran, 11 were finished before, 0 failed." in third.stdout
    table = [line for line in third.stdout.splitlines() if line.startswith("|")][2:]
    assert len(table) == 12
    for seed, line in zip(SEEDS, table, strict=True):
        assert f"seed={seed} " in line
        assert ("done" if seed == 4 else "skipped") in line
    assert finished(tmp_path) == SEEDS
    # Finished jobs were never called again; the failed one three times, the killed one twice.
    assert calls(tmp_path) == {seed: {4: 3, 8: 2}.get(seed, 1) for seed in SEEDS}


@pytest.mark.slow
def test_a_local_launcher_keeps_the_same_book(sweep, tmp_path) -> None:
    (tmp_path / "broken").touch()
    first = sweep("hydra/launcher=local", "hydra.launcher.n_jobs=2")
    assert first.returncode == 1, first.stderr[-2000:]
    assert "Sweep of 12 jobs: 11 ran, 0 were finished before, 1 failed." in first.stdout
    (tmp_path / "broken").unlink()
    second = sweep("hydra/launcher=local", "hydra.launcher.n_jobs=2")
    assert second.returncode == 0, second.stderr[-2000:]
    assert finished(tmp_path) == SEEDS


def test_a_sweep_of_dry_runs_has_no_summary(tmp_path, capsys) -> None:
    assert SweepReport()._print(tmp_path) == []
    assert capsys.readouterr().out == ""


def test_the_summary_names_what_differs() -> None:
    jobs = [
        {
            "job": k,
            "overrides": ["+experiment=table6", f"optimizer.lr={lr}"],
            "directory": f"outputs/table6/{k}",
            "status": status,
            "reason": reason,
        }
        for k, (lr, status, reason) in enumerate(
            [("0.1", "done", ""), ("1", "failed", "error: no face on 001_03.png")]
        )
    ]
    text = summary(jobs)
    assert "2 jobs: 1 ran, 0 were finished before, 1 failed" in text
    assert "experiment" not in text and "optimizer.lr=1 " in text
    assert "no face on 001_03.png" in text
