"""`result.json`, schema 1: what one run found, as the harness writes it and the reports read it.

All paths in it are relative to the run directory, with forward slashes. `validate_result` is
called by the writer before it writes and by the reader after it reads, so that both fail alike.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from adjointdeis.evaluation import ROW_KEYS, WORST_CASE, EvaluationError, ThresholdRecord
from adjointdeis.evaluation.protocol import LATER_ROW_KEYS
from adjointdeis.files import read_json
from adjointdeis.reporting.errors import ReportError

SCHEMA = 1
RESULT = "result.json"
_NUMBER = (int, float)
COUNTED = ("encode", "forward", "vjps")
"""Counters that `nfe` has at least, means over pairs; `MorphCost.counters` says what they count."""


class GradientError(TypedDict):
    """The method's gradient against the exact one: ||g - g*||/||g*||, cosine, ||g||/||g*||."""

    relative: float
    cosine: float
    norm_ratio: float
    pairs: int


class AttackRecord(TypedDict):
    """One attack of a run.

    `paper_row` is the `attack` of the paper's Table 1 or None; `settings` holds solver,
    sampling_steps, gradient, adjoint_steps, states, optimisation_steps, learning_rate, optimizer,
    keep, or None for each that does not apply. `guides` holds the fingerprint, by name, of every
    recogniser that the attack sees: where it judges too, it is no black box.
    """

    label: str
    paper_row: str | None
    settings: dict[str, Any]
    nfe_paper: float | None
    nfe: dict[str, float] | None
    seconds_per_pair: float | None
    pairs: int
    failed: list[dict[str, str]]
    notes: list[str]
    curves: NotRequired[dict[str, list[float]]]
    gradient_error: NotRequired[GradientError]
    guides: NotRequired[dict[str, str]]


class System(TypedDict):
    """One recogniser of a run."""

    label: str
    alignment: str
    fingerprint: str
    licence: str
    score_type: str


class PairRecord(TypedDict):
    """Two bona fide subjects and the morphs made of them, by attack."""

    pair_id: str
    subject_a: str
    subject_b: str
    source_a: str
    source_b: str
    morphs: dict[str, str]


class Result(TypedDict):
    """The whole file. `run.profile` (`mini` or `paper`) says which assets were used."""

    schema: int
    tool: str
    experiment: str
    created: str
    run: dict[str, Any]
    attacks: dict[str, AttackRecord]
    systems: dict[str, System]
    rows: list[dict[str, Any]]
    thresholds: list[dict[str, Any]]
    pairs: list[PairRecord]
    scores: str


_TOP = {
    "tool": str,
    "experiment": str,
    "created": str,
    "run": Mapping,
    "attacks": Mapping,
    "systems": Mapping,
    "rows": list,
    "thresholds": list,
    "pairs": list,
    "scores": str,
}
_RUN = {"config_hash": str, "git": (str, type(None)), "seed": (int, type(None))}
_ATTACK = {
    "label": str,
    "paper_row": (str, type(None)),
    "settings": Mapping,
    "nfe_paper": (*_NUMBER, type(None)),
    "nfe": (Mapping, type(None)),
    "pairs": int,
    "failed": list,
    "notes": list,
}
_SYSTEM = {"label": str, "score_type": str}
_PAIR = {
    "pair_id": str,
    "subject_a": str,
    "subject_b": str,
    "source_a": str,
    "source_b": str,
    "morphs": Mapping,
}


def validate_result(result: Any) -> list[str]:
    """Checks a result: one line for each fault, which names the key.

    Unknown keys are allowed, so that a newer writer can be read. Files that the result names are
    not looked at.

    Args:
        result: Content of a `result.json`.
    """
    if not isinstance(result, Mapping):
        return [f"result: expected a JSON object, found {_kind(result)}"]
    if result.get("schema") != SCHEMA:
        return [f"schema: {result.get('schema')!r}, expected {SCHEMA}"]
    problems = list(_missing(result, _TOP, ""))
    if problems:
        return problems
    problems += _missing(result["run"], _RUN, "run.")
    for name, attack in result["attacks"].items():
        problems += _attack(attack, f"attacks.{name}")
    for name, system in result["systems"].items():
        problems += _object(system, _SYSTEM, f"systems.{name}")
    for i, row in enumerate(result["rows"]):
        problems += _row(row, f"rows[{i}]", result)
    for i, record in enumerate(result["thresholds"]):
        problems += _threshold(record, f"thresholds[{i}]")
    for i, pair in enumerate(result["pairs"]):
        problems += _pair(pair, f"pairs[{i}]", result)
    problems += _path(result["scores"], "scores")
    problems += _not_finite(result, "")
    return problems


def read_result(run_directory: Path | str) -> Result:
    """Reads and validates `result.json` of a run directory.

    Args:
        run_directory: Folder that holds `result.json`.

    Raises:
        ReportError: no such file, not JSON, or anything `validate_result` finds.
    """
    path = Path(run_directory) / RESULT
    if not path.is_file():
        raise ReportError(
            f"{path}: no such file; a finished run leaves it, run the experiment first"
        )
    try:
        result = read_json(path)
    except ValueError as error:
        raise ReportError(f"{error}; run the experiment again") from None
    problems = validate_result(result)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ReportError(f"{path}: {problems[0]}{more}")
    return result


def threshold_record(values: Mapping[str, Any], where: str = "threshold") -> ThresholdRecord:
    """A record from its dictionary, with or without the key `schema`."""
    return ThresholdRecord.from_dict({"schema": "adjointdeis-threshold/1", **values}, where)


def _attack(attack: Any, where: str) -> Iterator[str]:
    found = list(_object(attack, _ATTACK, where))
    yield from found
    if found:
        return
    # An attack that failed on every pair has counted nothing.
    if attack["nfe"] is not None:
        keys = dict.fromkeys(COUNTED, _NUMBER)
        yield from _missing(attack["nfe"], keys, f"{where}.nfe.")
    for i, failure in enumerate(attack["failed"]):
        yield from _object(failure, {"pair_id": str, "reason": str}, f"{where}.failed[{i}]")
    for i, note in enumerate(attack["notes"]):
        if not isinstance(note, str):
            yield f"{where}.notes[{i}]: expected text, found {_kind(note)}"
    curves = attack.get("curves") or {}
    for name, values in curves.items():
        if not isinstance(values, list) or not all(isinstance(v, _NUMBER) for v in values):
            yield f"{where}.curves.{name}: expected a list of numbers"
    error = attack.get("gradient_error")
    if error is not None:
        keys = dict.fromkeys(GradientError.__annotations__, _NUMBER)
        yield from _object(error, keys, f"{where}.gradient_error")


def _row(row: Any, where: str, result: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"{where}: expected an object, found {_kind(row)}"
        return
    for key in ROW_KEYS:
        if key not in row and key not in LATER_ROW_KEYS:
            yield f"{where}.{key}: missing; rows are those of adjointdeis.evaluation.evaluate"
            return
    if row["attack"] != WORST_CASE and row["attack"] not in result["attacks"]:
        yield f"{where}.attack: {row['attack']!r} is not in attacks ({_names(result['attacks'])})"
    if row["system"] not in result["systems"]:
        yield f"{where}.system: {row['system']!r} is not in systems ({_names(result['systems'])})"


def _threshold(record: Any, where: str) -> Iterator[str]:
    if not isinstance(record, Mapping):
        yield f"{where}: expected an object, found {_kind(record)}"
        return
    try:
        threshold_record(record, where)
    except EvaluationError as error:
        yield str(error)


def _pair(pair: Any, where: str, result: Mapping[str, Any]) -> Iterator[str]:
    found = list(_object(pair, _PAIR, where))
    yield from found
    if found:
        return
    for key in ("source_a", "source_b"):
        yield from _path(pair[key], f"{where}.{key}")
    for name, path in pair["morphs"].items():
        if name not in result["attacks"]:
            yield f"{where}.morphs.{name}: not in attacks ({_names(result['attacks'])})"
        yield from _path(path, f"{where}.morphs.{name}")


def _path(value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, str) or not value:
        yield f"{where}: expected a path relative to the run directory, found {value!r}"
        return
    path = PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts or "\\" in value:
        yield f"{where}: {value!r} leaves the run directory; expected a relative path inside it"


def _object(value: Any, keys: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"{where}: expected an object, found {_kind(value)}"
        return
    yield from _missing(value, keys, f"{where}.")


def _missing(value: Mapping[str, Any], keys: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, kind in keys.items():
        if key not in value:
            yield f"{prefix}{key}: missing"
        elif not isinstance(value[key], kind) or (
            isinstance(value[key], bool) and kind is not bool
        ):
            yield f"{prefix}{key}: expected {_expected(kind)}, found {_kind(value[key])}"


def _not_finite(value: Any, where: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{where}: {value!r}; JSON has no such number, write null"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _not_finite(inner, f"{where}[{i}]")


def _expected(kind: Any) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    words = list(dict.fromkeys(_WORDS.get(k, str(k)) for k in kinds))
    return " or ".join(words)


def _kind(value: Any) -> str:
    for kind, word in _WORDS.items():
        if isinstance(value, kind):
            return word
    return type(value).__name__


def _names(mapping: Mapping[str, Any]) -> str:
    return ", ".join(mapping) or "none"


_WORDS: dict[type, str] = {
    bool: "a truth value",
    str: "text",
    int: "a number",
    float: "a number",
    Mapping: "an object",
    list: "a list",
    type(None): "null",
}
