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
    PrintScan,
    Resize,
)
from adjointdeis.detection.detector import (
    DetectorError,
    DetectorRecipe,
    Examples,
    MorphDetector,
    Suspects,
    score_in_batches,
)

__all__ = [
    "Degradation",
    "DegradationError",
    "Degradations",
    "DetectorError",
    "DetectorRecipe",
    "Examples",
    "Jpeg",
    "Jpeg2000",
    "MorphDetector",
    "PrintScan",
    "Resize",
    "Suspects",
    "score_in_batches",
]
