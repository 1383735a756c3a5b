r"""Thresholds as records: a number, how it was found, on whom, for which model and alignment.

With N_I impostor scores in descending order :math:`x_{(0)} \ge x_{(1)} \ge \dots` and
:math:`k = \lfloor f N_I \rfloor`, the threshold is :math:`\tau = x_{(k)}` and a comparison matches
iff :math:`S > \tau`. At most k impostors are strictly above it, so the realised FMR never exceeds
the target f, with ties or without. An interpolating quantile does not have this property.

Dissimilarities are negated, treated alike and negated back: match iff :math:`D < \tau`.

References:
    | ISO/IEC 19795-1:2021, Biometric performance testing and reporting
    | https://www.iso.org/standard/73515.html
    | The NIST speaker recognition evaluation: overview (Doddington et al., 2000; the rule of 30)
    | https://doi.org/10.1016/S0167-6393(99)00080-1
"""

import hashlib
import math
import os
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import SCORE_TYPES, codes, oriented, oriented_tau
from adjointdeis.evaluation.errors import EvaluationError, ThresholdMismatch
from adjointdeis.evaluation.rates import clopper_pearson
from adjointdeis.evaluation.storage import write_json
from adjointdeis.files import read_json
from adjointdeis.texts import canonical

SCHEMA = "adjointdeis-threshold/1"
ORDER_STATISTIC = "conservative order statistic: tau = x_(floor(f N_I)), match iff S > tau"
LITERAL = "literal: taken from elsewhere, nothing about it can be checked"


@dataclass(frozen=True)
class ThresholdRecord:
    """A decision threshold with its provenance.

    Attributes:
        value: tau, in the direction of the score itself.
        score_type: `similarity` (match iff S > tau) or `dissimilarity` (match iff D < tau).
        rule: how the value was found.
        target_fmr: the false match rate asked for.
        realised_fmr: k / n, never above the target; None for a literal.
        k: impostor comparisons that match at tau.
        n: impostor comparisons scored.
        n_failed: impostor comparisons that failed and are in neither k nor n.
        value_strictest: the other end of the thresholds with the same false matches: the nearest
            impostor score that matches. `value` favours the attack, any threshold up to (not
            including) this one has the same FMR; None without a false match, for then every
            stricter threshold has.
        k_people, n_people: pairs of people with a false match, and compared; None if unknown.
        fmr_lo, fmr_hi: Clopper-Pearson interval of the FMR, for independent comparisons.
        confidence: its nominal level.
        rule_of_30: the verdict in words.
        impostor_policy: which impostor pairs were compared: `all`, `same-sex`, ...
        impostor_set: a name for the people behind them.
        impostor_hash: SHA-256 of the comparisons.
        model: the recogniser's name.
        model_fingerprint: SHA-256 of its weights.
        alignment: how faces were cropped, e.g. `ffhq-resize112` or `arcface-5pt`.
        data_set: fingerprint of the faces that the threshold may judge; empty where unstated. A
            threshold found on synthetic faces says nothing about photographs.
        created_by: tool and version.
        note: anything else.
    """

    value: float
    score_type: str
    rule: str
    target_fmr: float
    realised_fmr: float | None = None
    k: int | None = None
    n: int | None = None
    n_failed: int = 0
    value_strictest: float | None = None
    k_people: int | None = None
    n_people: int | None = None
    fmr_lo: float | None = None
    fmr_hi: float | None = None
    confidence: float = 0.95
    rule_of_30: str = ""
    impostor_policy: str = ""
    impostor_set: str = ""
    impostor_hash: str = ""
    model: str = ""
    model_fingerprint: str = ""
    alignment: str = ""
    data_set: str = ""
    created_by: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.score_type not in SCORE_TYPES:
            raise EvaluationError(
                f"score_type {self.score_type!r}: expected one of {', '.join(SCORE_TYPES)}"
            )
        if not math.isfinite(self.value):
            raise EvaluationError(f"threshold {self.value!r}: expected a finite number")
        for name, value in (("target_fmr", self.target_fmr), ("realised_fmr", self.realised_fmr)):
            if value is not None and not 0 <= value <= 1:
                raise EvaluationError(f"{name} {value!r}: expected a share, 0.001 for 0.1%")
        if not 0 < self.confidence < 1:
            raise EvaluationError(f"confidence {self.confidence!r}: expected a share, such as 0.95")
        if self.k is not None and not 0 <= self.k <= (self.n or 0):
            raise EvaluationError(f"{self.k!r} false matches of {self.n!r}: expected at most all")
        if self.k and self.n and abs(self.k / self.n - (self.realised_fmr or 0)) > 1e-6:
            raise EvaluationError(
                f"realised_fmr {self.realised_fmr!r}: {self.k} false matches of {self.n} are "
                f"{self.k / self.n:g}"
            )
        object.__setattr__(self, "model", canonical(self.model))

    @property
    def oriented(self) -> float:
        """The value for scores turned so that larger means more alike."""
        return oriented_tau(self.value, self.score_type)

    def matches(self, scores: np.ndarray) -> np.ndarray:
        """True where a raw score matches; NaN (a failed comparison) does not."""
        scores = np.asarray(scores)
        return scores < self.value if self.score_type == "dissimilarity" else scores > self.value

    def require(
        self,
        *,
        model: str | None = None,
        model_fingerprint: str | None = None,
        alignment: str | None = None,
        score_type: str | None = None,
        impostor_policy: str | None = None,
        data_set: str | None = None,
    ) -> "ThresholdRecord":
        """This record, if it was made under the given conditions; None asks nothing.

        Args:
            model, model_fingerprint, alignment, score_type, impostor_policy, data_set: What the
                attributes of these names must be.

        Raises:
            ThresholdMismatch: when a condition differs, or when the record does not state it.
        """
        wanted = {
            "model_fingerprint": model_fingerprint,
            "model": model,
            "alignment": alignment,
            "score_type": score_type,
            "impostor_policy": impostor_policy,
            "data_set": data_set,
        }
        for name, expected in wanted.items():
            found = getattr(self, name)
            if expected is not None and found != expected:
                raise ThresholdMismatch(
                    f"threshold of {self.model or 'an unnamed model'} at FMR {self.target_fmr:g}"
                    f"{f' ({self.impostor_set})' if self.impostor_set else ''}: made with "
                    f"{name} {found or 'unstated'!r}, but the scores have {expected!r}; estimate "
                    "it again from impostor scores under the same conditions (`adjointdeis-eval "
                    f'threshold SCORES --out FILE`), or state "{name}" in its file if you know '
                    "that it holds here"
                )
        return self

    def made_under(self, **stated: str | None) -> bool:
        """Whether `require` would let the record pass."""
        try:
            self.require(**stated)
        except ThresholdMismatch:
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, with the schema's name first."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "threshold") -> "ThresholdRecord":
        """The inverse of `to_dict`.

        Raises:
            EvaluationError: for another schema, an unknown or a missing key, or a wrong type.
        """
        values = dict(values)
        schema = values.pop("schema", None)
        if schema != SCHEMA:
            raise EvaluationError(f"{where}: schema {schema!r}, expected {SCHEMA!r}")
        known = {f.name for f in fields(cls)}
        if unknown := values.keys() - known:
            raise EvaluationError(f"{where}: unknown key {min(unknown, key=str)!r}")
        for name in ("value", "score_type", "rule", "target_fmr"):
            if name not in values:
                raise EvaluationError(f"{where}: key {name!r} is missing")
        for field in fields(cls):
            value = values.get(field.name, field.default)
            text = field.type in (str, "str")
            fits = isinstance(value, str if text else int | float) and not isinstance(value, bool)
            if not fits and not (value is None and field.default is None):
                wanted = "text" if text else "a number"
                raise EvaluationError(f"{where}: {field.name} {value!r}, expected {wanted}")
        try:
            return cls(**values)
        except EvaluationError as error:
            raise EvaluationError(f"{where}: {error}") from None

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON atomically."""
        write_json(self.to_dict(), path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "ThresholdRecord":
        """Reads what `write` wrote; errors name the file."""
        records = read_thresholds(path)
        if len(records) != 1:
            raise EvaluationError(f"{path}: {len(records)} threshold records, expected one")
        return records[0]

    @classmethod
    def literal(
        cls, value: float, *, target_fmr: float, score_type: str = "similarity", **stated: Any
    ) -> "ThresholdRecord":
        """A threshold that someone else published; the record says that it has no provenance.

        Args:
            value: tau, in the direction of the score itself.
            target_fmr: The false match rate that it is said to have, a share.
            score_type: `similarity` or `dissimilarity`.
            stated: Further fields of the record, such as `model`.
        """
        return cls(
            value=float(value),
            score_type=score_type,
            rule=LITERAL,
            target_fmr=target_fmr,
            rule_of_30="unknown: no impostor counts came with this threshold",
            **stated,
        )


def read_thresholds(path: str | os.PathLike[str]) -> list[ThresholdRecord]:
    """Reads one record, a JSON list of records, or an object whose `records` is such a list.

    Args:
        path: The file.

    Raises:
        EvaluationError: naming the file, for a missing or malformed one.
    """
    found = read_json(Path(path), EvaluationError)
    if isinstance(found, dict) and isinstance(found.get("records"), list):
        found = found["records"]
    listed = found if isinstance(found, list) else [found]
    records = []
    for i, values in enumerate(listed):
        where = f"{path}: record {i}" if isinstance(found, list) else str(path)
        if not isinstance(values, dict):
            raise EvaluationError(f"{where}: expected a JSON object")
        records.append(ThresholdRecord.from_dict(values, where))
    if not records:
        raise EvaluationError(f"{path}: no threshold record in it")
    return records


def allowed_false_matches(n: int | np.ndarray, fmr: float) -> np.ndarray:
    """The largest k with k / n <= fmr, free of the rounding of `floor(fmr * n)`; 0 where n = 0."""
    n = np.maximum(n, 1)
    k = np.floor(fmr * n)
    return np.asarray(k + ((k + 1) / n <= fmr) - (k / n > fmr)).astype(np.int64)


def threshold_at_fmr(
    scores: np.ndarray,
    fmr: float,
    *,
    score_type: str = "similarity",
    confidence: float = 0.95,
    impostor_hash: str | None = None,
    people: tuple[np.ndarray, np.ndarray] | None = None,
    **stated: Any,
) -> ThresholdRecord:
    """The conservative threshold of a target FMR from impostor scores, as a record.

    Args:
        scores: impostor scores in their own direction, any shape; NaN marks a failed comparison,
            which is left out of the FMR and counted in `n_failed`.
        fmr: the target, 0 <= fmr < 1; 0 gives the smallest threshold without a false match.
        score_type: `similarity` or `dissimilarity`.
        confidence: nominal level of the Clopper-Pearson interval.
        impostor_hash: fingerprint of the comparisons; None hashes the sorted scores.
        people: the two people of every comparison, shapes of `scores`, for `k_people`.
        stated: further fields of the record: impostor_policy, impostor_set, model,
            model_fingerprint, alignment, created_by, note.

    Raises:
        EvaluationError: no finite score, infinite scores, fmr out of range, unknown direction.
    """
    if not isinstance(fmr, Real) or not 0 <= fmr < 1:
        raise EvaluationError(f"FMR {fmr!r}: expected a share, 0 <= FMR < 1 (0.001 for 0.1%)")
    turned = oriented(scores, score_type).ravel()
    failed = np.isnan(turned)
    n_failed = int(failed.sum())
    turned = turned[~failed] if n_failed else turned
    n = turned.size
    if n == 0:
        raise EvaluationError("no impostor score to estimate a threshold from")
    allowed = allowed_false_matches(n, fmr)
    tau = float(np.partition(turned, n - 1 - allowed)[n - 1 - allowed])
    matching = turned > tau
    k = int(np.count_nonzero(matching))
    strictest = float(turned[matching].min()) if k else None
    k_people, n_people = (None, None) if people is None else _pairs_of(people, failed, matching)
    if impostor_hash is None:
        impostor_hash = _scores_hash(oriented(turned, score_type))
    lo, hi = clopper_pearson(k, n, confidence)
    return ThresholdRecord(
        value=oriented_tau(tau, score_type),
        value_strictest=None if strictest is None else oriented_tau(strictest, score_type),
        score_type=score_type,
        rule=ORDER_STATISTIC,
        target_fmr=abs(float(fmr)),
        realised_fmr=k / n,
        k=k,
        n=n,
        n_failed=n_failed,
        fmr_lo=lo,
        fmr_hi=hi,
        confidence=confidence,
        k_people=k_people,
        n_people=n_people,
        rule_of_30=rule_of_30(k, n, fmr, k_people),
        impostor_hash=impostor_hash,
        **{"created_by": _created_by(), **stated},
    )


def _pairs_of(
    people: tuple[np.ndarray, np.ndarray], failed: np.ndarray, matching: np.ndarray
) -> tuple[int, int]:
    """Pairs of people with a false match, and pairs of people compared; order does not matter."""
    one, two = (np.asarray(side).ravel()[~failed] for side in people)
    person, _ = codes(np.concatenate([one, two]))
    a, b = np.split(person, 2)
    pair, n = codes(np.minimum(a, b), np.maximum(a, b))
    return len(np.unique(pair[matching])), n


def rule_of_30(k: int, n: int, fmr: float, k_people: int | None = None) -> str:
    """Whether k false matches of n support a claim about this FMR, in one sentence.

    Several false matches of the same two people are no independent errors: where the people are
    known, their pairs are what is counted.

    With at least 30 errors the true rate lies within 30% of the observed one at 90% confidence,
    for independent comparisons; with none, the 95% upper bound is 3/n.

    Args:
        k: False matches.
        n: Impostor comparisons.
        fmr: Target false match rate, a share.
        k_people: Pairs of people with a false match; None where people are unknown.
    """
    needed = f"{math.ceil(30 / fmr):,}" if fmr >= 1e-12 else "more than any number of"
    same = "" if k_people in (None, k) else f" ({k_people:,} pairs of people)"
    if (k if k_people is None else k_people) >= 30:
        return f"met: {k:,} false matches{same} of {n:,} (if the comparisons are independent)"
    zero = f"; without any the FMR is below {3 / n:.2g} at 95% at best" if k == 0 else ""
    matches = "match" if k == 1 else "matches"
    return (
        f"not met: {k} false {matches}{same} of {n:,}, 30 wanted: FMR {100 * fmr:g}% takes "
        f"{needed} independent impostor comparisons{zero}"
    )


def _scores_hash(scores: np.ndarray) -> str:
    """SHA-256 of the sorted float64 scores, little-endian: the order of rows does not matter."""
    ordered = np.sort(np.asarray(scores, dtype="<f8").ravel())
    # -0.0 and 0.0 compare equal but differ in bytes.
    return hashlib.sha256((ordered + 0.0).tobytes()).hexdigest()


def relabelled(record: ThresholdRecord, **stated: Any) -> ThresholdRecord:
    """The record with provenance fields filled in; its numbers cannot be changed this way."""
    allowed = {"impostor_set", "model", "model_fingerprint", "alignment", "data_set", "created_by",
               "note"}  # fmt: skip
    wrong = sorted(stated.keys() - allowed)
    if wrong:
        raise EvaluationError(f"{wrong[0]!r} is a result, not a label; estimate a new threshold")
    return replace(record, **stated)


def _created_by() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"adjointdeis {version('adjointdeis')}"
    except PackageNotFoundError:
        return "adjointdeis (not installed)"
