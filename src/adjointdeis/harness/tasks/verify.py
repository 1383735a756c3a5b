"""Checks finished runs from end to end, and says what is damaged. Nothing in them is changed.

python run.py task=verify task.run=outputs/quickstart
"""

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adjointdeis.harness.check_run import check_cache, check_run, run_directories
from adjointdeis.texts import printable


def run(cfg: DictConfig) -> dict[str, Any]:
    """Checks every run below `task.run`, and the encodings that runs share.

    One line is printed for each damaged file, or for a run that is whole.

    Raises:
        ValueError: No run is named, or there is none.
        SystemExit: A file is damaged; the exit code is 1.
    """
    if not cfg.task.run:
        raise ValueError("task.run: name a run directory, such as task.run=outputs/quickstart")
    own = Path(cfg.paths.run).resolve()
    directories = [d for d in run_directories(Path(cfg.task.run)) if d.resolve() != own]
    damaged = 0
    for directory in directories:
        faults = check_run(directory)
        for fault in faults:
            print(fault)
        damaged += bool(faults)
        if not faults:
            print(printable(f"{directory}: whole"))
    faults = check_cache(Path(cfg.paths.data) / "encodings")
    for fault in faults:
        print(fault)
    if damaged or faults:
        sys.stdout.flush()
        cache = f", {len(faults)} entries of the cache" if faults else ""
        sys.exit(f"error: {damaged} of {len(directories)} runs are damaged{cache}, see above")
    return {"runs": [str(directory) for directory in directories]}
