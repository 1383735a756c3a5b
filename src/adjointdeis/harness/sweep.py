"""A sweep's own book: which of its jobs were finished before, which ran, which failed and why.

Every job leaves a line in ``<sweep folder>/jobs``, whichever process or machine it runs on. When
the sweep ends they are read together: one table, and an exit code that tells of failures. The same
command again skips what is finished and tries again what failed or was killed.
"""

import atexit
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from adjointdeis.evaluation.markdown import table
from adjointdeis.files import write_atomically
from adjointdeis.harness.interruption import DirectoryInUse, holding, is_child


def sweeping() -> bool:
    """Whether this process runs a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def note_job(directory: Path, status: str, reason: str = "") -> None:
    """Leaves the line of a job; does nothing outside of a sweep.

    Args:
        directory: Run directory of the job.
        status: "started", then "done", "skipped" (was finished before) or "failed"; a job that was
            killed stays at the first.
        reason: First line of what went wrong.
    """
    if not sweeping():
        return
    hydra = HydraConfig.get()
    line = {
        "job": hydra.job.num,
        "overrides": list(hydra.overrides.task),
        "directory": str(directory),
        "status": status,
        "reason": reason,
    }
    path = Path(hydra.sweep.dir) / "jobs" / f"{hydra.job.num:05d}.json"
    write_atomically(path, json.dumps(line))


def _read_jobs(folder: Path) -> list[dict[str, Any]]:
    """Lines of a sweep's jobs, in their order."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "jobs").glob("*.json"))
    ]


def summary(jobs: list[dict[str, Any]]) -> str:
    """What became of a sweep, as a sentence and a table."""
    counts = {
        status: sum(job["status"] == status for job in jobs)
        for status in ("done", "skipped", "failed")
    }
    sentence = (
        f"Sweep of {len(jobs)} jobs: {counts['done']} ran, {counts['skipped']} were finished "
        f"before, {counts['failed']} failed."
    )
    open_ended = len(jobs) - sum(counts.values())
    if open_ended:
        sentence += f" {open_ended} started and did not end: killed, or still at work."
    if counts["failed"] or open_ended:
        sentence += " The same command tries the failed ones again."
    shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if jobs else set()
    rows = [
        [
            job["job"],
            " ".join(o for o in job["overrides"] if o not in shared) or "-",
            job["status"],
            job["reason"] or job["directory"],
        ]
        for job in jobs
    ]
    return sentence + "\n\n" + table(["job", "overrides", "status", "directory or reason"], rows)


class SweepReport(Callback):
    """Hydra callback that prints the summary of a sweep when all of its jobs are over."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Keeps other sweeps out of the folder, and sees to it that the summary comes at the end,
        however that comes."""
        folder = Path(config.hydra.sweep.dir)
        if not (config.dry_run or is_child(config.trainer)):
            held = contextlib.ExitStack()
            try:
                held.enter_context(holding(folder))
            except DirectoryInUse as error:
                sys.exit(f"error: {error}, or give this sweep a folder of its own, hydra.sweep.dir")
            except OSError as error:
                sys.exit(
                    f"error: {folder}: no sweep can be kept there ({error.strerror}); name another "
                    "folder, hydra.sweep.dir=..."
                )
            atexit.register(held.close)  # not of self, which launchers send to their processes
            for path in (folder / "jobs").glob("*.json"):
                path.unlink()  # of an earlier sweep, which had other jobs
        # A launcher one of whose jobs was killed raises, and Hydra calls on_multirun_end no more.
        atexit.register(self._print, folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Prints the summary, and exits with 1 when a job failed."""
        atexit.unregister(self._print)
        jobs = self._print(Path(config.hydra.sweep.dir))
        if any(job["status"] in ("failed", "started") for job in jobs):
            sys.exit(1)

    def _print(self, folder: Path) -> list[dict[str, Any]]:
        jobs = _read_jobs(folder)
        if jobs:  # a dry run has none
            print(summary(jobs))
        return jobs
