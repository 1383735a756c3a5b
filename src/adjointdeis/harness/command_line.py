"""The command line, checked before Hydra sees it: a mistake is one line with the nearest name."""

import contextlib
import difflib
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import yaml
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    ValueType,
)
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adjointdeis.files import read_text
from adjointdeis.harness.choices import Choices, Command, expand_globs, register_options
from adjointdeis.harness.option_values import shown
from adjointdeis.harness.validation import ConfigError, check_read, flat_keys, validate
from adjointdeis.texts import printable

# Of YAML, of its encoding, of nodes that hold themselves, of what Hydra expects in it.
_UNREADABLE = (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError, OSError)
_WITHIN = {"attack": "rows.mine", "detector": "task.detectors.mine"}
"""Groups whose options are read as a part of something else alone, and an example of where."""
_MOST_JOBS = 100_000
_LONGEST = 200  # bytes of a key; Hydra looks for a folder of that name
_DETECTION = ("detectors", "degradations", "weights", "most_pairs")
_OPEN = (
    *("rows", "judges", "logger", "assets.published", "task.morphs"),
    *(f"{task}.{name}" for task in ("task", "task.detection") for name in _DETECTION),
)
"""Sections whose keys are the user's to choose."""


@contextlib.contextmanager
def checked(config_dir: Path | str) -> Iterator[None]:
    """Composes the command line once before Hydra does, so that its mistakes fit in one line.

    With ``HYDRA_FULL_ERROR=1`` Hydra's own messages and traces come through instead.

    Args:
        config_dir: Folder of the configuration, absolute or relative to the program's file.
    """
    folder = Path(sys.argv[0]).resolve().parent / config_dir
    try:
        register_options(folder)
        sys.argv[1:] = expand_globs(folder, sys.argv[1:])
        if not os.environ.get("HYDRA_FULL_ERROR"):
            check_overrides(folder, sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")
    yield


def this_command() -> list[str]:
    """Flags and overrides that repeat this run, or this point of a sweep; none outside Hydra."""
    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    folders = {source.provider: source.path for source in hydra.runtime.config_sources}
    flags = ["--config-dir", folders["command-line"]] if "command-line" in folders else []
    if hydra.job.config_name != "config":
        flags += ["--config-name", hydra.job.config_name]
    searched = [o for o in hydra.overrides.hydra if o.startswith("hydra.searchpath=")]
    return [*flags, *searched, *hydra.overrides.task]


def setting(key: str, value: object) -> str:
    """The override that sets a key to a text, in quotes where Hydra would read it otherwise."""
    text = str(value)
    with contextlib.suppress(HydraException):
        if OverridesParser.create().parse_override(f"{key}={text}").value() == text:
            return f"{key}={text}"
    # Within quotes a backslash is special before a quote only.
    escaped = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ('\\"' if m[2] else ""), text)
    return f'{key}="{escaped}"'


def check_overrides(config_dir: Path, arguments: Sequence[str]) -> None:
    """Composes a command line as Hydra will, every point of a sweep too, and validates the result.

    Args:
        config_dir: Folder of the primary configuration.
        arguments: The command line without the program.

    Raises:
        ConfigError: It cannot be read, or a group, option, key or value in it cannot be right.
    """
    command = Command.read(config_dir, arguments)
    if command.only_prints:
        return
    parser, overrides = OverridesParser.create(), []
    for token in command.overrides:
        try:
            overrides += parser.parse_overrides([token])
        except HydraException as error:
            raise ConfigError(
                f"cannot read {token!r}: {_first_line(error)}{_quoting(token)}"
            ) from error
        except (ValueError, RecursionError) as error:
            # A number of thousands of digits, thousands of brackets.
            raise ConfigError(f"cannot read {shown(token)}: {_first_line(error)}") from error
        if not overrides[-1].key_or_group.strip():
            raise ConfigError(f"cannot read {token!r}: it names no key; an override is key=value")
        if len(overrides[-1].key_or_group.encode(errors="replace")) > _LONGEST:
            raise ConfigError(f"{shown(token)}: no key or group has a name of that length")
    _refuse_endless(overrides)
    with command.found() as choices:
        try:
            choices.is_group("task")  # refuses a wrong hydra.searchpath, whatever the overrides
            of_groups = [given for given in overrides if choices.is_group(given.key_or_group)]
            _check_added(overrides, choices)
            _check_groups(of_groups, choices)
            _check_files(of_groups, choices)
            values = [_values(given, choices) for given in overrides]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_first_line(error)) from error
        first = [each[0] for each in values]
        if command.multirun and any(len(each) > 1 for each in values):
            _refuse_one_directory(overrides)
        # The first point of a sweep, then every other value in the place of the first one.
        points = [first]
        points += [
            [*first[:k], value, *first[k + 1 :]]
            for k, each in enumerate(values)
            for value in each[1:]
        ]
        for plain in points:
            try:
                cfg = _composed(command.config_name, plain)
                if any(given.is_delete() for given in overrides):
                    pairs = zip(overrides, plain, strict=True)
                    kept = [own for given, own in pairs if not given.is_delete()]
                    _check_deleted(overrides, compose(command.config_name, kept))
                validate(cfg)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(_explain(error, plain, choices)) from error
        check_read(cfg, {o.key_or_group: str(o.input_line) for o in overrides if not o.package})
        intervals = [given for given in overrides if given.is_interval_sweep()]
        if intervals and command.multirun:
            cfg = compose(command.config_name, first, return_hydra_config=True)
            # Hydra's own sweeper cannot search.
            if cfg.hydra.sweeper._target_.endswith(".BasicSweeper"):
                given, key = intervals[0], intervals[0].get_key_element()
                bounds = cast(IntervalSweep, given.value())
                raise ConfigError(
                    f"{given.input_line}: the sweeper takes lists and ranges, no intervals; say "
                    f"{key}={bounds.start},{bounds.end}, or choose a sweeper that searches, such "
                    "as hydra/sweeper=optuna of the package hydra-optuna-sweeper"
                )


def _check_added(overrides: Sequence[Override], choices: Choices) -> None:
    """Refuses what Hydra would add to the configuration, and nothing would read there."""
    for given in overrides:
        name = given.key_or_group
        if not given.is_add() or given.package is not None or "." in name:
            continue
        if name in _WITHIN:
            raise ConfigError(
                f"{given.input_line}: nothing reads it there; write +{name}@{_WITHIN[name]}="
                f"{given.value()}"
            )
        if choices.is_group(name):  # to list all groups takes longer than to compose
            continue
        if close := difflib.get_close_matches(name, choices.groups(), 1, 0.8):
            raise ConfigError(
                f"{given.input_line}: there is no group {name!r}; did you mean +{close[0]}="
                f"{given.value()}?"
            )


def _refuse_one_directory(overrides: Sequence[Override]) -> None:
    """Refuses a sweep whose jobs would all work in one folder, each moving the last one aside."""
    for given in overrides:
        fixed = not given.is_sweep_override() and "${" not in str(given.value())
        if given.key_or_group == "paths.run" and fixed:
            raise ConfigError(
                f"{given.input_line}: every job of the sweep would be run there; leave it out, or "
                "name what differs in it, as in 'paths.run=outputs/sweep/${seed}'"
            )


def _composed(config_name: str, overrides: list[str]) -> DictConfig:
    """The configuration; what its files hold that is no YAML is told of by the option that they
    are of."""
    try:
        return compose(config_name, overrides)
    except _UNREADABLE as error:
        if isinstance(error, ConfigError | HydraException):
            raise
        blamed = config_name
        for k, override in enumerate(overrides):
            try:
                compose(config_name, overrides[:k] + overrides[k + 1 :])
            except _UNREADABLE:
                continue
            except (HydraException, OmegaConfBaseException):
                pass
            blamed = override
            break
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{blamed[:100]}: its file cannot be read as a configuration ({printable(said)})"
        ) from error


def _refuse_endless(overrides: Sequence[Override]) -> None:
    jobs = 1
    for given in overrides:
        found = given.value()
        if isinstance(found, RangeSweep):
            start, stop, step = found.start, found.stop, found.step
            assert start is not None and stop is not None
            count = (stop - start) / step if step else math.inf
            jobs *= max(1, int(count)) if math.isfinite(count) else _MOST_JOBS + 1
        elif isinstance(found, ChoiceSweep):
            jobs *= max(1, len(found.list))
        if jobs > _MOST_JOBS:
            raise ConfigError(
                f"{given.input_line}: the sweep has {jobs} jobs or more; at most {_MOST_JOBS} are "
                "made, and a range needs a step that leads to its end"
            )


def _check_groups(overrides: Sequence[Override], choices: Choices) -> None:
    for given in overrides:
        value = given.value()
        if given.is_sweep_override() or given.is_delete():
            continue
        if not value or not isinstance(value, str | QuotedString | list):
            group = given.key_or_group
            options = choices.options(group)
            without = f"; {group}=none chooses nothing" if "none" in options else ""
            raise ConfigError(
                f"{given.input_line}: expected the name of an option of the group {group}: "
                f"{_listed(options)}{without}"
            )
        if isinstance(value, list) and len({str(v) for v in value}) < len(value):
            raise ConfigError(f"{given.input_line}: an option twice counts once; name each once")


def _check_files(overrides: Sequence[Override], choices: Choices) -> None:
    """The file of every option that is chosen is a regular one and holds keys: of a list or a bare
    text Hydra takes nothing, without a word, and for a pipe it waits."""
    for given in overrides:
        value = given.value()
        if not isinstance(value, str | list):
            continue
        for source in choices.loader.get_search_path().get_path():
            kind, _, folder = (source.path or "").rpartition("://")
            for option in [value] if isinstance(value, str) else map(str, value):
                path = Path(folder) / given.key_or_group / f"{option.removesuffix('.yaml')}.yaml"
                if kind != "file" or "\0" in option or not os.path.lexists(path):
                    continue
                text = read_text(path, ConfigError, largest=2**22)
                held = None
                with contextlib.suppress(*_UNREADABLE):  # told of with their reason
                    held = yaml.load(text, yaml.CSafeLoader)
                if held is not None and not isinstance(held, dict):
                    raise ConfigError(
                        f"{given.input_line}: {path} holds {shown(held)}; expected keys with "
                        "their values"
                    )


def _check_deleted(overrides: Sequence[Override], whole: DictConfig) -> None:
    """Only what is one of many may be deleted, and arguments that have a default of their own."""
    for given in overrides:
        parent, _, last = given.key_or_group.rpartition(".")
        if not given.is_delete() or not parent or parent.startswith("hydra"):
            continue
        node = OmegaConf.select(whole, parent)
        held = OmegaConf.is_dict(node) and last in node
        if held and parent not in _OPEN and "_target_" not in node:
            raise ConfigError(
                f"~{given.key_or_group}: every run needs this key; leave it, or set it to another "
                "value"
            )


def _values(override: Override, choices: Choices) -> list[str]:
    """An override with each value of its sweep; of a range or an interval, with the first."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if override.is_interval_sweep():
        return [f"{key}={cast(IntervalSweep, override.value()).start}"]
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        found = choices.matching(cast(Glob, override.value()), override.key_or_group)
        swept: Sequence[str] = found
    else:
        swept = list(override.sweep_string_iterator())
    if not swept:
        raise ConfigError(f"{override.input_line}: the sweep has no value")
    if override.is_range_sweep():
        # What lies between the ends is checked by each job.
        swept = [swept[0], swept[-1]]
    return [f"{key}={value}" for value in swept]


def _quoting(token: str) -> str:
    """The override in quotes, as a hint; empty where quotes do not mend it."""
    key, equals, value = token.partition("=")
    if not equals:
        return "; an override is key=value"
    # An equals sign in a path, also within a list or a sweep; else the value as a whole.
    piecewise = re.sub(r"[^\[\]{},\"'\s]*=[^\[\]{},\"'\s]*", r'"\g<0>"', value)
    if value.startswith("~"):
        home = setting(key, os.path.expanduser(value))
        return f"; ~ is the shell's, and not read here: quote {shlex.quote(home)}"
    for quoted in (f"{key}={piecewise}", setting(key, value)):
        if quoted != token and value[:1] not in ('"', "'"):
            with contextlib.suppress(HydraException):
                OverridesParser.create().parse_overrides([quoted])
                return f"; quote the value: {shlex.quote(quoted)}"
    return ""


def _explain(error: Exception, overrides: list[str], choices: Choices) -> str:
    text = str(error)
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        group = name.split("@")[0]
        if choices.is_group(group):
            if f"{group}/{value}" in text:
                near = _nearest(value, choices.options(group))
                return f"{override}: {group} has no option {value!r}{near}"
        # Of Hydra's own keys Hydra tells best.
        elif name in text and not name.startswith("hydra."):
            keys = _known_keys(overrides, choices)
            if name not in keys:
                near = _nearest(name, sorted(keys | choices.groups()))
                return f"{override}: there is no key {name!r}{near}"
    return _first_line(error)


def _known_keys(overrides: list[str], choices: Choices) -> set[str]:
    """Keys that exist once the group choices of the command line are made."""
    names = (override.lstrip("+").partition("=")[0].split("@")[0] for override in overrides)
    chosen = [o for o, name in zip(overrides, names, strict=True) if choices.is_group(name)]
    for attempt in (chosen, []):
        with contextlib.suppress(HydraException, OmegaConfBaseException):
            return flat_keys(compose(choices.command.config_name, attempt))
    return set()


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {_listed(known)}"


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"


def _first_line(error: BaseException) -> str:
    """First line of an error, with Hydra's own advice where the second one gives it, and with what
    OmegaConf said where Hydra only names the override."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    advised = len(lines) > 1 and lines[1].startswith("To append")
    said = " ".join(lines[: 2 if advised else 1]) or type(error).__name__
    if said.startswith("Error merging override") and error.__cause__ is not None:
        return f"{said}: {_first_line(error.__cause__)}"
    return said
