"""Real photographs for the tests that use them when they are there."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def frll_root() -> Path:
    """FRLL's folder from ADJOINTDEIS_FRLL or beside the repository; skips the test otherwise."""
    named = os.environ.get("ADJOINTDEIS_FRLL")
    root = Path(named) if named else Path(__file__).parents[3] / "shared" / "data" / "frll"
    if not root.is_dir():
        pytest.skip("no FRLL photographs (set ADJOINTDEIS_FRLL)")
    return root
