"""`run.py` whose reports have no plots, for tests of processes that are not about them.

Plots take half of the processor time of a run of a few seconds: `python without_plots.py ...`.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

from adjointdeis import reporting

_write_report = reporting.write_report


def without_plots(directory: Path | str, **options: Any) -> list[Path]:
    """The report with everything else."""
    return _write_report(directory, **{**options, "plots": False})


if __name__ == "__main__":
    reporting.write_report = without_plots  # before the task takes it from there
    sys.argv[0] = str(Path(__file__).resolve().parents[1] / "run.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
