"""The public names of the package, each from the module that it is at home in."""

# ruff: noqa: F401
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.detection_matrix import (
    DetectionStudy,
    hardening_rows,
    matrix_rows,
    read_detection,
)
from adjointdeis.evaluation.detection_points import detection_rows
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
