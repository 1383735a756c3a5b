"""Evaluation of face-morphing attacks from comparison scores: numpy and scipy, never torch.

The way through: a `ScoreTable` (`read_scores`, `ScoreTable.from_rows`), a `ThresholdRecord`
(`threshold_at_fmr`), and `evaluate` for rows with counts and intervals.
Names are imported when first used, so that a command that only prints its help waits for nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adjointdeis.extras import require

if TYPE_CHECKING:  # what __getattr__ gives, for editors and type checkers
    from adjointdeis.evaluation.api import *  # noqa: F403

require("evaluation", "rates, thresholds and intervals")


def __getattr__(name: str) -> Any:
    public = vars(import_module(".api", __name__))
    if name == "__all__":
        return [each for each in public if not each.startswith("_")]
    if name not in public:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return public[name]


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
