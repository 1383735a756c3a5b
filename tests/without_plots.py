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
    for name, module in list(sys.modules.items()):  # the tasks may have taken it from there
        if name.startswith("adjointdeis.") and hasattr(module, "write_report"):
            module.write_report = without_plots  # type: ignore[attr-defined]
    sys.argv[0] = str(Path(__file__).resolve().parents[1] / "run.py")
    runpy.run_path(sys.argv[0], run_name="__main__")
