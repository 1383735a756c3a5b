r"""torchmetrics classes over the same functions: exact in any number of processes.

Every metric keeps the raw comparisons in one-dimensional `cat` states and computes on the CPU in
float64 when asked. Comparisons are keyed by (kind, system, morph, subject, probe), so that the
repeats of a padded distributed sampler count once; ranks may hold any share of the data, one
morph's comparisons may lie on several ranks, and a rank may hold none. All metrics have the same
states, so a `MetricCollection` updates and gathers them once (unless the first batch holds a NaN,
for which torchmetrics finds equal states unequal; only speed suffers).

Two habits differ from other metrics. A batch has no value of its own, for the threshold depends on
all impostors: `forward` only updates. And `higher_is_better` depends on who asks; it is None unless
`perspective` is `attack` or `system`.

This is the only module of `evaluation` that imports torch. Not for data of millions of
comparisons: every rank then holds all of them at `compute`; write a score table instead.

References:
    | TorchMetrics, implementing a metric
    | https://lightning.ai/docs/torchmetrics/stable/pages/implement.html
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from adjointdeis.evaluation.attack_potential import attack_potential
from adjointdeis.evaluation.detection import DetectionScores
from adjointdeis.evaluation.errors import EvaluationError, ScoreError
from adjointdeis.evaluation.groups import MorphScores, group
from adjointdeis.evaluation.metrics import vulnerability
from adjointdeis.evaluation.thresholds import ThresholdRecord, threshold_at_fmr
from adjointdeis.evaluation.verification import false_non_match_rate

KIND_CODES = {"morph": 0, "nonmated": 1, "mated": 2, "bonafide": 3}
# Two ranks may differ in the last bits of a float32 network; more than this is another score.
REPEAT_TOLERANCE = 1e-5
_STATES = ("scores", "kinds", "systems", "morphs", "subjects", "probes")
Ids = Tensor | Sequence[str] | Sequence[int] | str | int


def stable_id(text: str) -> int:
    """A 53-bit integer for a name, the same in every process; float64 holds it exactly."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 11


class ComparisonMetric(Metric):
    """Base: gathers comparisons, removes repeats, hands over grouped scores and a threshold.

    Args:
        threshold: a record, or a number in the direction of the scores; None estimates it from
            the nonmated comparisons at `compute`.
        fmr: the target for that estimate.
        score_type: `similarity` or `dissimilarity`.
        perspective: `attack`, `system` or None; sets `higher_is_better`.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        ThresholdMismatch: a record of the other direction.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    _good_for_attack = True
    scores: list[Tensor]
    kinds: list[Tensor]
    systems: list[Tensor]
    morphs: list[Tensor]
    subjects: list[Tensor]
    probes: list[Tensor]

    def __init__(
        self,
        threshold: ThresholdRecord | float | None = None,
        *,
        fmr: float = 0.001,
        score_type: str = "similarity",
        perspective: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if perspective not in (None, "attack", "system"):
            raise EvaluationError(f"perspective {perspective!r}: expected attack, system or None")
        if isinstance(threshold, ThresholdRecord):
            threshold.require(score_type=score_type)
        self.threshold = threshold
        self.fmr = fmr
        self.score_type = score_type
        self.perspective = perspective
        for name in _STATES:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        # A rank without data gathers an empty tensor of this dtype; it must be the states' own.
        self.set_dtype(torch.float64)

    @property
    def higher_is_better(self) -> bool | None:
        """True, False or, without a perspective, None."""
        if self.perspective is None:
            return None
        return (self.perspective == "attack") == self._good_for_attack

    def update(
        self,
        scores: Tensor,
        *,
        kind: str = "morph",
        morph: Ids = 0,
        subject: Ids = 0,
        probe: Ids = 0,
        system: Ids = 0,
    ) -> None:
        """Adds comparisons; NaN marks a failed one.

        Args:
            scores: shape (R,), raw.
            kind: `morph`, `nonmated` or `mated` (for detection `morph` and `bonafide`).
            morph: R ids or one; the morph, or the reference image of other kinds.
            subject, probe: R ids or one; whose probe, and which image.
            system: R ids or one; only the attack potential takes several.

        Ids are whole numbers below 2^53, or names, which are hashed (`stable_id`).

        Raises:
            EvaluationError: unknown kind, or numbers of ids and scores that differ.
        """
        if kind not in KIND_CODES:
            raise EvaluationError(f"kind {kind!r}: expected one of {', '.join(KIND_CODES)}")
        scores = scores.detach().reshape(-1).to(self.device, torch.float64)
        self.scores.append(scores)
        self.kinds.append(torch.full_like(scores, KIND_CODES[kind]))
        ids = {"systems": system, "morphs": morph, "subjects": subject, "probes": probe}
        for name, values in ids.items():
            getattr(self, name).append(self._ids(name, values, scores))

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Only updates: a batch has no value of its own."""
        self.update(*args, **kwargs)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draws one value or several, by default the current one; needs matplotlib."""
        return self._plot(val, ax)

    def _ids(self, name: str, values: Ids, like: Tensor) -> Tensor:
        if isinstance(values, Tensor):
            given = values
        else:
            listed = [values] if isinstance(values, str | int) else values
            numbers = [stable_id(v) if isinstance(v, str) else int(v) for v in listed]
            given = torch.tensor(numbers, dtype=torch.float64)
        ids = given.detach().reshape(-1).to(like.device, torch.float64)
        if ids.numel() == 1:
            ids = ids.expand_as(like).clone()
        if ids.shape != like.shape:
            raise EvaluationError(f"{ids.numel()} {name} for {like.numel()} scores")
        return ids

    def comparisons(self) -> dict[str, np.ndarray]:
        """All comparisons without repeats, in an order that no distribution of data changes.

        Raises:
            ScoreError: no comparison, or one comparison with two scores.
        """
        parts: dict[str, np.ndarray] = {}
        for name in _STATES:
            value = getattr(self, name)
            if isinstance(value, list):
                value = torch.cat(value) if value else torch.empty(0)
            parts[name] = value.cpu().to(torch.float64).numpy()
        if not parts["scores"].size:
            raise ScoreError("no comparison was given to update on any process")
        keys = [parts[name] for name in reversed(_STATES)]
        order = np.lexsort(keys[-1:] + keys[:-1])
        sorted_ = {name: values[order] for name, values in parts.items()}
        same = np.ones(len(order) - 1, dtype=bool)
        for name in _STATES[1:]:
            same &= sorted_[name][1:] == sorted_[name][:-1]
        score = sorted_["scores"]
        both_failed = np.isnan(score[1:]) & np.isnan(score[:-1])
        close = np.abs(score[1:] - score[:-1]) <= REPEAT_TOLERANCE
        if (same & ~(close | both_failed)).any():
            at = int(np.argmax(same & ~(close | both_failed)))
            raise ScoreError(
                f"one comparison came with two scores, {score[at]!r} and {score[at + 1]!r}"
            )
        # Sorted by score within a key, so the smallest of near-equal repeats stays.
        keep = np.concatenate([[True], ~same])
        return {name: values[keep] for name, values in sorted_.items()}

    def _scores_of(self, data: dict[str, np.ndarray], kind: str) -> np.ndarray:
        return data["scores"][data["kinds"] == KIND_CODES[kind]]

    def _groups(self, data: dict[str, np.ndarray]) -> MorphScores:
        morph = data["kinds"] == KIND_CODES["morph"]
        if not morph.any():
            raise ScoreError("no comparison of a morph was given to update")
        columns = (data[name][morph] for name in ("scores", "morphs", "subjects", "probes"))
        groups = group(*columns, score_type=self.score_type)
        if (groups.n_subjects < 2).any():
            raise ScoreError("a morph has probes of one subject only; update with both")
        return groups

    def _record(self, data: dict[str, np.ndarray]) -> ThresholdRecord | None:
        if self.threshold is None:
            return threshold_at_fmr(
                self._scores_of(data, "nonmated"), self.fmr, score_type=self.score_type
            )
        return self.threshold if isinstance(self.threshold, ThresholdRecord) else None

    def _tau(self, data: dict[str, np.ndarray]) -> float:
        """The threshold for scores turned so that larger is more alike."""
        record = self._record(data)
        if record is not None:
            return record.oriented
        value = float(self.threshold)  # type: ignore[arg-type]
        return -value if self.score_type == "dissimilarity" else value

    def _tensor(self, value: float | np.ndarray) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)


class MMPMR(ComparisonMetric):
    """MMPMR of the morphs seen; see `metrics` for the variants.

    Args:
        variant: `MMPMR`, `MinMax`, `ProdAvg`, `FMMPMR` or `IAPMR`.
    """

    plot_legend_name = "MMPMR"

    def __init__(
        self,
        threshold: ThresholdRecord | float | None = None,
        *,
        variant: str = "MinMax",
        **kwargs: Any,
    ) -> None:
        super().__init__(threshold, **kwargs)
        self.variant = variant

    def compute(self) -> Tensor:
        """The rate, a float64 scalar."""
        data = self.comparisons()
        return self._tensor(vulnerability(self._groups(data), self._tau(data), self.variant).value)


class IAPMR(MMPMR):
    """Share of single comparisons between a morph and one of its subjects that match."""

    plot_legend_name = "IAPMR"

    def __init__(self, threshold: ThresholdRecord | float | None = None, **kwargs: Any) -> None:
        super().__init__(threshold, variant="IAPMR", **kwargs)


class FNMR(ComparisonMetric):
    """False non-match rate of the mated comparisons at the threshold."""

    plot_legend_name = "FNMR"

    def compute(self) -> Tensor:
        """The rate, a float64 scalar."""
        data = self.comparisons()
        return self._tensor(self._fnmr(data))

    def _fnmr(self, data: dict[str, np.ndarray]) -> float:
        mated = self._scores_of(data, "mated")
        sign = -1.0 if self.score_type == "dissimilarity" else 1.0
        return false_non_match_rate(sign * mated, self._tau(data)).value


class RMMR(FNMR):
    """MMPMR of a variant plus FNMR at the same threshold; may exceed 1."""

    plot_legend_name = "RMMR"
    plot_upper_bound = 2.0

    def __init__(
        self,
        threshold: ThresholdRecord | float | None = None,
        *,
        variant: str = "MinMax",
        **kwargs: Any,
    ) -> None:
        super().__init__(threshold, **kwargs)
        self.variant = variant

    def compute(self) -> Tensor:
        """The rate, a float64 scalar in [0, 2]."""
        data = self.comparisons()
        attack = vulnerability(self._groups(data), self._tau(data), self.variant).value
        return self._tensor(attack + self._fnmr(data))


class FMRThreshold(ComparisonMetric):
    """The conservative threshold of a target FMR over the nonmated comparisons of all processes."""

    plot_legend_name = "threshold"
    plot_lower_bound = None
    plot_upper_bound = None

    def compute(self) -> Tensor:
        """The threshold in the direction of the scores, a float64 scalar."""
        return self._tensor(self.record().value)

    def record(self) -> ThresholdRecord:
        """The full record; call it where states are gathered, e.g. on one process."""
        record = self._record(self.comparisons())
        if record is None:
            raise EvaluationError("a number was given as the threshold; there is no record of it")
        return record


class AttackPotential(ComparisonMetric):
    """MAP[r, c] over the systems seen.

    Args:
        thresholds: one per system, by the id given to `update`; None estimates each from that
            system's nonmated comparisons.
    """

    plot_legend_name = "MAP"

    def __init__(
        self,
        thresholds: dict[str | int, float] | None = None,
        *,
        attempts: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.attempts = attempts
        self.thresholds = None
        if thresholds is not None:
            items = thresholds.items()
            self.thresholds = {
                float(stable_id(s) if isinstance(s, str) else s): t for s, t in items
            }

    def compute(self) -> Tensor:
        """Shape (R, C), float64; entry [0, 0] is MAP[1, 1]."""
        data = self.comparisons()
        morph = data["kinds"] == KIND_CODES["morph"]
        groups, taus = {}, {}
        for system in np.unique(data["systems"][morph]):
            own = {name: values[data["systems"] == system] for name, values in data.items()}
            groups[str(system)] = self._groups(own)
            if self.thresholds is None:
                taus[str(system)] = self._tau(own)
                continue
            if system not in self.thresholds:
                raise EvaluationError("a system of the comparisons has no threshold")
            sign = -1.0 if self.score_type == "dissimilarity" else 1.0
            taus[str(system)] = sign * self.thresholds[system]
        if not groups:
            raise ScoreError("no comparison of a morph was given to update")
        return self._tensor(attack_potential(groups, taus, self.attempts).values)


class MADRates(ComparisonMetric):
    """Detection rates of one attack: D-EER and BSCER at MACER 10, 5 and 1%.

    `update(scores, kind="morph" | "bonafide", morph=image ids)`; for the maximum over attacks keep
    one metric per attack, or use `DetectionScores` on a table.

    Args:
        higher_is: what a high score says, `morph` or `bonafide`.
    """

    _good_for_attack = True
    plot_legend_name = "MAD"

    def __init__(self, *, higher_is: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.higher_is = higher_is

    def compute(self) -> dict[str, Tensor]:
        """`d_eer`, `bscer10`, `bscer20`, `bscer100`, float64 scalars."""
        data = self.comparisons()
        attacks = {"attack": self._scores_of(data, "morph")}
        scores = DetectionScores(self._scores_of(data, "bonafide"), attacks, self.higher_is)
        found = {"d_eer": self._tensor(scores.d_eer()[0])}
        for name, target in (("bscer10", 0.1), ("bscer20", 0.05), ("bscer100", 0.01)):
            found[name] = self._tensor(scores.bscer_at_macer(target).value)
        return found
