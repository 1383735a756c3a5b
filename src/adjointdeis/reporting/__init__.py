"""Reports of runs and tables over runs; numpy, matplotlib and Pillow, no torch.

`write_report` turns one run directory into `report.md`, `report.html`, `morphs.png` and plots;
`aggregate` rebuilds the paper's tables over all runs of a folder; `validate_result` says what is
wrong with a result before it is written.
"""

from adjointdeis.extras import require

require("experiments", "reports")

from adjointdeis.reporting.aggregate import aggregate
from adjointdeis.reporting.collect import AttackRuns, Collection, collect, entries
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.report import write_report
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.schema import SCHEMA, read_result, validate_result

__all__ = [
    "SCHEMA",
    "AttackRuns",
    "Collection",
    "EvaluationSetting",
    "ReportError",
    "Run",
    "aggregate",
    "collect",
    "entries",
    "read_result",
    "validate_result",
    "write_report",
]
