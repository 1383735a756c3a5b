"""Checks a composed configuration against what its keys will be given to.

Every node with a ``_target_`` is compared with that callable's signature: an unknown key or a value
of a wrong type fails before anything runs, with the nearest valid name.
"""

import difflib
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_recursive_", "_convert_"}
_SCALARS = (bool, int, float, str)


class ConfigError(ValueError):
    """The configuration cannot be run; the message is one line that says what to change."""


def flat_keys(cfg: DictConfig) -> set[str]:
    """Every key of a configuration in dotted form, Hydra's own left out."""
    return {key for key, _ in _walk(cfg, "") if not key.startswith("hydra")}


def validate(cfg: DictConfig) -> None:
    """Raises :class:`ConfigError` at the first key or value that cannot be right."""
    # Plain keys first: rows repeat them by interpolation, and the user wrote the plain one.
    _check_ranges(cfg)
    for key, value in _walk(cfg, ""):
        # Only what the user chose is checked; a task's own numbers are checked by the task.
        if isinstance(value, dict) and "_target_" in value and not key.startswith("task"):
            check_node(key, value)


def _walk(cfg: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for key in cfg:
        name = f"{prefix}.{key}" if prefix else str(key)
        try:
            value = cfg[key]
        except OmegaConfBaseException:
            # An interpolation that only a run can resolve, such as Hydra's working directory.
            yield name, None
            continue
        if OmegaConf.is_dict(value):
            try:
                plain = OmegaConf.to_container(value, resolve=True)
            except OmegaConfBaseException:
                plain = None
            yield name, plain
            yield from _walk(value, name)
        else:
            yield name, value


def check_node(key: str, node: dict[str, Any]) -> None:
    """Compares one node with the signature of its ``_target_``.

    Raises:
        ConfigError: the target cannot be imported, or a key or value cannot be right.
    """
    target = node["_target_"]
    try:
        callable_ = get_object(target)
    except Exception as error:
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({error})") from error
    try:
        parameters = inspect.signature(callable_).parameters
    except (TypeError, ValueError):
        return
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(callable_)
    for name, value in node.items():
        if name in _HYDRA_KEYS:
            continue
        if name not in parameters:
            if open_ended:
                continue
            close = difflib.get_close_matches(name, list(parameters), n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}" if close else f"it has {', '.join(parameters)}"
            raise ConfigError(f"{key}.{name}: {target} has no such key; {hint}?")
        if name in hints and not _fits(value, hints[name]):
            raise ConfigError(f"{key}.{name}={value!r}: expected {_describe(hints[name])}")


def _hints(callable_: Any) -> dict[str, Any]:
    owner = callable_.__init__ if inspect.isclass(callable_) else callable_
    try:
        return typing.get_type_hints(owner)
    except Exception:
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can be of a type; lists and nested nodes are let by."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in _SCALARS:
        return isinstance(value, hint)
    if isinstance(value, _SCALARS) and inspect.isclass(hint) and not hasattr(hint, "__fspath__"):
        # A text or a number where an object is wanted, such as a tensor or a solver.
        try:
            return isinstance(value, hint)
        except TypeError:  # Any, and protocols that cannot be asked
            return True
    return True


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(v) for v in typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    names = {type(None): "null", int: "a whole number", float: "a number", str: "a text"}
    return names.get(
        hint, "true or false" if hint is bool else getattr(hint, "__name__", str(hint))
    )


def _check_ranges(cfg: DictConfig) -> None:
    """Plain keys that no callable checks."""
    wanted: dict[str, tuple[type | tuple[type, ...], str]] = {
        "seed": ((int, type(None)), "a whole number or null"),
        "threads": ((int, type(None)), "a whole number or null"),
        "force": (bool, "true or false"),
        "dry_run": (bool, "true or false"),
        "name": (str, "a folder name"),
        "data.limit": ((int, type(None)), "a whole number of pairs, or null for all"),
        "optimisation.steps": (int, "a whole number, 0 or more"),
        "optimisation.inner_steps": (int, "a whole number, 0 or more"),
        "optimisation.batch_size": ((int, str), "a whole number, 1 or more, or auto"),
        "optimisation.stop_similarity": (
            (int, float, type(None)),
            "a cosine between -1 and 1, or null",
        ),
        "optimisation.keep": (str, "last or best"),
        "optimisation.measure_gradient": (bool, "true or false"),
        "protocol.replicates": (int, "a whole number, 0 or more"),
    }
    for key, (kind, text) in wanted.items():
        value = OmegaConf.select(cfg, key, default=None)
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not fits:
            raise ConfigError(f"{key}={value!r}: expected {text}")
    least_of = {
        "optimisation.steps": 0,
        "optimisation.inner_steps": 0,
        "optimisation.batch_size": 1,
    }
    for key, least in least_of.items():
        value = OmegaConf.select(cfg, key)
        if key == "optimisation.batch_size" and value == "auto":
            continue
        if isinstance(value, str):
            raise ConfigError(f"{key}={value!r}: expected {wanted[key][1]}")
        if value < least:
            raise ConfigError(f"{key}={OmegaConf.select(cfg, key)}: expected {least} or more")
    for key, example in (("fmr", "[0.001]"), ("impostor_policies", "[all,same-sex]")):
        value = cfg.protocol[key]
        if not OmegaConf.is_list(value) or not len(value):
            raise ConfigError(f"protocol.{key}={value!r}: expected a list, such as {example}")
    for fmr in cfg.protocol.fmr:
        if not isinstance(fmr, float) or not 0 < fmr < 1:
            raise ConfigError(
                f"protocol.fmr={fmr!r}: expected shares between 0 and 1, such as 0.001"
            )
