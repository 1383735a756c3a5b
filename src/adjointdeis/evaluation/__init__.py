"""Evaluation of face-morphing attacks from comparison scores: numpy and scipy, never torch.

The way through: a `ScoreTable` (`read_scores`, `ScoreTable.from_rows`), a `ThresholdRecord`
(`threshold_at_fmr`), and `evaluate` for rows with counts and intervals. `torchmetrics.py` holds
the metric classes and is the only module here that imports torch; import it by its own name.
"""

from .errors import DetectionError, EvaluationError, PolicyError, ScoreError, ThresholdMismatch
from .groups import MorphScores, group, group_table
from .metrics import (
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
from .policies import IMPOSTOR_POLICIES, impostors
from .protocol import (
    ALL_VARIANTS,
    INTERVALS,
    ROW_KEYS,
    WORST_CASE,
    estimate_thresholds,
    evaluate,
)
from .rates import Rate, clopper_pearson, rate, wilson
from .scores import COLUMNS, ScoreTable, concatenate
from .storage import read_scores, write_scores
from .subjects import Subject, Subjects, read_subjects
from .thresholds import ThresholdRecord, read_thresholds, threshold_at_fmr
from .verification import equal_error_rate, false_match_rate, false_non_match_rate
from .worst_case import worst_case_bound, worst_case_embedding, worst_case_scores

__all__ = [
    "ALL_VARIANTS",
    "COLUMNS",
    "IMPOSTOR_POLICIES",
    "INTERVALS",
    "ROW_KEYS",
    "VARIANTS",
    "WORST_CASE",
    "DetectionError",
    "EvaluationError",
    "MorphScores",
    "PolicyError",
    "Rate",
    "ScoreError",
    "ScoreTable",
    "Subject",
    "Subjects",
    "ThresholdMismatch",
    "ThresholdRecord",
    "clopper_pearson",
    "concatenate",
    "equal_error_rate",
    "estimate_thresholds",
    "evaluate",
    "false_match_rate",
    "false_non_match_rate",
    "fmmpmr",
    "group",
    "group_table",
    "iapmr",
    "impostors",
    "minmax_mmpmr",
    "mmpmr",
    "mmpmr_curve",
    "prodavg_mmpmr",
    "rate",
    "read_scores",
    "read_subjects",
    "read_thresholds",
    "rmmr",
    "threshold_at_fmr",
    "vulnerability",
    "wilson",
    "worst_case_bound",
    "worst_case_embedding",
    "worst_case_scores",
    "write_scores",
]
