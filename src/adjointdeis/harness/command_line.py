"""The command line, checked before Hydra sees it: a mistake is one line with the nearest name."""

import contextlib
import difflib
import fnmatch
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from adjointdeis.harness.validation import ConfigError, flat_keys, validate


@contextlib.contextmanager
def checked(config_dir: str) -> Iterator[None]:
    """Composes the command line once before Hydra does, so that its mistakes fit in one line.

    With ``HYDRA_FULL_ERROR=1`` Hydra's own messages and traces come through instead.
    """
    folder = Path(sys.argv[0]).resolve().parent / config_dir
    sys.argv[1:] = expand_globs(folder, sys.argv[1:])
    if not os.environ.get("HYDRA_FULL_ERROR"):
        try:
            check_overrides(folder, sys.argv[1:])
        except ConfigError as error:
            sys.exit(f"error: {error}")
    yield


def expand_globs(config_dir: Path, arguments: list[str]) -> list[str]:
    """The command line with ``group=glob(...)`` written out as the options that it means.

    Hydra looks at the options of the group itself only; here ``experiment=glob(table1/*)`` means
    those of the folder ``table1``, and ``*`` never crosses a folder.
    """
    parser, expanded = OverridesParser.create(), []
    for argument in arguments:
        expanded.append(argument)
        if "glob(" not in argument or argument.startswith("-"):
            continue
        try:
            (override,) = parser.parse_overrides([argument])
        except HydraException:
            continue  # what cannot be read is told of by the check
        if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
            found = _matching(cast(Glob, override.value()), config_dir / override.key_or_group)
            if found:
                expanded[-1] = f"{override.get_key_element()}={','.join(found)}"
    return expanded


def _matching(pattern: Glob, folder: Path) -> list[str]:
    def matches(option: str, one: str) -> bool:
        return option.count("/") == one.count("/") and fnmatch.fnmatch(option, one)

    return [
        option
        for option in _options(folder)
        if any(matches(option, one) for one in pattern.include)
        and not any(matches(option, one) for one in pattern.exclude)
    ]


def check_overrides(config_dir: Path, arguments: list[str]) -> None:
    """Raises :class:`ConfigError` for an unknown group, option or key, or a wrong type."""
    # Hydra's own parser tells its flags, some of which take a value, from overrides.
    options, _ = get_args_parser().parse_known_args(arguments)
    asks = ("help", "hydra_help", "version", "shell_completion", "info", "cfg")
    if any(getattr(options, name, None) for name in asks):
        return
    tokens = [token for token in options.overrides if not token.startswith("-")]
    parser, overrides = OverridesParser.create(), []
    for token in tokens:
        try:
            overrides += parser.parse_overrides([token])
        except HydraException as error:
            raise ConfigError(f"cannot read {token!r}: {_first_line(error)}") from error
    choices = [_choices(override, config_dir) for override in overrides]
    first = [values[0] for values in choices]
    # The first point of a sweep, then every other value in the place of the first one.
    points = [first]
    points += [
        [*first[:k], value, *first[k + 1 :]]
        for k, values in enumerate(choices)
        for value in values[1:]
    ]
    with initialize_config_dir(str(config_dir), version_base="1.3"):
        for plain in points:
            try:
                cfg = compose("config", plain)
            except (HydraException, OmegaConfBaseException) as error:
                raise ConfigError(_explain(error, plain, config_dir)) from error
            validate(cfg)


def _choices(override: Override, config_dir: Path) -> list[str]:
    """An override with each value of its sweep; of a range, with the first."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    key = override.get_key_element()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        values = _matching(cast(Glob, override.value()), config_dir / override.key_or_group)
    else:
        values = list(override.sweep_string_iterator())
    found = [f"{key}={value}" for value in values]
    if not found:
        raise ConfigError(f"{override.input_line}: the sweep has no value")
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        return found
    return found if override.is_choice_sweep() else found[:1]


def _options(folder: Path) -> list[str]:
    """Options of a group, those of its subgroups with their path."""
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def _explain(error: Exception, overrides: list[str], config_dir: Path) -> str:
    text = str(error)
    keys, groups = _vocabulary(config_dir, overrides)
    for override in overrides:
        name, _, value = override.lstrip("+~").partition("=")
        group = name.split("@")[0]
        folder = config_dir / group
        if folder.is_dir() and f"{group}/{value}" in text:
            near = _nearest(value, _options(folder))
            return f"{override}: {group} has no option {value!r}{near}"
        if not folder.is_dir() and (f"'{name}'" in text or f"{name}" in text):
            known = keys | groups
            if name not in known:
                return f"{override}: there is no key {name!r}{_nearest(name, sorted(known))}"
    return _first_line(error)


def _vocabulary(config_dir: Path, overrides: list[str]) -> tuple[set[str], set[str]]:
    """Keys that exist once the group choices of the command line are made, and all groups."""
    groups = {p.relative_to(config_dir).as_posix() for p in config_dir.rglob("*") if p.is_dir()}
    choices = [o for o in overrides if o.lstrip("+").partition("=")[0].split("@")[0] in groups]
    for attempt in (choices, []):
        try:
            return flat_keys(compose("config", attempt)), groups
        except Exception:
            continue
    return set(), groups


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
