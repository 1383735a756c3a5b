"""What other installed packages add, as options on the command line: ``gradient=their_method``."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from adjointdeis.harness.validation import ConfigError
from adjointdeis.plugins import plugins

CONFIG_GROUPS = {
    "gradients": "gradient",
    "solvers": "solver",
    "attacks": "attack",
    "recognisers": "judges",
}
"""Group of the configuration by group of entry points."""


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
            node = described(target)
            if kind == "attacks":
                node["name"] = name
            ConfigStore.instance().store(
                group=group,
                name=name,
                node={name: node} if kind == "recognisers" else node,
                provider=f"adjointdeis.{kind} of {target.__module__}",
            )


def described(target: Callable[..., Any]) -> dict[str, Any]:
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
