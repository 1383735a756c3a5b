"""Evaluation of face-morphing attacks from comparison scores: numpy and scipy, never torch.

The way through: a `ScoreTable` (`read_scores`, `ScoreTable.from_rows`), a `ThresholdRecord`
(`threshold_at_fmr`), and `evaluate` for rows with counts and intervals.
Names are imported when first used, so that a command that only prints its help waits for nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from adjointdeis.extras import require

if TYPE_CHECKING:  # what __getattr__ gives, for editors and type checkers
    # ruff: noqa: F401
    from adjointdeis.evaluation.detection import DetectionScores, detection_rows
    from adjointdeis.evaluation.detection_matrix import (
        DetectionStudy,
        hardening_rows,
        matrix_rows,
        read_detection,
    )
    from adjointdeis.evaluation.errors import (
        DetectionError,
        EvaluationError,
        PolicyError,
        ScoreError,
        ThresholdMismatch,
    )
    from adjointdeis.evaluation.generality import evaluate_attack_potential, evaluate_generality
    from adjointdeis.evaluation.groups import MorphScores, group, group_table
    from adjointdeis.evaluation.metrics import (
        VARIANTS,
        fmmpmr,
        iapmr,
        minmax_mmpmr,
        mmpmr,
        mmpmr_curve,
        prodavg_mmpmr,
        rmmr,
        vulnerability,
    )
    from adjointdeis.evaluation.operating import estimate_thresholds
    from adjointdeis.evaluation.paired import compare_attacks, holm, mcnemar_exact
    from adjointdeis.evaluation.policies import IMPOSTOR_POLICIES, impostors
    from adjointdeis.evaluation.protocol import (
        ALL_VARIANTS,
        INTERVALS,
        ROW_KEYS,
        WORST_CASE,
        evaluate,
    )
    from adjointdeis.evaluation.rates import Rate, clopper_pearson, rate, wilson
    from adjointdeis.evaluation.scores import COLUMNS, ScoreTable, concatenate
    from adjointdeis.evaluation.storage import read_scores, write_scores
    from adjointdeis.evaluation.subjects import Subject, Subjects, read_subjects
    from adjointdeis.evaluation.thresholds import ThresholdRecord, read_thresholds, threshold_at_fmr
    from adjointdeis.evaluation.verification import (
        equal_error_rate,
        false_match_rate,
        false_non_match_rate,
    )
    from adjointdeis.evaluation.worst_case import (
        worst_case_bound,
        worst_case_embedding,
        worst_case_scores,
    )

require("evaluation", "rates, thresholds and intervals")

_HOMES = {
    "paired": ("compare_attacks", "holm", "mcnemar_exact"),
    "generality": ("evaluate_attack_potential", "evaluate_generality"),
    "detection": ("DetectionScores", "detection_rows"),
    "detection_matrix": ("DetectionStudy", "hardening_rows", "matrix_rows", "read_detection"),
    "errors": (
        "DetectionError",
        "EvaluationError",
        "PolicyError",
        "ScoreError",
        "ThresholdMismatch",
    ),
    "groups": ("MorphScores", "group", "group_table"),
    "metrics": (
        "VARIANTS",
        "fmmpmr",
        "iapmr",
        "minmax_mmpmr",
        "mmpmr",
        "mmpmr_curve",
        "prodavg_mmpmr",
        "rmmr",
        "vulnerability",
    ),
    "policies": ("IMPOSTOR_POLICIES", "impostors"),
    "protocol": ("ALL_VARIANTS", "INTERVALS", "ROW_KEYS", "WORST_CASE", "evaluate"),
    "operating": ("estimate_thresholds",),
    "rates": ("Rate", "clopper_pearson", "rate", "wilson"),
    "scores": ("COLUMNS", "ScoreTable", "concatenate"),
    "storage": ("read_scores", "write_scores"),
    "subjects": ("Subject", "Subjects", "read_subjects"),
    "thresholds": ("ThresholdRecord", "read_thresholds", "threshold_at_fmr"),
    "verification": ("equal_error_rate", "false_match_rate", "false_non_match_rate"),
    "worst_case": ("worst_case_bound", "worst_case_embedding", "worst_case_scores"),
}
"""Module of each public name."""

__all__ = [n for names in _HOMES.values() for n in names]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
