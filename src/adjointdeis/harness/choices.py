"""What a command line can choose from: groups and options, in every folder that Hydra searches.

Everything here goes through Hydra's public interfaces, and finds configurations where Hydra does:
in the project's folder, in those of ``--config-path`` and ``--config-dir``, and in
``hydra.searchpath``; and two kinds of options that no file of ours holds: what other installed
packages add (``gradient=their_method``), and every row of Table 1 as an experiment of its own
(``experiment=table1/dim_a``).
"""

import argparse
import contextlib
import fnmatch
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, ValueType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from adjointdeis.harness.validation import ConfigError
from adjointdeis.plugins import plugins

CONFIG_GROUPS = {
    "gradients": "gradient",
    "solvers": "solver",
    "attacks": "attack",
    "recognisers": "judges",
    "detectors": "detector",
    "degradations": "degradation",
}
"""Group of the configuration by group of entry points."""


def register_options(config_dir: Path) -> None:
    """Tells Hydra of all of them; again and again is the same as once.

    Args:
        config_dir: Folder of the configuration.

    Raises:
        ConfigError: A plugin has the name of an option of ours.
    """
    register_plugins(config_dir)
    _register_rows(config_dir)


def _register_rows(config_dir: Path) -> None:
    """Every row of the experiment ``table1`` as one of its own."""
    path = config_dir / "experiment" / "table1.yaml"
    if not path.is_file():  # somebody's own folder, by --config-path
        return
    table = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(table, dict)
    nodes: dict[str, Any] = {row: {"rows": {row: node}} for row, node in table["rows"].items()}
    for entry in table["defaults"]:
        ((group, _),) = entry.items()
        nodes[group.rpartition(".")[2]] = {"defaults": [entry]}
    for row, node in nodes.items():
        ConfigStore.instance().store(
            group="experiment/table1",
            name=row,
            node={**node, "name": f"table1/{row}"},
            package="_global_",
            provider=str(path),
        )


def register_plugins(config_dir: Path) -> None:
    """Makes every plugin an option of its group, with the defaults of its signature as its keys.

    Args:
        config_dir: Folder of our own options, whose names are taken.

    Raises:
        ConfigError: A plugin has the name of an option of ours.
    """
    for kind, group in CONFIG_GROUPS.items():
        for name, target in plugins(kind).items():
            if (config_dir / group / f"{name}.yaml").is_file():
                raise ConfigError(
                    f"the plugin adjointdeis.{kind} {name!r} ({target.__module__}) has the name of "
                    f"an option of ours, {group}={name}; it has to choose another"
                )
            node = _described(target)
            if kind == "attacks":
                node["name"] = name
            keyed = kind in ("recognisers", "degradations")
            ConfigStore.instance().store(
                group=group,
                name=name,
                node={name: node} if keyed else node,
                provider=f"adjointdeis.{kind} of {target.__module__}",
            )


def _described(target: Callable[..., Any]) -> dict[str, Any]:
    """A configuration that makes an object: its arguments with their plain defaults.

    What has no default is left for the user to say; a default that is an object stays the class's.
    """
    node: dict[str, Any] = {"_target_": f"{target.__module__}.{target.__qualname__}"}
    for name, parameter in inspect.signature(target).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            node[name] = "???"
        elif parameter.default is None or isinstance(parameter.default, bool | int | float | str):
            node[name] = parameter.default
    return node


class CommandLineFolder(SearchPathPlugin):
    """Adds the folder of ``--config-dir`` to the search path, at the place where Hydra does."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder is not None:
            search_path.append("command-line", f"file://{self.folder.absolute()}")


@dataclass(frozen=True)
class Command:
    """A command line as Hydra reads it.

    Attributes:
        config_dir: Folder of the primary configuration.
        config_name: Its name.
        extra_dir: Folder of ``--config-dir``.
        multirun: Whether ``--multirun`` was given.
        only_prints: Whether a flag asks for help or information: nothing will run.
        overrides: The overrides.
    """

    config_dir: Path
    config_name: str = "config"
    extra_dir: Path | None = None
    multirun: bool = False
    only_prints: bool = False
    overrides: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, config_dir: Path, arguments: Sequence[str]) -> "Command":
        """Reads arguments; those that Hydra will refuse are left to Hydra.

        Raises:
            ConfigError: A folder of ``--config-path`` or ``--config-dir`` does not exist.
        """
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("overrides", nargs="*")
        for name, short in (
            ("--help", "-h"),
            ("--hydra-help", None),
            ("--version", None),
            ("--resolve", None),
            ("--run", "-r"),
            ("--multirun", "-m"),
            ("--shell-completion", "-sc"),
        ):
            parser.add_argument(*filter(None, (name, short)), action="store_true")
        for name, short in (
            ("--cfg", "-c"),
            ("--package", "-p"),
            ("--config-path", "-cp"),
            ("--config-name", "-cn"),
            ("--config-dir", "-cd"),
            ("--experimental-rerun", None),
        ):
            parser.add_argument(*filter(None, (name, short)))
        parser.add_argument("--info", "-i", nargs="?", const="all")
        options, _ = parser.parse_known_args(list(arguments))
        folders = {
            # Hydra takes the first from the program's folder, the second from the working one.
            "--config-path": options.config_path and config_dir.parent / options.config_path,
            "--config-dir": options.config_dir and Path(options.config_dir).absolute(),
        }
        for flag, folder in folders.items():
            if folder is not None and "://" not in str(folder) and not folder.is_dir():
                raise ConfigError(f"{flag}: there is no folder {folder}")
        printing = ("help", "hydra_help", "version", "shell_completion", "info", "cfg")
        return cls(
            config_dir=folders["--config-path"] or config_dir,
            config_name=options.config_name or "config",
            extra_dir=folders["--config-dir"],
            multirun=options.multirun,
            only_prints=any(getattr(options, name) for name in printing)
            or options.experimental_rerun is not None,
            overrides=[token for token in options.overrides if not token.startswith("-")],
        )

    @contextlib.contextmanager
    def found(self) -> Iterator["Choices"]:
        """Opens Hydra's search path for this command."""
        register_options(self.config_dir)
        CommandLineFolder.folder = self.extra_dir
        Plugins.instance().register(CommandLineFolder)
        try:
            with initialize_config_dir(str(self.config_dir.resolve()), version_base="1.3"):
                yield Choices(self, GlobalHydra.instance().config_loader())
        finally:
            CommandLineFolder.folder = None


@dataclass(frozen=True)
class Choices:
    """What a command line can choose from: groups and their options, in all folders searched."""

    command: Command
    loader: ConfigLoader
    listed: dict[tuple[str, ObjectType], list[str]] = field(default_factory=dict)

    def is_group(self, name: str) -> bool:
        """Whether a key of the command line names a group, as ``attack`` and ``task/head`` do."""
        parent, _, last = name.rpartition("/")
        nested = not parent or self.is_group(parent)
        return nested and last in self._list(parent, ObjectType.GROUP)

    def groups(self, parent: str = "") -> set[str]:
        """Names of all groups below another one."""
        found: set[str] = set()
        for name in self._list(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            found |= {group} | self.groups(group)
        return found

    def options(self, group: str) -> list[str]:
        """Options of a group, those of its subgroups with their path."""
        found = set(self._list(group, ObjectType.CONFIG))
        for name in self._list(group, ObjectType.GROUP):
            found |= {f"{name}/{option}" for option in self.options(f"{group}/{name}")}
        return sorted(found)

    def matching(self, pattern: Glob, group: str) -> list[str]:
        """Options of a group that a ``glob(...)`` means; ``*`` never crosses a folder."""

        def matches(option: str, one: str) -> bool:
            return option.count("/") == one.count("/") and fnmatch.fnmatch(option, one)

        return [
            option
            for option in self.options(group)
            if any(matches(option, one) for one in pattern.include)
            and not any(matches(option, one) for one in pattern.exclude)
        ]

    def _list(self, group: str, kind: ObjectType) -> list[str]:
        # Hydra reads its search path anew for every list, which takes longer than to compose.
        if (group, kind) not in self.listed:
            given = [o for o in self.command.overrides if o.startswith("hydra.searchpath=")]
            self.listed[group, kind] = self.loader.get_group_options(
                group, kind, self.command.config_name, given
            )
        return self.listed[group, kind]


def expand_globs(config_dir: Path, arguments: Sequence[str]) -> list[str]:
    """The command line with ``group=glob(...)`` written out as the options that it means.

    Hydra looks at the options of the group itself only; here ``experiment=glob(table1/*)`` means
    those of the folder ``table1``, and ``*`` never crosses a folder.
    """
    if not any("glob(" in argument for argument in arguments):
        return list(arguments)
    parser, expanded = OverridesParser.create(), []
    with Command.read(config_dir, arguments).found() as choices:
        for argument in arguments:
            expanded.append(argument)
            # What cannot be read is told of by the check.
            with contextlib.suppress(HydraException):
                if "glob(" not in argument or argument.startswith("-"):
                    continue
                (given,) = parser.parse_overrides([argument])
                if given.value_type == ValueType.GLOB_CHOICE_SWEEP:
                    found = choices.matching(cast(Glob, given.value()), given.key_or_group)
                    if found:
                        expanded[-1] = f"{given.get_key_element()}={','.join(found)}"
    return expanded
