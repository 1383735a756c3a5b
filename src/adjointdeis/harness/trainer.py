"""The Lightning trainer that the configuration describes, the same for every task."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from adjointdeis.harness.interruption import one_process
from adjointdeis.harness.processes import OwnSigterm
from adjointdeis.harness.validation import ConfigError


def make_trainer(cfg: DictConfig, **options: Any) -> L.Trainer:
    """A trainer on the devices, nodes and strategy of `cfg.trainer`.

    Every process is to see every batch: tasks deal out pairs and samples by themselves, since a
    sampler that pads would make a morph twice.

    Args:
        cfg: The whole configuration.
        options: Further arguments of `lightning.Trainer`; they win over the configuration's.
    """
    chosen, strategy = cfg.trainer, cfg.trainer.strategy
    plugins = None if chosen.plugins is None else list(instantiate(chosen.plugins))
    if plugins is None and one_process(chosen):
        # Else Lightning finds the tasks of a SLURM allocation around it and refuses their number.
        plugins = [LightningEnvironment()]
    callbacks = [*options.pop("callbacks", ()), OwnSigterm()]
    with _named(chosen):
        return L.Trainer(
            **{
                "accelerator": chosen.accelerator,
                "devices": chosen.devices,
                "num_nodes": chosen.num_nodes,
                "strategy": instantiate(strategy) if isinstance(strategy, DictConfig) else strategy,
                "plugins": plugins,
                "precision": chosen.precision,
                "enable_model_summary": False,
                "enable_progress_bar": False,  # its word for a run is "Epoch 0": see ProgressLine
                "use_distributed_sampler": False,
                "callbacks": callbacks,
                **options,
            }
        )


@contextlib.contextmanager
def _named(chosen: DictConfig) -> Iterator[None]:
    """What Lightning or torch refuses of a device or a precision is told of by its keys.

    Raises:
        ConfigError: In the place of their error.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, RuntimeError, TypeError) as error:
        keys = ("accelerator", "devices", "num_nodes", "precision")
        said = ", ".join(f"trainer.{key}={chosen[key]}" for key in keys)
        raise ConfigError(f"{said}: {' '.join(str(error).split())}") from error


def own_device(chosen: DictConfig) -> torch.device:
    """The device that Lightning will give to this process.

    Args:
        chosen: The group `trainer` of the configuration.
    """
    if chosen.accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = 0 if one_process(chosen) else int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", chosen.devices[rank] if OmegaConf.is_list(chosen.devices) else rank)
