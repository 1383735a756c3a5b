"""What every test shares: one thread, fixed seeds, no window, no network, the oracles in reach."""

import gc
import os
import random
import signal
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

# A suite that was started in the background ignores Ctrl-C, and so would every program it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    options = parser.getgroup("adjointdeis")
    options.addoption(
        "--device", default="cpu", help="where tests/gradients/test_devices.py computes: cpu, cuda"
    )
    options.addoption(
        "--dtype", default="float32", choices=["float32", "float64"], help="in which precision"
    )


def pytest_configure(config: pytest.Config) -> None:
    # xdist would deal out files by the number of their tests: those of one test, which start whole
    # programs, last, when one worker has them all in its queue and the other has nothing to do.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


DEAREST = ("tests/harness", "tests/test_fuzz.py", "tests/docs", "tests/experiments", "tests/test_")
"""Where files take longest, in that order; they come first, so that workers end together."""


def _dear(item: pytest.Item) -> int:
    path = item.path.relative_to(item.config.rootpath).as_posix()
    return next((k for k, start in enumerate(DEAREST) if path.startswith(start)), len(DEAREST))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_dear)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not config.getoption("--device").startswith("cuda"):
        # A run that asks for a GPU and has none fails; one that does not ask for it says so.
        skip = pytest.mark.skip(reason="needs a GPU: --device cuda, or `make gpu`")
        for item in marked:
            item.add_marker(skip)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Takes what was imported out of the collector's sight: every full collection, of which checks
    of kept graphs make many, would walk over the libraries' million objects."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(request: pytest.FixtureRequest):
    """Where a test of devices computes."""
    import torch

    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request: pytest.FixtureRequest):
    """The type in which a test of devices computes."""
    import torch

    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same generators, alone or in any order."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that libraries share
    # Tests of the evaluation never load torch; they shall not pay for it here.
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
        # Not torch.manual_seed, which notes where it was called for every device that is not there.
        torch.default_generator.manual_seed(0)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(0)
