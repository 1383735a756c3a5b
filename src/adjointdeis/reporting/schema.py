"""`result.json`, schema 1: what one run found, as the harness writes it and the reports read it.

All paths in it are relative to the run directory, with forward slashes. `validate_result` is
called by the writer before it writes and by the reader after it reads, so that both fail alike.
"""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import UnionType
from typing import (
    Annotated,
    Any,
    NotRequired,
    TypedDict,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from adjointdeis.evaluation import ROW_KEYS, WORST_CASE, EvaluationError, ThresholdRecord
from adjointdeis.evaluation.policies import IMPOSTOR_POLICIES
from adjointdeis.evaluation.protocol import LATER_ROW_KEYS, impossible_number
from adjointdeis.evaluation.scores import PROBE_POLICIES
from adjointdeis.files import read_json
from adjointdeis.reporting.errors import ReportError

SCHEMA = 1
RESULT = "result.json"
DEGRADED = "vulnerability.json"
_CHOICES = {"probe_policy": PROBE_POLICIES, "impostor_policy": IMPOSTOR_POLICIES}
_LARGEST = 2**63


class GradientError(TypedDict):
    """The method's gradient against the exact one: ||g - g*||/||g*||, cosine, ||g||/||g*||."""

    relative: float
    cosine: float
    norm_ratio: float
    pairs: int


class _Failure(TypedDict):
    pair_id: str
    reason: str


class _Counters(TypedDict):
    """What `nfe` has at least, means over pairs; `MorphCost.counters` says what they count."""

    encode: float
    forward: float
    vjps: float


class _Settings(TypedDict, total=False):
    """What tables and plots do arithmetic with; other settings are text or of any kind."""

    sampling_steps: float | None
    adjoint_steps: float | None
    optimisation_steps: float | None
    learning_rate: float | None


class AttackRecord(TypedDict):
    """One attack of a run.

    `paper_row` is the `attack` of the paper's Table 1 or None; `settings` holds solver,
    sampling_steps, gradient, adjoint_steps, states, optimisation_steps, learning_rate, optimizer,
    keep, or None for each that does not apply. `nfe` is None for an attack that failed on every
    pair, and has counted nothing. `guides` holds the fingerprint, by name, of every recogniser that
    the attack sees: where it judges too, it is no black box.
    """

    label: str
    paper_row: str | None
    settings: Annotated[dict[str, Any], _Settings]
    nfe_paper: float | None
    nfe: Annotated[dict[str, float] | None, _Counters | None]
    seconds_per_pair: NotRequired[float | None]
    pairs: int
    failed: Annotated[list[dict[str, str]], list[_Failure]]
    notes: list[str]
    curves: NotRequired[dict[str, list[float]] | None]
    gradient_error: NotRequired[GradientError | None]
    guides: NotRequired[dict[str, Any] | None]


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


class _RunFacts(TypedDict):
    config_hash: str
    git: str | None
    seed: int | None
    profile: NotRequired[str]
    degradation: NotRequired[str | None]
    wall_seconds: NotRequired[float | None]
    versions: NotRequired[dict[str, Any] | None]
    assets: NotRequired[dict[str, dict[str, Any]] | None]


class _Row(TypedDict):
    """What the reports take from a row of `evaluate`."""

    attack: str
    system: str
    variant: str
    score_type: str
    probe_policy: str
    impostor_policy: str
    fmr_target: float
    tau: float
    k: float
    n: float
    confidence: float
    n_fta: float
    n_fte: float
    value: float | None
    wilson_lo: float | None
    wilson_hi: float | None
    bootstrap_lo: float | None
    bootstrap_hi: float | None


class Result(TypedDict):
    """The whole file. `run.profile` (`mini` or `paper`) says which assets were used."""

    schema: NotRequired[int]
    tool: str
    experiment: str
    created: str
    run: Annotated[dict[str, Any], _RunFacts]
    attacks: dict[str, AttackRecord]
    systems: dict[str, System]
    rows: Annotated[list[dict[str, Any]], list[_Row]]
    thresholds: list[dict[str, Any]]
    pairs: list[PairRecord]
    scores: str


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
    # The rest is about values that are of their kinds.
    return (
        list(problems_of(result, Result))
        or list(_bad_numbers(result))
        or [
            *_each(result["rows"], _row, "rows", result),
            *(
                p
                for i, t in enumerate(result["thresholds"])
                for p in _threshold(t, f"thresholds[{i}]")
            ),
            *_each(result["pairs"], _pair, "pairs", result),
            *_path(result["scores"], "scores"),
        ]
    )


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
        yield from list(problems_of(rows, list[_Row], name)) or _each(rows, _row, name, result)


def threshold_record(values: Mapping[str, Any], where: str = "threshold") -> ThresholdRecord:
    """A record from its dictionary, with or without the key `schema`."""
    return ThresholdRecord.from_dict({"schema": "adjointdeis-threshold/1", **values}, where)


def problems_of(value: Any, hint: Any, where: str = "") -> Iterator[str]:
    """Where a value is not of a type: of plain kinds, lists, dictionaries, unions, TypedDicts."""
    for wrapper in (NotRequired, Annotated):
        if get_origin(hint) is wrapper:
            hint = hint.__metadata__[0] if wrapper is Annotated else get_args(hint)[0]
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kind = next((kind for kind in kinds if _is(value, kind)), None)
    if kind is None:
        expected = " or ".join(dict.fromkeys(_WORDS[_plain(kind)] for kind in kinds))
        yield f"{where}: expected {expected}, found {_kind(value)}"
    elif is_typeddict(kind):
        for key, part in get_type_hints(kind, include_extras=True).items():
            name = f"{where}.{key}".lstrip(".")
            if key in value:
                yield from problems_of(value[key], part, name)
            elif key in kind.__required_keys__:
                yield f"{name}: missing"
    elif get_origin(kind) is dict:
        for key, each in value.items():
            yield from problems_of(each, get_args(kind)[1], f"{where}.{key}")
    elif get_origin(kind) is list:
        for i, each in enumerate(value):
            yield from problems_of(each, get_args(kind)[0], f"{where}[{i}]")


def _plain(kind: Any) -> type:
    """What of a kind `isinstance` tells."""
    plain = get_origin(kind) or kind
    return Mapping if plain is dict or is_typeddict(plain) else plain


def _is(value: Any, kind: Any) -> bool:
    plain = _plain(kind)
    if isinstance(value, bool) or plain is Any:
        return plain in (bool, Any)
    return isinstance(value, (int, float) if plain is float else plain)


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


def _row(row: Mapping[str, Any], where: str, result: Mapping[str, Any]) -> Iterator[str]:
    for key in ROW_KEYS:
        if key not in row and key not in LATER_ROW_KEYS:
            yield f"{where}.{key}: missing; rows are those of adjointdeis.evaluation.evaluate"
            return
    for key, known in _CHOICES.items():
        if row[key] not in known:
            yield f"{where}.{key}: {row[key]!r}, expected {' or '.join(known)}"
    if (impossible := impossible_number(row)) is not None:
        yield f"{where}.{impossible}"
    if row["attack"] != WORST_CASE and row["attack"] not in result["attacks"]:
        yield f"{where}.attack: {row['attack']!r} is not in attacks ({_names(result['attacks'])})"
    if row["system"] not in result["systems"]:
        yield f"{where}.system: {row['system']!r} is not in systems ({_names(result['systems'])})"


def _threshold(record: Mapping[str, Any], where: str) -> Iterator[str]:
    try:
        threshold_record(record, where)
    except EvaluationError as error:
        yield str(error)


def _pair(pair: Mapping[str, Any], where: str, result: Mapping[str, Any]) -> Iterator[str]:
    for key in ("source_a", "source_b"):
        yield from _path(pair[key], f"{where}.{key}")
    for name, path in pair["morphs"].items():
        if name not in result["attacks"]:
            yield f"{where}.morphs.{name}: not in attacks ({_names(result['attacks'])})"
        yield from _path(path, f"{where}.morphs.{name}")


def _path(value: str, where: str) -> Iterator[str]:
    path = PurePosixPath(value)
    if not value:
        yield f"{where}: expected a path relative to the run directory, found {value!r}"
    elif path.is_absolute() or ".." in path.parts or "\\" in value:
        yield f"{where}: {value!r} leaves the run directory; expected a relative path inside it"


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
