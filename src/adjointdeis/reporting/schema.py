"""`result.json`, schema 1: what one run found, as the harness writes it and the reports read it.

All paths in it are relative to the run directory, with forward slashes. `validate_result` is
called by the writer before it writes and by the reader after it reads, so that both fail alike.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints

from adjointdeis.evaluation import ROW_KEYS, WORST_CASE, EvaluationError, ThresholdRecord
from adjointdeis.evaluation.policies import IMPOSTOR_POLICIES
from adjointdeis.evaluation.protocol import LATER_ROW_KEYS, impossible_number
from adjointdeis.evaluation.scores import PROBE_POLICIES
from adjointdeis.files import read_json
from adjointdeis.reporting.errors import ReportError

SCHEMA = 1
RESULT = "result.json"
DEGRADED = "vulnerability.json"
_NUMBER = (int, float)
_MAYBE = (int, float, type(None))
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
    seconds_per_pair: NotRequired[float | None]
    pairs: int
    failed: list[dict[str, str]]
    notes: list[str]
    curves: NotRequired[dict[str, list[float]]]
    gradient_error: NotRequired[GradientError]
    guides: NotRequired[dict[str, str]]


class System(TypedDict):
    """One recogniser of a run."""

    label: str
    score_type: str
    alignment: NotRequired[str]
    fingerprint: NotRequired[str]
    licence: NotRequired[str]


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

    schema: NotRequired[int]
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


def _kinds(record: type) -> dict[str, Any]:
    """What `isinstance` takes for every key that a record must have, by its annotations."""
    hints, needed = get_type_hints(record), record.__required_keys__  # type: ignore[attr-defined]
    return {key: _kinds_of(hint) for key, hint in hints.items() if key in needed}


def _kinds_of(hint: Any) -> tuple[type, ...]:
    if isinstance(hint, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _kinds_of(part))
    plain = get_origin(hint) or hint
    return {dict: (Mapping,), float: _NUMBER}.get(plain, (plain,))


_TOP, _ATTACK, _SYSTEM, _PAIR = map(_kinds, (Result, AttackRecord, System, PairRecord))
_RUN = {"config_hash": str, "git": (str, type(None)), "seed": (int, type(None))}
_RUN_MORE = {
    "profile": str,
    "degradation": (str, type(None)),
    "wall_seconds": _MAYBE,
    "versions": (Mapping, type(None)),
    "assets": (Mapping, type(None)),
}
# What tables and plots do arithmetic with; other settings are text or of any kind.
_SETTINGS = ("sampling_steps", "adjoint_steps", "optimisation_steps", "learning_rate")
_ROW = {
    **dict.fromkeys(("attack", "system", "variant", "score_type"), str),
    **dict.fromkeys(("fmr_target", "tau", "k", "n", "confidence", "n_fta", "n_fte"), _NUMBER),
    **dict.fromkeys(("value", "wilson_lo", "wilson_hi", "bootstrap_lo", "bootstrap_hi"), _MAYBE),
}
_CHOICES = {"probe_policy": PROBE_POLICIES, "impostor_policy": IMPOSTOR_POLICIES}
_LARGEST = 2**63


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
        return [f"schema {result.get('schema')!r}, expected {SCHEMA}: no result of task=morph"]
    problems = list(_missing(result, _TOP, "")) or list(_bad_numbers(result))
    if problems:
        return problems
    problems += _run(result["run"])
    for name, attack in result["attacks"].items():
        problems += _attack(attack, f"attacks.{name}")
    for name, system in result["systems"].items():
        problems += _object(system, _SYSTEM, f"systems.{name}")
    problems += _each(result["rows"], _row, "rows", result)
    for i, record in enumerate(result["thresholds"]):
        problems += _threshold(record, f"thresholds[{i}]")
    problems += _each(result["pairs"], _pair, "pairs", result)
    problems += _path(result["scores"], "scores")
    return problems


def read_result(run_directory: Path | str) -> Result:
    """Reads and validates `result.json` of a run directory.

    Args:
        run_directory: Folder that holds `result.json`.

    Raises:
        ReportError: no such file, not JSON, or anything `validate_result` finds.
    """
    path = Path(run_directory) / RESULT
    if not os.path.lexists(path):
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


def read_degraded(
    run_directory: Path | str, result: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Rows like `rows` of the same morphs after each degradation, from `vulnerability.json`.

    Args:
        run_directory: Folder that may hold the file; without it there are none.
        result: Of the run, whose attacks and recognisers the rows are of.

    Raises:
        ReportError: not JSON of rows; names file and key.
    """
    path = Path(run_directory) / DEGRADED
    if not path.is_file():
        return {}
    if not path.resolve().is_relative_to(Path(run_directory).resolve()):
        raise ReportError(f"{path}: leaves the run directory; copy the file into it")
    found = read_json(path, ReportError)
    problems = [*_bad_numbers({"": found})] or [*_degraded(found, result)]
    if problems:
        raise ReportError(f"{path}: {problems[0]}")
    return found


def _degraded(found: Any, result: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(found, Mapping):
        yield f"expected an object of rows by degradation, found {_kind(found)}"
        return
    for name, rows in found.items():
        if not isinstance(rows, list):
            yield f"{name}: expected a list of rows, found {_kind(rows)}"
            continue
        yield from _each(rows, _row, name, result)


def threshold_record(values: Mapping[str, Any], where: str = "threshold") -> ThresholdRecord:
    """A record from its dictionary, with or without the key `schema`."""
    return ThresholdRecord.from_dict({"schema": "adjointdeis-threshold/1", **values}, where)


def _run(run: Mapping[str, Any]) -> Iterator[str]:
    stated = {key: kind for key, kind in _RUN_MORE.items() if key in run}
    wrong = [*_missing(run, _RUN, "run."), *_missing(run, stated, "run.")]
    yield from wrong
    for name, asset in () if wrong else (run.get("assets") or {}).items():
        yield from _object(asset, {}, f"run.assets.{name}")


def _attack(attack: Any, where: str) -> Iterator[str]:
    found = list(_object(attack, _ATTACK, where))
    yield from found
    if found:
        return
    # An attack that failed on every pair has counted nothing.
    if attack["nfe"] is not None:
        keys: dict[str, Any] = dict.fromkeys(COUNTED, _NUMBER)
        yield from _missing(attack["nfe"], keys, f"{where}.nfe.")
    settings = {key: _MAYBE for key in _SETTINGS if key in attack["settings"]}
    yield from _missing(attack["settings"], settings, f"{where}.settings.")
    if "seconds_per_pair" in attack:
        yield from _missing(attack, {"seconds_per_pair": _MAYBE}, f"{where}.")
    if not isinstance(attack.get("guides") or {}, Mapping):
        yield f"{where}.guides: expected an object, found {_kind(attack['guides'])}"
    for i, failure in enumerate(attack["failed"]):
        yield from _object(failure, {"pair_id": str, "reason": str}, f"{where}.failed[{i}]")
    for i, note in enumerate(attack["notes"]):
        if not isinstance(note, str):
            yield f"{where}.notes[{i}]: expected text, found {_kind(note)}"
    curves = attack.get("curves") or {}
    if not isinstance(curves, Mapping):
        yield f"{where}.curves: expected an object, found {_kind(curves)}"
        return
    for name, values in curves.items():
        if not isinstance(values, list) or not all(isinstance(v, _NUMBER) for v in values):
            yield f"{where}.curves.{name}: expected a list of numbers"
    error = attack.get("gradient_error")
    if error is not None:
        keys = dict.fromkeys(GradientError.__annotations__, _NUMBER)
        yield from _object(error, keys, f"{where}.gradient_error")


def _each(
    entries: list[Any], check: Callable[..., Iterator[str]], where: str, result: Mapping[str, Any]
) -> Iterator[str]:
    """Faults of each entry, and entries of which a table would show one and drop the others."""
    wrong = [p for i, entry in enumerate(entries) for p in check(entry, f"{where}[{i}]", result)]
    yield from wrong
    keys = ROW_KEYS[:6] if check is _row else ("pair_id",)
    own = [] if wrong else [repr([entry[key] for key in keys]) for entry in entries]
    if len(set(own)) < len(own):
        i = next(i for i, entry in enumerate(own) if entry in own[:i])
        yield f"{where}[{i}]: {', '.join(keys)} are those of an earlier one; keep one of them"


def _row(row: Any, where: str, result: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"{where}: expected an object, found {_kind(row)}"
        return
    for key in ROW_KEYS:
        if key not in row and key not in LATER_ROW_KEYS:
            yield f"{where}.{key}: missing; rows are those of adjointdeis.evaluation.evaluate"
            return
    wrong = list(_missing(row, _ROW, f"{where}."))
    for key, known in _CHOICES.items():
        if row[key] not in known:
            wrong.append(f"{where}.{key}: {row[key]!r}, expected {' or '.join(known)}")
    yield from wrong
    if wrong:
        return
    if (impossible := impossible_number(row)) is not None:
        yield f"{where}.{impossible}"
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


def has(value: Any, keys: Mapping[str, Any]) -> bool:
    """Whether a value is an object with these keys, each of its kind."""
    return not any(_object(value, keys, ""))


def _missing(value: Mapping[str, Any], keys: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key, kind in keys.items():
        if key not in value:
            yield f"{prefix}{key}: missing"
        elif not isinstance(value[key], kind) or (
            isinstance(value[key], bool) and kind is not bool
        ):
            yield f"{prefix}{key}: expected {_expected(kind)}, found {_kind(value[key])}"


def _bad_numbers(result: Mapping[str, Any]) -> Iterator[str]:
    """Numbers that are not finite, or integers beyond what arithmetic on them holds."""
    # A stack of its own: a stranger's file may nest deeper than Python calls.
    todo: list[tuple[str, Any]] = [("", result)]
    while todo:
        where, value = todo.pop()
        if isinstance(value, float) and not math.isfinite(value):
            yield f"{where}: {value!r}; JSON has no such number, write null"
        elif isinstance(value, int) and abs(value) >= _LARGEST:
            yield f"{where}: an integer beyond 64 bits"
        elif isinstance(value, Mapping):
            todo += [(f"{where}.{k}" if where else str(k), v) for k, v in value.items()]
        elif isinstance(value, list):
            todo += [(f"{where}[{i}]", v) for i, v in enumerate(value)]


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
