"""What every run and every written morph says about its origin."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import adjointdeis
from adjointdeis.evaluation.provenance import NOTICE, TEXT_KEY

_NOT_IDENTITY = (
    "paths",
    "logger",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.plugins",
    "force",
    "dry_run",
    "hydra",
    "threads",
    "optimisation.batch_size",
)
"""Keys that decide where and how a run is executed, but not what it computes."""
# What the name of a run's folder says already: groups that set `name`, and the name itself.
_IN_THE_NAME = ("experiment", "debug", "task", "name")


def config_hash(cfg: DictConfig) -> str:
    """Sixteen hexadecimal digits that identify what a configuration computes.

    Devices, loggers, paths, threads and the number of pairs at a time are left out: the same
    experiment on another machine is the same.
    """
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    for key in _NOT_IDENTITY:
        *parents, last = key.split(".")
        node: Any = plain
        for parent in parents:
            node = node.get(parent)
        if isinstance(node, dict):
            node.pop(last, None)
    return digest(plain)


def identifies(override: str) -> bool:
    """Whether an override changes what a run computes beyond what its folder is named after."""
    key = override.lstrip("+~").partition("=")[0]
    # Options of trainer differ in how a run is executed; what else they say has keys of its own.
    return key not in (*_IN_THE_NAME, "trainer") and not any(
        key == left_out or key.startswith((f"{left_out}.", f"{left_out}@"))
        for left_out in _NOT_IDENTITY
    )


def digest(values: Mapping[Any, Any]) -> str:
    """Sixteen hexadecimal digits of a JSON-like mapping, independent of the order of its keys."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def morph_text(attack: str, config: str, sources: Mapping[str, str]) -> dict[str, str]:
    """PNG text chunks of a morph.

    Args:
        attack: Name of the attack.
        config: Hash of the run's configuration.
        sources: SHA-256 of each source file by its name.
    """
    record = {
        "tool": "adjointdeis",
        "version": adjointdeis.__version__,
        "attack": attack,
        "config_hash": config,
        "source_hashes": dict(sources),
        "notice": NOTICE,
    }
    return {TEXT_KEY: json.dumps(record), "Description": NOTICE}


def git_revision() -> str | None:
    """Commit of this project's checkout, with ``+`` when it has uncommitted changes.

    None for an installed package, also where it lies inside somebody else's repository.
    """
    root = Path(adjointdeis.__file__).resolve().parent
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        if top.resolve() / "src" / "adjointdeis" != root:
            return None
        commit = _git(root, "rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, check=True, timeout=10
    )
    return os.fsdecode(done.stdout).strip()


def changes(former: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a record says of how a run is computed, where a former one of it says otherwise."""
    names = {"git": "revision", "machine": "machine", "versions": "packages"}
    found = [
        f"another {name} ({now[key]}, was {former[key]})" if key != "versions" else f"other {name}"
        for key, name in names.items()
        if former.get(key) and now[key] and former[key] != now[key]
    ]
    return ["other settings"] * (former.get("config_hash") != now["config_hash"]) + found


def environment() -> dict[str, Any]:
    """Versions and machine class of this process, without names or addresses."""
    import torch

    packages = ("torch", "lightning", "hydra-core", "numpy", "scipy", "torchmetrics", "dlib-bin")
    versions = {"python": platform.python_version(), "adjointdeis": adjointdeis.__version__}
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU"
    )
    return {"versions": versions, "machine": f"{device}, {torch.get_num_threads()} threads"}
