"""Collects finished runs and rebuilds the paper's tables, ours beside the paper's.

python run.py task=report
python run.py task=report task.wandb=entity/project
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from adjointdeis.reporting import aggregate


def run(cfg: DictConfig) -> dict[str, Any]:
    """Reads every `result.json` below `cfg.task.outputs`; writes below the run directory.

    The files of offline Weights & Biases runs lie below `outputs` too, and are read like run
    directories; those of a project on the server are fetched to `outputs/wandb` first.
    """
    outputs = Path(cfg.task.outputs)
    if cfg.task.wandb:
        from adjointdeis.harness.wandb_logger import download  # with Lightning, which takes seconds

        download(cfg.task.wandb, outputs / "wandb")
    files = aggregate(outputs, Path(cfg.paths.run))
    return {"files": [str(path) for path in files]}
