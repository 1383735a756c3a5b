"""Synthetic score tables; no person or recogniser is behind them."""

import pytest
from hypothesis import settings

from adjointdeis.evaluation import ScoreTable, Subjects
from adjointdeis.evaluation.simulate import synthetic_table

# The same examples on every machine, and no verdict by the clock of a busy one.
settings.register_profile(
    "deterministic", deadline=None, derandomize=True, database=None, max_examples=60
)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def synthetic() -> tuple[ScoreTable, Subjects]:
    """Three systems, two attacks, 24 subjects, 40 morphs, with a few failed captures."""
    return synthetic_table(n_subjects=24, n_morphs=40, failure_rate=0.05, seed=3)


@pytest.fixture(scope="session")
def table(synthetic: tuple[ScoreTable, Subjects]) -> ScoreTable:
    return synthetic[0]


@pytest.fixture(scope="session")
def subjects(synthetic: tuple[ScoreTable, Subjects]) -> Subjects:
    return synthetic[1]


def morph_row(**changes: object) -> dict[str, object]:
    """One valid morph row with changes."""
    row: dict[str, object] = {
        "kind": "morph",
        "morph_id": "a_b",
        "attack": "dim",
        "subject_id": "a",
        "probe_id": "a_08",
        "ref_id": "a_b",
        "system": "arcface",
        "score": 0.4,
        "score_type": "similarity",
        "status": "ok",
        "probe_policy": "other",
    }
    return {**row, **changes}


@pytest.fixture(name="morph_row")
def morph_row_fixture():
    return morph_row
