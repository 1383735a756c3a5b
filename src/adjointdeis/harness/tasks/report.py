"""Collects finished runs and rebuilds the paper's tables, ours beside the paper's.

python run.py task=report
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adjointdeis.reporting import aggregate


def run(cfg: DictConfig) -> dict[str, Any]:
    """Reads every `result.json` below `cfg.task.outputs`; writes below the run directory."""
    files = aggregate(Path(cfg.task.outputs), Path(cfg.paths.run))
    return {"files": [str(path) for path in files]}
