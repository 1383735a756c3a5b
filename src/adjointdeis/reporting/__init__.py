"""Reports of runs and tables over runs; numpy, matplotlib and Pillow, no torch.

`write_report` turns one run directory into `report.md`, `report.html`, `morphs.png` and plots.
`validate_result` says what is wrong with a result before it is written.
"""

from .errors import ReportError
from .report import write_report
from .schema import SCHEMA, read_result, validate_result

__all__ = ["SCHEMA", "ReportError", "read_result", "validate_result", "write_report"]
