"""Checks a composed configuration against what its keys will be given to.

Every node with a ``_target_`` is compared with that callable's signature: an unknown key or a value
of a wrong type fails before anything runs, with the nearest valid name.
"""

import contextlib
import difflib
import importlib.util
import inspect
import logging
import math
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from adjointdeis.harness.option_values import FLAG, NULL, Kind, kind_of, one_of, shown
from adjointdeis.texts import file_key, is_file_name, printable

_OPEN = ("rows.", "judges.", "logger.", "degradation.")
_OF_NODES = ("judges.", "logger.", "degradation.", "task.detectors.", "task.degradations.")
"""Sections whose every entry is a class with its arguments."""
_TASKS = "adjointdeis.harness.tasks."
_MORPHING = (f"{_TASKS}morph.run", f"{_TASKS}photographs.run")
_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
_SCALARS = (bool, int, float, str)


class ConfigError(ValueError):
    """The configuration cannot be run; the message is one line that says what to change."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


_UNKNOWN = object()
"""The value of a key that only a run can resolve, such as Hydra's working directory."""

_SECTIONS = {
    "optimisation": (
        *("steps", "batch_size", "inner_steps", "keep", "z_learning_rate"),
        *("stop_similarity", "measure_gradient"),
    ),
    "protocol": ("fmr", "impostor_policies", "replicates", "bootstrap_seed"),
    "paths": ("root", "outputs", "data", "run", "id"),
    "task": ("_target_",),
    "assets": ("name", "root", "autoencoder", "identity", "recognisers", "thresholds"),
    "data": ("limit",),
    "trainer": ("accelerator", "devices", "num_nodes", "strategy", "plugins", "precision"),
    "execution": ("_target_",),
    "solver": ("_target_",),
    "optimizer": ("_target_",),
    "guided": (),
    "rows": (),
}
_PLAIN = ("name", "seed", "force", "dry_run", "threads", "gradient", "judges", "logger")
_MADE = (
    "rows.*",
    "gradient",
    "solver",
    "execution",
    "optimizer",
    "task.optimizer",
    "task.network",
    "task.crop",
)
"""Nodes that are made as a trial: quickly, and without reading or writing anything."""
_MADE_BELOW = ("degradation.", "task.degradations.")


def flat_keys(cfg: DictConfig) -> set[str]:
    """Every key of a configuration in dotted form, Hydra's own left out."""
    return {key for key, *_ in _walk(cfg, "") if not key.startswith("hydra")}


def validate(cfg: DictConfig, runs: bool = False) -> None:
    """Raises :class:`ConfigError` at the first key or value that cannot be right.

    Nothing is read or written: keys that every run reads are there, values are what
    :data:`~adjointdeis.harness.option_values.OPTIONS` and the signature of their ``_target_`` say,
    attacks, gradients, solvers and optimisers can be made of them, and no two rows share a name.

    Args:
        cfg: The whole configuration.
        runs: Whether it is about to run: the row of a gradient chosen on the command line is made
            too, which an option alone need not allow, as a gradient may be for other solvers.
    """
    _check_shape(cfg)
    keys = [each for each in _walk(cfg, "") if not each[0].startswith("hydra.")]
    # Plain keys first: rows repeat them by interpolation, and the user wrote the plain one.
    keys.sort(key=lambda each: each[2])
    _check_task(cfg.task._target_)
    task = cfg.task._target_.removeprefix(_TASKS).partition(".")[0]
    for key, value, _, owner in keys:
        # Names below these sections are the user's own, and may be those of options.
        node = isinstance(value, dict) and (
            "_target_" in value or (key.startswith(_OPEN) and key.count(".") < 2)
        )
        if not node and value is not _UNKNOWN and _ours(owner):
            _check_value(key, value, task)
    for key, value, _, _ in keys:
        if key.startswith(_OF_NODES) and key.count(".") == 1 + key.startswith("task."):
            if value is not None and not isinstance(value, dict):
                raise ConfigError(
                    f"{key}={shown(value)}: expected a class with its arguments, as an option of "
                    "the group has them, or null"
                )
        if isinstance(value, dict) and "_target_" in value:
            # What a task does with the keys beside its own name is not in its signature.
            if key != "task" and not value["_target_"].startswith(_TASKS):
                check_node(key, value)
    for key, value, _, _ in keys:
        if isinstance(value, dict) and "_target_" in value:
            pattern = f"{key.rpartition('.')[0]}.*"
            if {key, pattern} & set(_MADE) or key.startswith(_MADE_BELOW):
                _try(key, value)
    if runs and cfg.gradient is not None and cfg.task._target_ in _MORPHING:
        _try("guided", OmegaConf.to_container(cfg.guided, resolve=True))
    _check_rows(cfg)
    if cfg.degradation:
        _check_degradations(cfg.degradation)


def _check_task(target: Any) -> None:
    """A task is a function that can be imported; our own take seconds, and are only looked for."""
    with contextlib.suppress(Exception), _silent():
        if isinstance(target, str) and target.startswith(_TASKS):
            module, _, name = target.rpartition(".")
            if name.isidentifier() and importlib.util.find_spec(module) is not None:
                return
        elif callable(get_object(target)):
            return
    raise ConfigError(
        f"task._target_={shown(target)}: expected a function of the configuration that can be "
        "imported; task=morph and the others choose one"
    )


def _check_degradations(steps: DictConfig) -> None:
    from adjointdeis.harness.degrading import degradation_of

    try:
        degradation_of(steps)
    except ValueError as error:
        raise ConfigError(f"degradation: {error}") from error


def _check_shape(cfg: DictConfig) -> None:
    _check_spelling(cfg, (*_SECTIONS, *_PLAIN, "hydra"))
    for key in (*_SECTIONS, *_PLAIN):
        if key not in cfg:
            raise ConfigError(f"{key}: every run needs this key; leave it as it is, or set it")
    for section, keys in _SECTIONS.items():
        node = cfg[section]
        if not OmegaConf.is_dict(node):
            raise ConfigError(
                f"{section}={shown(node)}: expected its keys, such as {section}."
                f"{keys[0] if keys else 'mine'}=...; or one of the options of the group"
            )
        if section == "data" and not {"faces", "root"} & set(node):
            raise ConfigError("data.faces: every run needs this key, or data.root of photographs")
        _check_spelling(node, keys, f"{section}.")
        for key in keys:
            if key not in node:
                raise ConfigError(
                    f"{section}.{key}: every run needs this key; leave it as it is, or set it"
                )


def _check_spelling(node: DictConfig, known: Iterable[str], prefix: str = "") -> None:
    """A user's file may add keys; one that nearly spells a known key is refused."""
    for key in map(str, node):
        if key not in known and (close := difflib.get_close_matches(key, known, 1, 0.8)):
            if close[0] in node:
                raise ConfigError(
                    f"{prefix}{key}: there is no such key; did you mean {prefix}{close[0]}?"
                )


def _check_value(key: str, value: Any, task: str) -> None:
    plain = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_list(value) else value
    kind = kind_of(key, task)
    numbers = plain if isinstance(plain, list) else [plain]
    if kind is None and any(isinstance(n, float) and not math.isfinite(n) for n in numbers):
        raise ConfigError(f"{key}={shown(plain)}: expected a finite number")
    if kind is None or plain == "???" or kind.accepts(plain):
        return
    if isinstance(plain, list):
        # Of a long list the entry that is wrong says more.
        wrong = [each for each in plain if not kind.accepts([each])]
        plain = wrong[0] if wrong and kind.accepts([e for e in plain if e not in wrong]) else plain
    raise ConfigError(f"{key}={shown(plain)}: expected {kind.text}")


def _ours(target: str | None) -> bool:
    """Whether the keys of a node are those of ``conf/``, and not of somebody else's class."""
    known = ("adjointdeis.", "torch.optim.", "lightning.", "datetime.")
    return target is None or target.startswith(known)


def _try(key: str, node: Any) -> None:
    """Makes what a node describes: what its class refuses is refused before the run begins."""
    try:
        with _silent():
            made = instantiate(node)
        if node["_target_"].startswith("torch.optim.") and node.get("_partial_"):
            made([torch.nn.Parameter(torch.zeros(1))])
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None and isinstance(cause, HydraException):
            cause = cause.__cause__
        text = " ".join((str(cause) or type(cause).__name__).split())
        raise ConfigError(f"{key}: {printable(text)}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps Hydra from logging what the error says as well."""
    logger = logging.getLogger("hydra.utils")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def check_read(cfg: DictConfig, given: Mapping[str, str]) -> None:
    """Raises :class:`ConfigError` for settings that only the row of ``gradient=...`` would read.

    Args:
        cfg: The whole configuration.
        given: Overrides of a command line, by their keys or groups.
    """
    reads = cfg.gradient is not None and cfg.task._target_ in (*_MORPHING, f"{_TASKS}detection.run")
    if reads or not str(cfg.task._target_).startswith(_TASKS):
        return
    others = str([OmegaConf.to_container(part, resolve=False) for part in (cfg.rows, cfg.task)])
    for key, line in given.items():
        section, _, below = key.partition(".")
        if section not in ("solver", "optimizer", "guided") or f"${{{section}" in others:
            continue
        own = [f"rows.{name}" for name, row in cfg.rows.items() if row and section in row]
        own += ["task"] if section in cfg.task else []
        places = [f"{one}.{section}" for one in own[-1:]]
        which = [f"{place}.{below}" if below else f"{section}@{place}" for place in places]
        raise ConfigError(
            f"{line}: nothing reads it here, where rows have settings of their own; add "
            f"gradient=discrete_adjoint (or another) for a row that does"
            + "".join(f", or {one}=... for that one" for one in which)
        )


def _check_rows(cfg: DictConfig) -> None:
    """No two rows write to one folder; where file systems do not tell X from x, neither do we."""
    names: dict[str, str] = {}
    for key, row in cfg.rows.items():
        if not row:
            continue
        if not OmegaConf.is_dict(row) or "_target_" not in row:
            raise ConfigError(
                f"rows.{key}={shown(row)}: expected an attack; choose one with "
                f"+attack@rows.{key}=dim_a"
            )
        name = str(row.get("name", key))
        if not is_file_name(name):
            raise ConfigError(f"rows.{key}.name={shown(name)}: expected a folder name")
        other = names.setdefault(file_key(name), f"rows.{key}")
        if other != f"rows.{key}":
            raise ConfigError(
                f"rows.{key}.name={shown(name)}: {other} writes to the same folder; give each row "
                "a name of its own"
            )


def _walk(
    cfg: Any, prefix: str, owner: str | None = None, referred: bool = False
) -> Iterator[tuple[str, Any, bool, str | None]]:
    """(key, value, whether it refers to another key, `_target_` of its node)."""
    owner = str(cfg["_target_"]) if "_target_" in cfg else owner
    for key in cfg:
        name = f"{prefix}.{key}" if prefix else str(key)
        refers = referred or OmegaConf.is_interpolation(cfg, key)
        try:
            value = cfg[key]
        except InterpolationKeyError as error:
            raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from error
        except OmegaConfBaseException as error:
            text = str(error).splitlines()[0]
            if not isinstance(error, MissingMandatoryValue) and "hydra" not in text.lower():
                raise ConfigError(f"{name}: {text}") from error
            yield name, _UNKNOWN, refers, owner
            continue
        if OmegaConf.is_dict(value):
            try:
                plain = OmegaConf.to_container(value, resolve=True)
            except OmegaConfBaseException:
                plain = _UNKNOWN
            yield name, plain, refers, owner
            yield from _walk(value, name, owner, refers)
        else:
            yield name, value, refers, owner


def check_node(key: str, node: dict[str, Any]) -> None:
    """Compares one node with the signature of its ``_target_``.

    Raises:
        ConfigError: the target cannot be imported, or a key or value cannot be right.
    """
    target = node["_target_"]
    try:
        with _silent():
            callable_ = get_object(target)
    except Exception as error:
        said = " ".join(str(error).split())
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({said})") from error
    try:
        parameters = inspect.signature(callable_).parameters
    except (TypeError, ValueError):
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(callable_)
    for name, value in node.items():
        if name in _HYDRA_KEYS:
            continue
        if name == "candidates" and "detectors" in key.split("."):
            # Of the task, not of the detector: settings to choose among, each as good as set.
            settled = {k: v for k, v in node.items() if k != name}
            for option in value if isinstance(value, list) else ():
                if isinstance(option, dict):
                    check_node(key, settled | option)
            continue
        if name not in parameters:
            if open_ended:
                continue
            close = difflib.get_close_matches(name, list(parameters), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}" if close else f"it has {', '.join(parameters)}"
            raise ConfigError(f"{key}.{name}: {target} has no such key; {hint}?")
        if value == "???":
            raise ConfigError(f"{key}.{name}: needs a value, {key}.{name}=...")
        if name in hints and not (kind := _kind_of_type(hints[name])).accepts(value):
            raise ConfigError(f"{key}.{name}={shown(value)}: expected {kind.text}")
    absent = [n for n, p in parameters.items() if p.default is p.empty and n not in node]
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    absent = [name for name in absent if parameters[name].kind not in variadic]
    if absent and not node.get("_partial_") and "_args_" not in node:
        raise ConfigError(f"{key}.{absent[0]}: {target} needs a value, {key}.{absent[0]}=...")


def _hints(callable_: Any) -> dict[str, Any]:
    owner = callable_.__init__ if inspect.isclass(callable_) else callable_
    try:
        return typing.get_type_hints(owner)
    except Exception:
        return {}


def _kind_of_type(hint: Any) -> Kind:
    """The plain values that can be of a type; lists and nested nodes are let by."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        # 2.0 equals 2 and true equals 1, and neither is one of the words.
        return Kind("one of " + ", ".join(map(repr, parts)), one_of(*parts).accepts)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind_of_type(part) for part in parts]
        return Kind(
            " or ".join(kind.text for kind in kinds), lambda v: any(k.accepts(v) for k in kinds)
        )
    if hint in _PLAIN_KINDS:
        return _PLAIN_KINDS[hint]

    def accepts(value: Any) -> bool:
        # A text or a number where an object is wanted, such as a tensor or a solver.
        if (
            isinstance(value, _SCALARS)
            and inspect.isclass(hint)
            and not hasattr(hint, "__fspath__")
        ):
            with contextlib.suppress(TypeError):  # Any, and protocols that cannot be asked
                return isinstance(value, hint)
        return True

    return Kind(getattr(hint, "__name__", str(hint)), accepts)


_PLAIN_KINDS = {
    type(None): NULL,
    bool: FLAG,
    int: Kind("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    float: Kind("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    str: Kind("a text", lambda v: isinstance(v, str)),
}
