"""Detectors of morphing attacks, and what happens to an image before they see it.

A detector knows no attack: it sees images. Degradations need the extra ``faces``, the detectors
that scikit-learn trains need ``detection``.
"""

from adjointdeis.extras import require

require("faces", "detectors of morphing attacks")

from adjointdeis.detection.degradation import (
    Degradation,
    DegradationError,
    Degradations,
    Jpeg,
    Jpeg2000,
    Resize,
)
from adjointdeis.detection.demorphing import Demorphing
from adjointdeis.detection.detector import (
    DetectorError,
    DetectorRecipe,
    Examples,
    MorphDetector,
    Suspects,
    score_in_batches,
)
from adjointdeis.detection.linear import (
    DifferenceDetection,
    LinearDetector,
    TextureDetection,
)
from adjointdeis.detection.plugged import (
    CallableDetector,
    OnnxDetector,
    PrecomputedScores,
    TorchDetector,
)
from adjointdeis.detection.print_scan import PrintScan

__all__ = [
    "CallableDetector",
    "Degradation",
    "DegradationError",
    "Degradations",
    "Demorphing",
    "DetectorError",
    "DetectorRecipe",
    "DifferenceDetection",
    "Examples",
    "Jpeg",
    "Jpeg2000",
    "LinearDetector",
    "MorphDetector",
    "OnnxDetector",
    "PrecomputedScores",
    "PrintScan",
    "Resize",
    "Suspects",
    "TextureDetection",
    "TorchDetector",
    "score_in_batches",
]
