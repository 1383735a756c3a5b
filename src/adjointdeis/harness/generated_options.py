"""Options of the command line that no file of ours holds.

What other installed packages add (``gradient=their_method``), and every row of Table 1 as an
experiment of its own (``experiment=table1/dim_a``).
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
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
