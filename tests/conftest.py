"""What every test shares: one thread, fixed seeds, no window, no network, the oracles in reach."""

import os
import random
import sys
from pathlib import Path

# Before torch loads OpenMP: threads that wait for each other stall a shared machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("WANDB_SILENT", "true")

# pytest's importlib mode leaves sys.path alone; `oracles` is imported by several rooms.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same generators, alone or in any order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that libraries share
    # Tests of the evaluation never load torch; they shall not pay for it here.
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        torch.manual_seed(0)
