"""Named errors of the evaluation library; a message says where, what was expected, what to do."""


class EvaluationError(ValueError):
    """Any input that the evaluation library refuses."""


class ScoreError(EvaluationError):
    """A score table that is malformed, contradictory or incomplete; names `file:line` if known."""


class ThresholdMismatch(EvaluationError):
    """A threshold record used with another model, alignment or direction than it was made for."""


class PolicyError(EvaluationError):
    """A probe or impostor policy that the data cannot serve, e.g. same-sex without covariates."""


class DetectionError(EvaluationError):
    """Morphing-attack-detection scores that cannot give the requested rate."""
